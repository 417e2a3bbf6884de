"""What is promised and which model is delivered, on fakes: contenders are `Tiny` with so many epochs of training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import DEFAULT, FakeTrainer, MemoryKeeper, Seen, a_run, seen, tiny

from cprune.method.certify import Choice, Contender, chosen, room, safest_first
from cprune.method.loop import Loop
from cprune.method.promise import memorised, promised
from cprune.method.settings import Settings
from cprune.method.state import RunState
from cprune.network.network import Network
from cprune.runs.events import PartSizes, Start
from cprune.targets.errors import UserError
from cprune.targets.interval import Interval
from cprune.targets.paired import Bound, Paired
from cprune.training.accuracy import Look

IMAGES = 1000


def contender(index: int, decided: float = 0.9) -> Contender:
    """Return a contender whose network was trained for `index` epochs, by which the fakes know it."""

    def load() -> Network:
        network = tiny()
        with torch.no_grad():
            dict(network.named_parameters())["head.bias"][0] += index
        return network

    return Contender(index, f"model {index}", decided, load)


def losing(*lost: int) -> FakeTrainer:
    """Return a trainer by which contender 1, 2, … gets so many of 900 images wrong, and the unpruned model none."""
    return FakeTrainer(lambda m: 0.9 - (0, *lost)[round(m.epochs)] / IMAGES, images=IMAGES)


def begun(trainer: FakeTrainer, settings: Settings = DEFAULT, **changed: object) -> RunState:
    """Return a run of a model with 90 % accuracy of which 89 % is asked for."""
    start = Start(0.9, 0.9, 0.89, 0.89, 16, 0, Interval(1, 1, 1), certify=0.9, images=PartSizes(*[IMAGES] * 3))
    return a_run(trainer=trainer, settings=settings, keeper=MemoryKeeper([replace(start, **changed)]))  # type: ignore[arg-type]


def looked(trainer: FakeTrainer, part: str) -> list[int]:
    """Return the contenders that were looked at with a part, 0 for the unpruned model."""
    return [round(model.epochs) for of, model in trainer.looked if of == part]


def choose(trainer: FakeTrainer, *contenders: Contender, settings: Settings = DEFAULT) -> Choice:
    return chosen(begun(trainer, settings), contenders)


# -- the walk


def test_the_fastest_that_loses_no_more_than_allowed_is_delivered() -> None:
    trainer = losing(3, 6, 11, 0)
    choice = choose(trainer, *map(contender, (1, 2, 3, 4)))
    assert choice.index == 2  # the fourth is safe, but comes after a failure
    assert seen(choice.network).epochs == 2
    assert looked(trainer, "certify") == [1, 0, 2, 3]
    assert looked(trainer, "report") == [1, 0, 2]
    assert choice.accuracy == pytest.approx(0.894)
    assert choice.loss == Paired(0.006, IMAGES, 6, 0)
    assert choice.notes == (
        "model 3 loses 1.10 points (se 0.33; 95 % sure: at most 1.79) on the images that certify; 1.00 may be lost, "
        "so nothing faster is looked at",
    )


def test_the_images_that_decide_count_with_those_that_certify() -> None:
    choice = choose(losing(9), replace(contender(1), decided_loss=Paired.of(9000, 91, 0)))
    assert choice.index == 1  # 100 of 10,000
    choice = choose(losing(9), replace(contender(1), decided_loss=Paired.of(9000, 92, 0)))
    assert choice.index is None
    assert choice.notes[0] == (
        "model 1 loses 0.90 points (se 0.30; 95 % sure: at most 1.54) on the images that certify, 1.01 with those that "
        "decide; 1.00 may be lost, so nothing faster is looked at"
    )


def test_a_few_unlucky_images_that_certify_do_not_outweigh_many_that_decide() -> None:
    assert choose(losing(11), replace(contender(1), decided_loss=None)).index is None
    trainer = FakeTrainer(lambda m: 0.9 - 11 * bool(m.epochs) / IMAGES, reporting=lambda _: 0.9, images=IMAGES)
    assert choose(trainer, replace(contender(1), decided_loss=Paired.of(9000, 0, 0))).index == 1  # 11 of 10,000


def test_with_a_confidence_only_images_that_decided_nothing_count() -> None:
    sure = replace(DEFAULT, confidence=0.95)
    contenders = replace(contender(1), decided_loss=Paired.of(9000, 0, 0))
    assert choose(losing(5), contenders, settings=sure).index is None  # 1.024 % may be lost, as above


def test_with_a_confidence_the_bound_must_be_within_what_may_be_lost() -> None:
    # Wilson's bound, as nothing is gained: 4 of 1000 lost prove 0.888 %, 5 prove 1.024 %.
    choice = choose(losing(4, 5), contender(1), contender(2), settings=replace(DEFAULT, confidence=0.95))
    assert choice.index == 1
    assert choice.bound is not None
    assert choice.bound == Bound(0.95, pytest.approx(0.00888, abs=1e-5))
    choice = choose(losing(4, 5), contender(1), contender(2), settings=replace(DEFAULT, confidence=0.9))
    assert choice.index == 2
    assert choice.bound is not None
    assert choice.bound.confidence == 0.9


def test_without_one_the_bound_is_told_all_the_same() -> None:
    choice = choose(losing(6), contender(1))
    assert choice.index == 1
    assert choice.bound == Bound(0.95, pytest.approx(0.01157, abs=1e-5))


def test_a_model_that_a_faster_one_beats_where_decisions_are_made_is_not_walked_by() -> None:
    contenders = [contender(1, 0.895), contender(2, 0.893), contender(3, 0.894), contender(4, 0.894)]
    assert [one.index for one in safest_first(contenders)] == [1, 3, 4]


def test_a_model_whose_answers_are_nearer_to_the_unpruned_ones_is_the_safer_one() -> None:
    def near(index: int, decided: float, divergence: float) -> Contender:
        return replace(contender(index, decided), decided_loss=Paired.of(IMAGES, 50, 40, divergence))

    # the second is more accurate where decisions are made, the third nearer than the second
    contenders = [near(1, 0.898, 0.098), near(2, 0.899, 0.110), near(3, 0.897, 0.105)]
    assert [one.index for one in safest_first(contenders)] == [1, 3]


def test_a_model_below_the_floor_is_not_shown_to_the_images_that_certify() -> None:
    trainer = losing(0, 0)
    choice = choose(trainer, contender(1, decided=0.889), contender(2))
    assert choice.index == 2
    assert looked(trainer, "certify") == [2, 0]
    assert choice.notes == ("model 1: 88.90% on the images that decide is below 89.00%",)


def test_where_the_first_fails_the_unpruned_model_is_delivered() -> None:
    choice = choose(losing(11, 0), contender(1), contender(2))
    assert choice.index is None
    assert seen(choice.network) == Seen(64, 128, 0)
    assert (choice.accuracy, choice.loss, choice.bound) == (0.9, Paired(0.0, IMAGES), Bound(0.95, 0.0))
    assert choice.notes[-1] == "no pruned model holds the accuracy asked for; the model stays as it is, tuned"


def test_where_there_is_nothing_to_deliver_nothing_is_noted() -> None:
    assert choose(losing()).notes == ()


def test_nothing_below_the_promise_is_delivered_whatever_was_certified() -> None:
    trainer = FakeTrainer(lambda _: 0.9, reporting=lambda m: 0.9 if not m.epochs else 0.889, images=IMAGES)
    choice = choose(trainer, contender(1), contender(2))
    assert choice.index is None
    assert looked(trainer, "report") == [1, 0]  # the safest alone: what is faster comes after a failure
    assert choice.notes == (
        "model 1 was certified, but reaches 88.90% on the images of the report, and 89.00% was asked for; the model "
        "stays as it is, tuned",
    )


def test_where_the_report_says_no_to_the_fastest_the_one_before_it_is_delivered() -> None:
    trainer = FakeTrainer(lambda _: 0.9, reporting=lambda m: (0.9, 0.895, 0.889, 0.9)[round(m.epochs)], images=IMAGES)
    choice = choose(trainer, contender(1), contender(2), contender(3))
    assert (choice.index, choice.accuracy) == (1, 0.895)
    assert looked(trainer, "report") == [1, 0, 2]
    assert choice.notes == (
        "model 2 was certified, but reaches 88.90% on the images of the report, and 89.00% was asked for; model 1 is "
        "delivered",
    )


def test_what_is_certified_with_images_learnt_by_heart_says_nothing_of_new_ones() -> None:
    assert chosen(begun(losing(1), memorised=True), [contender(1)]).bound is None


def test_functions_that_say_only_how_many_were_right_are_walked_by_too() -> None:
    trainer = FakeTrainer(lambda m: 0.9 - 0.005 * m.epochs)
    choice = choose(trainer, contender(1), contender(2), contender(3))
    assert choice.index == 2
    assert choice.bound is None
    assert choice.notes == (
        "model 3 loses 1.50 points on the images that certify; 1.00 may be lost, so nothing faster is looked at",
    )


def test_the_room_of_a_round_leaves_a_part_of_the_standard_error_of_what_is_yet_to_come() -> None:
    # answers differ on 0.4 %: errors of 0.2 points each on the 1,000 images that decide and the 1,000 of the report
    loss = Paired.of(IMAGES, 4, 0)
    assert room(begun(FakeTrainer()), loss) == pytest.approx(0.01 - 0.6 * 0.00283, abs=1e-5)
    # with a confidence 1.645 x 0.2 points on the 1,000 that certify, and 0.2 more
    sure = replace(DEFAULT, confidence=0.95)
    assert room(begun(FakeTrainer(), sure), loss) == pytest.approx(0.01 - 0.00329 - 0.002, abs=1e-5)


def test_a_quarter_of_what_may_be_lost_is_always_room() -> None:
    assert room(begun(FakeTrainer()), Paired.of(IMAGES, 60, 50)) == pytest.approx(0.0025)


def test_where_nobody_says_which_images_were_right_all_that_may_be_lost_is_room() -> None:
    assert room(begun(FakeTrainer(), images=PartSizes()), Paired(0.003)) == pytest.approx(0.01)


# -- the promise


def look(right: int, images: int) -> Look:
    return Look.of(np.arange(images) < right)


def test_images_are_memorised_if_they_are_right_two_points_and_three_errors_more_often() -> None:
    # 10,000 each: an error of 0.37 points at 96.46 % and 88.82 %; 400 each: 1.8 points
    assert memorised(look(9646, 10_000), look(8882, 10_000))
    assert not memorised(look(9081, 10_000), look(8882, 10_000))  # 1.99 points
    assert memorised(look(9083, 10_000), look(8882, 10_000))  # more than two, and than 3 x 0.42 = 1.3
    assert not memorised(look(376, 400), look(356, 400))  # 5.0 of 3 x 1.96 = 5.9
    assert not memorised(look(8882, 10_000), look(9646, 10_000))
    assert not memorised(Look(0.99), Look(0.8))


def test_a_confidence_needs_images_that_can_be_told_apart() -> None:
    with pytest.raises(UserError, match="a function that evaluates says only how many"):
        Loop(a_run(settings=replace(DEFAULT, confidence=0.95))).begin()


def test_a_confidence_that_no_model_can_reach_is_refused_with_what_would_help() -> None:
    # no disagreement on 200 images: 2.706 / 202.706 = 1.33 %
    run = a_run(trainer=FakeTrainer(images=200), settings=replace(DEFAULT, confidence=0.95))
    with pytest.raises(UserError) as refused:
        promised(run)
    assert str(refused.value) == (
        "--confidence 0.95: 200 images certify, and of a model that answers all of them like its parent they prove "
        "only that it loses at most 1.33%; 1.00% may be lost\n"
        "Give more test images, allow more with --max-drop, or leave --confidence out."
    )
    assert promised(a_run(trainer=FakeTrainer(images=300), settings=replace(DEFAULT, confidence=0.95)))


def test_a_confidence_on_images_learnt_by_heart_is_refused() -> None:
    trainer = FakeTrainer(lambda _: 0.96, reporting=lambda _: 0.88, images=IMAGES)
    with pytest.raises(UserError, match=r"look memorised: 96\.00% there, 88\.00%"):
        promised(a_run(trainer=trainer, settings=replace(DEFAULT, confidence=0.95)))


def test_the_first_line_says_how_many_images_there_are_for_what() -> None:
    assert promised(a_run(trainer=FakeTrainer(images=3600))).told() == [
        "accuracy 90.00% on the images of the report (3,600), 90.00% on those that decide (3,600), 90.00% on those "
        "that certify (3,600); 89.00% is to be kept"
    ]
