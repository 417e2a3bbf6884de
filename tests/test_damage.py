"""Damage tables: what one group alone costs, in nats."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import captured

from cprune.channels.elimination import orders
from cprune.channels.statistics import statistics
from cprune.method.damage import cut_to, damage_table, divergence, never_falling, predictions
from cprune.network.network import Network
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


def test_a_table_has_every_width_and_narrower_is_never_better() -> None:
    network, graph = captured("Chain").network, captured("Chain").graph
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    found = statistics(network, graph, x)
    seen: list[tuple[str, int, float]] = []
    recalibrated: list[Network] = []
    table = damage_table(
        network,
        graph,
        {"conv1": (2, 4, 6), "conv2": (3, 3)},
        orders(network, graph, "elimination", statistics=found),
        found,
        x,
        predictions(network, x),
        recalibrated.append,
        lambda group, width, damage: seen.append((group, width, damage)),
    )
    assert [entry[:2] for entry in seen] == [("conv1", 6), ("conv1", 4), ("conv1", 2), ("conv2", 3)]
    assert set(table) == {("conv1", 6), ("conv1", 4), ("conv1", 2), ("conv2", 3)}
    assert table["conv1", 6] == 0 < table["conv1", 4] <= table["conv1", 2]
    assert [one.conv1.weight.shape[0] for one in recalibrated] == [4, 2, 6]  # the whole width is known without a look
    assert table["conv2", 3] == seen[-1][2] > 0


def test_only_what_is_narrower_than_the_group_is_cut() -> None:
    network, graph = captured("Depthwise").network, captured("Depthwise").graph
    x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    found = statistics(network, graph, x)
    order = {group.id: tuple(range(group.channels)) for group in graph.groups}
    assert cut_to(graph, order, {"expand": 5, "stem": 4}) == {"expand": (0, 1, 2)}
    whole = predictions(network, x)
    table = damage_table(network, graph, {"expand": [8, 7]}, order, found, x, whole, lambda network: None)
    assert table["expand", 8] == 0 < table["expand", 7] < 1


def test_mistakes() -> None:
    graph = captured("Chain").graph
    for width in (0, 7):
        with pytest.raises(UserError, match=f"group 'conv1' has 6 channels and cannot have {width}"):
            cut_to(graph, {}, {"conv1": width})
    with pytest.raises(UserError, match="unknown group"):
        cut_to(graph, {}, {"x": 1})
