"""Fine-tuning: the step, the rate and the loss against formulas, seeds, kills and resumptions, what diverges."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from cprune.network.capture import capture
from cprune.targets.errors import CpruneError, UserError
from cprune.training import fine_tune as module
from cprune.training.checkpoint import Checkpoint
from cprune.training.data import Split
from cprune.training.fine_tune import Distillation, FineTuneDiverged, Pace, Schedule, batch_of, fine_tune, pace
from cprune.training.train import evaluate, recalibrate
from cprune.training.views import Views
from tests.stripes import small_net, stripes, weights


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# ----------------------------------------------------------------------------------------------------
# Learning


def test_fine_tuning_learns_stripes() -> None:
    model, split = small_net(1), stripes(256)
    assert evaluate(model, split) < 0.8
    fine_tune(model, Views(split), Schedule(8, 0.1), seed=0)
    assert evaluate(model, split) > 0.95
    assert not model.training
    assert all(value.grad is None for value in model.parameters())


def test_a_captured_network_learns_too() -> None:
    network, split = capture(small_net(), (torch.zeros(1, 1, 8, 8),)), stripes(256)
    fine_tune(network, Views(split), Schedule(8, 0.1), seed=0)
    assert evaluate(network, split) > 0.95


def test_averaged_weights_learn_too() -> None:
    model, split = small_net(1), stripes(256)
    fine_tune(model, Views(split), Schedule(8, 0.1, ema=True), seed=0)
    assert evaluate(model, split) > 0.95


@pytest.mark.parametrize("bfloat16", [False, True])
def test_one_seed_gives_the_same_bits(bfloat16: bool) -> None:
    def tuned(seed: int) -> Tensor:
        model = small_net()
        views = Views(stripes(100), small_net(1), count=2)
        fine_tune(model, views, Schedule(2, 0.05, varied=True, batch=32), seed, bfloat16=bfloat16)
        return weights(model)

    assert torch.equal(tuned(1), tuned(1))
    assert not torch.equal(tuned(1), tuned(2))


def test_a_training_does_not_depend_on_what_was_asked_before_it() -> None:
    def tuned(views: Views) -> Tensor:
        model = small_net()
        fine_tune(model, views, Schedule(3, 0.05, varied=True, batch=32), seed=1)
        return weights(model)

    shared = Views(stripes(100), small_net(1), count=2)
    fine_tune(small_net(2), shared, Schedule(1, 0.01, batch=64), seed=0)
    assert torch.equal(tuned(shared), tuned(Views(stripes(100), small_net(1), count=2)))


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    fine_tune(small_net(), Views(stripes(64)), Schedule(1, 0.01), 0)
    recalibrate(small_net(), stripes(64), 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_interruption_passes_through() -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    model = small_net()
    with pytest.raises(KeyboardInterrupt):
        fine_tune(model, Views(stripes(64)), Schedule(1, 0.01), 0, progress=interrupt)
    assert not model.training
    assert all(value.grad is None for value in model.parameters())


def test_weights_are_contiguous_afterwards() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    split = Split(torch.rand(8, 3, 6, 6), torch.arange(8) % 4)
    fine_tune(model, Views(split), Schedule(1, 0.01), 0)
    assert all(value.is_contiguous() for value in model.parameters())


def test_one_image_is_too_few() -> None:
    with pytest.raises(UserError, match="too few"):
        fine_tune(small_net(), Views(stripes(1)), Schedule(1, 0.01), 0)


# ----------------------------------------------------------------------------------------------------
# The step, the rate, the loss, the average


class One(nn.Module):
    """One weight w, logits (w, 0): at label 0 the gradient is -1 / (1 + e^w) + 5e-4 w."""

    def __init__(self, w: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.w.expand(len(x)), torch.zeros(len(x))], 1)


def four_of_label_0() -> Split:
    return Split(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))


def weights_by_formula(rates: list[float]) -> list[float]:
    """Return w after each step of Nesterov's momentum 0.9 from w = 0."""
    w, velocity, seen = 0.0, 0.0, []
    for rate in rates:
        gradient = -1 / (1 + math.exp(w)) + 5e-4 * w
        velocity = 0.9 * velocity + gradient
        w -= rate * (gradient + 0.9 * velocity)
        seen.append(w)
    return seen


def test_two_steps_of_sgd_are_those_of_the_formula() -> None:
    model = One()
    fine_tune(model, Views(four_of_label_0()), Schedule(2, 0.1), seed=0, bfloat16=False)
    # A cosine in two steps: 1 and 1/2.
    assert model.w.item() == pytest.approx(weights_by_formula([0.1, 0.05])[-1], rel=1e-5)


def test_the_rate_rises_along_a_line_and_falls_to_zero() -> None:
    # Of 8 steps a quarter, two, rise: 1/3 and 2/3; then six fall from 1 along a line.
    schedule = Schedule(8, 0.6, shape="linear", warm_up=0.25)
    rates = [schedule.rate(step, 8) for step in range(8)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    cosine = Schedule(8, 0.6, warm_up=0.25)
    assert [cosine.rate(step, 8) for step in (0, 1, 2, 5)] == pytest.approx([0.2, 0.4, 0.6, 0.3])


def test_a_few_steps_have_no_warm_up() -> None:
    assert Schedule(1, 0.1).rate(0, 30) == 0.1


@given(st.integers(1, 400), st.sampled_from(["cosine", "linear"]), st.floats(0, 0.5))
def test_no_step_has_a_rate_of_zero_or_above_the_highest(steps: int, shape: str, warm_up: float) -> None:
    schedule = Schedule(1, 0.1, shape=shape, warm_up=warm_up)  # type: ignore[arg-type]
    rates = [schedule.rate(step, steps) for step in range(steps)]
    assert max(rates) == pytest.approx(0.1)
    assert min(rates) > 0
    top = rates.index(max(rates))
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)


@pytest.mark.parametrize(("images", "batch"), [(2, 2), (20, 20), (64, 32), (303, 37), (1000, 125), (50_000, 128)])
def test_few_images_are_shown_in_smaller_batches(images: int, batch: int) -> None:
    assert batch_of(images, 128) == batch


def test_the_average_is_over_the_last_third() -> None:
    # Nine steps; the average begins with the sixth (1 - 1/3 of nine), has a horizon of (9 - 6) / 5 < 1 step at once.
    model = One()
    fine_tune(model, Views(four_of_label_0()), Schedule(9, 0.1, shape="linear", ema=True), seed=0, bfloat16=False)
    w = weights_by_formula([0.1 * (1 - step / 9) for step in range(9)])
    assert model.w.item() == pytest.approx(w[-1], rel=1e-5)


def test_a_long_average_weighs_the_past_less_and_less() -> None:
    # 30 steps: from the 20th on, with a horizon of (30 - 20) / 5 = 2 steps: at first the mean, then half and half.
    model = One()
    schedule = Schedule(30, 0.1, shape="linear", ema=True, warm_up=0)
    fine_tune(model, Views(four_of_label_0()), schedule, seed=0, bfloat16=False)
    w = weights_by_formula([0.1 * (1 - step / 30) for step in range(30)])
    average = w[19]
    for value in w[20:]:
        average = (average + value) / 2
    assert model.w.item() == pytest.approx(average, rel=1e-5)


def test_statistics_are_averaged_with_the_weights() -> None:
    plain, averaged = small_net(), small_net()
    fine_tune(plain, Views(stripes(128)), Schedule(10, 0.1, batch=16), seed=0, bfloat16=False)
    fine_tune(averaged, Views(stripes(128)), Schedule(10, 0.1, batch=16, ema=True), seed=0, bfloat16=False)
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        assert not torch.equal(plain.state_dict()[name], averaged.state_dict()[name])


def test_infinite_constants_survive_an_average() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()
            self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

    model = Masked()
    fine_tune(model, Views(stripes(64)), Schedule(3, 0.05, ema=True), seed=0)
    assert model.state_dict()["mask"].tolist() == [0.0, -math.inf]


def test_a_steep_gradient_is_cut_to_a_length() -> None:
    # Two logits 1000 w and 0 at label 0: the gradient at w = 0 is -500, cut to -5.
    class Steep(One):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1000

    model = Steep()
    fine_tune(model, Views(four_of_label_0()), Schedule(1, 0.1), seed=0, bfloat16=False)
    assert model.w.item() == pytest.approx(0.1 * 5 * 1.9, rel=1e-5)


def test_the_loss_mixes_the_labels_and_the_teacher() -> None:
    output = torch.tensor([[1.0, 0.0]])
    teacher = torch.tensor([[0.0, 2.0]])
    # T = 2: student (e^0.5, 1) / 2.6487, teacher (1, e) / 3.7183.
    student = (math.exp(0.5) / (1 + math.exp(0.5)), 1 / (1 + math.exp(0.5)))
    target = (1 / (1 + math.e), math.e / (1 + math.e))
    divergence = sum(t * math.log(t / s) for t, s in zip(target, student, strict=True))
    hard = math.log(1 + math.exp(-1.0))
    loss = module._loss(output, torch.tensor([0]), teacher, Distillation(weight=0.25, temperature=2.0))
    assert loss.item() == pytest.approx(0.75 * hard + 0.25 * 4 * divergence, rel=1e-5)


def test_a_teacher_teaches_without_labels_and_stays_as_it_is() -> None:
    split = stripes(256)
    teacher, student = small_net(), small_net(1)
    fine_tune(teacher, Views(split), Schedule(8, 0.1), seed=0)
    before = weights(teacher)
    unlabelled = Split(split.images, torch.zeros_like(split.labels), split.mean, split.std)
    views = Views(unlabelled, teacher, count=4)
    fine_tune(student, views, Schedule(8, 0.1, varied=True), 0, distillation=Distillation(weight=1.0))
    assert evaluate(student, split) > 0.95
    assert torch.equal(weights(teacher), before)


# ----------------------------------------------------------------------------------------------------
# Progress and pace


def test_progress_counts_every_step_of_a_part_of_an_epoch() -> None:
    seen: list[tuple[int, int]] = []
    # 100 images make three whole batches of 32; one and a half epochs are 4.5 steps, so five.
    fine_tune(
        small_net(),
        Views(stripes(100)),
        Schedule(1.5, 0.01, batch=32),
        0,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_time_becomes_epochs_and_back() -> None:
    # 10 s an epoch, and 4 s each for two views that are not known yet.
    speed = Pace(10.0, 4.0, 2)
    assert [speed.seconds(epochs) for epochs in (0.5, 1, 1.5, 2, 5)] == [9, 14, 23, 28, 58]
    assert [speed.epochs(seconds) for seconds in (9, 14, 23, 28, 58)] == [0.5, 1, 1.5, 2, 5]
    assert speed.epochs(16) == 1  # the 2 s that are left are too few for another view
    assert speed.epochs(3) == 0
    assert Pace(10.0).epochs(25) == 2.5


@given(st.floats(0.01, 100), st.floats(0, 100), st.integers(0, 8), st.floats(0, 10_000))
def test_the_epochs_of_a_time_fit_into_it(epoch_s: float, view_s: float, views: int, seconds: float) -> None:
    speed = Pace(epoch_s, view_s, views)
    epochs = speed.epochs(seconds)
    assert epochs >= 0
    if epochs:
        assert speed.seconds(epochs) <= seconds * (1 + 1e-9)
    assert speed.seconds(epochs + 1) > seconds * (1 - 1e-9)


def test_a_pace_is_measured_on_a_copy() -> None:
    model = small_net()
    before = weights(model)
    views = Views(stripes(256), small_net(1), count=4)
    found = pace(model, views, Schedule(1, 0.1, varied=True, batch=32), least_s=0.0)
    assert 0 < found.seconds_per_epoch < 60
    assert 0 < found.seconds_per_view < 60
    assert found.unknown_views == 4
    assert torch.equal(weights(model), before)
    assert views.unknown(varied=True) == 4


# ----------------------------------------------------------------------------------------------------
# Divergence


def test_a_loss_that_is_not_a_number_stops_with_its_step() -> None:
    with pytest.raises(FineTuneDiverged, match=r"became (nan|inf) in step \d+ of \d+ \(lr 1e\+30\)"):
        fine_tune(small_net(), Views(stripes(64)), Schedule(50, 1e30, batch=16), seed=0, bfloat16=False)


def test_a_gradient_that_is_infinite_stops_before_it_spoils_a_weight() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    # The loss is log 2, its gradient as large as the images, 1e30: its square is beyond float32.
    split = Split(torch.full((4, 1, 2, 2), 1e30), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(FineTuneDiverged, match="the gradient became inf in step 1 of 1"):
        fine_tune(model, Views(split), Schedule(1, 0.1), seed=0, bfloat16=False)
    assert model.state_dict()["1.weight"].abs().max() == 0


def test_weights_spoilt_by_the_last_step_are_found() -> None:
    model = One()
    with pytest.raises(FineTuneDiverged, match="w holds NaN or infinity after 1 steps"):
        fine_tune(model, Views(four_of_label_0()), Schedule(1, 1e39), seed=0, bfloat16=False)


def test_divergence_is_no_mistake_of_the_user() -> None:
    assert issubclass(FineTuneDiverged, CpruneError)
    assert not issubclass(FineTuneDiverged, UserError)


# ----------------------------------------------------------------------------------------------------
# Kills


class Killed(BaseException):
    """What a kill is to a test."""


class WithEverything(nn.Module):
    """BatchNorm with its counter of batches, dropout, and a weight that never has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        *before, last = small_net()  # type: ignore[misc]
        self.net = nn.Sequential(*before, nn.Dropout(0.5), last)
        self.spare = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def killed_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Killed

    return progress


EVERYTHING = Schedule(5, 0.05, varied=True, ema=True, batch=16)  # 64 images: 4 steps an epoch, 20 in all


def trained(checkpoint: Checkpoint | None, kill_at: int = 0, schedule: Schedule = EVERYTHING, seed: int = 7) -> Tensor:
    """Return the weights of a training in a new process, as far as it came."""
    model = WithEverything()
    views = Views(stripes(64), small_net(1), count=3)
    fine_tune(model, views, schedule, seed, progress=killed_at(kill_at), checkpoint=checkpoint)
    return weights(model)


@pytest.fixture(scope="module")
def whole() -> Tensor:
    torch.set_num_threads(1)
    return trained(None)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(1, 7))
def test_a_killed_training_ends_bit_for_bit_where_it_would_have_ended(
    whole: Tensor, kills: list[int], steps_between: int
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "training.safetensors"
        ticks = iter(range(10**6))
        for kill in kills:
            # The clock moves by one whenever it is looked at: so many steps between two writings.
            checkpoint = Checkpoint(path, every_s=steps_between, clock=lambda: float(next(ticks)))
            with contextlib.suppress(Killed):
                trained(checkpoint, kill)
        assert torch.equal(trained(Checkpoint(path)), whole)


def test_a_resumed_training_does_only_what_is_left(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "deep" / "training.safetensors"
    with pytest.raises(Killed):
        trained(Checkpoint(path, every_s=0), kill_at=13)
    seen: list[int] = []
    views = Views(stripes(64), small_net(1), count=3)
    again = Checkpoint(path, say=said.append)
    fine_tune(WithEverything(), views, EVERYTHING, 7, progress=lambda done, _: seen.append(done), checkpoint=again)
    assert seen == [14, 15, 16, 17, 18, 19, 20]
    assert said == ["the training goes on after step 13 of 20"]


def test_a_finished_training_is_not_done_again_until_it_is_discarded(tmp_path: Path, whole: Tensor) -> None:
    checkpoint = Checkpoint(tmp_path / "training.safetensors")
    trained(checkpoint)
    assert torch.equal(trained(checkpoint, kill_at=1), whole)
    checkpoint.discard()
    checkpoint.discard()
    assert not list(tmp_path.iterdir())
    with pytest.raises(Killed):
        trained(checkpoint, kill_at=1)


def test_a_checkpoint_is_written_when_its_seconds_are_over(tmp_path: Path) -> None:
    now = [0.0]
    checkpoint = Checkpoint(tmp_path / "training.safetensors", every_s=60, clock=lambda: now[0])
    written: list[int] = []

    def progress(done: int, total: int) -> None:
        now[0] += 25
        if checkpoint.path.exists():
            written.append(int(load_file(checkpoint.path)["done"]))

    fine_tune(small_net(), Views(stripes(64)), Schedule(2, 0.01, batch=16), 0, progress=progress, checkpoint=checkpoint)
    # In the 4th step it is 75 s, in the 7th 75 s later; the last one is written always.
    assert written == [4, 4, 4, 7, 8]


@pytest.mark.parametrize(
    ("schedule", "seed"),
    [
        (EVERYTHING, 8),
        (Schedule(5, 0.04, varied=True, ema=True, batch=16), 7),
        (Schedule(5, 0.05, varied=True, batch=16), 7),
    ],
)
def test_the_checkpoint_of_another_training_is_not_taken(tmp_path: Path, schedule: Schedule, seed: int) -> None:
    path = tmp_path / "training.safetensors"
    with pytest.raises(Killed):
        trained(Checkpoint(path, every_s=0), kill_at=9)
    expected = trained(None, schedule=schedule, seed=seed)
    assert torch.equal(trained(Checkpoint(path), schedule=schedule, seed=seed), expected)


def test_the_checkpoint_of_other_first_weights_is_not_taken(tmp_path: Path) -> None:
    def from_net(seed: int, checkpoint: Checkpoint | None) -> Tensor:
        model = small_net(seed)
        fine_tune(model, Views(stripes(64)), Schedule(2, 0.05, batch=16), 0, checkpoint=checkpoint)
        return weights(model)

    checkpoint = Checkpoint(tmp_path / "training.safetensors", every_s=0)
    from_net(0, checkpoint)
    assert torch.equal(from_net(1, checkpoint), from_net(1, None))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_damaged_checkpoint_is_told_and_the_training_begins_anew(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "training.safetensors"
        writer = Checkpoint(path)
        writer.write("this one", {"a": torch.arange(20.0), "b": torch.ones(3, 2)})
        whole = path.read_bytes()
        if data.draw(st.booleans(), "cut"):
            path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        else:
            place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
        said: list[str] = []
        found = Checkpoint(path, say=said.append).begin("this one")
        # A damaged name of the training is another training.
        assert found is None
        assert all("begins anew" in text for text in said)


def test_a_cut_checkpoint_is_told(tmp_path: Path, whole: Tensor) -> None:
    path = tmp_path / "training.safetensors"
    with pytest.raises(Killed):
        trained(Checkpoint(path, every_s=0), kill_at=9)
    path.write_bytes(path.read_bytes()[:-100])
    said: list[str] = []
    assert torch.equal(trained(Checkpoint(path, say=said.append)), whole)
    assert len(said) == 1
    assert "is damaged" in said[0]


def test_a_file_that_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    for content in (b"", b"{}", b"\xff" * 100, json.dumps({"__metadata__": 3}).encode()):
        path.write_bytes(content)
        said: list[str] = []
        assert Checkpoint(path, say=said.append).begin("any") is None
        assert len(said) == 1


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    assert Checkpoint(tmp_path, say=said.append).begin("any") is None
    assert "cannot read" in said[0]
