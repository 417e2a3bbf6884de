"""How far a network can be cut: short trainings of a few allocations, each nearer to the loss that is looked for.

Forecasts are sums of tasks; a whole model has costs that they do not show.  So some allocations around the latency that
is looked for are compiled and timed, and the best of them is trained for a short time: a scout.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cprune.method.aiming import NO_AIM, Aim
from cprune.method.allocation import Allocation
from cprune.method.expected import Law, looked_at
from cprune.method.planning import Plan
from cprune.method.seconds import Budget
from cprune.method.state import RunState
from cprune.network.network import Network
from cprune.runs.events import Scouted
from cprune.targets.paired import Paired
from cprune.training.fine_tune import FineTuneDiverged

TIMED = 5  # allocations whose forecasts are near the share that is looked for are compiled and timed
AROUND = 0.12  # logarithms of shares this far apart are near
STEEP = 3.0  # what a scout loses grows about with this power of 1 / latency
NEAR, OVER = 1.25, 1.1  # a scout that lost so many times less, or more, than what is looked for ends the search
BETWEEN = 0.06  # logarithms of shares: a scout this near to what is looked for is taken as it is
CLOSE = 1.35  # times: where one scout lost less and another this much faster one more, no further one is trained
MOST_SHARE = 0.95
LARGEST_STEP = 0.5  # of the logarithm of the latency, from one scout to the next


@dataclass(frozen=True, eq=False)
class Scout:
    """An allocation after a short training: its number, its measured share of the latency, and what it lost.

    `lost` is what it is thought to have lost by all that the run knows (`cprune.method.expected`), `loss` was counted.
    """

    number: int
    allocation: Allocation
    share: float
    lost: float
    loss: Paired | None = None


@dataclass(frozen=True, eq=False)
class _Timed:
    """An allocation that was compiled and timed: its measured share of the latency, and its network."""

    allocation: Allocation
    share: float
    network: Network


class Scouting:
    """The scouts of one round.  `timed` says which share of the current model's latency a network takes.

    `limit` says how fast a model need be at most.
    """

    def __init__(
        self,
        run: RunState,
        index: int,
        plan: Plan,
        budget: Budget,
        timed: Callable[[Network], float],
        limit: Aim = NO_AIM,
    ) -> None:
        self.run, self.index, self.plan, self.budget, self.timed = run, index, plan, budget, timed
        self.limit = limit
        self.number = 0  # of the next scout
        self.losses: list[Paired] = []  # of all scouts so far
        self.error = 1.0  # measured over forecast, of the models that were timed last

    def found(self, first_share: float, most: int, aims: Callable[[Law], float]) -> Scout:
        """Return the fastest of at most `most` scouts that lost about as much as is aimed at, at most.

        `aims` says what that is by all that is known of losses.  Where all of them lost more, or one lost less and
        another one more, and neither is near, it is an allocation that is thought to lose that, and was not trained.
        """
        scouts = self._all(first_share, most, aims)
        aim = aims(self._law())
        good = [scout for scout in scouts if scout.lost <= OVER * aim]
        return self._between(scouts, self.limit.best(good), aim) if good else self._milder(scouts, aim)

    def _all(self, share: float, most: int, aims: Callable[[Law], float]) -> list[Scout]:
        scouts: list[Scout] = []
        aim = aims(self._law())
        while self.number < most:
            scout = self._known()
            if scout is None:
                timed = self._fastest_near(share, scouts, aim)
                if timed is None:
                    break
                scout = self._trained(timed)
            scouts = self._thought([*scouts, scout])
            aim = aims(self._law())
            if aim / NEAR <= scouts[-1].lost <= aim * OVER or self.limit.ends(scouts[-1], aim * OVER):
                break
            (faster, _), (slower, _) = _bracket(_lost(scouts), aim)
            if slower <= CLOSE * faster:
                break
            share = max(next_share(_lost(scouts), aim), self.limit.share)
        return scouts

    def _law(self) -> Law:
        """Return what all models that were looked at say of losses, the scouts of this round among them."""
        return Law.of([*looked_at(self.run.history, self.index), *self.losses])

    def _thought(self, scouts: Sequence[Scout]) -> list[Scout]:
        """Return them with what they are thought to have lost by all that is known now."""
        law = self._law()
        return [scout if scout.loss is None else replace(scout, lost=law.loss(scout.loss)) for scout in scouts]

    def _between(self, scouts: Sequence[Scout], best: Scout, aim: float) -> Scout:
        lost = [scout.lost for scout in scouts]
        if min(lost) > aim or max(lost) <= aim or self.limit.reached(best.share):
            return best
        share = next_share(_lost(scouts), aim)
        if abs(math.log(share / best.share)) <= BETWEEN:
            return best
        timed = self._fastest_near(share, scouts, aim)
        return best if timed is None else self._untrained(timed, aim)

    def _milder(self, scouts: Sequence[Scout], aim: float) -> Scout:
        share = next_share(_lost(scouts), aim)
        timed = self._fastest_near(max(share, max((one.share for one in scouts), default=0.0)))
        assert timed is not None  # of what is on a front one is the nearest
        return self._untrained(timed, aim)

    def _untrained(self, timed: _Timed, aim: float) -> Scout:
        self.run.keeper.save_scout(self.index, self.number, timed.network)
        return Scout(self.number, timed.allocation, timed.share, aim)

    def _known(self) -> Scout | None:
        """Return the next scout as an earlier life trained it, if it did.

        It need not be on the front of this life: what was timed since then is measured now, and moves the front.
        """
        number = self.number
        known = self.run.history.scouted.get((self.index, number))
        if known is None:
            return None
        self.number += 1
        self.losses.append(known.loss)
        seconds = known.forecast * self.plan.front[0].seconds
        allocation = Allocation(tuple(known.by_group.items()), known.gone, seconds, known.damage)
        return Scout(number, allocation, known.share, known.loss.loss, known.loss)

    def _fastest_near(self, share: float, scouts: Sequence[Scout] = (), aim: float = 0.0) -> _Timed | None:
        """Return the best of some allocations that are compiled and timed; None if there is none.

        The best has the least damage, where every share near the one that is looked for is taken to be worth what STEEP
        says; if none is near, it is the nearest.  It is none of `scouts`, and lies between those of them that lost more
        and less than `aim`.  A run that decides by estimates takes forecasts, and times nothing.
        """
        near = self.plan.near(min(MOST_SHARE, share) / self.error, TIMED)
        found = [self._timed(allocation) for allocation in near]
        if not self.run.settings.estimate:
            self.error = statistics.median(one.share / self.plan.share(one.allocation) for one in found)
        (faster, _), (slower, _) = _bracket(_lost(scouts), aim)
        known = [one.allocation for one in scouts]
        found = [one for one in found if faster < one.share < slower and not _is_one_of(one.allocation, known)]
        if not found:
            return None
        best = self._best(found, share)
        # Once more: the measurement with which it was chosen flatters it, 0.45 and 0.58 of what took 0.50 and 0.60.
        return replace(best, share=self._share(best.allocation, best.network))

    def _best(self, found: Sequence[_Timed], share: float) -> _Timed:
        enough = self.limit.most_accurate(found, share)
        if enough is not None:
            return enough
        inside = [one for one in found if abs(math.log(one.share / share)) <= AROUND]
        if not inside:
            return min(found, key=lambda one: abs(math.log(one.share / share)))
        return min(inside, key=lambda one: one.allocation.damage * one.share**STEEP)

    def _timed(self, allocation: Allocation) -> _Timed:
        with self.run.cost.spent("evaluate"):
            network = self.plan.cut(allocation)
        return _Timed(allocation, self._share(allocation, network), network)

    def _share(self, allocation: Allocation, network: Network) -> float:
        """Return the share of the latency of an allocation's network: measured now, or as it is forecast."""
        return self.plan.share(allocation) if self.run.settings.estimate else self.timed(network)

    def _trained(self, timed: _Timed) -> Scout:
        """Train an allocation for a short time, keep it, and return what it lost."""
        run, allocation, share, network = self.run, timed.allocation, timed.share, timed.network
        number, self.number = self.number, self.number + 1
        epochs = self.budget.epochs(run, network, self.budget.of_scout, long=False)
        try:
            seed = run.settings.seed * 1000 + 100 * (self.index + 1) + number
            run.fine_tune(network, self.budget.schedule(epochs, long=False), seed)
            loss = run.loss(run.look(network, "decide"), "decide")
        except FineTuneDiverged:
            loss = Paired(1.0)
        run.keeper.save_scout(self.index, number, network)
        widths, gone = Scouted.texts(allocation.widths), allocation.gone
        forecast = self.plan.share(allocation)
        self.losses.append(loss)
        run.happened(Scouted(self.index, number, share, forecast, allocation.damage, epochs, loss, widths, gone))
        run.progress.say(
            f"scout: {share:.2f} of the latency loses {100 * loss.loss:.2f} points after {epochs:.1f} epochs "
            f"({len(gone)} branches less, {len(widths)} groups narrower)"
        )
        return Scout(number, allocation, share, loss.loss, loss)


def next_share(known: Sequence[tuple[float, float]], aim: float) -> float:
    """Return the share of the latency at which a model is thought to lose `aim`.

    `known` are shares with what was lost at each, the newest last.  Between two that lost less and more the logarithms
    are interpolated; else a power law is gone along from the newest.
    """

    def excess(lost: float) -> float:
        return math.log(max(lost, 0.1 * aim) / aim)

    (faster, more), (slower, less) = _bracket(known, aim)
    if faster > 0 and slower < math.inf:
        part = excess(less) / (excess(less) - excess(more))
        return float(slower * (faster / slower) ** part)
    share, lost = known[-1]
    step = min(LARGEST_STEP, max(-LARGEST_STEP, excess(lost) / STEEP))
    return min(MOST_SHARE, share * math.exp(step))


def _is_one_of(one: Allocation, known: Sequence[Allocation]) -> bool:
    """Tell whether an allocation is of the same network as one that is known, of a front or of the journal."""
    return (one.widths, one.gone) in [(other.widths, other.gone) for other in known]


def _lost(scouts: Sequence[Scout]) -> list[tuple[float, float]]:
    """Return the shares of the latency of some scouts, each with what was lost."""
    return [(scout.share, scout.lost) for scout in scouts]


def _bracket(known: Sequence[tuple[float, float]], aim: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the slowest that lost more than `aim` and the fastest that lost less, shares with what was lost at each.

    The shares are 0 and infinity where there is none of each, or a faster one lost less.
    """
    faster = max((one for one in known if one[1] > aim), default=(0.0, math.inf))
    slower = min((one for one in known if one[1] <= aim), default=(math.inf, 0.0))
    return (faster, slower) if faster[0] < slower[0] else ((0.0, math.inf), (math.inf, 0.0))
