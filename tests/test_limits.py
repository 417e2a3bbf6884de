"""Limits beside the accuracy: what is asked for, what a run aims at, and what it says where it misses them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import DEFAULT, EXAMPLE, FakeBench, MemoryKeeper, Seen, a_run, tiny
from small_nets import captured
from test_certify import choose, contender, looked, losing
from test_tables import TABLES, by_macs, trainer, whole

from cprune.channels.branches import branches, without
from cprune.channels.groups import analyse
from cprune.channels.surgery import prune
from cprune.method.aiming import NO_AIM, Aim
from cprune.method.allocation import Allocation, Part, Problem, front
from cprune.method.certify import up_to_enough
from cprune.method.ending import Outcome, finish
from cprune.method.limited_front import front_within, near_limits
from cprune.method.limits import Limits, least_share, meets
from cprune.method.loop import Loop
from cprune.method.settings import Settings
from cprune.method.sizes import Sizes
from cprune.method.state import RunState
from cprune.network.facts import Size, size_of
from cprune.runs.limits import Limited
from cprune.targets.errors import UserError


def half(model: Seen) -> float:
    """Return an accuracy: the block may lose half of its channels, and not one more."""
    return 0.9 if model.a >= 64 else 0.8


def run_with(deciding: Any = half, keeper: MemoryKeeper | None = None, **limits: object) -> RunState:
    """Return a run in which only the 128 channels within the block may go: 16 of them are an eighth of the latency."""
    settings = replace(TABLES, **{"ignore": ("b",), **limits})  # type: ignore[arg-type]
    return a_run(FakeBench(by_macs, by_task=True), trainer(deciding=deciding), keeper, settings)


def ended(run: RunState) -> tuple[list[str], Outcome]:
    steps, tables = whole(run)
    return [step.verdict for step in steps], finish(run, tables.current)


# -- what is asked for


def test_a_limit_says_what_it_is_and_by_how_much_it_is_missed() -> None:
    assert Limited.of("latency_ms", 3, 3.39).told() == "latency 3.39 ms, at most 3 ms was asked for: missed by 13 %"
    assert Limited.of("speedup", 2, 2.1).told() == "speed-up 2.1x, at least 2x was asked for"
    assert Limited.of("speedup", 2, 1.5).missed_by == 0.25
    assert Limited.of("params", 1_500_000, 900).told() == "parameters 900, at most 1.5 M was asked for"
    assert Limited.of("macs", 1e9, 2e9).told() == "multiply-adds 2 G, at most 1 G was asked for: missed by 1e+02 %"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speedup": 1.0}, "--speedup 1: it must be more than 1"),
        ({"max_latency_ms": 0.0}, "--max-latency-ms 0: it must be more than 0"),
        ({"max_params": -5}, "--max-params -5: it must be more than 0"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings.from_dict(values)


def test_limits_stand_in_settings_as_plain_values() -> None:
    limits = Limits.of(Settings.from_dict({"max_latency_ms": 3, "speedup": 2, "max_params": 1.5e6, "max_macs": 10}))
    assert limits == Limits(3.0, 2.0, 1_500_000, 10)
    assert not Limits.of(Settings())
    assert limits.share(8.0) == 0.375  # 3 of 8 ms is less than a half
    assert limits.share(4.0) == 0.5
    assert [limit.met for limit in limits.all_of(2.9, 1.9, Size(10, 2_000_000))] == [True, False, False, True]
    assert limits.largest(Size(20, 1_500_000)) == 2.0


# -- sizes


@pytest.mark.parametrize("name", ["Residual", "Depthwise", "Dense", "Grouped", "Tied"])
def test_sizes_are_counted_without_cutting(name: str) -> None:
    whole_net = captured(name)
    example = whole_net.example
    found = branches(whole_net.network, example)
    sizes = Sizes(whole_net.network, example, whole_net.graph, found)
    assert sizes.of({}, ()) == size_of(whole_net.network, example)
    removed = {group.id: [0] for group in whole_net.graph.groups if group.channels > 1}
    widths = {group.id: group.channels - 1 for group in whole_net.graph.groups if group.id in removed}
    smaller = prune(whole_net.network, whole_net.graph, removed)
    assert sizes.of(widths, ()) == size_of(smaller, example)
    for branch in found:
        assert sizes.of(widths, [branch.id]) == size_of(without(smaller, [branch]), example)


def test_every_parameter_has_a_price_where_size_is_limited() -> None:
    network = tiny()
    graph = analyse(network, EXAMPLE)
    sizes = Sizes(network, EXAMPLE, graph, branches(network, EXAMPLE))
    full = {group.id: group.channels for group in graph.groups}
    for prices, total in (((1.0, 0.0), sizes.of({}, ()).params), ((0.0, 1.0), sizes.of({}, ()).macs)):
        assert sum(part.seconds(tuple(full[g] for g in part.groups)) for part in sizes.parts(*prices)) == total


# -- the front


class Counted:
    """Sizes where every channel of "a" is 10 parameters, and every channel of "b" one."""

    def of(self, widths: dict[str, int], gone: object) -> Size:
        return Size(0, 10 * widths.get("a", 2) + widths.get("b", 2))

    def parts(self, of_param_s: float, of_mac_s: float) -> list[Part]:
        return [
            Part(("a",), frozenset(), lambda widths: 10 * of_param_s * widths[0]),
            Part(("b",), frozenset(), lambda widths: of_param_s * widths[0]),
        ]


# "b" is slow and cheap to cut, "a" is large, dear and no faster
PROBLEM = Problem(
    {"a": (2, 1), "b": (2, 1)},
    {("a", 1): 5.0, ("b", 1): 1.0},
    {},
    {},
    (Part(("a",), frozenset(), lambda widths: 1.0), Part(("b",), frozenset(), lambda widths: float(widths[0]))),
)
SIZES: Any = Counted()


def test_without_a_limit_of_size_the_front_is_the_free_one_with_its_sizes() -> None:
    found = front_within(PROBLEM, SIZES, Limits(speedup=2.0))
    assert [(one.seconds, one.params) for one in found] == [(3.0, 22), (2.0, 21)]
    assert [replace(one, params=0) for one in found] == front(PROBLEM)


def test_points_that_are_small_enough_are_found_although_they_bring_no_time() -> None:
    found = front_within(PROBLEM, SIZES, Limits(params=12))
    # The whole one is slower than all that is small enough or as slow; "a" must go to 1, "b" may.
    assert [(dict(one.widths), one.seconds, one.params) for one in found] == [
        ({"a": 1}, 3.0, 12),
        ({"a": 1, "b": 1}, 2.0, 11),
    ]
    assert front_within(PROBLEM, SIZES, Limits(params=5)) == front_within(PROBLEM, SIZES, Limits())


def test_the_point_that_meets_the_limits_is_the_slowest_or_else_the_nearest() -> None:
    points = [Allocation((), (), s, d, p, 0) for s, d, p in ((4, 0, 40), (3, 1, 30), (2, 2, 20), (1, 3, 10))]
    assert near_limits(points, Limits(params=25), 0.75) == points[2]
    assert (
        near_limits(points, Limits(params=5), 0.5) == points[3]
    )  # twice too large; the others are four times and more
    assert near_limits(points, Limits(), 0.2) == points[3]


# -- what a run aims at


def test_no_aim_is_reached_by_nothing() -> None:
    assert not NO_AIM.reached(0.001)
    assert Aim(0.5).reached(0.504)
    assert not Aim(0.5).reached(0.51)


def test_a_run_with_a_speed_up_goes_there_and_no_further() -> None:
    verdicts, outcome = ended(run := run_with(speedup=1.3))
    assert verdicts == ["accepted"]  # one round, with all of the training that no scout had
    assert outcome.status == "pruned"
    assert outcome.comparison.ratio.median == pytest.approx(0.75, abs=0.002)
    assert outcome.limits == (Limited("speedup", 1.3, 1 / outcome.comparison.ratio.median, True),)
    assert run.history.chosen[0].epochs == 100 - 4 * len(run.history.scouted)
    assert meets(run, 0)


def test_a_latency_is_a_limit_like_a_speed_up() -> None:
    limit_ms = 0.75 * by_macs(Seen(64, 128, 0))
    _, outcome = ended(run_with(max_latency_ms=limit_ms))
    assert 0.8 * limit_ms < outcome.comparison.new_ms.median <= limit_ms
    assert [limit.met for limit in outcome.limits] == [True]


def test_a_run_that_is_killed_after_it_reached_its_limit_does_not_go_on() -> None:
    keeper = MemoryKeeper()
    whole(run_with(keeper=keeper, speedup=1.3))
    again = run_with(keeper=keeper, speedup=1.3)
    assert whole(again)[0] == []


def test_a_limit_that_the_accuracy_does_not_allow_is_missed_and_that_is_said() -> None:
    verdicts, outcome = ended(run_with(speedup=20.0))
    assert "accepted" in verdicts
    assert outcome.status == "pruned"
    assert [limit.met for limit in outcome.limits] == [False]
    assert outcome.notes[-1].startswith("a limit was missed: speed-up ")
    assert outcome.choice.accuracy >= 0.89


def test_a_model_that_meets_its_limits_as_it_is_is_not_pruned() -> None:
    verdicts, outcome = ended(run_with(max_latency_ms=100.0))
    assert verdicts == []
    assert outcome.status == "unpruned"
    assert outcome.notes == ("the model meets the limits as it is, tuned: nothing was pruned",)
    assert [limit.met for limit in outcome.limits] == [True]


def test_a_model_is_made_as_small_as_asked_for() -> None:
    most = size_of(tiny(), EXAMPLE).params * 6 // 10
    verdicts, outcome = ended(run_with(max_params=most))
    assert verdicts == ["accepted"]
    assert 0.8 * most < outcome.sizes[1].params <= most
    assert [limit.met for limit in outcome.limits] == [True]


def test_where_no_point_is_small_enough_the_smallest_is_aimed_at() -> None:
    run = run_with(max_params=10)
    whole(run)
    points = [(1.0, Size(0, 100)), (0.5, Size(0, 60)), (0.3, Size(0, 50))]
    run.history.steps.clear()
    assert least_share(run, points) == 0.3
    assert least_share(run_with(), points) == 0.0


def test_of_the_models_that_are_fast_enough_the_most_accurate_one_is_delivered() -> None:
    trainer = losing(1, 2, 3, 3)
    contenders = [contender(1), contender(2), replace(contender(3), enough=True), replace(contender(4), enough=True)]
    assert choose(trainer, *contenders).index == 3
    assert looked(trainer, "certify") == [1, 0, 2, 3]  # the fourth is faster than anybody asked for
    assert [one.index for one in up_to_enough(contenders)] == [1, 2, 3]


def test_algorithm_1_stops_at_a_limit_too() -> None:
    run = a_run(settings=replace(DEFAULT, speedup=1.2))
    loop = Loop(run)
    loop.begin()
    steps = list(loop.steps())
    assert meets(run, run.history.last)
    assert not meets(run, steps[0].index) or len(steps) == 1
