"""What a model is thought to lose, of which so much was counted and whose answers are so far from its parent's."""

from __future__ import annotations

import pytest

from cprune.method.expected import Law, looked_at
from cprune.method.history import History
from cprune.runs.events import Scouted, Step
from cprune.targets.paired import Paired

IMAGES = 1_000_000  # so many that a loss is known to a hundredth of a point


def counted(loss: float, divergence: float | None, images: int = IMAGES) -> Paired:
    return Paired.of(images, round((0.02 + loss) * images), round(0.02 * images), divergence)


def test_without_a_divergence_a_model_loses_what_was_counted() -> None:
    assert Law.of([]).loss(counted(0.01, 0.02)) == pytest.approx(0.01)
    assert Law.of([counted(0.01, None)]).loss(counted(0.03, 0.02)) == pytest.approx(0.03)
    assert Law.of([counted(0.01, 0.02)]).loss(counted(0.03, None)) == pytest.approx(0.03)
    assert Law.of([Paired(1.0)]).loss(counted(0.03, 0.02)) == pytest.approx(0.03)  # a scout that diverged


def test_after_one_model_a_part_of_its_divergence_is_thought_to_be_free() -> None:
    law = Law.of([counted(0.01, 0.02)])
    assert law == Law(pytest.approx(0.01 / 0.006), pytest.approx(0.014))  # 0.7 of 0.02
    assert law.loss(counted(0.0, 0.026)) == pytest.approx(0.02)
    assert law.loss(counted(0.5, 0.01)) == 0  # less than what is free


def test_models_that_lie_on_a_line_say_what_is_free() -> None:
    law = Law.of([counted(0.0075, 0.1), counted(0.0325, 0.2)])
    assert law == Law(pytest.approx(0.25, rel=1e-3), pytest.approx(0.07, rel=1e-3))  # 25 points a nat beyond 0.07
    assert law.loss(counted(0.5, 0.15)) == pytest.approx(0.02, rel=1e-3)


def test_where_the_errors_are_large_the_first_guess_stays() -> None:
    # 1 and 6 points of 100 images, each plus or minus 2: the line through both begins at 0.08, and 0.07 is the guess
    law = Law.of([counted(0.01, 0.1, images=100), counted(0.06, 0.2, images=100)])
    assert law.free == pytest.approx(0.075)


def test_two_models_of_one_divergence_are_thought_to_lose_the_same() -> None:
    law = Law.of([counted(0.004, 0.02), counted(0.006, 0.02)])
    assert law.loss(counted(0.004, 0.02)) == law.loss(counted(0.006, 0.02)) == pytest.approx(0.005, rel=0.05)


def test_a_loss_before_training_is_that_of_as_much_more_divergence() -> None:
    # 25 points a nat beyond 0.07: a loss of 2 points is at 0.15; 0.6 of that is left of 0.25, which cost 4.5 points
    assert Law(0.25, 0.07).before(0.02, 0.6) == pytest.approx(0.045)
    assert Law().before(0.02, 0.5) == pytest.approx(0.04)  # where divergences are not known, losses are in their place
    assert Law(0.0, 0.07).before(0.02, 0.5) == pytest.approx(0.04)


def test_where_all_gained_nothing_is_lost() -> None:
    assert Law.of([counted(-0.004, 0.02)]).loss(counted(0.01, 0.03)) == 0


def test_a_resumed_run_knows_no_more_than_it_did_before_the_round() -> None:
    history = History()
    history.scouted = {
        (round_, 0): Scouted(round_, 0, 0.5, 0.5, 0.1, 1.0, counted(0.01 * (1 + round_), 0.02), (), ())
        for round_ in (0, 1, 1000)
    }
    step = Step(0, "", 0, (), None, None, None, 0.9, "accepted", "", 0, {}, "", counted(0.004, 0.01))
    history.steps = [step]
    known = [loss.loss for loss in looked_at(history, 1)]
    assert known == pytest.approx([0.01, 0.004])
    assert looked_at(history, 0) == []
    assert [loss.loss for loss in looked_at(history, 0, with_scouts=True)] == pytest.approx([0.01])
