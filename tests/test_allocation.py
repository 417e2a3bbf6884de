"""The predicted front against all allocations of networks so small that each can be looked at."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from cprune.method.allocation import Allocation, Part, Problem, front, undominated


def problem(seed: int, blocks: int = 3) -> Problem:
    """Return a residual stream and blocks on it, each with an inner group, with staircases and damages drawn."""
    rng = random.Random(seed)
    groups = ["stream", *(f"inner{i}" for i in range(blocks))]
    options = dict.fromkeys(groups, (64, 48, 32, 16))
    damage = {}
    for g in groups:
        total = 0.0
        for width in (48, 32, 16):
            total += rng.random() * (4 if g == "stream" else 1)
            damage[g, width] = total
    step = rng.choice((16, 32))  # 32: three blocks on two threads take as long as four

    def seconds(widths: tuple[int, ...]) -> float:
        stream, inner = widths
        return 1.0 + (-(-inner // step) * step) * stream / 1000

    parts = [Part(("stream",), frozenset(), lambda w: w[0] / 10)]
    for i in range(blocks):
        parts += 2 * [Part(("stream", f"inner{i}"), frozenset({f"block{i}"}), seconds)]
    return Problem(
        options,
        damage,
        {f"block{i}": 0.5 + rng.random() for i in range(blocks)},
        {f"inner{i}": frozenset({f"block{i}"}) for i in range(blocks)},
        tuple(parts),
    )


def everything(problem: Problem) -> list[Allocation]:
    """Return all allocations of a problem."""
    found = []
    for widths in itertools.product(*problem.options.values()):
        chosen = dict(zip(problem.options, widths, strict=True))
        for size in range(len(problem.branch_damage) + 1):
            for gone in itertools.combinations(problem.branch_damage, size):
                out = set(gone)
                seconds = sum(
                    p.seconds(tuple(chosen[g] for g in p.groups)) for p in problem.parts if not out & p.branches
                )
                damage = sum(problem.branch_damage[b] for b in gone) + problem.of_depth(size)
                damage += sum(
                    problem.damage.get(item, 0.0)
                    for item in chosen.items()
                    if not out & problem.inside.get(item[0], frozenset())
                )
                found.append(Allocation((), gone, seconds, damage))
    return found


@pytest.mark.parametrize("depth", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(8))
def test_for_every_latency_the_damage_is_close_to_the_least_there_is(seed: int, depth: float) -> None:
    given = replace(problem(seed), depth=depth)
    found, best = front(given), undominated(everything(given))
    for limit in [best[0].seconds * share for share in (0.9, 0.75, 0.6, 0.5, 0.4, 0.3)]:
        least = min(a.damage for a in best if a.seconds <= limit)
        ours = min(a.damage for a in found if a.seconds <= limit)
        assert least <= ours + 1e-9
        assert ours <= 1.15 * least + 1e-9


def test_the_front_begins_with_the_whole_network_and_every_point_is_faster_and_more_damaged_than_the_one_before() -> (
    None
):
    found = front(problem(0))
    assert found[0].widths == ()
    assert found[0].gone == ()
    assert found[0].damage == 0.0
    for slow, fast in itertools.pairwise(found):
        assert fast.seconds < slow.seconds
        assert fast.damage > slow.damage


def test_the_whole_network_stays_the_first_where_something_narrower_does_no_damage() -> None:
    dead = Problem({"a": (64, 32)}, {("a", 32): 0.0}, {}, {"a": frozenset()}, (Part(("a",), frozenset(), sum),))
    assert [(one.widths, one.seconds) for one in front(dead)] == [((), 64), ((("a", 32),), 32)]


def test_a_step_that_brings_no_time_is_never_taken() -> None:
    # 48 channels take as long as 64, but they lose something.
    given = Problem(
        {"a": (64, 48, 32)},
        {("a", 48): 1.0, ("a", 32): 2.0},
        {},
        {},
        (Part(("a",), frozenset(), lambda w: {64: 2.0, 48: 2.0, 32: 1.0}[w[0]]),),
    )
    assert [a.widths for a in front(given)] == [(), (("a", 32),)]


def test_every_branch_less_costs_more_than_the_one_before() -> None:
    given = Problem({}, {}, {"a": 0.1, "b": 0.1, "c": 0.1}, {}, (), depth=3.0)
    # 4 / 3, 2 x 4 / 2 and 3 x 4 / 1 times as much as one of many
    assert [given.of_depth(gone) for gone in range(4)] == [0.0, 4.0, 12.0, 36.0]
    assert replace(given, depth=0.0).of_depth(3) == 0.0


def test_of_two_branches_both_go_only_where_depth_is_cheap() -> None:
    def part(name: str) -> Part:
        return Part((), frozenset({name}), lambda _: 1.0)

    width = Part(("w",), frozenset(), lambda w: w[0] / 2)
    given = Problem({"w": (2, 1)}, {("w", 1): 1.0}, {"a": 0.2, "b": 0.3}, {}, (part("a"), part("b"), width))
    cheap = {(one.gone, one.widths) for one in front(given)}
    assert (("a", "b"), ()) in cheap
    # a and the width: 0.2 + 0.5 x 3 / 2 + 1 = 1.95, 1.5 is left; both branches: 0.5 + 0.5 x 2 x 3 = 3.5, 1.0 is left
    dear = {(one.gone, one.widths): round(one.damage, 6) for one in front(replace(given, depth=0.5))}
    assert dear[("a",), (("w", 1),)] == 1.95
    assert dear[("a", "b"), ()] == 3.5


def test_what_lies_in_a_branch_that_is_gone_costs_nothing_more() -> None:
    given = Problem(
        {"inner": (32, 16)},
        {("inner", 16): 5.0},
        {"block": 1.0},
        {"inner": frozenset({"block"})},
        (Part(("inner",), frozenset({"block"}), lambda w: w[0] / 16),),
    )
    assert [(a.widths, a.gone, a.seconds, a.damage) for a in front(given)] == [
        ((), (), 2.0, 0.0),
        ((), ("block",), 0.0, 1.0),
    ]
