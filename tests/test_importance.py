"""Scores worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_nets import Net, captured
from torch import Tensor, nn

from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.channels.importance import METHODS, importance
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.targets.errors import UserError


class Two(Net):
    """Two linear layers that add into one group of three channels."""

    shape = (2,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [-6.0, 0.0]]))
            self.b.weight.copy_(torch.tensor([[10.0, 0.0], [0.0, 20.0], [0.0, -30.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.a(x) + self.b(x)))


@pytest.fixture(scope="module")
def two() -> tuple[Network, Graph]:
    network = capture(Two(), Two().example())
    return network, analyse(network, Two().example())


def test_l1_is_the_mean_over_layers_of_norms_relative_to_the_layers_mean(two: tuple[Network, Graph]) -> None:
    a, b = np.array([7, 1, 6]) / (14 / 3), np.array([10, 20, 30]) / 20
    np.testing.assert_allclose(importance(*two, "a", "l1"), (a + b) / 2)


def test_l2(two: tuple[Network, Graph]) -> None:
    a, b = np.array([5, 1, 6]) / 4, np.array([10, 20, 30]) / 20
    np.testing.assert_allclose(importance(*two, "a", "l2"), (a + b) / 2)


def test_fpgm_sums_the_distances_to_the_other_filters(two: tuple[Network, Graph]) -> None:
    # a: 0-1 (3, 3) 18**.5, 0-2 (9, 4) 97**.5, 1-2 (6, 1) 37**.5;  b: 0-1 500**.5, 0-2 1000**.5, 1-2 50
    d = np.sqrt([18, 97, 37]), np.sqrt([500, 1000, 2500])
    sums = [np.array([x[0] + x[1], x[0] + x[2], x[1] + x[2]]) for x in d]
    np.testing.assert_allclose(importance(*two, "a", "fpgm"), sum(s / s.mean() for s in sums) / 2)


def test_taylor_is_the_size_of_the_summed_product_with_the_gradient(two: tuple[Network, Graph]) -> None:
    gradients = {
        "a.weight": torch.tensor([[4.0, -3.0], [0.0, 2.0], [1.0, 5.0]]),  # 12 - 12, 2, -6
        "b.weight": torch.tensor([[1.0, 9.0], [0.0, 0.0], [0.0, 1.0]]),  # 10, 0, -30
    }
    a, b = np.array([0, 2, 6]) / (8 / 3), np.array([10, 0, 30]) / (40 / 3)
    np.testing.assert_allclose(importance(*two, "a", "taylor", gradients=gradients), (a + b) / 2)


def test_taylor_is_the_change_of_the_loss_to_first_order(two: tuple[Network, Graph]) -> None:
    network, graph = two
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    network.zero_grad()
    network(x).square().mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    found = importance(network, graph, "last" if graph.groups_of("last") else "a", "taylor", gradients=gradients)
    slope = (network.a.weight.grad * network.a.weight).sum(1).abs().detach().numpy()
    other = (network.b.weight.grad * network.b.weight).sum(1).abs().detach().numpy()
    np.testing.assert_allclose(found, (slope / slope.mean() + other / other.mean()) / 2, rtol=1e-5)


def test_random_depends_on_seed_and_group_only() -> None:
    network, graph = captured("Chain").network, captured("Chain").graph

    def scores(group: str, seed: int) -> list[float]:
        return list(importance(network, graph, group, "random", seed=seed))

    assert scores("conv1", 1) == scores("conv1", 1)
    assert scores("conv1", 1) != scores("conv1", 2)
    assert scores("conv1", 1)[:5] != scores("conv2", 1)
    assert (
        importance(network, graph, "conv1", "l1", seed=1).tolist()
        == importance(network, graph, "conv1", "l1", seed=2).tolist()
    )


def test_a_channel_of_several_filters_has_their_sum() -> None:
    network, graph = captured("Shuffled").network, captured("Shuffled").graph
    norms = network.g1.weight.detach().double().abs().sum((1, 2, 3)).numpy()
    wanted = norms.reshape(4, 2).sum(0) / norms.mean()
    np.testing.assert_allclose(importance(network, graph, "g1", "l1"), wanted)


def test_only_the_positions_of_the_group_count() -> None:
    network, graph = captured("Padded").network, captured("Padded").graph
    norms = network.c2.weight.detach().double().abs().sum((1, 2, 3)).numpy()
    wanted = norms[[0, 1, 2, 3, 12, 13, 14, 15]] / norms.mean()
    np.testing.assert_allclose(importance(network, graph, "c2", "l1"), wanted)


@pytest.mark.parametrize("name", ["Padded", "Depthwise", "Grouped", "Tied", "Upward"])
@pytest.mark.parametrize("method", METHODS)
def test_one_finite_score_for_every_channel(name: str, method: str) -> None:
    network, graph = captured(name).network, captured(name).graph
    gradients = {key: torch.ones_like(value) for key, value in network.tensors().items()}
    for group in graph.groups:
        scores = importance(network, graph, group.id, method, gradients=gradients)
        assert scores.shape == (group.channels,)
        assert scores.dtype == np.float64
        assert np.isfinite(scores).all()


def test_a_layer_of_zeros_has_no_vote(two: tuple[Network, Graph]) -> None:
    model = Two()
    with torch.no_grad():
        model.a.weight.zero_()
    network = capture(model, Two().example())
    scores = importance(network, analyse(network, Two().example()), "a", "l1")
    np.testing.assert_allclose(scores, [0.25, 0.5, 0.75])


def test_mistakes(two: tuple[Network, Graph]) -> None:
    with pytest.raises(UserError, match="unknown importance method 'l3'\nDid you mean 'l"):
        importance(*two, "a", "l3")
    with pytest.raises(UserError, match="unknown group 'c'"):
        importance(*two, "c", "l1")
    with pytest.raises(UserError, match=r"needs the gradient of 'a.weight'"):
        importance(*two, "a", "taylor")
    with pytest.raises(UserError, match=r"gradient of 'a.weight' has shape \[2\], the tensor \[3, 2\]"):
        importance(*two, "a", "taylor", gradients={"a.weight": torch.ones(2)})
