"""Statistics, the order in which channels go, and the repair of what reads them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import SIDE, Drawn, Plan, plans
from small_nets import NETS, Net, captured, conv, randomised
from test_random_networks import EXAMPLE, some
from torch import Tensor, nn

from cprune.channels import statistics as module
from cprune.channels.compensation import compensated
from cprune.channels.cut import Cut
from cprune.channels.elimination import ORDERS, order, orders
from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.channels.importance import importance
from cprune.channels.statistics import Statistics, columns, statistics
from cprune.channels.surgery import Removed, classes_of, prune
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.targets.errors import UserError


def images(net: type[Net] | tuple[int, ...], count: int = 64) -> Tensor:
    shape = net if isinstance(net, tuple) else net.shape
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(7))


def opened(model: Net) -> tuple[Network, Graph, Statistics]:
    network = capture(model.eval(), model.example())
    graph = analyse(network, model.example(), raise_bugs=True)
    return network, graph, statistics(network, graph, images(type(model)))


# -- statistics


class Pointwise(Net):
    """A 1x1 convolution whose input is the image plus one, and a linear layer over a plane of 2 x 2."""

    shape = (2, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.relu(self.second(F.relu(self.first(x)))), 1))


def test_moments_are_those_of_what_the_layer_reads() -> None:
    model = randomised(Pointwise())
    _, graph, found = opened(model)
    assert set(found.moments) == {"second.weight", "fc.weight"}  # the first reads the input
    x = F.relu(model.first(images(Pointwise))).detach().double()
    moments = found.of(graph.layers["second"])
    np.testing.assert_allclose(moments.gram, torch.einsum("nihw,njhw->ij", x, x) / (64 * 4), rtol=1e-5)
    np.testing.assert_allclose(moments.mean, x.mean((0, 2, 3)), rtol=1e-5)


def test_after_flatten_moments_are_pooled_over_the_plane() -> None:
    model = randomised(Pointwise())
    _, graph, found = opened(model)
    x = F.relu(model.second(F.relu(model.first(images(Pointwise))))).detach().double()
    moments = found.of(graph.layers["fc"])
    assert moments.columns.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    np.testing.assert_allclose(moments.gram, torch.einsum("nihw,njhw->ij", x, x) / (64 * 4), rtol=1e-5)
    np.testing.assert_allclose(moments.mean, x.flatten(1).mean(0), rtol=1e-5)


def test_columns_by_hand() -> None:
    assert columns(np.array([7, 3, 5])).tolist() == [[0], [1], [2]]
    assert columns(np.array([7, 7, 3, 3])).tolist() == [[0, 1], [2, 3]]
    assert columns(np.array([7, 3, 7, 3])).tolist() == [[0, 2], [1, 3]]
    assert columns(np.array([7, 7, 3, 3, 9, 9, 9, 9])).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert columns(np.array([7, 7, 3])).tolist() == [[0], [1], [2]]


def test_of_many_positions_some_are_looked_at_and_the_average_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    network, graph = captured("Chain").network, captured("Chain").graph
    x = images(NETS["Chain"], 256)
    whole = statistics(network, graph, x, batch=32).moments["conv2.weight"].gram
    monkeypatch.setattr(module, "SAMPLES", 512)
    part = statistics(network, graph, x, batch=32).moments["conv2.weight"].gram
    assert not np.array_equal(whole, part)
    assert np.abs(whole - part).max() < 0.1 * np.abs(whole).max()
    again = statistics(network, graph, (x[i : i + 32] for i in range(0, 256, 32))).moments["conv2.weight"].gram
    np.testing.assert_array_equal(part, again)  # batches are as good as one tensor, and the seed says what is seen


def test_a_layer_that_runs_twice_has_the_mean_over_both() -> None:
    network, graph = captured("UsedTwice").network, captured("UsedTwice").graph
    x = images(NETS["UsedTwice"])
    values = network.values(x)
    read = torch.cat([values[n.args[0].name] for n in network.nodes if n.name in graph.layers["again"].calls]).double()
    found = statistics(network, graph, x, batch=64).moments["again.weight"]
    np.testing.assert_allclose(found.gram, torch.einsum("nihw,njhw->ij", read, read) / (128 * 64), rtol=1e-5)


def test_images_that_are_not_finite_do_not_count() -> None:
    network, graph = captured("Chain").network, captured("Chain").graph
    x = images(NETS["Chain"], 32)
    spoilt = torch.cat([x, torch.full((8, 3, 8, 8), torch.nan)])
    clean, found = (statistics(network, graph, given, batch=40).moments for given in (x, spoilt))
    for name, moments in clean.items():
        np.testing.assert_allclose(found[name].gram, moments.gram, rtol=1e-4, atol=1e-6)
    assert not statistics(network, graph, spoilt[32:]).moments


def test_layers_in_groups_have_none() -> None:
    found = statistics(captured("Grouped").network, captured("Grouped").graph, images(NETS["Grouped"]))
    assert set(found.moments) == {"reduce.weight", "restore.weight", "fc.weight"}


# -- the repair


class Copies(Net):
    """Filters 3, 4 and 5 of every layer are copies of 0, 1 and 2, or multiples (ReLU passes them on)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 6), conv(6, 6), conv(6, 6)
        self.fc = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.fc(torch.flatten(F.max_pool2d(F.relu(self.c(x)), 2), 1))


def copies() -> Copies:
    model = Copies()
    randomised(model)
    with torch.no_grad():
        for layer in (model.a, model.b, model.c):
            factors = torch.tensor([1.0, 2.0, 0.5])
            layer.weight[3:] = layer.weight[:3] * factors[:, None, None, None]
            layer.bias[3:] = layer.bias[:3] * factors
    return model


@pytest.mark.parametrize("gone", [[3, 4, 5], [0, 1, 2], [0, 4, 5], [4], []])
def test_copies_go_for_nothing(gone: list[int]) -> None:
    network, graph, found = opened(copies())
    x = images(Copies, 5)
    smaller = compensated(network, graph, {"a": gone, "b": gone, "c": gone}, found, ridge=0)
    torch.testing.assert_close(smaller(x), network(x), rtol=1e-3, atol=1e-3)
    assert gone == [] or not torch.allclose(prune(network, graph, {"a": gone})(x), network(x), rtol=0.01, atol=0.01)


def test_elimination_takes_one_of_every_pair_of_copies_first() -> None:
    network, graph, found = opened(copies())
    for group in ("a", "b", "c"):
        first = order(network, graph, group, found)[:3]
        assert sorted(channel % 3 for channel in first) == [0, 1, 2]


def test_a_constant_channel_goes_into_the_bias() -> None:
    model = randomised(Pointwise())
    with torch.no_grad():  # channel 1 is 2 everywhere, channel 0 and 2 are dead
        model.first.weight[:] = 0
        model.first.bias.copy_(torch.tensor([-1.0, 2.0, -1.0]))
    network, graph, found = opened(model)
    smaller = compensated(network, graph, {"first": [1]}, found)
    torch.testing.assert_close(smaller.second.bias, model.second.bias + 2 * model.second.weight[:, 1, 0, 0])
    torch.testing.assert_close(smaller(images(Pointwise)), network(images(Pointwise)))


@pytest.mark.parametrize("name", NETS)
def test_nothing_removed_changes_nothing(name: str) -> None:
    network, graph = captured(name).network, captured(name).graph
    found = statistics(network, graph, images(NETS[name], 8))
    same = compensated(network, graph, {}, found)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in same.state_dict().items())


@pytest.mark.parametrize("name", NETS)
def test_the_shapes_are_those_of_plain_pruning_and_the_network_stays_as_it_was(name: str) -> None:
    network, graph, x = captured(name).network, captured(name).graph, captured(name).example
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = statistics(network, graph, images(NETS[name], 8))
    removed = {g.id: list(range(g.channels // 2)) for g in graph.groups}
    plain, repaired = prune(network, graph, removed), compensated(network, graph, removed, found)
    assert plain.nodes == repaired.nodes
    assert {k: v.shape for k, v in plain.tensors().items()} == {k: v.shape for k, v in repaired.tensors().items()}
    assert all(bool(value.isfinite().all()) for value in repaired.tensors().values())
    assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in repaired.parameters()]
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    repaired(*x)


def test_tied_weights_stay_tied() -> None:
    network, graph = captured("Tied").network, captured("Tied").graph
    found = statistics(network, graph, images(NETS["Tied"]))
    smaller = compensated(network, graph, {"first": [0, 3]}, found)
    assert smaller.a.weight is smaller.b.weight
    assert smaller.a.weight.shape == (6, 6)


# -- random networks


def lost(network: Network, smaller: Network, graph: Graph, removed: Removed, weight: str, x: Tensor) -> float:
    """Return the squared error of a 1x1 or linear layer's output when it reads what stays of its whole input."""
    layer = next(one for one in graph.layers.values() if one.weight == weight)
    cut = Cut(graph, classes_of(graph, removed))
    into, outof = (
        torch.from_numpy(cut.kept(graph.axes[weight, axis]))
        for axis in (layer.in_axis, layer.out_axis)
        if axis is not None
    )
    node = next(node for node in network.nodes if node.name in layer.calls)
    before, after = network.tensors()[weight].double(), smaller.tensors()[weight].double()
    read = network.values(x)[node.args[0].name].movedim(1 - before.dim(), -1).double()

    def output(rows: Tensor, matrix: Tensor, of: Network) -> Tensor:
        bias = of.tensors().get(f"{layer.name}.bias")
        return rows @ matrix.flatten(1).T + (0 if bias is None else bias)

    whole = output(read, before, network)[..., outof]
    return float((whole - output(read[..., into], after, smaller)).square().sum().detach())


def no_taps(network: Network, graph: Graph, weight: str, found: Statistics) -> bool:
    """Tell whether a layer reads each input once: no larger kernel, no plane that was flattened, one call."""
    layers = [layer for layer in graph.layers.values() if layer.weight == weight]
    shape = network.tensors()[weight].shape
    alone = len(layers) == len(layers[0].calls) == 1 and layers[0].in_axis == 1
    return alone and all(size == 1 for size in shape[2:]) and found.moments[weight].columns.shape[1] == 1


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(plan=plans(), seed=st.integers(0, 99))
def test_in_random_networks_no_layer_is_further_from_its_output_than_after_plain_pruning(plan: Plan, seed: int) -> None:
    network = capture(randomised(Drawn(plan), seed), EXAMPLE)
    graph = analyse(network, EXAMPLE, raise_bugs=True)
    x = images((3, SIDE, SIDE), 64)
    found = statistics(network, graph, x)
    removed = some(graph, random.Random(seed))
    plain, repaired = prune(network, graph, removed), compensated(network, graph, removed, found)
    assert {k: v.shape for k, v in plain.tensors().items()} == {k: v.shape for k, v in repaired.tensors().items()}
    repaired(*EXAMPLE)
    for weight in found.moments:
        if no_taps(network, graph, weight, found):
            before, after = (lost(network, one, graph, removed, weight, x) for one in (plain, repaired))
            assert after <= before * (1 + 1e-4) + 1e-6, weight
    for group in graph.groups:
        assert sorted(order(network, graph, group.id, found)) == list(range(group.channels))


# -- orders


@pytest.mark.parametrize("name", ["Padded", "Depthwise", "Grouped", "Tied", "Upward", "Dense"])
@pytest.mark.parametrize("method", ORDERS)
def test_an_order_holds_every_channel_once(name: str, method: str) -> None:
    network, graph = captured(name).network, captured(name).graph
    found = statistics(network, graph, images(NETS[name], 16))
    gradients = {key: torch.ones_like(value) for key, value in network.tensors().items()}
    ordered = orders(network, graph, method, statistics=found, gradients=gradients)
    assert list(ordered) == [group.id for group in graph.groups]
    for group in graph.groups:
        assert sorted(ordered[group.id]) == list(range(group.channels))


def test_scores_are_sorted() -> None:
    network, graph = captured("Chain").network, captured("Chain").graph
    scores = importance(network, graph, "conv1", "l2")
    assert orders(network, graph, "l2")["conv1"] == tuple(np.argsort(scores).tolist())


def test_between_depthwise_layers_the_projection_decides() -> None:
    model = randomised(NETS["Depthwise"]())
    with torch.no_grad():
        model.project.weight[:, [2, 5]] = 0  # nobody reads these
        model.expand.weight[[2, 5]] *= 9
    network, graph, found = opened(model)
    assert set(order(network, graph, "expand", found)[:2]) == {2, 5}
    assert set(orders(network, graph, "l1")["expand"][:2]).isdisjoint({2, 5})


def test_where_nothing_mixes_a_group_producers_and_consumers_decide() -> None:
    # The norms are (3, 1, 2, 6, 6, 6) in the producer and (1, 4, 1, 6, 6, 6) in the consumer, 4 in the mean of each:
    # (3 + 1) / 4, (1 + 4) / 4, (2 + 1) / 4.
    network, graph, _ = opened(randomised(NETS["Sequence"]()))
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.weight[0] = torch.tensor([1.0, 4, 1, 6, 6, 6])
        network.per_step.weight.zero_()
        network.per_step.weight[:, 0] = torch.tensor([3.0, 1, 2, 6, 6, 6])
    assert order(network, graph, "per_step", Statistics({}))[:3] == (2, 0, 1)


def test_mistakes() -> None:
    network, graph = captured("Chain").network, captured("Chain").graph
    with pytest.raises(UserError, match="unknown importance method 'eliminate'"):
        orders(network, graph, "eliminate")
    with pytest.raises(UserError, match="needs images"):
        orders(network, graph, "elimination")
    with pytest.raises(UserError, match="unknown group 'x'"):
        order(network, graph, "x", Statistics({}))
