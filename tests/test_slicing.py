"""Slices of a layer for several cores: what is copied, what is computed, and that the simulation ends."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba", reason="the simulated accelerator needs numba (extra npu)")

from cprune.targets.npu import stream as at
from experiments import slicing
from experiments.slicing import Layer, Machine, Slicing

LAYER = Layer("", 8, 16, 16, 3, 1)
EIGHTH = (4, 8, 8, 8)
"""Four rows of eight, whole columns, half of the outputs and of the inputs: eight slices."""


def code(stationary: str) -> np.ndarray:
    one = Slicing(stationary, *EIGHTH)
    return slicing.stream_of(LAYER, one, slicing.ordered(LAYER, one), Machine(cores=1)).code


@pytest.mark.parametrize("stationary", slicing.STATIONARY)
def test_the_slices_multiply_all_there_is_whatever_stays(stationary: str) -> None:
    products = code(stationary)[code(stationary)[:, at.OP] == at.GEMM]
    assert len(products) == 8
    assert products[:, at.UOPS].sum() * 16 == 8 * 8 * 16 * 9 * 16


@pytest.mark.parametrize(
    ("stationary", "weights", "stores"),
    [
        ("weight", 4, 8),  # four parts of the weights, loaded once each; every slice's sums go out
        ("input", 8, 8),
        ("output", 8, 4),  # four parts of the output, each stored once
    ],
)
def test_what_stays_is_copied_once(stationary: str, weights: int, stores: int) -> None:
    rows = code(stationary)
    assert (rows[:, at.OP] == at.LOAD_WEIGHT).sum() == weights
    stored = rows[rows[:, at.OP] == at.STORE]
    assert (stored[:, at.ROWS] * stored[:, at.COLUMNS]).sum() == stores * 4 * 8 * 8


def test_a_part_is_copied_in_as_few_rows_as_memory_allows() -> None:
    def rows(sizes: tuple[int, int, int]) -> list[tuple[int, int]]:
        return [(row[at.ROWS], row[at.COLUMNS]) for row in slicing.copies(at.LOAD_INPUT, (0, 0, 0), sizes, 8)]

    assert rows((4, 8, 8)) == [(1, 256)]  # whole planes lie one behind the other
    assert rows((4, 2, 8)) == [(4, 16)]  # whole rows of each
    assert rows((4, 8, 2)) == [(32, 2)]
    assert rows((2, 2, 2)) == [(2, 2), (2, 2)]  # a part of a plane, channel by channel


@pytest.mark.parametrize("stationary", slicing.STATIONARY)
def test_more_cores_are_faster_and_wait_for_one_port(stationary: str) -> None:
    one, four = (slicing.simulated(LAYER, Slicing(stationary, *EIGHTH), Machine(cores=n)) for n in (1, 4))
    assert one / 4 < four < one


def test_a_depthwise_layer_reads_the_channels_that_it_writes() -> None:
    layer = Layer("", 8, 16, 16, 3, 1, groups=16)
    one = Slicing("output", 8, 8, 8, 1)
    stream = slicing.stream_of(layer, one, slicing.ordered(layer, one), Machine(cores=1))
    loads = stream.code[stream.code[:, at.OP] == at.LOAD_INPUT]
    assert loads[:, at.OUTSIDE].tolist() == [0, 8 * 64]
    assert (loads[:, at.ROWS] * loads[:, at.COLUMNS]).tolist() == [8 * 64, 8 * 64]
