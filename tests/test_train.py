"""Looking at a model and repairing it: accuracy and gradients by hand, recalibration against formulas."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cprune.network.capture import capture
from cprune.training.data import Split
from cprune.training.fine_tune import Schedule, fine_tune
from cprune.training.train import evaluate, gradients, logits, recalibrate
from cprune.training.views import Views
from tests.stripes import small_net, stripes, weights


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Reader(nn.Module):
    """Its logits are the first pixels of the image, one a channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C]."""
        return x[:, :, 0, 0]


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
    fine_tune(Viewer(), Views(split), Schedule(1, 0.01), seed=0)


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
    fine_tune(model, Views(split), Schedule(8, 0.1), seed=0)
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
