from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from cprune.targets.errors import BrokenWorld
from cprune.targets.interval import Comparison, Interval, interval, one_level
from cprune.targets.measure import compare, sustained
from cprune.targets.mock import MockSession
from cprune.targets.session import Failure, Model
from cprune.targets.timing import models_in_turns, runs_in_turns, weight_sets


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


def turns(**seconds: Sequence[float]) -> tuple[MockSession, dict[str, list[float]]]:
    """A session that holds a model of every name, and what its rounds to come take: the first number is the next."""
    left = {name: list(rounds) for name, rounds in seconds.items()}
    session = MockSession(latency_s=lambda model: left[model.module].pop(0))
    for name in seconds:
        session.load(name, Model(name, (), ()))
    return session, left


def failing() -> MockSession:
    """A session whose models are there and stop running."""
    session = MockSession(latency_s=lambda _: Failure("timeout", "no answer"))
    for name in ("a", "b"):
        session.load(name, Model(name, (), ()))
    return session


def test_a_drift_that_hits_both_models_leaves_the_ratio_alone() -> None:
    slow = [1 + 0.1 * i for i in range(15)]
    session, left = turns(a=[1e-3 * s for s in slow], b=[0.5e-3 * s for s in slow])
    found = compare(session, "a", "b", (), 15, 1.0)
    assert found.ratio.low == pytest.approx(0.5)
    assert found.ratio.high == pytest.approx(0.5)
    assert found.old_ms.median == pytest.approx(1.7)
    assert left == {"a": [], "b": []}


def test_a_noisy_comparison_gets_more_rounds_and_all_of_them_count() -> None:
    # The first look has 6 rounds, the second 6 more, the third 12 more: 24 in all, 18 of them at 0.9.
    session, left = turns(a=[1.0] * 60, b=[0.5, 0.9, 1.3, 0.7, 1.1, 1.5, *[0.9] * 54])
    assert compare(session, "a", "b", (), 6, 1.0).ratio == Interval(0.9, 0.9, 0.9)
    assert len(left["a"]) == len(left["b"]) == 60 - 24


def test_a_gain_that_the_first_rounds_leave_open_is_looked_at_again() -> None:
    # six rounds give their range, 0.93 to 1.01: 1 is in it.  Of twelve the third and the tenth count: 0.95 to 0.99.
    session, left = turns(a=[1.0] * 18, b=[0.93, 0.95, 0.97, 0.97, 0.99, 1.01] * 3)
    found = compare(session, "a", "b", (), 6, 1.0, beta=0.99)
    assert found.ratio == Interval(0.97, 0.95, 0.99)
    assert found.faster(0.99)
    assert len(left["b"]) == 6


def test_what_is_clearly_no_gain_is_not_looked_at_again() -> None:
    session, left = turns(a=[1.0] * 12, b=[1.02] * 12)
    assert not compare(session, "a", "b", (), 6, 1.0, beta=0.99).faster(0.99)
    assert len(left["b"]) == 6


def test_what_stays_open_is_looked_at_four_times_with_eight_times_the_rounds() -> None:
    session, left = turns(a=[1.0] * 60, b=[0.98, 1.01] * 30)
    assert not compare(session, "a", "b", (), 6, 1.0, beta=0.99).faster(0.99)
    assert len(left["b"]) == 60 - 8 * 6


def test_what_stays_wider_than_a_tenth_is_not_believed_however_fast_it_seems() -> None:
    session, left = turns(a=[1.0] * 48, b=[0.5, 0.9] * 24)
    found = compare(session, "a", "b", (), 6, 1.0, beta=0.99)
    assert found.ratio == Interval(0.7, 0.5, 0.9)
    assert not found.believable
    assert not found.faster(0.99)
    assert left["b"] == []


def test_a_tenth_of_the_median_is_still_believed() -> None:
    one = Interval(1.0, 1.0, 1.0)
    assert Comparison(one, one, Interval(0.5, 0.48, 0.529)).faster(0.99)
    assert not Comparison(one, one, Interval(0.5, 0.48, 0.54)).faster(0.99)


def test_a_ratio_contradicts_a_forecast_that_is_more_than_ten_percent_off() -> None:
    one = Interval(1.0, 1.0, 1.0)
    found = Comparison(one, one, Interval(0.5, 0.5, 0.5))
    assert not found.contradicts(0.54)
    assert not found.contradicts(0.46)
    assert found.contradicts(0.56)
    assert found.contradicts(0.45)


def test_two_speeds_of_the_machine_are_two_levels_and_an_outlier_or_a_drift_is_none() -> None:
    assert one_level([1.0, 1.01, 1.5, 1.02, 1.51, 1.52, 1.0]) == [0, 1, 3, 6]
    assert one_level([1.5, 1.0, 1.5, 1.01, 1.5, 1.5, 1.02]) == [0, 2, 4, 5]
    assert one_level([1.0, 1.5, 1.0, 1.5, 1.0, 1.5]) == [0, 2, 4]
    assert one_level([1.0] * 9 + [5.0, 6.0]) == list(range(11))
    assert one_level([1 + 0.05 * i for i in range(20)]) == list(range(20))
    assert one_level([1.0, 2.0]) == [0, 1]


def test_a_machine_that_changes_its_speed_is_waited_for() -> None:
    # Three rounds at half the speed, where the new model gains nothing; then the machine is fast again.
    session, left = turns(a=[2.0] * 3 + [1.0] * 30, b=[2.0] * 3 + [0.8] * 30)
    found = compare(session, "a", "b", (), 6, 1.0, beta=0.99)
    assert found.ratio == Interval(0.8, 0.8, 0.8)
    assert found.set_aside == 3
    assert len(left["a"]) == 33 - 12


def test_a_model_that_stops_running_is_a_broken_world() -> None:
    with pytest.raises(BrokenWorld, match=r"stopped running \(timeout\): no answer"):
        compare(failing(), "a", "b", (), 6, 1.0)
    session, _ = turns(a=[1.0] * 6)
    with pytest.raises(BrokenWorld, match=r"stopped running \(run\): no model 'b' is held"):
        compare(session, "a", "b", (), 6, 1.0)


def test_a_processor_that_slows_down_under_load_is_told_by_peak_and_sustained() -> None:
    # Twelve windows: the median of the first three and that of the last six.
    session, left = turns(model=[1e-3] * 4 + [1.2e-3] * 2 + [1.5e-3] * 6)
    found = sustained(session, "model", (), 2.0)
    assert (found.seconds, found.peak_ms, found.sustained_ms) == (2.0, 1.0, 1.5)
    assert left == {"model": []}
    with pytest.raises(BrokenWorld, match="stopped running"):
        sustained(failing(), "a", ())


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


class Lying:
    """A tensor by its shape, and whose copy it is."""

    device = "cpu"

    def __init__(self, *shape: int, of: Lying | None = None, dtype: str = "float32") -> None:
        self.shape, self.of, self.dtype = shape, of, dtype

    def copyto(self, device: str) -> Lying:
        return Lying(*self.shape, of=self, dtype=self.dtype)


def test_weights_lie_in_as_many_places_as_fill_the_caches_and_activations_in_one() -> None:
    x, weight, bias, output = Lying(1, 8, 8), Lying(64, 64), Lying(1, 64), Lying(1, 8, 8)
    one = 4 * (64 * 64 + 64)
    sets = weight_sets([x, weight, bias, output], 3 * one)
    assert [s[1].of for s in sets] == [None, weight, weight]
    assert [s[2].of for s in sets] == [None, bias, bias]
    assert all(s[0] is x and s[-1] is output for s in sets)
    assert len(weight_sets([x, weight, bias, output], 100 * one)) == 16  # small weights stay near in a model too
    assert len(weight_sets([x, weight, bias, output], one // 2)) == 2
    assert len(weight_sets([x, weight, bias, output], 0)) == 1
    assert len(weight_sets([x, output], one)) == 1


def test_weights_of_bytes_lie_in_four_times_as_many_places() -> None:
    x, output = Lying(1, 8, 8), Lying(1, 8, 8)
    floats, integers = (
        weight_sets([x, Lying(64, 64, dtype=kind), output], 8 * 64 * 64) for kind in ("float32", "int8")
    )
    assert (len(floats), len(integers)) == (2, 8)


def test_every_call_of_a_run_has_the_next_set() -> None:
    asked: list[tuple[int, ...]] = []
    library = {"main": lambda *given: asked.append(given)}
    assert len(runs_in_turns(library, None, [[1], [2], [3]], 2, 0.5, 0.1, 0.0)) == 2
    assert asked == [(1,), (2,), (3,), (1,), (2,)] * 2  # 0.5 s are five calls of 0.1 s
