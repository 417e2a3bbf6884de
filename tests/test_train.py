"""Training: accuracy by hand, recalibration and the loss against formulas, seeds, and what diverges."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cprune.network.capture import capture
from cprune.targets.errors import CpruneError, UserError
from cprune.training import train
from cprune.training.data import Split
from cprune.training.train import (
    Distillation,
    FineTuneDiverged,
    augmented,
    evaluate,
    fine_tune,
    gradients,
    logits,
    recalibrate,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Reader(nn.Module):
    """Its logits are the first pixels of the image, one a channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C]."""
        return x[:, :, 0, 0]


def small_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 2),
        ).eval()


def stripes(count: int = 256, seed: int = 0) -> Split:
    """Images of 8x8: class 0 has horizontal stripes, class 1 vertical ones, in bytes, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    lines = ((torch.arange(8) % 2) * 100)[:, None].expand(8, 8)
    images = torch.stack([lines if label == 0 else lines.T for label in labels])[:, None]
    noise = torch.randint(0, 60, images.shape, generator=generator)
    return Split((images + noise).to(torch.uint8), labels, mean=(0.3,), std=(0.2,))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])


# ----------------------------------------------------------------------------------------------------
# Accuracy


def test_accuracy_is_the_share_of_largest_logits_at_the_label() -> None:
    pixels = torch.tensor([[3.0, 1, 2], [0, 5, 1], [0, 1, 9], [4, 1, 1]])
    split = Split(pixels[:, :, None, None], torch.tensor([0, 1, 1, 0]))
    assert evaluate(Reader(), split) == 0.75


def test_the_batch_size_does_not_matter() -> None:
    split, model = stripes(50), small_net()
    assert torch.allclose(logits(model, split, batch=7), logits(model, split, batch=50), atol=1e-6)


def test_evaluation_changes_nothing_and_ends_in_evaluation_mode() -> None:
    model = small_net().train()
    before = weights(model)
    evaluate(model, stripes(32))
    assert torch.equal(weights(model), before)
    assert not model.training


def test_a_model_that_cannot_take_channels_last_is_evaluated_all_the_same() -> None:
    class Viewer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.fc = nn.Linear(4 * 64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(len(x), 4 * 64))  # type: ignore[no-any-return]

    split = Split(torch.rand(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64))
    assert logits(Viewer(), split).shape == (6, 2)
    fine_tune(Viewer(), split, epochs=1, lr=0.01, seed=0)


def test_gradients_are_those_of_the_mean_loss_and_leave_the_model_alone() -> None:
    model, split = small_net(), stripes(20)
    found = gradients(model, split, seed=0, images=20, batch=6)
    assert all(value.grad is None for value in model.parameters())
    F.cross_entropy(model(split.model_input(split.images)), split.labels).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None
        assert torch.allclose(found[name], value.grad, atol=1e-6)


# ----------------------------------------------------------------------------------------------------
# Recalibration


def test_the_mean_of_two_batches_is_their_plain_mean() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2))
    images = torch.tensor([[0.0, 0, 0, 4], [4, 4, 4, 8]]).reshape(2, 1, 2, 2)
    recalibrate(model, Split(images, torch.zeros(2, dtype=torch.int64)), seed=0, images=2, batch=1)
    # Means 1 and 5.  Both images spread alike: (3 * 1 + 9) / (4 - 1) = 4.
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.tolist() == pytest.approx([3.0], rel=1e-5)
    assert norm.running_var.tolist() == pytest.approx([4.0], rel=1e-5)


@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0, None])
def test_the_momentum_does_not_matter(momentum: float | None) -> None:
    split = stripes(64)
    expected, model = small_net(), small_net()
    recalibrate(expected, split, seed=3, images=64, batch=16)
    norm = model[1]  # type: ignore[index]
    norm.momentum = momentum
    recalibrate(model, split, seed=3, images=64, batch=16)
    assert torch.allclose(model.state_dict()["1.running_mean"], expected.state_dict()["1.running_mean"], atol=1e-5)
    assert torch.allclose(model.state_dict()["1.running_var"], expected.state_dict()["1.running_var"], rtol=1e-4)
    assert norm.momentum == momentum


def test_a_captured_network_is_recalibrated_like_its_module() -> None:
    split, model = stripes(64), small_net()
    network = capture(model, (torch.zeros(1, 1, 8, 8),))
    recalibrate(model, split, seed=3, images=64, batch=16)
    recalibrate(network, split, seed=3, images=64, batch=16)
    for name, value in network.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-5)


def test_recalibration_touches_no_weight() -> None:
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    recalibrate(model, stripes(64), seed=0)
    after = model.state_dict()
    for name in ("0.weight", "1.weight", "1.bias", "5.weight"):
        assert torch.equal(after[name], before[name])
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])


def test_recalibration_puts_a_shifted_model_right() -> None:
    model, split = small_net(), stripes(256)
    fine_tune(model, split, epochs=8, lr=0.1, seed=0)
    good = evaluate(model, split)
    assert good > 0.95
    model[1].running_mean += 5.0  # type: ignore[index]
    assert evaluate(model, split) < 0.7
    recalibrate(model, split, seed=0)
    assert evaluate(model, split) >= good - 0.02


def test_a_normalisation_that_is_not_used_keeps_its_statistics() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.spare = nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x).flatten(1)  # type: ignore[no-any-return]

    model = Unused()
    recalibrate(model, stripes(32), seed=0)
    assert model.state_dict()["spare.running_mean"].tolist() == [0.0]
    assert model.state_dict()["spare.running_var"].tolist() == [1.0]


def test_a_model_without_normalisation_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    before = weights(model)
    recalibrate(model, stripes(32), seed=0)
    assert torch.equal(weights(model), before)


def test_an_interrupted_recalibration_leaves_the_statistics() -> None:
    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return self.norm(x).flatten(1)  # type: ignore[no-any-return]

    model = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, stripes(64), seed=0, images=64, batch=16)
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.tolist() == [0.0]


# ----------------------------------------------------------------------------------------------------
# Augmentation


def test_without_a_shift_every_image_is_itself_or_its_mirror_image() -> None:
    images = torch.arange(20 * 2 * 3 * 5).reshape(20, 2, 3, 5)
    result = augmented(images, torch.Generator().manual_seed(0), shift=0)
    same = [torch.equal(a, b) for a, b in zip(result, images, strict=True)]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(result, images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 0 < sum(same) < 20


def test_a_shift_moves_the_image_and_lets_zeros_in() -> None:
    images = torch.ones(200, 1, 6, 6)
    result = augmented(images, torch.Generator().manual_seed(0), shift=2)
    # Moved by (i, j) pixels, (6 - |i|) * (6 - |j|) ones are left: the products of 4, 5 and 6.
    assert {int(total) for total in result.sum((1, 2, 3))} == {16, 20, 24, 25, 30, 36}


def test_augmented_bytes_stay_bytes() -> None:
    assert augmented(stripes(4).images, torch.Generator(), shift=1).dtype == torch.uint8


# ----------------------------------------------------------------------------------------------------
# Fine-tuning


def test_fine_tuning_learns_stripes() -> None:
    model, split = small_net(1), stripes(256)
    assert evaluate(model, split) < 0.8
    fine_tune(model, split, epochs=8, lr=0.1, seed=0)
    assert evaluate(model, split) > 0.95
    assert not model.training
    assert all(value.grad is None for value in model.parameters())


def test_a_captured_network_learns_too() -> None:
    network, split = capture(small_net(), (torch.zeros(1, 1, 8, 8),)), stripes(256)
    fine_tune(network, split, epochs=8, lr=0.1, seed=0)
    assert evaluate(network, split) > 0.95


@pytest.mark.parametrize("bfloat16", [False, True])
def test_one_seed_gives_the_same_bits(bfloat16: bool) -> None:
    def tuned(seed: int) -> Tensor:
        model = small_net()
        teacher = small_net(1)
        fine_tune(model, stripes(100), 2, 0.05, seed, teacher=teacher, augment=True, batch=32, bfloat16=bfloat16)
        return weights(model)

    assert torch.equal(tuned(1), tuned(1))
    assert not torch.equal(tuned(1), tuned(2))


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    fine_tune(small_net(), stripes(64), 1, 0.01, 0)
    recalibrate(small_net(), stripes(64), 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_two_steps_of_sgd_are_those_of_the_formula() -> None:
    # One weight w, logits (w, 0), label 0: the gradient is g = -1 / (1 + e^w) + 5e-4 w.
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.w.expand(len(x)), torch.zeros(len(x))], 1)

    model = One()
    split = Split(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))
    fine_tune(model, split, epochs=2, lr=0.1, seed=0, bfloat16=False)
    w, velocity = 0.0, 0.0
    for lr in (0.1, 0.05):  # a cosine in two steps: 1 and 1/2
        gradient = -1 / (1 + math.exp(w)) + 5e-4 * w
        velocity = 0.9 * velocity + gradient
        w -= lr * (gradient + 0.9 * velocity)
    assert model.w.item() == pytest.approx(w, rel=1e-5)


def test_the_loss_mixes_the_labels_and_the_teacher() -> None:
    output = torch.tensor([[1.0, 0.0]])
    teacher = torch.tensor([[0.0, 2.0]])
    # T = 2: student (e^0.5, 1) / 2.6487, teacher (1, e) / 3.7183.
    student = (math.exp(0.5) / (1 + math.exp(0.5)), 1 / (1 + math.exp(0.5)))
    target = (1 / (1 + math.e), math.e / (1 + math.e))
    divergence = sum(t * math.log(t / s) for t, s in zip(target, student, strict=True))
    hard = math.log(1 + math.exp(-1.0))
    loss = train._loss(output, torch.tensor([0]), teacher, Distillation(weight=0.25, temperature=2.0))
    assert loss.item() == pytest.approx(0.75 * hard + 0.25 * 4 * divergence, rel=1e-5)


def test_a_teacher_teaches_without_labels_and_stays_as_it_is() -> None:
    split = stripes(256)
    teacher, student = small_net(), small_net(1)
    fine_tune(teacher, split, epochs=8, lr=0.1, seed=0)
    before = weights(teacher)
    unlabelled = Split(split.images, torch.zeros_like(split.labels), split.mean, split.std)
    fine_tune(student, unlabelled, 8, 0.1, 0, teacher=teacher, distillation=Distillation(weight=1.0))
    assert evaluate(student, split) > 0.95
    assert torch.equal(weights(teacher), before)


def test_kept_logits_teach_like_the_teacher_if_images_are_not_augmented() -> None:
    split, teacher = stripes(64), small_net(1)
    kept = logits(teacher, split)
    first, second = small_net(), small_net()
    fine_tune(first, split, 2, 0.05, 0, teacher=teacher, batch=16, bfloat16=False)
    fine_tune(second, split, 2, 0.05, 0, teacher=kept, batch=16, bfloat16=False)
    assert torch.allclose(weights(first), weights(second), atol=1e-4)


def test_progress_counts_every_step_of_a_part_of_an_epoch() -> None:
    seen: list[tuple[int, int]] = []
    # 100 images make three whole batches of 32; one and a half epochs are 4.5 steps, so five.
    fine_tune(
        small_net(),
        stripes(100),
        1.5,
        0.01,
        0,
        batch=32,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_a_loss_that_is_not_a_number_stops_with_its_step() -> None:
    with pytest.raises(FineTuneDiverged, match=r"the loss became nan in step \d+ of \d+ \(lr 1e\+30\)"):
        fine_tune(small_net(), stripes(64), epochs=50, lr=1e30, seed=0, batch=16, bfloat16=False)


def test_weights_spoilt_by_the_last_step_are_found() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    # The loss of the only step is log 2, its gradient as large as the images, 1e30, and the rate is 1e20.
    split = Split(torch.full((4, 1, 2, 2), 1e30), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(FineTuneDiverged, match=r"1\.weight holds NaN or infinity after 1 steps"):
        fine_tune(model, split, epochs=1, lr=1e20, seed=0, bfloat16=False)


def test_divergence_is_no_mistake_of_the_user() -> None:
    assert issubclass(FineTuneDiverged, CpruneError)
    assert not issubclass(FineTuneDiverged, UserError)


def test_an_interruption_passes_through() -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    model = small_net()
    with pytest.raises(KeyboardInterrupt):
        fine_tune(model, stripes(64), 1, 0.01, 0, progress=interrupt)
    assert not model.training


def test_weights_are_contiguous_afterwards() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    split = Split(torch.rand(8, 3, 6, 6), torch.arange(8) % 4)
    fine_tune(model, split, 1, 0.01, 0)
    assert all(value.is_contiguous() for value in model.parameters())


def test_one_image_is_too_few() -> None:
    with pytest.raises(UserError, match="too few"):
        fine_tune(small_net(), stripes(1), 1, 0.01, 0)
