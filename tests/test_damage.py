"""Damage tables: what one group alone costs, in nats."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import NETS, captured, randomised
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cprune.channels.compensation import compensated
from cprune.channels.elimination import orders
from cprune.channels.groups import analyse
from cprune.channels.statistics import statistics
from cprune.method.damage import cut_to, damage_table, divergence, never_falling, predictions
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.network.waist import piece, waists
from cprune.targets.errors import UserError


def test_by_hand_the_divergence_of_a_fair_coin_from_a_loaded_one() -> None:
    # parent 1/2 1/2, other 3/4 1/4: ln(2/3) / 2 + ln 2 / 2 = ln(4/3) / 2
    parent, other = torch.zeros(3, 2), torch.tensor([[3.0, 1.0]]).log().expand(3, 2)
    assert divergence(parent, other) == pytest.approx(math.log(4 / 3) / 2)
    assert divergence(other, other) == 0
    assert divergence(parent, torch.full((3, 2), torch.nan)) == math.inf


def test_by_hand_what_falls_is_averaged_with_what_is_before_it() -> None:
    assert never_falling([0, 3, 1, 5]) == [0, 2, 2, 5]
    assert never_falling([3, 2, 1]) == [2, 2, 2]
    assert never_falling([1, 1, 4]) == [1, 1, 4]
    assert never_falling([]) == []


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(st.floats(0, 10), max_size=8))
def test_it_never_falls_and_keeps_the_mean(values: list[float]) -> None:
    found = never_falling(values)
    assert found == sorted(found)
    assert sum(found) == pytest.approx(sum(values))


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def test_a_table_has_every_width_and_narrower_is_never_better() -> None:
    network, graph, x = captured("Chain").network, captured("Chain").graph, images()
    found = statistics(network, graph, x)
    seen: list[tuple[str, int, float]] = []
    table = damage_table(
        network,
        graph,
        {"conv2": (3, 3), "conv1": (2, 4, 6)},
        orders(network, graph, "elimination", statistics=found),
        found,
        x,
        images(32),
        lambda group, width, damage: seen.append((group, width, damage)),
    )
    assert [entry[:2] for entry in seen] == [("conv1", 6), ("conv1", 4), ("conv1", 2), ("conv2", 3)]
    assert set(table) == {("conv1", 6), ("conv1", 4), ("conv1", 2), ("conv2", 3)}
    assert table["conv1", 6] == 0 < table["conv1", 4] <= table["conv1", 2]
    assert table["conv2", 3] == seen[-1][2] > 0


@pytest.mark.parametrize("name", ["Residual", "Padded", "Depthwise", "Dense", "UsedTwice", "Gated", "Sliced"])
def test_what_lies_before_the_cut_makes_no_difference(name: str) -> None:
    network, graph, x = captured(name).network, captured(name).graph, images(16)
    found = statistics(network, graph, x)
    order = orders(network, graph, "elimination", statistics=found)
    options = {group.id: [1, group.channels - 1] for group in graph.groups}
    table = damage_table(network, graph, options, order, found, x)
    for group_id, widths in options.items():
        falling = sorted(set(widths), reverse=True)
        cut = [compensated(network, graph, cut_to(graph, order, {group_id: width}), found) for width in falling]
        whole = predictions(network, x)
        wanted = never_falling([divergence(whole, predictions(smaller, x)) for smaller in cut])
        for width, damage in zip(falling, wanted, strict=True):
            assert table[group_id, width] == pytest.approx(damage, rel=1e-3, abs=1e-6)


def test_what_changes_nothing_does_no_damage_though_batch_norm_is_estimated_again() -> None:
    # Nobody reads filters 0 and 2 of b1: without them the network is the same, on whatever images BatchNorm looks.
    model = NETS["Residual"]()
    randomised(model)
    with torch.no_grad():
        model.b2.weight[:, [0, 2]] = 0
    network = capture(model, model.example())
    graph, x = analyse(network, model.example()), images(32)
    found = statistics(network, graph, x)
    order = orders(network, graph, "elimination", statistics=found)
    assert set(order["b1"][:2]) == {0, 2}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    table = damage_table(network, graph, {"b1": [2, 3, 4]}, order, found, x, 3 * images(32))
    assert table["b1", 4] == pytest.approx(0, abs=1e-6)
    assert table["b1", 3] == pytest.approx(0, abs=1e-6)
    assert table["b1", 2] > 1e-4
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def first_use(network: Network, tensor: str) -> int:
    param = next(node.name for node in network.nodes if node.op == "param" and node.args[0] == tensor)
    return next(i for i, node in enumerate(network.nodes) if param in node.refs())


def test_only_what_is_narrower_than_the_group_is_cut() -> None:
    graph = captured("Depthwise").graph
    order = {group.id: tuple(range(group.channels)) for group in graph.groups}
    assert cut_to(graph, order, {"expand": 5, "stem": 4}) == {"expand": (0, 1, 2)}


# -- pieces of a network


@pytest.mark.parametrize("name", NETS)
def test_pieces_at_any_waist_compute_what_the_whole_does(name: str) -> None:
    network, x = captured(name).network, captured(name).example
    values, wanted = network.values(*x), tree_leaves(network(*x))
    found = waists(network)
    for waist in found:
        value = values[waist[1]]
        got = tree_leaves(piece(network, waist)(value))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        assert torch.equal(piece(network, found[0], waist[1])(*x) if waist != found[0] else value, value)
    assert found[0][1] == network.nodes[[node.op for node in network.nodes].index("input")].name


def test_a_residual_network_has_a_waist_before_every_block_and_none_inside() -> None:
    network = captured("Residual").network
    names = [name for _, name in waists(network)]
    inside = [first_use(network, tensor) for tensor in ("a2.weight", "b2.weight", "c2.weight")]
    for index in inside:
        assert network.nodes[index].args[0].name not in names
    assert all(network.nodes[first_use(network, t)].args[0].name in names for t in ("a1.weight", "b1.weight"))


def test_mistakes() -> None:
    graph = captured("Chain").graph
    for width in (0, 7):
        with pytest.raises(UserError, match=f"group 'conv1' has 6 channels and cannot have {width}"):
            cut_to(graph, {}, {"conv1": width})
    with pytest.raises(UserError, match="unknown group"):
        cut_to(graph, {}, {"x": 1})
