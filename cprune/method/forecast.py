"""What a run could deliver, before anything is trained: `cprune run --plan`.

The predicted front of the first round is looked at in a few places.  How much of the accuracy is lost when all training
is done, nobody knows before; what a cut model loses without any says something of it.  LEFT of that is what was left on
the networks that this was tried on, so it is an estimate within a factor of about two or three, and it is called one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cprune.channels.branches import Branch
from cprune.channels.graph import Graph
from cprune.method.allocation import Allocation
from cprune.method.damage import never_falling
from cprune.method.limited_front import near_limits
from cprune.method.limits import Limits
from cprune.method.planning import Plan, planned
from cprune.method.seconds import Budget
from cprune.method.state import RunState, Version
from cprune.method.terms import axes_of
from cprune.network.facts import size_of
from cprune.network.network import Network
from cprune.runs.front import Front, FrontPoint, Unpruned
from cprune.targets.interval import Interval

POINTS = 8
LEFT = 0.035
"""Of a residual network without a third of its blocks or half of its inner channels a tenth of what it had lost was
left after two epochs, and a third of that after long training."""
OTHERS = 1.5  # times as long as everything up to the plan takes what is no training and comes after it
ESTIMATE = (
    f"the loss is an estimate, good to a factor of two or three: {LEFT:.1%} of what the cut model loses, on the images "
    "that decide, before any training"
)


@dataclass(frozen=True)
class Forecast:
    """What `cprune run --plan` shows: the points, how long the rest takes, and which limits nothing can meet.

    `missed` says what cannot be met and what comes nearest, "" where all can or none was asked for.
    """

    front: Front
    train_s: float
    others_s: float
    missed: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as --json prints it."""
        seconds = {"training": round(self.train_s), "others": round(self.others_s)}
        return {**self.front.to_dict(), "seconds": seconds, "missed": self.missed}


def forecast(run: RunState, version: Version, timed: Callable[[Network], float] | None = None) -> Forecast:
    """Return what the first round's tables say of the unpruned model, which is tuned and held as "before".

    `timed` is that of `cprune.method.planning.planned`.
    """
    budget, start, limits = Budget.of(run), run.start, Limits.of(run.settings)
    plan = planned(run, version, start.whole_ms, budget.of_looking, run.settings.seed, 0, timed)
    share = limits.share(start.latency_ms.median) / start.share
    nearest = near_limits(plan.front, limits, share)
    shown = _spread(plan.front[1:], POINTS)
    if limits and nearest not in shown and nearest is not plan.front[0]:
        shown = sorted([*shown, nearest], key=lambda one: -one.seconds)
    run.progress.start("looking at the front", len(shown))
    losses = never_falling([_left(run, plan, one) for one in shown])
    run.progress.done()
    points = []
    for one, loss in zip(shown, losses, strict=True):
        ms = start.whole_ms * plan.share(one)
        points.append(
            FrontPoint(
                "forecast",
                Interval(ms, ms, ms),
                1 / (start.share * plan.share(one)),
                loss,
                one.params,
                one.macs,
                len(one.gone),
                narrower(plan.graph, one, plan.branches),
                damage=one.damage,
                meets=_meets(plan, one, limits, share) if limits else None,
            )
        )
    size = size_of(run.first, run.example)
    front = Front(Unpruned(start.latency_ms, start.report, size.params, size.macs), tuple(points), ESTIMATE)
    missed = "" if not limits or _meets(plan, nearest, limits, share) else _missed(run, plan, nearest, limits)
    return Forecast(front, budget.seconds, OTHERS * run.cost.now()["total"], missed)


def narrower(graph: Graph, one: Allocation, branches: Sequence[Branch]) -> dict[str, int]:
    """Return the output channels of the layers that an allocation makes narrower, those of gone branches left out."""
    axes, full = axes_of(graph), {group.id: group.channels for group in graph.groups}
    gone = {layer for branch in branches if branch.id in one.gone for layer in branch.layers}
    found = {}
    for name, layer in graph.layers.items():
        axis = axes[layer.weight, layer.out_axis]
        width = axis.at({**full, **dict(one.widths)})
        if width < axis.at(full) and name not in gone:
            found[name] = width
    return found


def _spread(points: Sequence[Allocation], count: int) -> list[Allocation]:
    """Return up to `count` points, the first and the last among them, at about equal ratios of latency."""
    if len(points) <= count:
        return list(points)
    first, last = math.log(points[0].seconds), math.log(points[-1].seconds)
    wanted = [first + (last - first) * place / (count - 1) for place in range(count)]
    nearest = {min(range(len(points)), key=lambda i: abs(math.log(points[i].seconds) - at)) for at in wanted}
    return [points[i] for i in sorted(nearest)]


def _left(run: RunState, plan: Plan, one: Allocation) -> float:
    """Return the accuracy that is thought to be lost after training."""
    with run.cost.spent("evaluate"):
        network = plan.cut(one)
    loss = run.loss(run.look(network, "decide"), "decide").loss
    run.progress.advance()
    return LEFT * max(0.0, loss)


def _meets(plan: Plan, one: Allocation, limits: Limits, share: float) -> bool:
    return plan.share(one) <= share and limits.fits(one)


def _missed(run: RunState, plan: Plan, nearest: Allocation, limits: Limits) -> str:
    share = run.start.share * plan.share(nearest)
    asked = limits.all_of(run.start.latency_ms.median * share, 1 / share, nearest)
    return "no model can meet the limits; the nearest: " + "; ".join(limit.told() for limit in asked)
