"""How long a run trains, and how that is shared out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import DEFAULT, FakeTrainer, MemoryKeeper, a_run
from torch import nn

from cprune.method.seconds import Budget
from cprune.runs.events import Planned
from cprune.training.trainer import Pace, Schedule


class Paced(FakeTrainer):
    """A trainer that knows how many seconds an epoch takes, and that counts how often it was asked."""

    seconds_per_epoch, seconds_per_view = 1.0, 0.0
    asked = 0

    def pace(self, model: nn.Module, schedule: Schedule) -> Pace:
        self.asked += 1
        return Pace(self.seconds_per_epoch, self.seconds_per_view)


def paced(seconds_per_epoch: float, seconds_per_view: float = 0.0) -> Paced:
    trainer = Paced()
    trainer.seconds_per_epoch, trainer.seconds_per_view = seconds_per_epoch, seconds_per_view
    return trainer


@pytest.mark.parametrize(
    ("an_epoch_s", "seconds"),
    [(4.0, 300.0), (12.0, 300.0), (30.0, 750.0), (76.8, 1920.0), (100.0, 1920.0)],
)
def test_a_run_trains_25_epochs_of_the_unpruned_model_but_5_minutes_at_least_and_32_at_most(
    an_epoch_s: float, seconds: float
) -> None:
    run = a_run(trainer=paced(an_epoch_s))
    assert Budget.of(run) == Budget(seconds, 8)
    assert run.history.planned is not None
    assert run.history.planned.train_s == seconds


def test_seconds_that_were_asked_for_are_taken_as_they_are() -> None:
    run = a_run(trainer=paced(30.0), settings=replace(DEFAULT, train_time_s=5.0))
    assert Budget.of(run) == Budget(5.0, 8)


@pytest.mark.parametrize(("a_view_s", "views"), [(0.0, 8), (0.5, 8), (4.0, 3), (5.0, 3), (5.1, 2), (50.0, 2)])
def test_the_teacher_is_asked_for_15_percent_of_the_time_at_most_but_about_two_views_at_least(
    a_view_s: float, views: int
) -> None:
    # of 100 s 15: three views of 4 or of 5 s, two of 5.1
    run = a_run(trainer=paced(30.0, a_view_s), settings=replace(DEFAULT, train_time_s=100.0))
    budget = Budget.of(run)
    assert budget.views == views
    assert budget.schedule(1.0).views == views


def test_a_run_that_goes_on_keeps_its_seconds_on_a_machine_that_is_slower_by_now() -> None:
    keeper = MemoryKeeper()
    assert Budget.of(a_run(trainer=paced(30.0), keeper=keeper)) == Budget(750.0, 8)
    slower = paced(60.0)
    assert Budget.of(a_run(trainer=slower, keeper=keeper)) == Budget(750.0, 8)
    assert slower.asked == 0
    assert [event for event in keeper.kept if isinstance(event, Planned)] == keeper.kept


def test_a_network_has_as_many_epochs_as_fit_but_a_tenth_of_one_at_least() -> None:
    run = a_run(trainer=paced(7.0))
    assert Budget(100.0, 8).epochs(run, run.first, 30.0) == 4.29  # 30 / 7
    assert Budget(100.0, 8).epochs(run, run.first, 0.0) == 0.1


def test_scouts_get_4_percent_each_the_first_round_30_and_the_last_what_is_left() -> None:
    budget = Budget(1000.0, 8)
    assert budget.of_scout == pytest.approx(40.0)
    assert budget.of_looking == pytest.approx(70.0)  # beside the training
    assert budget.of_round(0, 2, scouted=4) == pytest.approx(300.0)
    assert budget.of_round(1, 2, scouted=6) == pytest.approx(460.0)  # 1000 - 300 - 6 * 40


def test_what_training_took_too_long_the_last_one_makes_up_for() -> None:
    budget = Budget(1000.0, 8)
    # 540 s were meant, and 594 are gone: 406 are left, and it will take a tenth longer than it is thought to
    assert budget.of_round(1, 2, scouted=6, spent_s=594.0) == pytest.approx(406 / 1.1)
    assert budget.of_round(1, 2, scouted=6, spent_s=500.0) == pytest.approx(460.0)
    assert budget.of_round(1, 2, scouted=6, spent_s=1080.0) == pytest.approx(50.0)  # a tenth, at half of the pace
    assert budget.of_round(0, 2, scouted=4, spent_s=594.0) == pytest.approx(300.0)
    assert budget.of_round(0, 1, scouted=0, spent_s=594.0) == pytest.approx(1000.0)


def test_a_short_training_sees_the_images_as_they_are_and_a_long_one_averages_its_weights() -> None:
    long, short = Budget(1.0, 8).schedule(3.0), Budget(1.0, 8).schedule(3.0, long=False)
    assert (long.epochs, long.varied, long.ema) == (3.0, True, True)
    assert (short.epochs, short.varied, short.ema) == (3.0, False, False)
    assert long.lr == short.lr == 0.02
