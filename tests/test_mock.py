"""The session without a machine does what the others do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from contracts import SessionContract
from kernels import scaling, tripled

from cprune.targets.mock import MockSession
from cprune.targets.session import Array, Failure, Model, Program, Timed


def answer(program: Program, given: Sequence[Array] | None) -> Timed:
    """Return two runs; the output is known by the program's text."""
    factor = np.float32(3 if program == tripled() else 2)
    return Timed((1e-6, 2e-6), None if given is None else factor * given[0])


def outputs(model: Model, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """Return the input times the only weight."""
    return (inputs[0] * model.weights[0],)


@pytest.fixture
def session() -> MockSession:
    return MockSession(answer, latency_s=lambda model: 1e-6 * float(model.weights[0][0]), outputs=outputs)


class TestSession(SessionContract):
    """A table does what a machine does, as long as nothing crashes."""


def test_models_are_timed_by_the_function_round_by_round(session: MockSession) -> None:
    session.load("double", scaling(2.0))
    session.load("triple", scaling(3.0))
    seconds = session.time_models(["triple", "double"], [], 2, 1.0)
    assert seconds == {"triple": pytest.approx((3e-6,) * 2), "double": pytest.approx((2e-6,) * 2)}


def test_a_model_that_is_not_held_is_a_failure(session: MockSession) -> None:
    session.load("model", scaling(2.0))
    session.drop("model")
    absent = Failure("run", "no model 'model' is held")
    assert session.time_models(["model"], [], 2, 1.0) == session.run("model", []) == absent


def test_what_a_mock_was_not_told_is_a_failure() -> None:
    session = MockSession()
    session.load("model", scaling(2.0))
    assert isinstance(session.run("model", []), Failure)
    assert isinstance(session.time_models(["model"], [], 2, 1.0), Failure)
    assert [type(each) for each in session.time(session.build([tripled()]))] == [Failure]  # type: ignore[arg-type]
