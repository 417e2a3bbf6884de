"""Pruned equals masked in networks that were drawn at random, and so does a second cut."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import SIDE, Drawn, Plan, plans
from small_nets import randomised

from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.channels.surgery import Removed, masked, prune
from cprune.network.capture import capture
from cprune.network.difference import PRUNED_TOLERANCE, difference

EXAMPLE = (torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)),)


def some(graph: Graph, chosen: random.Random) -> Removed:
    """Return up to all but one of the channels of every group."""
    return {g.id: chosen.sample(range(g.channels), chosen.randrange(g.channels)) for g in graph.groups}


def law(plan: Plan, seed: int) -> int:
    """Assert the law for a few cuts and return the number of groups; whole heads go with odd seeds."""
    network = capture(randomised(Drawn(plan), seed), EXAMPLE)
    graph = analyse(network, EXAMPLE, whole_heads=bool(seed % 2), raise_bugs=True)
    chosen = random.Random(seed)
    with torch.no_grad():
        for _ in range(3):
            removed = some(graph, chosen)
            smaller = prune(network, graph, removed)
            apart = difference(smaller(*EXAMPLE), masked(network, graph, removed, *EXAMPLE))
            assert apart <= PRUNED_TOLERANCE, f"{removed} differs by {apart}"
        again = analyse(smaller, EXAMPLE, whole_heads=bool(seed % 2), raise_bugs=True)
        removed = some(again, chosen)
        twice = prune(smaller, again, removed)
        apart = difference(twice(*EXAMPLE), masked(smaller, again, removed, *EXAMPLE))
        assert apart <= PRUNED_TOLERANCE, f"a second cut {removed} differs by {apart}"
    return len(graph.groups)


@settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(plan=plans(), seed=st.integers(0, 99))
def test_twenty_random_networks(plan: Plan, seed: int) -> None:
    law(plan, seed)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(plan=plans(most=20), seed=st.integers(100, 999))
def test_two_hundred_random_networks(plan: Plan, seed: int) -> None:
    law(plan, seed)


def test_most_of_them_have_something_to_prune() -> None:
    counts = []

    @settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(plan=plans())
    def look(plan: Plan) -> None:
        counts.append(law(plan, 0))

    look()
    assert sum(count > 0 for count in counts) >= len(counts) / 2
