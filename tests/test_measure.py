from __future__ import annotations

import random

import pytest

from cprune.targets.errors import BrokenWorld
from cprune.targets.interval import Interval, interval
from cprune.targets.measure import compare, sustained
from cprune.targets.mock import MockSession
from cprune.targets.session import Failure
from cprune.targets.timing import models_in_turns


def test_fifteen_values_give_the_fourth_and_the_twelfth() -> None:
    # binomial(15, 1/2): P(X < 4) = 0.0176 <= 0.025 < P(X < 5) = 0.0592, so four values count from either end
    assert interval(range(1, 16)) == Interval(8, 4, 12)


def test_five_values_are_too_few_and_give_their_range() -> None:
    assert interval([3, 1, 2, 5, 4]) == Interval(3, 1, 5)


def test_an_outlier_moves_neither_median_nor_interval() -> None:
    calm = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.08, 1.09, 1.1]
    assert interval([*calm[:-1], 100.0]) == interval(calm)


def test_the_interval_covers_the_true_median_about_95_times_in_100() -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(400):
        found = interval([rng.gauss(0, 1) for _ in range(15)])
        covered += found.low <= 0 <= found.high
    assert 0.93 < covered / 400 <= 1.0


class _Turns(MockSession):
    """Answers `time_models` with scripted rounds."""

    def __init__(self, *answers: object) -> None:
        super().__init__(lambda *_: Failure("run", ""))
        self.answers = list(answers)

    def time_models(self, keys, inputs, rounds, run_ms):  # type: ignore[no-untyped-def]
        return self.answers.pop(0)


def test_a_drift_that_hits_both_models_leaves_the_ratio_alone() -> None:
    slow = [1 + 0.1 * i for i in range(15)]
    turns = _Turns({"a": tuple(1e-3 * s for s in slow), "b": tuple(0.5e-3 * s for s in slow)})
    found = compare(turns, "a", "b", (), 15, 1.0)
    assert found.ratio.low == pytest.approx(0.5)
    assert found.ratio.high == pytest.approx(0.5)
    assert found.old_ms.median == pytest.approx(1.7)


def test_a_noisy_comparison_gets_more_rounds_and_all_of_them_count() -> None:
    noisy = {"a": (1.0,) * 6, "b": (0.5, 0.9, 1.3, 0.7, 1.1, 1.5)}
    calm = {"a": (1.0,) * 30, "b": (0.9,) * 30}
    turns = _Turns(noisy, calm)
    assert compare(turns, "a", "b", (), 6, 1.0).ratio == Interval(0.9, 0.9, 0.9)
    assert turns.answers == []


def test_a_gain_that_the_first_rounds_leave_open_is_looked_at_again() -> None:
    # six rounds give their range, 0.93 to 1.01: 1 is in it.  Of twelve the third and the tenth count: 0.95 to 0.99.
    first = {"a": (1.0,) * 6, "b": (0.93, 0.95, 0.97, 0.97, 0.99, 1.01)}
    turns = _Turns(first, first, first)
    found = compare(turns, "a", "b", (), 6, 1.0, beta=0.99)
    assert found.ratio == Interval(0.97, 0.95, 0.99)
    assert found.faster(0.99)
    assert len(turns.answers) == 1


def test_what_is_clearly_no_gain_is_not_looked_at_again_and_what_stays_open_only_four_times() -> None:
    slower, open_ = {"a": (1.0,) * 6, "b": (1.02,) * 6}, {"a": (1.0,) * 6, "b": (0.98,) * 3 + (1.01,) * 3}
    turns = _Turns(slower, slower)
    assert not compare(turns, "a", "b", (), 6, 1.0, beta=0.99).faster(0.99)
    assert len(turns.answers) == 1
    turns = _Turns(*[open_] * 5)
    assert not compare(turns, "a", "b", (), 6, 1.0, beta=0.99).faster(0.99)
    assert len(turns.answers) == 1


def test_a_model_that_stops_running_is_a_broken_world() -> None:
    with pytest.raises(BrokenWorld, match="stopped running"):
        compare(_Turns(Failure("timeout", "no answer")), "a", "b", (), 6, 1.0)


def test_a_processor_that_slows_down_under_load_is_told_by_peak_and_sustained() -> None:
    throttled = (1e-3,) * 4 + (1.2e-3,) * 2 + (1.5e-3,) * 6
    found = sustained(_Turns({"model": throttled}), "model", (), 2.0)
    assert (found.peak_ms, found.sustained_ms) == (1.0, 1.5)
    with pytest.raises(BrokenWorld, match="stopped running"):
        sustained(_Turns(Failure("run", "gone")), "model", ())


def test_models_take_turns_and_all_their_weights_move_every_five_rounds() -> None:
    said: list[str] = []

    def seconds(key: str, number: int) -> float:
        said.append(f"{key}{number}")
        return {"a": 0.05, "b": 0.02}[key]

    found = models_in_turns(["a", "b"], lambda key: said.append(f"move {key}"), seconds, 6, 0.1, 0.0)
    assert found == {"a": (0.05,) * 6, "b": (0.02,) * 6}
    turns = [["b5", "a2"], ["a2", "b5"]]  # 0.1 s are 2 runs of 0.05 s and 5 of 0.02 s
    before = ["move a", "move b", "a1", "b1", *turns[0], *turns[1], *turns[0], *turns[1], *turns[0]]
    assert said == [*before, "move a", "move b", *turns[1], *turns[0]]
