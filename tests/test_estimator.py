"""The learned estimate: it beats the plain one where there is something to learn, and keeps its order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprune.targets.target import find
from cprune.tuner.estimate import Entry, estimate
from cprune.tuner.programs.space import of_target
from cprune.tuner.programs.workload import Conv2d
from cprune.tuner.search import estimator
from cprune.tuner.search.estimator import Estimate, fitted, learned_from
from experiments import estimates

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


def noisy(w: Conv2d) -> float:
    """Latency that is not even monotone where it was measured: slow minutes take 30 % longer."""
    return bound_by_weights(w) * (1.0, 1.3, 1.1)[(w.in_channels // 16 + 2 * w.out_channels // 16 + w.height) % 3]


@cache
def taught(cost: Callable[[Conv2d], float]) -> Estimate:
    learned = learned_from(entries(cost), 2, 16, 0)
    assert learned is not None
    return learned


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_known_a_learned_estimate_never_falls_by_a_block_more(data: st.DataObject) -> None:
    cost = data.draw(st.sampled_from([bound_by_weights, noisy]))
    grid = st.tuples(st.integers(1, 8), st.integers(1, 8))
    known = [entry(conv(16 * a, 16 * b, 8), cost) for a, b in data.draw(st.sets(grid, max_size=5)) | {(8, 8)}]
    a, b = data.draw(grid)
    more_a, more_b = data.draw(st.integers(a, 8)), data.draw(st.integers(b, 8))
    narrow, wide = (taught(cost)(conv(16 * x, 16 * y, 8), known) for x, y in ((a, b), (more_a, more_b)))
    assert narrow <= wide * (1 + 1e-9)


def test_many_pairs_are_learnt_from_in_part_and_always_the_same_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimator, "MOST_PAIRS", 40)
    known = entries(bound_by_weights)
    one, two = (learned_from(known, 2, 16, 0) for _ in range(2))
    assert one is not None
    assert two is not None
    full = entry(conv(128, 128, 8), bound_by_weights)
    assert one(conv(64, 128, 8), [full]) == two(conv(64, 128, 8), [full])
    assert one(conv(64, 128, 8), [full]) != taught(bound_by_weights)(conv(64, 128, 8), [full])


# -- against a plain rule (experiments/estimates.py)


def test_the_plain_rule_goes_by_the_blocks_of_the_nearest_wider_entry() -> None:
    known = [entry(conv(128, 128, 8), lambda _: 128e-6), entry(conv(64, 64, 8), lambda _: 40e-6)]
    assert estimates.by_blocks(conv(32, 48, 8), known) == pytest.approx(40e-6 * 6 / 16)  # 2 x 3 blocks of 4 x 4
    assert estimates.by_blocks(conv(64, 128, 8), known) == pytest.approx(64e-6)  # 4 x 8 blocks of 8 x 8


def test_errors_of_entries_that_were_left_out_are_told_by_rule() -> None:
    known = entries(lambda w: 1e-9 * w.in_channels * w.out_channels)  # exactly in proportion to the blocks
    for widest_only in (False, True):
        found = estimates.errors(known, 2, 16, widest_only)
        assert {error.rule for error in found} == {"blocks", "work", "learned"}
        assert max(error.apart for error in found if error.rule == "blocks") < 1e-9
    assert len([error for error in found if error.rule == "blocks"]) == len(known) - 3  # each side's widest is known
    head, _, *rows = estimates.table(found)
    assert head == "| entries | number | blocks | work | learned |"
    told = [row.split("|")[1:4] for row in rows]
    assert told == [[" conv 3x3 ", " 45 ", " 0.0% (0%) "], [" all ", " 45 ", " 0.0% (0%) "]]


def test_what_is_wider_than_all_that_is_known_is_estimated_from_the_nearest() -> None:
    known = [entry(conv(16, 16, 8), lambda _: 1e-3), entry(conv(32, 32, 8), lambda _: 4e-3)]
    # A launch takes 5 us; 4 x 2 blocks in place of 2 x 2 are twice the work.
    assert estimate(conv(64, 32, 8), known, 2, 16) == pytest.approx(2 * 4e-3, rel=1e-2)
    learned = taught(bound_by_weights)
    assert learned(conv(64, 32, 8), known) == estimate(conv(64, 32, 8), known, 2, 16)


def test_equal_entries_give_equal_estimates() -> None:
    known = entries(bound_by_weights)
    one, two = fitted(known, 2, 16)[0], fitted(known, 2, 16)[0]
    assert one(conv(48, 80, 8), known[-3:]) == two(conv(48, 80, 8), known[-3:])
