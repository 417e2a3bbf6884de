"""What a tuned model does in a session, without a compiler: what it computes there is a function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from cprune.compiling.lowered import Layout
from cprune.compiling.lowering import lower
from cprune.compiling.tuned import Tuned
from cprune.network.capture import capture
from cprune.targets.errors import BrokenWorld
from cprune.targets.mock import MockSession
from cprune.targets.session import Array, Failure, Model
from cprune.tuner.programs.space import candidates
from cprune.tuner.tune import Best

X = (torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8),)
VECTOR, REGISTERS = 8, 16


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    """Three convolutions; the program of every task takes 2 ms and was found with 5 trials."""
    torch.manual_seed(0)
    network = capture(nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))).eval(), X)
    lowered = lower(network, X, Layout(VECTOR))
    best = {
        task.key: Best(task.key, candidates(task.workload, VECTOR, REGISTERS, 1)[0], 2e-3, 5)
        for task in lowered.tasks()
    }
    return Tuned(network, X, lowered, best)


def right(tuned: Tuned) -> Array:
    with torch.no_grad():
        output: Array = tuned.network.eval()(*X).numpy()
    return output


def test_what_pytorch_computes_too_is_loaded_and_returned(tuned: Tuned) -> None:
    asked: list[Sequence[Array]] = []

    def outputs(model: Model, inputs: Sequence[Array]) -> tuple[Array, ...]:
        asked.append(inputs)
        return (right(tuned),)

    session = MockSession(outputs=outputs)
    (output,) = tuned.load(session, "model")
    assert np.array_equal(output, right(tuned))
    assert np.array_equal(asked[0][0], X[0].numpy())  # it was run on the example
    assert session.models["model"].weights  # and is held under the name it was given


def test_sums_in_another_order_are_not_wrong_and_a_thousandth_of_the_magnitude_is(tuned: Tuned) -> None:
    magnitude = max(1.0, float(np.abs(right(tuned)).max()))
    nearly = right(tuned) + np.float32(0.9e-3 * magnitude)
    tuned.load(MockSession(outputs=lambda *_: (nearly,)), "model")
    wrong = right(tuned) + np.float32(1.1e-3 * magnitude)
    with pytest.raises(BrokenWorld, match=r"differs from PyTorch by 0\.0011; nothing was changed"):
        tuned.load(MockSession(outputs=lambda *_: (wrong,)), "model")


@pytest.mark.parametrize("change", [lambda y: y[:, :3], lambda y: y * np.float32("nan")])
def test_another_shape_or_no_numbers_are_infinitely_far_away(tuned: Tuned, change: object) -> None:
    outputs = (change(right(tuned)),)  # type: ignore[operator]
    with pytest.raises(BrokenWorld, match="differs from PyTorch by inf"):
        tuned.load(MockSession(outputs=lambda *_: outputs), "model")


def test_a_model_that_does_not_run_is_a_broken_world_and_data_to_whoever_asks_for_it(tuned: Tuned) -> None:
    failed = Failure("run", "out of memory")
    session = MockSession(outputs=lambda *_: failed)
    assert tuned.run(session, "model") == failed
    with pytest.raises(BrokenWorld, match=r"does not work \(run\): out of memory"):
        tuned.load(session, "model")


def test_the_forecast_counts_every_use_of_a_task_and_the_trials_every_task_once(tuned: Tuned) -> None:
    # the first convolution takes plain channels, the other two are one task in blocks, and the output becomes plain
    assert sorted(task.uses for task in tuned.lowered.tasks()) == [1, 1, 2]
    assert tuned.forecast_s == pytest.approx(4 * 2e-3)
    assert tuned.trials == 3 * 5
