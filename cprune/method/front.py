"""The models of a finished run that are worth choosing from: those it trained, and forecasts in the gaps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cprune.channels.branches import branches
from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.method.ending import Outcome
from cprune.method.forecast import narrower
from cprune.method.limits import Limits, share_after
from cprune.method.plan import widths
from cprune.method.round_tables import kept
from cprune.method.state import RunState
from cprune.network.facts import size_of
from cprune.network.network import Network
from cprune.runs.events import Step
from cprune.runs.front import Front, FrontPoint, Unpruned
from cprune.targets.interval import Interval
from cprune.targets.paired import Paired

WORTH, MOST_TRAINED = 4, 5  # points beside the unpruned model: with forecasts, and of trained ones at most
APART = math.log(1.08)  # a forecast nearer to another point is no choice
FURTHEST = 2.0  # times the speed of the fastest model that was trained: nothing is known of what lies beyond
USEFUL = 3.0  # times what may be lost is the most that a forecast may be thought to lose
ESTIMATE = (
    "the loss of a forecast is in proportion to its damage (KL divergence before training), by the model of its round "
    "that was trained; nobody has seen it"
)


def front_of(run: RunState, outcome: Outcome) -> Front:
    """Return the front of a run that is finished."""
    size = outcome.sizes[0]
    unpruned = Unpruned(outcome.comparison.old_ms, run.start.report, size.params, size.macs)
    points = _worth(_trained(run, outcome))
    furthest = FURTHEST * max([1.0, *(point.speedup for point in points)])
    found = [one for one in _forecasts(run, unpruned.latency_ms.median) if one.speedup <= furthest]
    while len(points) < WORTH:
        best = max(found, key=lambda one: _gap(one, points), default=None)
        if best is None or _gap(best, points) < APART:
            break
        points.append(best)
    return Front(unpruned, tuple(sorted(points, key=lambda point: point.speedup)), ESTIMATE)


def _gap(one: FrontPoint, points: Sequence[FrontPoint]) -> float:
    """Return how far a point is from the nearest other one, the unpruned model among them, in logarithms of speed."""
    return min(abs(math.log(one.speedup / speedup)) for speedup in (1.0, *(point.speedup for point in points)))


def base_of(run: RunState, round_: int) -> int | None:
    """Return the accepted step that a round went on from; None for the unpruned model."""
    return max((step.index for step in run.history.accepted if step.index < round_), default=None)


def network_of(run: RunState, index: int | None) -> Network:
    """Return the model of an accepted step as far as it was trained; None: the unpruned one."""
    if index is None:
        return run.first
    return run.keeper.load(index, long_trained=index in run.history.trained)


def point_of(
    run: RunState, index: int, network: Network, latency_ms: Interval, speedup: float, decided: Paired | None
) -> FrontPoint:
    """Return the point of a model that exists; it lost `decided` where decisions are made, against the unpruned one.

    What it lost on the images that certify counts, if it was looked at with these.
    """
    certified, size, limits = run.history.certified.get(index), size_of(network, run.example), Limits.of(run.settings)
    loss = certified.loss if certified else decided or Paired(0.0)
    return FrontPoint(
        status="certified" if certified and certified.passed else "trained",
        latency_ms=latency_ms,
        speedup=speedup,
        loss=loss.loss,
        params=size.params,
        macs=size.macs,
        gone=gone_before(run, index),
        widths=_narrower(run, network),
        se=loss.se if loss.images else None,
        step=index,
        meets=all(limit.met for limit in limits.all_of(latency_ms.median, speedup, size)) if limits else None,
    )


def gone_before(run: RunState, index: int | None) -> int:
    """Return how many branches the model after an accepted step lacks: what each step removed, the next ones lack."""
    way = {step.index for step in run.history.accepted if index is not None and step.index <= index}
    return sum(len(chosen.gone) for round_, chosen in run.history.chosen.items() if round_ in way)


def graph_of(run: RunState, network: Network) -> Graph:
    """Return the graph of a network with what the settings leave alone."""
    return analyse(network, run.example, run.settings.ignore, run.settings.whole_heads)


def _narrower(run: RunState, network: Network) -> dict[str, int]:
    before, after = widths(graph_of(run, run.first)), widths(graph_of(run, network))
    return {name: width for name, width in after.items() if width < before[name]}


def _trained(run: RunState, outcome: Outcome) -> list[FrontPoint]:
    points = []
    for step in run.history.accepted:
        share, trained = share_after(run, step.index), run.history.trained.get(step.index)
        latency_ms, speedup = _scaled(step, outcome.comparison.old_ms.median * share), 1 / share
        delivered = step.index == outcome.choice.index
        if delivered:
            latency_ms, speedup = outcome.comparison.new_ms, 1 / outcome.comparison.ratio.median
        decided = trained.loss if trained else step.loss
        point = point_of(run, step.index, network_of(run, step.index), latency_ms, speedup, decided)
        points.append(replace(point, delivered=delivered))
    for asked in run.history.asked:
        made = run.history.further.get(asked.number)
        if asked.safer and made is not None and not made.reason:
            delivered, latency_ms, speedup = asked.index == outcome.choice.index, made.latency_ms, made.speedup.median
            if delivered:
                latency_ms, speedup = outcome.comparison.new_ms, 1 / outcome.comparison.ratio.median
            point = point_of(run, asked.index, network_of(run, asked.index), latency_ms, speedup, made.loss)
            points.append(replace(point, delivered=delivered, gone=made.gone))
    return points


def _scaled(step: Step, latency_ms: float) -> Interval:
    """Return a latency with the interval of a step's comparison."""
    assert step.ratio is not None  # what was accepted was timed
    low, high = step.ratio.low / step.ratio.median, step.ratio.high / step.ratio.median
    return Interval(latency_ms, latency_ms * low, latency_ms * high)


def _worth(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """Return what was delivered or certified and the newest of the rest, MOST_TRAINED in all where that is possible."""
    sure = [point for point in points if point.delivered or point.status == "certified"]
    rest = [point for point in points if point not in sure]
    return sure + rest[max(0, len(points) - MOST_TRAINED) :]


def _forecasts(run: RunState, whole_ms: float) -> Iterator[FrontPoint]:
    """Yield the points of the kept tables of all rounds whose model was trained."""
    history = run.history
    for step in history.steps:
        chosen = history.chosen.get(step.index)
        scout = history.scouted.get((chosen.round, chosen.number)) if chosen else None
        if scout is not None and step.loss is not None and scout.damage > 0:
            yield from _forecasts_of(run, whole_ms, step.index, step.loss.loss, scout.damage)


def _forecasts_of(run: RunState, whole_ms: float, round_: int, lost: float, damage: float) -> Iterator[FrontPoint]:
    """Yield the points of a round in which a model of that `damage` has `lost` so much after long training."""
    base = base_of(run, round_)
    network = network_of(run, base)
    graph, limits = graph_of(run, network), Limits.of(run.settings)
    tables = kept(run, round_, [group.id for group in graph.groups])
    if tables is None:
        return
    trained = None if base is None else run.history.trained.get(base)
    at_first = max(0.0, trained.loss.loss) if trained and trained.loss else 0.0
    found, narrow = branches(network, run.example, run.settings.ignore), _narrower(run, network)
    for one in tables.allocations[1:]:
        share = share_after(run, base) * one.seconds / tables.front[0].seconds
        loss, ms = at_first + max(0.0, lost - at_first) * one.damage / damage, whole_ms * share
        if loss <= USEFUL * run.start.allowed:
            yield FrontPoint(
                status="forecast",
                latency_ms=Interval(ms, ms, ms),
                speedup=1 / share,
                loss=loss,
                params=one.params,
                macs=one.macs,
                gone=gone_before(run, base) + len(one.gone),
                widths={**narrow, **narrower(graph, one, found)},
                damage=one.damage,
                meets=all(limit.met for limit in limits.all_of(ms, 1 / share, one)) if limits else None,
            )
