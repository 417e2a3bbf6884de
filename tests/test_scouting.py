"""Scouts on a front that was made by hand: which allocations are timed, trained and chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from fakes import DEFAULT, FakeTrainer, MemoryKeeper, Seen, a_run, seen, tiny

from cprune.method.allocation import Allocation
from cprune.method.beginning import begin
from cprune.method.planning import Plan
from cprune.method.scouting import Scout, Scouting, next_share
from cprune.method.seconds import Budget
from cprune.method.state import RunState
from cprune.network.network import Network
from cprune.runs.events import Scouted


def allocation(percent: int, damage: float) -> Allocation:
    """Return one that is forecast to take so much of the latency; "a" has as many channels."""
    return Allocation((("a", percent),) if percent < 100 else (), (), percent / 100, damage)


FRONT = tuple(allocation(percent, damage) for percent, damage in ((100, 0), (80, 1), (60, 2), (40, 4), (20, 8)))


@dataclass(eq=False)
class FakePlan:
    """A front of hand-made allocations.  What is cut says in its head which one it is: 100 epochs for each percent."""

    front: tuple[Allocation, ...] = FRONT
    asked: list[float] = field(default_factory=list)

    def share(self, one: Allocation) -> float:
        return one.seconds / self.front[0].seconds

    def near(self, share: float, count: int) -> list[Allocation]:
        self.asked.append(share)
        return sorted(self.front[1:], key=lambda one: abs(math.log(self.share(one) / share)))[:1]

    def cut(self, one: Allocation) -> Network:
        network = tiny()
        with torch.no_grad():
            dict(network.named_parameters())["head.bias"][0] = 100 * round(100 * one.seconds)
        return network


def percent(model: Seen) -> int:
    """Return which allocation a network is of; 0 for the unpruned one."""
    return int(model.epochs // 100)


def losing(points: dict[int, float]) -> FakeTrainer:
    """Return a trainer whose unpruned model has 90 %, and whose allocations lose so many points of it."""
    return FakeTrainer(lambda m: 0.9 - points.get(percent(m), 0.0) / 100, images=10_000)


def scouting(
    plan: FakePlan,
    trainer: FakeTrainer,
    keeper: MemoryKeeper | None = None,
    timed: Callable[[int], float] = lambda percent: percent / 100,
) -> tuple[Scouting, RunState]:
    run = a_run(trainer=trainer, keeper=keeper, settings=replace(DEFAULT, train_time_s=100.0))
    begin(run)
    made: Any = plan
    return Scouting(run, 0, made, Budget(100.0, 8), lambda network: timed(percent(seen(network)))), run


def told(scout: Scout) -> tuple[int, int, float]:
    """Return the number of a scout, its percent of the latency by the forecast, and the points that it lost."""
    return scout.number, round(100 * scout.allocation.seconds), round(100 * scout.lost, 6)


def test_the_search_ends_with_the_scout_that_loses_what_is_looked_for() -> None:
    plan = FakePlan()
    search, run = scouting(plan, losing({60: 0.5, 40: 1.1, 20: 6}))
    # 0.6 loses half of the aim of 1 point: a cube root of 2 further is 0.476, whose nearest is 0.4; 1.1 is near enough
    assert told(search.found(0.6, 4, lambda law: 0.01)) == (1, 40, 1.1)
    assert plan.asked == [0.6, pytest.approx(0.6 / 2 ** (1 / 3))]
    assert [scout.epochs for scout in run.history.scouted.values()] == [4.0, 4.0]  # 4 % of 100 s
    assert [round(s.forecast, 6) for s in run.history.scouted.values()] == [0.6, 0.4]


def test_scouts_whose_answers_are_as_near_are_thought_to_have_lost_as_much() -> None:
    trainer = losing({60: 0.4, 40: 0.9, 20: 2.0})
    plan = FakePlan()
    assert told(scouting(plan, trainer)[0].found(0.6, 3, lambda law: 0.01)) == (1, 40, 0.9)
    assert len(plan.asked) == 2
    trainer.divergence = lambda m: {60: 0.020, 40: 0.021}.get(percent(m))
    # The line that lies nearest, of those that begin at a twentieth of 0.020 or another, begins at 0.019: 432 points a
    # nat, so 0.43 and 0.86 of 0.001 and 0.002.  None lost what is looked for, and one more is trained.
    plan = FakePlan()
    number, share, lost = told(scouting(plan, trainer)[0].found(0.6, 3, lambda law: 0.013))
    assert (number, share) == (1, 40)
    assert lost == pytest.approx(0.864, abs=1e-3)
    assert len(plan.asked) == 3


def test_between_two_scouts_that_are_close_none_is_trained() -> None:
    front = tuple(allocation(percent, damage) for percent, damage in ((100, 0), (70, 1), (60, 2), (50, 3)))
    search, run = scouting(FakePlan(front), losing({60: 1.8, 70: 0.5}))
    # 0.6 lost too much: 0.6 x 1.8^(1/3) = 0.73 comes next, whose nearest is 0.7, 1.17 times as slow.  Between them lies
    # 0.64, and its nearest is known.
    assert told(search.found(0.6, 4, lambda law: 0.01)) == (1, 70, 0.5)
    assert len(run.history.scouted) == 2


def test_the_search_stays_between_the_scouts_that_lost_too_much_and_too_little() -> None:
    class All(FakePlan):
        def near(self, share: float, count: int) -> list[Allocation]:
            self.asked.append(share)
            return list(self.front[1:])

    points = ((100, 0), (77, 0.5), (66, 3), (62, 5), (57, 2.01), (56, 2))
    plan = All(tuple(allocation(percent, damage) for percent, damage in points))
    search, run = scouting(plan, losing({56: 2, 77: 0.1, 57: 1.9, 66: 0.9}))
    # 0.56 x 2^(1/3) = 0.71; ln 10 / ln 20 = 0.77 of the way from 0.77 to 0.56 is 0.60, where 0.57 has the least damage
    # for its latency; it lost too much as well, so that only 0.62 and 0.66 are left.
    assert told(search.found(0.56, 4, lambda law: 0.01)) == (3, 66, 0.9)
    assert [round(share, 2) for share in plan.asked] == [0.56, 0.71, 0.6, 0.61]
    assert [round(100 * scout.share) for scout in run.history.scouted.values()] == [56, 77, 57, 66]


def test_no_more_scouts_are_trained_than_asked_for_and_the_fastest_good_one_is_chosen() -> None:
    search, run = scouting(FakePlan(), losing({}))
    # None loses anything, which counts as a tenth of the aim: each step is the longest, a factor of exp(-0.5) = 0.607
    assert told(search.found(0.8, 2, lambda law: 0.01)) == (1, 40, 0.0)  # 0.8 * 0.607 = 0.485
    assert len(run.history.scouted) == 2


def test_an_allocation_that_was_a_scout_is_none_again() -> None:
    search, run = scouting(FakePlan(FRONT[:3]), losing({80: 0.1, 60: 0.5}))
    assert told(search.found(0.6, 4, lambda law: 0.01)) == (0, 60, 0.5)  # nothing faster is left on this front
    assert len(run.history.scouted) == 1


@pytest.mark.parametrize(
    ("between", "found"),
    # 0.8 lost a fifth of the aim, and 0.52 twice of it: ln 5 / ln 10 = 0.7 of the way is 0.8 * 0.65 ** 0.7 = 0.59
    [(66, (2, 66, 1.0)), (90, (0, 80, 0.2))],
)
def test_between_a_scout_that_lost_less_and_one_that_lost_more_the_allocation_between_is_kept_untrained(
    between: int, found: tuple[int, int, float]
) -> None:
    front = sorted((allocation(percent, 100 - percent) for percent in (100, 80, between, 52)), key=lambda a: a.damage)
    plan = FakePlan(tuple(front))
    search, run = scouting(plan, losing({80: 0.2, 52: 2.0}))
    assert told(search.found(0.8, 2, lambda law: 0.01)) == found
    assert plan.asked == [0.8, pytest.approx(0.8 * math.exp(-0.5)), pytest.approx(0.8 * 0.65 ** math.log(5, 10))]
    assert len(run.history.scouted) == 2


def test_where_all_scouts_lose_too_much_a_milder_allocation_is_kept_untrained() -> None:
    plan = FakePlan()
    search, run = scouting(plan, losing({60: 8, 40: 27}))
    # One scout, 8 times the aim at 0.6: twice the latency by a power of 3, but no step of more than exp(0.5), and no
    # share above 0.95, whose nearest is 0.8.
    found = search.found(0.6, 1, lambda law: 0.01)
    assert told(found) == (1, 80, 1.0)  # it is thought to lose the aim
    assert plan.asked == [0.6, pytest.approx(0.95)]
    assert len(run.history.scouted) == 1
    kept = seen(run.keeper.load_scout(0, 1))
    assert (percent(kept), kept.epochs % 100) == (80, 0)


def test_a_milder_allocation_is_no_faster_than_the_mildest_scout() -> None:
    plan = FakePlan()
    search, _ = scouting(plan, losing({60: 2, 80: 1.5}))
    search.found(0.6, 2, lambda law: 0.01)
    # 0.6 lost twice the aim: 0.756, whose nearest is 0.8; that lost 1.5 times it: 0.916 comes next
    assert plan.asked == [0.6, pytest.approx(0.6 * 2 ** (1 / 3)), pytest.approx(0.8 * 1.5 ** (1 / 3))]


def test_what_forecasts_are_wrong_by_is_learnt_from_the_models_that_were_timed() -> None:
    plan = FakePlan()
    search, _ = scouting(plan, losing({60: 0.5, 40: 0.9}), timed=lambda percent: 1.25 * percent / 100)
    assert search.found(0.6, 4, lambda law: 0.01).share == pytest.approx(0.5)
    # 0.75 was measured of the first, 0.6 forecast: a cube root of 2 below 0.75 is asked of forecasts 1.25 times smaller
    assert search.error == pytest.approx(1.25)
    assert plan.asked == [0.6, pytest.approx(0.75 / 2 ** (1 / 3) / 1.25)]


def test_of_the_models_that_are_timed_the_one_with_the_least_damage_for_its_time_is_trained() -> None:
    class All(FakePlan):
        def near(self, share: float, count: int) -> list[Allocation]:
            return list(self.front[1:])

    # damage * share ** 3: 1.7 * 0.262 = 0.446, 2 * 0.216 = 0.432, 2.6 * 0.176 = 0.457.  What takes 0.3 has 0.081, but
    # is not near 0.6.
    front = tuple(allocation(percent, damage) for percent, damage in ((100, 0), (64, 1.7), (60, 2), (56, 2.6), (30, 3)))
    search, _ = scouting(All(front), losing({60: 1}))
    assert told(search.found(0.6, 1, lambda law: 0.01)) == (0, 60, 1.0)


def test_where_no_model_is_as_fast_as_forecast_the_nearest_is_trained() -> None:
    class All(FakePlan):
        def near(self, share: float, count: int) -> list[Allocation]:
            return list(self.front[1:])

    # They take 1.04, 0.78, 0.52 and 0.26: 0.52 is 14 % from 0.6, the rest 30 % and more
    search, _ = scouting(All(), losing({40: 1}), timed=lambda percent: 1.3 * percent / 100)
    assert told(search.found(0.6, 1, lambda law: 0.01)) == (0, 40, 1.0)


def test_training_that_diverges_is_a_scout_that_lost_everything() -> None:
    search, run = scouting(FakePlan(), FakeTrainer(diverges=lambda m: percent(m) == 60))
    search.found(0.6, 1, lambda law: 0.01)
    assert run.history.scouted[0, 0].loss.loss == 1.0


def test_scouts_of_an_earlier_life_are_neither_timed_nor_trained_again() -> None:
    keeper = MemoryKeeper()
    first, _ = scouting(FakePlan(), losing({60: 0.5, 40: 1.1}), keeper)
    found = first.found(0.6, 4, lambda law: 0.01)
    plan, events = FakePlan(), len(keeper.kept)
    again, _ = scouting(plan, losing({60: 0.5, 40: 1.1}), keeper)
    assert told(again.found(0.6, 4, lambda law: 0.01)) == told(found)
    assert plan.asked == []
    assert len(keeper.kept) == events


def test_a_scout_of_an_earlier_life_is_known_even_where_the_front_has_moved() -> None:
    """Timing candidates leaves measured latencies behind, and with these the next life draws another front."""
    keeper = MemoryKeeper()
    first, _ = scouting(FakePlan(), losing({60: 0.5, 40: 1.1}), keeper)
    found = first.found(0.6, 4, lambda law: 0.01)
    other = tuple(allocation(percent, damage) for percent, damage in ((100, 0), (70, 1), (30, 9)))
    again, _ = scouting(FakePlan(other), losing({60: 0.5, 40: 1.1}), keeper)
    scout = again.found(0.6, 4, lambda law: 0.01)
    assert (scout.number, scout.share, scout.loss) == (found.number, found.share, found.loss)
    assert (scout.allocation.widths, scout.allocation.gone) == (found.allocation.widths, found.allocation.gone)


def test_the_next_scout_lies_between_those_that_lost_more_and_less_than_the_aim() -> None:
    # 1 point at half of the latency, 4 at a quarter, 2 wanted: in the middle of the logarithms
    assert next_share([(0.5, 0.01), (0.25, 0.04)], 0.02) == pytest.approx(0.5**1.5)
    # one scout alone that lost 8 times too much: a power of 3, so twice the latency, but no step of more than exp(0.5)
    assert next_share([(0.25, 0.08)], 0.01) == pytest.approx(0.25 * math.exp(0.5))
    assert next_share([(0.4, 0.01)], 0.02) == pytest.approx(0.4 * 0.5 ** (1 / 3))
    # where the faster one lost less, there is nothing between them: the newest says where to go
    assert next_share([(0.25, 0.01), (0.5, 0.04)], 0.02) == pytest.approx(0.5 * 2 ** (1 / 3))


def test_a_plan_has_what_the_fake_has() -> None:
    assert {"front", "share", "near", "cut"} <= {*dir(Plan), *Plan.__dataclass_fields__}


def test_what_is_kept_of_a_scout_is_enough_to_find_it() -> None:
    search, run = scouting(FakePlan(), losing({60: 1}))
    search.found(0.6, 1, lambda law: 0.01)
    (event,) = [e for e in run.history.scouted.values() if isinstance(e, Scouted)]
    assert (event.round, event.number, event.widths, event.gone) == (0, 0, ("a 60",), ())
