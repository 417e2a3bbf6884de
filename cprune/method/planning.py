"""What could be removed from a network, what it would bring and what it would cost: tables, then the predicted front.

Latency comes from tables of tuned programs (`cprune.method.latency`), damage from a look at every group and every
residual branch alone, cut and repaired in closed form (`cprune.method.damage`).  Out of both comes the front for all
latencies at once (`cprune.method.allocation`).  Entries of the latency tables are measured where the front uses them:
the front is drawn from estimates, what it uses is measured, and it is drawn again, until it stays where it is measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

from cprune.channels.branches import Branch, branches, without
from cprune.channels.compensation import compensated
from cprune.channels.elimination import ELIMINATION, Orders, orders
from cprune.channels.graph import Graph
from cprune.channels.statistics import Statistics, statistics
from cprune.method.allocation import Allocation, Part, Problem
from cprune.method.balance import balanced
from cprune.method.chain import Chain, Timed, fitted
from cprune.method.damage import cut_to, damage_table, divergence, predictions
from cprune.method.latency import TRIALS, LatencyTable
from cprune.method.limited_front import front_within
from cprune.method.limits import Limits
from cprune.method.round_tables import RoundTables, keep, kept
from cprune.method.sizes import Sizes
from cprune.method.state import RunState, Version
from cprune.method.terms import Term
from cprune.network.network import Network
from cprune.training.data import Split
from cprune.training.train import recalibrate

STATISTICS_IMAGES, DAMAGE_IMAGES, LEAST_LOOKED_AT, CALIBRATION_IMAGES = 1024, 512, 128, 256
BRANCH_WEIGHT = 0.4
"""Training brings a branch back better than widths: of a 15-block ResNet five blocks less, and half of every inner
width, left 76 and 75 % before training; after two epochs 0.64 and 1.45 points were lost."""
APART = 0.02  # logarithms of forecasts that differ by less are one allocation to whoever times some
FITTED = (0.7, 0.5, 0.35)  # shares of the latency at which a point of the front is timed as a whole
DRAWN = 4  # how often the front is drawn and what it uses is measured
ALONG = (0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2)  # shares of the latency at which the front is measured


@dataclass(frozen=True, eq=False)
class Plan:
    """What a round may cut from `network`, and the predicted front, slowest first.

    `estimates` is the table that it was drawn from, where its entries were not measured.
    """

    network: Network
    graph: Graph
    branches: tuple[Branch, ...]
    statistics: Statistics
    orders: Orders
    front: tuple[Allocation, ...]
    repair: Callable[[Network], None]
    estimates: LatencyTable | None = None

    def cut(self, allocation: Allocation) -> Network:
        """Return the network of an allocation: cut, compensated, statistics of BatchNorm estimated anew."""
        removed = cut_to(self.graph, self.orders, dict(allocation.widths))
        smaller = compensated(self.network, self.graph, removed, self.statistics)
        gone = [branch for branch in self.branches if branch.id in allocation.gone]
        smaller = without(smaller, gone) if gone else smaller
        self.repair(smaller)
        return smaller

    def share(self, allocation: Allocation) -> float:
        """Return the share of the latency of `network` that an allocation is forecast to take."""
        return allocation.seconds / self.front[0].seconds

    def estimated_us(self, allocation: Allocation) -> dict[str, float]:
        """Return the calls of an allocation that were estimated where a front was to be measured, in microseconds."""
        if self.estimates is None:
            return {}
        layers = [name for branch in self.branches if branch.id in allocation.gone for name in branch.layers]
        return self.estimates.estimated_us(dict(allocation.widths), layers)

    def near(self, share: float, count: int) -> list[Allocation]:
        """Return up to `count` allocations of the front whose forecasts surround a share of the latency."""
        closest = sorted(self.front[1:], key=lambda one: abs(math.log(self.share(one) / share)))
        chosen: list[Allocation] = []
        for one in closest:
            if all(abs(math.log(one.seconds / other.seconds)) > APART for other in chosen):
                chosen.append(one)
        return chosen[:count]


def planned(
    run: RunState,
    version: Version,
    latency_ms: float,
    looking_s: float,
    seed: int,
    round_: int = 0,
    timed: Callable[[Network], float] | None = None,
) -> Plan:
    """Return what may be cut from a tuned network that takes `latency_ms`, by looks at training images.

    What an earlier life kept of this round is taken as it is.  A run that decides by estimates measures nothing here.

    What the whole takes and its tasks do not is shared out among its calls: what goes between two of them.  `timed`
    says which share of that latency a network takes: with it, that is fitted on a few points of the front, and the
    front is drawn again.  The looks at all that can go take about `looking_s` seconds, if that is possible with
    LEAST_LOOKED_AT to DAMAGE_IMAGES images.
    """
    network, graph, settings = version.network, version.graph, run.settings
    counts = STATISTICS_IMAGES, DAMAGE_IMAGES, CALIBRATION_IMAGES
    sets = (run.trainer.samples(count, 3 * seed + i) for i, count in enumerate(counts))
    shown, looked_at, few = (images for images in sets if images is not None)  # where none are seen another method runs

    def repair(smaller: Network) -> None:
        recalibrate(smaller, few, seed, CALIBRATION_IMAGES)

    with run.cost.spent("evaluate"):
        began = time.perf_counter()
        predictions(network, few.model_input(few.images))
        image_s = (time.perf_counter() - began) / len(few)
        moments = statistics(network, graph, shown.model_input(shown.images), seed=seed)
        which = orders(
            network,
            graph,
            settings.importance or ELIMINATION,
            statistics=moments,
            gradients=run.trainer.gradients(network, seed) if settings.importance == "taylor" else None,
            seed=seed,
        )
    found = branches(network, run.example, settings.ignore)
    known = kept(run, round_, [group.id for group in graph.groups])
    if known is not None and not settings.estimate:
        return Plan(network, graph, found, moments, which, known.allocations, repair)
    table = LatencyTable(version.tuned, graph, run.bench.tuner, taught=run.bench.tuner.entries())
    estimates = table if settings.estimate else None
    if known is not None:
        return Plan(network, graph, found, moments, which, known.allocations, repair, estimates)
    whole = Timed(len(table.terms), table.forecast_s({}), latency_ms / 1e3)
    chain = Chain(max(0.0, whole.seconds - whole.alone_s) / whole.calls)
    options = {group.id: _options(table, group.id, settings.max_sparsity) for group in graph.groups}
    looked_at = looked_at.take(_first(looking_s / image_s, len(found) * 2 + sum(map(len, options.values())), looked_at))
    looks = _Looks(run, network, graph, moments, which, looked_at, repair)
    damage, depth = balanced(graph, options, looks.of_groups(options))
    problem = Problem(
        options,
        damage,
        looks.of_branches(found),
        {group.id: _inside(group.layers, found) for group in graph.groups},
        parts(table, found, chain),
        depth,
    )
    sizes = Sizes(network, run.example, graph, found)

    def front() -> list[Allocation]:
        return front_within(problem, sizes, Limits.of(settings))

    drawn = front() if settings.estimate else _measured_front(run, table, front)
    plan = Plan(network, graph, found, moments, which, tuple(drawn), repair, estimates)
    if timed is not None and len(drawn) > 1 and not settings.estimate:
        models = [whole, *_timed(run, plan, problem, chain, whole.seconds, timed)]
        chain = fitted(models)
        problem = replace(problem, parts=parts(table, found, chain))
        drawn = _corrected(_measured_front(run, table, front), chain, models)
        plan = replace(plan, front=tuple(drawn))
    keep(run, round_, RoundTables.of(problem, drawn))
    return plan


def _first(images: float, looks: int, split: Split) -> slice:
    """Return the first of the images, so many that all looks together are at about `images`."""
    return slice(0, min(len(split), max(LEAST_LOOKED_AT, int(images / max(1, looks)))))


def _options(table: LatencyTable, group: str, max_sparsity: float) -> tuple[int, ...]:
    """Return the widths at which a group's tasks can change, the whole one first."""
    whole = table.full[group]
    return tuple(w for w in table.options(group) if w >= (1 - max_sparsity) * whole - 1e-9)


def _inside(layers: Sequence[str], found: Sequence[Branch]) -> frozenset[str]:
    """Return the branches in which all of these layers lie."""
    return frozenset(branch.id for branch in found if set(layers) <= set(branch.layers))


def _timed(
    run: RunState,
    plan: Plan,
    problem: Problem,
    chain: Chain,
    whole_s: float,
    timed: Callable[[Network], float],
) -> Iterator[Timed]:
    """Yield some points of a front, compiled and timed; `chain` is what its forecasts were made with."""
    for one in dict.fromkeys(plan.near(share, 1)[0] for share in FITTED):
        with run.cost.spent("evaluate"):
            network = plan.cut(one)
        calls = sum(part.branches.isdisjoint(one.gone) for part in problem.parts)
        yield Timed(calls, chain.alone_s(one.seconds, calls), timed(network) * whole_s)


def _corrected(drawn: Sequence[Allocation], chain: Chain, models: Sequence[Timed]) -> list[Allocation]:
    """Return a front with the chain's errors taken off, less what is no faster than the one before it."""
    out: list[Allocation] = []
    for one, seconds in zip(drawn, chain.corrected([one.seconds for one in drawn], models), strict=True):
        if not out or seconds < out[-1].seconds:
            out.append(replace(one, seconds=seconds))
    return out


def parts(table: LatencyTable, found: Sequence[Branch], chain: Chain) -> tuple[Part, ...]:
    """Return the calls of a model, as parts of its latency, with the branches in which each lies."""
    return tuple(_part(table, term, found, chain) for term in table.terms)


def _part(table: LatencyTable, term: Term, found: Sequence[Branch], chain: Chain) -> Part:
    def seconds(widths: tuple[int, ...]) -> float:
        return chain.seconds(table.seconds(term, dict(zip(term.groups, widths, strict=True))))

    layers = [name for name in term.layers if name in table.layers]  # a call names its BatchNorm as well
    return Part(term.groups, _inside(layers, found) if layers else frozenset(), seconds)


@dataclass(frozen=True, eq=False)
class _Looks:
    """Looks at everything that can go, alone, with the images `shown`."""

    run: RunState
    network: Network
    graph: Graph
    moments: Statistics
    which: Orders
    shown: Split
    repair: Callable[[Network], None]

    def of_groups(self, options: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], float]:
        """Return the damage of every group at every width but the whole one."""
        narrower = {group: widths[1:] for group, widths in options.items()}
        progress, images = self.run.progress, self.shown.model_input(self.shown.images)
        with self.run.cost.spent("evaluate"):
            progress.start("looking at widths", sum(map(len, narrower.values())))
            damage = damage_table(
                self.network,
                self.graph,
                narrower,
                self.which,
                self.moments,
                images,
                on_entry=lambda *_: progress.advance(),
            )
            progress.done()
        return damage

    def of_branches(self, found: Sequence[Branch]) -> dict[str, float]:
        """Return the damage of every branch that is gone."""
        progress, images = self.run.progress, self.shown.model_input(self.shown.images)
        damage = {}
        with self.run.cost.spent("evaluate"):
            progress.start("looking at residual branches", len(found))
            whole = deepcopy(self.network)
            self.repair(whole)  # what is cut is repaired, and that alone moves the predictions
            before = predictions(whole, images)
            for branch in found:
                smaller = without(self.network, [branch])
                self.repair(smaller)
                damage[branch.id] = BRANCH_WEIGHT * divergence(before, predictions(smaller, images))
                progress.advance()
            progress.done()
        return {branch: one for branch, one in damage.items() if math.isfinite(one)}


def _measured_front(run: RunState, table: LatencyTable, front: Callable[[], list[Allocation]]) -> list[Allocation]:
    """Return the front after the latencies that it uses were measured."""
    drawn = front()
    for _ in range(DRAWN):
        chosen = list(dict.fromkeys(_along(drawn)))
        widths = [dict(one.widths) for one in chosen]
        if table.settled(widths):
            break
        run.progress.start("measuring latency tables", len(table.missing(widths)) * TRIALS)
        with run.cost.spent("tune"), run.cost.counting("loop"):
            table.measure(widths, run.progress.advance)
        run.progress.done()
        drawn = front()
    return drawn


def _along(drawn: Sequence[Allocation]) -> list[Allocation]:
    """Return the allocations of a front at some shares of its first one's latency."""
    whole = drawn[0].seconds
    found = []
    for share in ALONG:
        found += [one for one in drawn if one.seconds <= share * whole][:1]
    return found
