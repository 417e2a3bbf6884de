"""Prices of widths beside their damage, worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from cprune.channels.graph import Group
from cprune.method.balance import balanced

STREAM = Group("stream", 64, ("stem", "block.second"), ("block.first", "head"))
INNER = Group("inner", 64, ("block.first",), ("block.second",))
DEEP = Group("deep", 64, ("expand", "depthwise"), ("depthwise", "project"))
OPTIONS = {"stream": (64, 32, 16), "inner": (64, 32, 16)}
DAMAGE = {("stream", 32): 0.5, ("stream", 16): 2.0, ("inner", 32): 0.1, ("inner", 16): 0.3}


def graph(*groups: Group) -> Any:
    return SimpleNamespace(group={group.id: group for group in groups}.__getitem__)


def test_at_half_of_every_width_the_prices_are_as_large_as_the_damage() -> None:
    widths, branch = balanced(graph(STREAM, INNER), OPTIONS, DAMAGE)
    # 0.6 nats at half for 2 + 1 layers: 0.2 for a half of each, 0.6 for a quarter, 0.3 for a branch
    assert widths == {
        ("stream", 32): pytest.approx(0.9),
        ("stream", 16): pytest.approx(3.2),
        ("inner", 32): pytest.approx(0.3),
        ("inner", 16): pytest.approx(0.9),
    }
    assert branch == pytest.approx(0.3)


def test_a_depthwise_convolution_adds_nothing_to_the_price_of_its_group() -> None:
    damage = {("deep", 32): 0.1, ("inner", 32): 0.1}
    widths, _ = balanced(graph(DEEP, INNER), {"deep": (64, 32), "inner": (64, 32)}, damage)
    assert widths == {("deep", 32): pytest.approx(0.2), ("inner", 32): pytest.approx(0.2)}


def test_what_spoils_the_predictions_counts_for_no_price_and_stays_out_of_the_question() -> None:
    spoilt = {**DAMAGE, ("stream", 32): math.inf}
    widths, branch = balanced(graph(STREAM, INNER), OPTIONS, spoilt)
    assert widths["stream", 32] == math.inf
    assert widths["inner", 32] == pytest.approx(0.2)
    assert branch == pytest.approx(0.15)


def test_a_network_whose_widths_all_stay_has_no_prices() -> None:
    assert balanced(graph(INNER), {"inner": (64,)}, {}) == ({}, 0.0)
