"""The learned estimate: it beats the plain one where there is something to learn, and keeps its order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cprune.targets.target import find
from cprune.tuner.estimate import Entry
from cprune.tuner.programs.space import of_target
from cprune.tuner.programs.workload import Conv2d
from cprune.tuner.search.estimator import fitted

TARGET = replace(find("local"), threads=2, vector=16, vector_registers=32)
SIDES = (4, 8, 14)


def conv(ins: int, outs: int, side: int) -> Conv2d:
    return Conv2d(1, ins, side, side, outs, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "relu", 16, 16)


def entry(w: Conv2d, cost: Callable[[Conv2d], float]) -> Entry:
    rows = next(c for c in of_target(w, TARGET) if dict(c.knobs).get("parallel") in ("rows", "none"))
    return Entry(w, rows, cost(w))


def entries(cost: Callable[[Conv2d], float]) -> list[Entry]:
    widths = (16, 32, 64, 128)
    return [entry(conv(a, b, side), cost) for a in widths for b in widths for side in SIDES]


def bound_by_weights(w: Conv2d) -> float:
    """Latency that falls with the square root of the work: far from what the plain estimate takes for granted."""
    return float(1e-6 * (w.in_channels * w.out_channels) ** 0.5)


def test_few_entries_teach_nothing() -> None:
    estimate, errors = fitted(entries(bound_by_weights)[:10], 2, 16)
    assert errors is None
    full = entry(conv(128, 128, 8), bound_by_weights)
    assert estimate(full.workload, [full]) == full.seconds


def test_what_falls_slower_than_the_work_is_learnt() -> None:
    known = entries(bound_by_weights)
    estimate, errors = fitted(known, 2, 16)
    assert errors is not None
    assert errors.learned < errors.plain
    full = entry(conv(96, 96, 8), bound_by_weights)
    narrow = conv(48, 96, 8)  # the plain estimate is near half, the truth 0.71
    assert estimate(narrow, [full]) / full.seconds == pytest.approx(0.71, abs=0.08)


def test_where_time_goes_with_the_work_the_plain_estimate_stays() -> None:
    _, errors = fitted(entries(lambda w: 3e-6 + 1e-7 * w.in_channels * w.out_channels), 2, 16)
    assert errors is not None
    assert errors.plain < 0.01


def test_a_learned_estimate_never_falls_when_a_call_gets_wider() -> None:
    known = entries(bound_by_weights)
    estimate, errors = fitted(known, 2, 16)
    assert errors is not None
    assert errors.learned < errors.plain
    mine = [e for e in known if e.workload.height == 8 and e.workload.in_channels != 64]  # type: ignore[union-attr]
    blocks = range(16, 129, 16)
    table = {(a, b): estimate(conv(a, b, 8), mine) for a in blocks for b in blocks}
    for a, b in table:
        assert table[a, b] <= table[min(a + 16, 128), b] * (1 + 1e-6)
        assert table[a, b] <= table[a, min(b + 16, 128)] * (1 + 1e-6)


def test_equal_entries_give_equal_estimates() -> None:
    known = entries(bound_by_weights)
    one, two = fitted(known, 2, 16)[0], fitted(known, 2, 16)[0]
    assert one(conv(48, 80, 8), known[-3:]) == two(conv(48, 80, 8), known[-3:])
