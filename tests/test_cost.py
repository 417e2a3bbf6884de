"""What a run cost is what all of its lives cost; nothing is compiled here."""

from __future__ import annotations

from dataclasses import replace

from cprune.method.cost import Cost
from cprune.runs.events import CostSoFar, Event, Measured, Start, Step
from cprune.targets.interval import Interval

SAME = Interval(1, 1, 1)
OLD: list[Event] = [
    Start(0.9, 0.9, 0.89, 0.89, 16, 40, SAME, seconds={"tune": 100.0, "measure": 5.0, "evaluate": 2.0, "other": 1.0}),
    Measured("0 x 8", SAME, SAME, SAME),
    Step(0, "x", 8, (), None, None, None, None, "rejected", "slower", 8,
         {"tune": 10.0, "measure": 3.0, "train": 20.0, "evaluate": 1.0, "other": 0.5}, "x"),
]  # fmt: skip
"""What a journal held before events said what the whole run had cost."""


class Hands:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def test_time_is_of_the_innermost_kind_and_the_rest_is_other() -> None:
    clock = Hands()
    cost = Cost(clock=clock)
    clock.at += 1
    with cost.spent("measure"):
        clock.at += 2
        with cost.spent("train"):
            clock.at += 4
        clock.at += 8
    assert cost.now() == {"tune": 0, "measure": 10, "train": 4, "evaluate": 0, "other": 1, "total": 15}


def test_a_life_that_is_killed_in_the_middle_of_something_counts_up_to_its_last_event() -> None:
    clock = Hands()
    cost = Cost(clock=clock)
    with cost.spent("train"):
        clock.at += 60
        killed = CostSoFar(cost.so_far())
        clock.at += 5
    clock.at += 1000  # nobody goes on with it for a while
    again = Cost.of([killed], clock)
    with again.spent("evaluate"):
        clock.at += 7
    assert again.now() == {"tune": 0, "measure": 0, "train": 60, "evaluate": 7, "other": 0, "total": 67}


def test_trials_count_for_the_phase_that_asks_for_them() -> None:
    cost = Cost()
    cost.trial()
    for phase, trials in (("before", 3), ("loop", 2), ("final", 1), ("loop", 1)):
        with cost.counting(phase):
            for _ in range(trials):
                cost.trial()
    assert Cost.of([CostSoFar(cost.so_far())]).trials == {"before": 3, "loop": 3, "final": 1}


def test_a_journal_that_says_nothing_of_the_whole_is_added_up() -> None:
    cost = Cost.of(OLD, Hands())
    assert cost.now() == {"tune": 110, "measure": 8, "train": 20, "evaluate": 3, "other": 1.5, "total": 142.5}
    assert cost.trials == {"before": 40, "loop": 8, "final": 0}


def test_a_journal_that_an_older_version_began_is_not_counted_twice() -> None:
    clock = Hands()
    cost = Cost.of(OLD, clock)
    clock.at += 10
    events = [*OLD, replace(OLD[2], so_far=cost.so_far())]
    assert Cost.of(events, clock).now()["total"] == 152.5
