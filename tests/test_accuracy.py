"""Accuracies compared image by image, their bound by hand and by brute force, and the walk with a known truth."""

from __future__ import annotations

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from cprune.targets.errors import UserError
from cprune.targets.paired import Paired
from cprune.targets.plain import read, to_plain
from cprune.training.accuracy import Look, kl, paired, walk
from cprune.training.data import Data, Split
from cprune.training.trainer import CallableTrainer, DataTrainer, PartName

Z = NormalDist().inv_cdf(0.95)


# -- looks, compared


def test_only_images_on_which_two_models_disagree_count() -> None:
    parent = Look.of(np.array([1, 1, 1, 1, 0, 0, 0, 1, 1, 1]))
    pruned = Look.of(np.array([1, 0, 0, 0, 1, 0, 0, 1, 1, 1]))
    loss = paired(parent, pruned)
    assert loss == Paired(loss=0.2, images=10, lost=3, gained=1)
    assert loss.disagreement == 0.4
    assert loss.se == pytest.approx(math.sqrt((0.4 - 0.04) / 10))
    assert loss.loss == pytest.approx(parent.accuracy - pruned.accuracy)


def test_of_a_number_only_the_difference_is_known() -> None:
    loss = paired(Look(0.9), Look.of(np.array([1, 1, 1, 0])))
    assert (loss.loss, loss.images, loss.lost, loss.gained) == (pytest.approx(0.15), 0, 0, 0)
    assert (loss.se, loss.disagreement, loss.upper(0.95)) == (0.0, 0.0, math.inf)


def test_looks_at_other_images_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="looks at 3 and at 2 images"):
        paired(Look.of(np.ones(3)), Look.of(np.ones(2)))


def test_the_journal_has_the_standard_error_and_reads_the_rest() -> None:
    loss = Paired.of(100, 8, 4)
    written = json.loads(json.dumps(to_plain(loss)))
    assert written == {"loss": 0.04, "images": 100, "lost": 8, "gained": 4, "se": pytest.approx(0.03440930)}
    assert read(Paired, written) == loss
    further = Paired.of(100, 8, 4, divergence=0.02)
    assert to_plain(further) == {**to_plain(loss), "divergence": 0.02}
    assert read(Paired, to_plain(further)) == further
    with pytest.raises(UserError, match="unknown field 'gain'"):
        read(Paired, {**written, "gain": 4}, "field")


# -- the bound


def brute_force(images: int, lost: int, gained: int, grid: int = 20_000) -> float:
    """Return the largest true loss that a score test does not refuse, its other parameter looked for on a grid."""

    def log_likelihood(share: float, true: float) -> float:
        """Return that of `share` of the images being gained and `share + true` lost."""
        cells = ((lost, share + true), (gained, share), (images - lost - gained, 1 - 2 * share - true))
        return sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    for true in np.linspace(1, (lost - gained) / images, 2000):
        shares = np.linspace(max(0.0, -true), (1 - true) / 2, grid // 100)
        likely = max(shares, key=lambda share: log_likelihood(share, true))
        variance = (2 * likely + true - true**2) / images
        if variance > 0 and ((lost - gained) / images - true) / math.sqrt(variance) >= -Z:
            return float(true)
    return math.nan


@pytest.mark.parametrize("counts", [(40, 6, 2), (40, 0, 3), (40, 3, 0), (25, 5, 5), (60, 12, 1)])
def test_the_bound_is_what_inverting_the_score_test_by_brute_force_gives(counts: tuple[int, int, int]) -> None:
    assert Paired.of(*counts).upper(0.95) == pytest.approx(brute_force(*counts), abs=0.002)


def test_two_models_that_answer_alike_may_still_differ_on_new_images() -> None:
    # no disagreement among n: the bound is z^2 / (n + z^2)
    assert Paired.of(1000, 0, 0).upper(0.95) == pytest.approx(Z**2 / (1000 + Z**2))
    assert Paired.of(1000, 0, 0).upper(0.95) == pytest.approx(0.0026983, abs=1e-6)


def test_where_nothing_is_gained_the_bound_is_wilsons() -> None:
    # 4 of 1000: (p + z^2/2n + z sqrt(p (1 - p) / n + z^2 / 4 n^2)) / (1 + z^2 / n)
    n, p = 1000, 0.004
    wilson = (p + Z**2 / (2 * n) + Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n * n))) / (1 + Z**2 / n)
    assert Paired.of(1000, 4, 0).upper(0.95) == pytest.approx(wilson) == pytest.approx(0.00888, abs=1e-5)


def test_of_many_images_the_bound_is_near_1645_standard_errors_above_the_loss() -> None:
    loss = Paired.of(10_000, 300, 200)
    assert loss.upper(0.95) == pytest.approx(0.01 + Z * math.sqrt((0.05 - 0.0001) / 10_000), abs=5e-5)


@pytest.mark.parametrize(("images", "points"), [(2000, 0.18), (5000, 0.48), (10_000, 0.63)])
def test_the_largest_loss_that_proves_one_point_at_five_percent_disagreement(images: int, points: float) -> None:
    """The table of the literature: sqrt((psi - delta^2) / n) at psi = 5 %."""
    differing = round(0.05 * images)
    proved = [lost for lost in range(differing + 1) if Paired.of(images, lost, differing - lost).upper(0.95) <= 0.01]
    assert 100 * (2 * max(proved) - differing) / images == pytest.approx(
        points, abs=200 / images
    )  # counts go in steps of two


def test_a_model_that_lost_every_image_has_lost_everything() -> None:
    assert Paired.of(20, 20, 0).upper(0.95) == 1.0


@hypothesis_settings(max_examples=100, deadline=None)
@given(images=st.integers(1, 500), lost=st.integers(0, 500), gained=st.integers(0, 500), more=st.floats(0.55, 0.99))
def test_a_bound_lies_above_the_loss_and_grows_with_confidence(
    images: int, lost: int, gained: int, more: float
) -> None:
    lost = min(lost, images)
    loss = Paired.of(images, lost, min(gained, images - lost))
    assert loss.loss <= loss.upper(0.5) + 1e-9
    assert loss.upper(0.5) <= loss.upper(more) <= loss.upper(0.995) <= 1


# -- the walk


def test_the_walk_ends_at_the_first_failure_and_looks_no_further() -> None:
    looked = []

    def passes(candidate: int) -> bool:
        looked.append(candidate)
        return candidate not in (3, 5)

    assert walk([1, 2, 3, 4, 5, 6], passes) == [1, 2]
    assert looked == [1, 2, 3]
    assert walk([3, 4], passes) == []
    assert walk([1, 2, 4], passes) == [1, 2, 4]


RUNS, IMAGES, PSI, ALLOWED = 1000, 5000, 0.05, 0.01
SLACK = 3 * math.sqrt(0.05 * 0.95 / RUNS)  # three standard errors of a share of 5 % in so many runs
FRONTS = {
    "from safe to far too fast": [0.0, 0.3, 0.6, 0.9, 1.05, 1.1, 1.2, 1.3, 1.45, 1.6],
    "five safe, five just beyond": [0.0, 0.0, 0.0, 0.0, 0.0, 1.001, 1.001, 1.001, 1.001, 1.6],
}


@pytest.mark.parametrize("name", FRONTS)
def test_of_a_thousand_runs_with_known_truth_at_most_one_in_twenty_delivers_a_model_that_loses_too_much(
    name: str,
) -> None:
    random = np.random.default_rng(0)
    true = np.array(FRONTS[name]) / 100
    too_much = {"walked": 0, "stepped back": 0}
    for _ in range(RUNS):
        front = []
        for loss in true:  # what a model loses and gains of the images that certify
            lost, gained, _ = random.multinomial(IMAGES, [(PSI + loss) / 2, (PSI - loss) / 2, 1 - PSI])
            front.append(Paired.of(IMAGES, int(lost), int(gained)))
        bounds = [loss.upper(0.95) for loss in front]
        passed = walk(range(len(front)), lambda index, bounds=bounds: bounds[index] <= ALLOWED)
        newest = next((index for index in reversed(range(len(front))) if front[index].loss <= ALLOWED), None)
        too_much["walked"] += bool(passed) and true[passed[-1]] > ALLOWED
        too_much["stepped back"] += newest is not None and true[newest] > ALLOWED
    assert too_much["walked"] / RUNS <= 0.05 + SLACK
    assert too_much["stepped back"] / RUNS > 0.5


# -- KL


def test_the_divergence_is_in_nats_an_image() -> None:
    parent = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])  # (1/2, 1/2) and (3/4, 1/4)
    model = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    # 1/2 ln(1/2 / 3/4) + 1/2 ln(1/2 / 1/4) = 1/2 ln(4/3), and 0
    assert kl(parent, model) == pytest.approx(0.5 * math.log(4 / 3) / 2, rel=1e-6)
    assert kl(model, model) == 0


# -- trainers


class Reader(nn.Module):
    """Its logits are the first pixels of the image, one a channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0, 0]


def part(*right: bool) -> Split:
    """Return images of class 0 that `Reader` answers like this."""
    images = torch.zeros(len(right), 2, 2, 2)
    for image, is_right in zip(images, right, strict=True):
        image[0 if is_right else 1] = 1.0
    return Split(images, torch.zeros(len(right), dtype=torch.int64))


def test_a_look_says_of_every_image_whether_it_was_right() -> None:
    data = Data("x", part(*[True] * 6), part(True, False), part(False, False, True), part(True), 2, augment=False)
    trainer = DataTrainer(data, Reader(), threads=1)
    look = trainer.look(Reader(), "certify")
    assert look.right is not None
    assert look.right.tolist() == [False, False, True]
    assert (look.images, look.accuracy) == (3, pytest.approx(1 / 3))
    assert trainer.look(Reader(), "decide").accuracy == 0.5
    assert trainer.look(Reader(), "report").accuracy == 1.0


class Other(Reader):
    """Its logits are three times as far apart."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


def test_where_decisions_are_made_a_look_says_how_far_the_answers_are_from_the_teachers() -> None:
    data = Data("x", part(*[True] * 6), part(True, False), part(False), part(True), 2, augment=False)
    trainer = DataTrainer(data, Reader(), threads=1)
    assert trainer.look(Reader(), "decide").divergence == 0
    # e / (1 + e) = 0.731 against e^3 / (1 + e^3) = 0.953: 0.731 ln(0.731 / 0.953) + 0.269 ln(0.269 / 0.047)
    assert trainer.look(Other(), "decide").divergence == pytest.approx(0.2732, abs=1e-4)
    assert trainer.look(Other(), "certify").divergence is None
    loss = paired(trainer.look(Reader(), "decide"), trainer.look(Other(), "decide"))
    assert loss.divergence == pytest.approx(0.2732, abs=1e-4)


def test_samples_are_training_images_drawn_with_the_seed() -> None:
    train = Split(torch.arange(6.0)[:, None, None, None].expand(6, 1, 2, 2), torch.arange(6))
    trainer = DataTrainer(Data("x", train, part(True), part(True), part(True), 6, augment=False), Reader(), threads=1)
    drawn = trainer.samples(4, seed=1)
    assert len(set(drawn.labels.tolist())) == 4
    assert drawn.images[:, 0, 0, 0].tolist() == drawn.labels.tolist()
    assert drawn.labels.tolist() == trainer.samples(4, seed=1).labels.tolist()
    assert drawn.labels.tolist() != trainer.samples(4, seed=2).labels.tolist()
    assert sorted(trainer.samples(100, seed=0).labels.tolist()) == [0, 1, 2, 3, 4, 5]


def test_a_users_functions_answer_with_a_number() -> None:
    trainer = CallableTrainer(lambda _: 0.8, None, test=lambda _: 0.7)
    parts: tuple[PartName, ...] = ("decide", "certify", "report")
    looks = {name: trainer.look(nn.Identity(), name) for name in parts}
    assert {name: look.accuracy for name, look in looks.items()} == {"decide": 0.8, "certify": 0.8, "report": 0.7}
    assert all(look.right is None and look.images == 0 for look in looks.values())
    assert trainer.samples(10, 0) is None
