"""BatchNorms that take the statistics of the images at hand, and answer as they did."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.network.recentring import has_norms, recentred
from cprune.training.data import Split
from cprune.training.train import recalibrate


def network(*layers: nn.Module, seed: int = 0) -> tuple[Network, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(*layers).eval()
    images = torch.randn(64, 2, 6, 6)
    return capture(model, (images[:1],)), images


def strange(channels: int) -> nn.BatchNorm2d:
    """Return a BatchNorm whose statistics are those of no data."""
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for value, low in ((norm.weight, 0.5), (norm.bias, -1.0), (norm.running_mean, -3.0), (norm.running_var, 2.0)):
            value.uniform_(low, low + 2)
    return norm


def test_it_answers_as_before_with_the_statistics_of_the_images() -> None:
    before, images = network(nn.Conv2d(2, 4, 3), strange(4), nn.ReLU(), nn.Conv2d(4, 3, 3), strange(3))
    after = recentred(before, [(images[:32],), (images[32:],)])
    torch.testing.assert_close(after(images), before(images))
    value = before.values(images)["conv2d"]
    torch.testing.assert_close(after.tensors()["1.running_mean"], value.mean((0, 2, 3)))
    torch.testing.assert_close(after.tensors()["1.running_var"], value.var((0, 2, 3), correction=0))


def test_statistics_estimated_anew_change_nothing_any_more() -> None:
    before, images = network(nn.Conv2d(2, 4, 3), strange(4), nn.ReLU(), nn.Conv2d(4, 3, 3), strange(3), nn.Flatten())
    split = Split(images, torch.zeros(64, dtype=torch.int64))
    wanted = before(images)

    def moved(one: Network) -> float:
        recalibrate(one, split, 0, images=64, batch=64)
        return float((one(images) - wanted).detach().abs().max())

    after = recentred(before, [(images,)])
    assert moved(after) < 0.01
    assert moved(before) > 1


def test_a_channel_that_is_always_the_same_stays_so() -> None:
    norm = strange(1)
    before, images = network(nn.Conv2d(2, 1, 1), norm)
    with torch.no_grad():
        for name in ("0.weight", "0.bias"):
            before.tensors()[name].zero_()
    after = recentred(before, [(images,)])
    assert float(after.tensors()["1.running_var"]) == 0
    torch.testing.assert_close(after(images), before(images))


def test_the_network_that_is_given_stays_as_it_is() -> None:
    before, images = network(nn.Conv2d(2, 4, 3), strange(4))
    mean = before.tensors()["1.running_mean"].clone()
    recentred(before, [(images,)])
    assert torch.equal(before.tensors()["1.running_mean"], mean)


class Twice(nn.Module):
    """Two convolutions before one BatchNorm, which has no statistics of either."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), strange(4)

    def forward(self, x: Tensor) -> Tensor:
        """Return both, one added to the other."""
        both: Tensor = self.norm(self.a(x)) + self.norm(self.b(x))
        return both


@pytest.mark.parametrize(
    ("layers", "has"),
    [
        ((nn.Conv2d(2, 4, 3), strange(4)), True),
        ((nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False)), False),
        ((Twice(),), False),
        ((nn.Conv2d(2, 4, 3), nn.ReLU()), False),
    ],
)
def test_what_has_no_numbers_of_its_own_is_left_alone(layers: tuple[nn.Module, ...], has: bool) -> None:
    before, images = network(*layers)
    assert has_norms(before) == has
    torch.testing.assert_close(recentred(before, [(images,)])(images), before(images))
