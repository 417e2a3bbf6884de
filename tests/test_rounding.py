"""Training that rounds: what it computes, what it learns, and what becomes of the network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import DEFAULT, FakeBench, Killed, MemoryKeeper
from rule_nets import RULE_NETS
from small_nets import NETS, captured_net
from stripes import small_net, stripes, weights
from test_integers import compiled, multiplies_bytes, residual

from cprune.method.state import RunState
from cprune.network.capture import capture
from cprune.network.difference import difference
from cprune.network.folding import folded
from cprune.network.network import Network
from cprune.network.quantizing import inserted, measured, quantized, quantized_weight, rounded
from cprune.network.rounding import Rounding
from cprune.progress import Progress
from cprune.runs.events import Start
from cprune.targets.interval import Interval
from cprune.training.data import Data
from cprune.training.fine_tune import ROUNDING_COST, ROUNDING_PART, Schedule
from cprune.training.trainer import Checkpoint, DataTrainer

ALL_NETS = {**NETS, **RULE_NETS}


@pytest.fixture
def network() -> Network:
    model, images = residual()
    captured = capture(model, (images[:1],))
    captured.train()
    captured(images)  # statistics of BatchNorm that are not 0 and 1
    return captured.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return residual()[1]


def test_it_answers_as_the_network_in_integers(network: Network, images: torch.Tensor) -> None:
    plain = folded(network)
    means, steps = measured(network, [(images,)])
    integers = rounded(inserted(plain, steps), means).eval()  # biases are not corrected here
    with torch.no_grad():
        answered = Rounding(network, [(images,)]).eval()(images)
        assert torch.allclose(answered, integers(images), atol=2e-3)
        assert (answered - network(images)).abs().max() > 2e-3  # and not as the network in floats


def test_weights_learn_through_the_rounding_and_statistics_are_taken(network: Network, images: torch.Tensor) -> None:
    rounding = Rounding(network, [(images,)]).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    rounding(images).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in network.parameters())
    after = dict(network.named_buffers())
    moved = [name for name in before if name.endswith("running_mean") and not torch.equal(before[name], after[name])]
    assert moved


def test_settled_weights_are_what_int8_can_hold(network: Network, images: torch.Tensor) -> None:
    rounding = Rounding(network, [(images,)]).eval()
    with torch.no_grad():
        before = rounding(images)
        rounding.settle()
        assert torch.allclose(rounding(images), before, atol=1e-4)
    weight = dict(network.named_parameters())[next(n for n, p in network.named_parameters() if p.dim() == 4)]
    whole, scale = quantized_weight(weight)
    assert torch.allclose(whole.float() * scale.float().reshape(-1, 1, 1, 1), weight, atol=1e-7)


def test_folding_a_settled_network_rounds_to_the_same_integers(network: Network, images: torch.Tensor) -> None:
    rounding = Rounding(network, [(images,)]).eval()
    rounding.settle()
    for name, value in folded(network).named_parameters():
        if value.dim() == 4:
            mine, _ = quantized_weight(dict(network.named_parameters())[name])
            its, _ = quantized_weight(value)
            assert torch.equal(mine.abs(), its.abs())  # a channel may have been multiplied by a negative number


def test_the_two_parts_of_a_training_take_as_long_as_one() -> None:
    floats, rounding = Schedule(10.0, 0.02, varied=True, ema=True).parts()
    assert floats.epochs + ROUNDING_COST * rounding.epochs == pytest.approx(10.0)
    assert floats.epochs == pytest.approx(10 * (1 - ROUNDING_PART))
    assert rounding.lr < floats.lr
    assert (floats.ema, rounding.ema) == (False, True)


def test_training_that_rounds_brings_answers_in_integers_nearer(network: Network, images: torch.Tensor) -> None:
    wanted = torch.randn(8, 10, generator=torch.Generator().manual_seed(1)) * 0.1

    def apart() -> float:
        with torch.no_grad():
            return float((quantized(network, [(images,)]).eval()(images) - wanted).square().mean())

    before = apart()
    rounding = Rounding(network, [(images,)])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        (rounding.eval()(images) - wanted).square().mean().backward()
        optimizer.step()
    rounding.settle()
    assert apart() < 0.8 * before


@pytest.mark.parametrize("name", sorted(ALL_NETS))
def test_every_network_rounds_in_training_as_it_does_in_integers(name: str) -> None:
    made = captured_net(ALL_NETS[name])
    plain = folded(made.network)
    means, steps = measured(made.network, [made.example])
    integers = rounded(inserted(plain, steps), means).eval()
    rounding = Rounding(deepcopy(made.network), [made.example]).eval()
    with torch.no_grad():
        apart = difference(rounding(*made.example), integers(*made.example))
    assert apart <= 0.02  # a value at a tie between two steps may fall to either


@pytest.mark.slow
@multiplies_bytes
@pytest.mark.parametrize("name", ["Padded", "Depthwise", "Grouped", "UsedTwice", "Shuffled", "Gated", "Sliced"])
def test_every_network_in_integers_is_compiled_to_what_pytorch_computes(name: str) -> None:
    made = captured_net(ALL_NETS[name])
    network = quantized(made.network, [made.example]).eval()
    _, output = compiled(network, made.example)
    with torch.no_grad():
        wanted = network(*made.example).numpy()
    assert np.abs(output - wanted).max() <= 0.05 * np.abs(wanted).max()


ONE = Interval(1.0, 1.0, 1.0)
COSTLY = Start(0.9, 0.9, 0.89, 0.89, 16, 1, ONE, certify=0.9, precision="int8", integers_lose=0.005)


class KilledAt(Progress):
    """Kills the process, so to say, at the step of that number."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def advance(self, count: int = 1) -> None:
        self.left -= count
        if self.left <= 0:
            raise Killed


def trained_in_a_run(path: Path, kills: Sequence[int]) -> torch.Tensor:
    """Return the weights after a training in a run in integers that is killed and goes on."""
    parts = {part: stripes(128, seed) for seed, part in enumerate(("train", "decide", "certify", "report"))}
    data = Data("stripes", **parts, classes=2, augment=True)
    example = (torch.zeros(1, 1, 8, 8),)
    for kill in (*kills, 10_000):
        network = capture(small_net(), example)
        trainer, settings = DataTrainer(data, small_net(1), threads=1), replace(DEFAULT, precision="int8")
        run = RunState(network, example, trainer, FakeBench(), settings, MemoryKeeper([COSTLY]), KilledAt(kill))
        with suppress(Killed):
            run.fine_tune(network, Schedule(5.0, 0.02, varied=True, ema=True, batch=32), 3, Checkpoint(path, every_s=0))
    return weights(network)


def test_a_killed_training_that_rounds_ends_bit_for_bit_where_it_would_have_ended(tmp_path: Path) -> None:
    # 5 epochs of 4 steps: 14 in floats, and 4 that round
    whole = trained_in_a_run(tmp_path / "whole.training", [])
    assert torch.equal(trained_in_a_run(tmp_path / "killed.training", [3, 13, 16, 2]), whole)
    assert {path.suffix for path in tmp_path.iterdir()} == {".training", ".rounding"}
    checkpoint = Checkpoint(tmp_path / "whole.training")
    checkpoint.beside("rounding")
    checkpoint.discard()
    assert {path.stem for path in tmp_path.iterdir()} == {"killed"}
