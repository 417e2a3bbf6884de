"""The layout of the whole model follows what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cprune.compiling.layout import choose_block, choose_widths
from cprune.compiling.lowered import Layout
from cprune.compiling.lowering import lower
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.progress import Progress
from cprune.targets.mock import MockSession
from cprune.targets.session import Array, Failure, Program, Timed
from cprune.targets.target import Target
from cprune.tuner.programs import reference
from cprune.tuner.records.store import Store
from cprune.tuner.tune import Tuner

X = (torch.randn(1, 16, 8, 8),)


@pytest.fixture(scope="module")
def network() -> Network:
    """Widths 16, 24, 40, 16: the two in the middle fit blocks of 8 better than blocks of 16."""
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((16, 24), (24, 40), (40, 16))]
    return capture(nn.Sequential(*layers), X)


@pytest.fixture
def tuner(tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Cost], Tuner]]:
    """Make a tuner for a machine of 16 lanes on which a program takes what `cost` says of its shapes."""
    monkeypatch.setattr(reference, "agrees", lambda *_: "")
    stores: list[Store] = []

    def make(cost: Cost) -> Tuner:
        stores.append(Store(tmp_path / f"{len(stores)}.sqlite"))

        def answer(program: Program, given: Sequence[Array] | None) -> Timed | Failure:
            return Timed((1e-6 * cost(program.shapes),) * 3, np.zeros(1, np.float32))

        return Tuner(MockSession(answer), stores[-1], replace(target, vector=16, vector_registers=32))

    yield make
    for store in stores:
        store.close()


Shapes = tuple[tuple[int, ...], ...]
Cost = Callable[[Shapes], float]


def size(shapes: Shapes) -> float:
    return float(sum(math.prod(s) for s in shapes))


def test_half_blocks_are_taken_where_less_memory_is_faster(network: Network, tuner: Callable[[Cost], Tuner]) -> None:
    layout = choose_widths(network, X, Layout(16), tuner(size), 32, {}, Progress())
    assert layout == Layout(16, narrow=(24, 40))


def test_full_blocks_stay_where_half_vectors_are_slow(network: Network, tuner: Callable[[Cost], Tuner]) -> None:
    def half_vectors_cost_double(shapes: Shapes) -> float:
        return size(shapes) * (2 if shapes[-1][-1] == 8 else 1)

    layout = choose_widths(network, X, Layout(16), tuner(half_vectors_cost_double), 32, {}, Progress())
    assert layout == Layout(16)


def test_a_width_is_taken_back_when_it_was_narrow_before(network: Network, tuner: Callable[[Cost], Tuner]) -> None:
    def slow(shapes: Shapes) -> float:
        return size(shapes) * (2 if shapes[-1][-1] == 8 else 1)

    assert choose_widths(network, X, Layout(16, narrow=(24,)), tuner(slow), 32, {}, Progress()) == Layout(16)


def test_the_block_is_half_a_vector_only_where_that_is_clearly_faster(
    network: Network, tuner: Callable[[Cost], Tuner]
) -> None:
    def halves(share: float) -> Cost:
        return lambda shapes: 1000.0 * (share if shapes[-1][-1] == 8 else 1)

    # Blocks of 8 also have fewer padded multiplications (24 and 40 channels instead of 32 and 48): seconds each count.
    macs = {b: sum(t.workload.macs for t in lower(network, X, b).tasks()) for b in (8, 16)}
    even = macs[8] / macs[16]
    assert choose_block(network, X, tuner(halves(0.95 * even)), 32, Progress()) == 16
    assert choose_block(network, X, tuner(halves(0.8 * even)), 32, Progress()) == 8
