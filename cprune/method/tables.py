"""The default method: tables, one allocation for the whole network, and almost all of the training in one model.

A round plans (`cprune.method.planning`), looks for how far the network can be cut with a few short trainings of
different allocations, the scouts, and gives the chosen one a long training.  What that lost, of what its scout lost,
says how much training brings back here; with it the next round, which goes on from the trained model, chooses again.
Every model that was trained long and keeps the floor is a step of the run; the end certifies them
(`cprune.method.ending`).

The parts are known (`cprune.method.allocation` names its sources): global allocation over measured tables, closed-form
compensation (GRAIL, arXiv 2602.23795), whole residual branches beside widths (MDP, arXiv 2504.02168), and one schedule
in place of many (BIMP, arXiv 2111.00843).  Ours is the way they are joined, and the search by scouts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cprune.method.allocation import Allocation
from cprune.method.beginning import begin
from cprune.method.judgement import Judgement
from cprune.method.planning import DAMAGE_IMAGES, STATISTICS_IMAGES, Plan, planned
from cprune.method.seconds import Budget
from cprune.method.state import RunState, Version
from cprune.network.network import Network
from cprune.runs.events import Chosen, GroupChange, Measured, Scouted, Start, Step, Trained
from cprune.targets.interval import Comparison
from cprune.targets.paired import Paired
from cprune.training.fine_tune import FineTuneDiverged
from cprune.training.trainer import Schedule

ROUNDS = 2
FIRST_SHARES = (0.5, 0.85)  # of the latency of the current model, for the first scout of each round
TIMED = 5  # allocations whose forecasts are near the share that is looked for are compiled and timed
TIMED_TRIALS, TIMED_ROUNDS = 3, 5
SCOUTS = (4, 2)  # at most, of each round
AIM = 0.5  # of the accuracy that may be lost, for the first round: the second one uses the rest
RECOVERY = 0.35  # of what a scout lost is still lost after long training, before anything is known of this network
RECOVERIES = (0.1, 1.0)  # what is believed of it at least and at most
STEEP = 3.0  # what a scout loses grows about with this power of 1 / latency
RESERVED = 1.5  # standard errors of the accuracy that decides are left of what may be lost
NEAR = 1.25  # a scout this close to what is looked for ends the search
LR = 0.02


@dataclass(frozen=True, eq=False)
class _Scout:
    """An allocation after a short training: its number, its measured share of the latency, and what it lost."""

    number: int
    allocation: Allocation
    share: float
    loss: Paired


class Tables:
    """The steps of one run: `begin()` first, then `steps()`, to its end or not."""

    def __init__(self, run: RunState) -> None:
        self.run = run
        self.error = 1.0  # measured over forecast, of the models that were timed last
        self.held = "before"  # the name under which the workbench holds the current model

    def begin(self) -> Start:
        """See `cprune.method.beginning.begin`."""
        self.before = self.current = begin(self.run)
        return self.run.start

    def steps(self) -> Iterator[Step]:
        """Yield a step for every round, until one brings no faster model."""
        run = self.run
        self.budget = Budget.of(run)
        self._go_on()
        while len(run.history.steps) < ROUNDS:
            step = self._round(len(run.history.steps))
            yield step
            if step.verdict == "rejected":
                return

    def _go_on(self) -> None:
        """Go to the last accepted model of an earlier life, if there was one."""
        run, last = self.run, self.run.history.last
        if last is not None:
            self.current = self._tuned(run.keeper.load(last))
            run.load(f"step{last}", self.current)
            self.held = f"step{last}"
        if run.history.steps:
            run.progress.say(f"resumed after {len(run.history.steps)} rounds")

    def _tuned(self, network: Network, text: str = "", trials: int | None = None) -> Version:
        run = self.run
        siblings = self.current.tuned.layer_programs
        return run.tune(network, run.layout, trials or run.settings.loop_trials, siblings, text, "loop")

    # -- one round

    def _round(self, index: int) -> Step:
        """Cut, scout, time, train, look; an accepted model becomes `current`."""
        run, before = self.run, self.run.cost.now()
        chosen = run.history.chosen.get(index) or self._chosen(index)
        new = self._tuned(run.keeper.load_scout(index, chosen.number), "tuning changed tasks")
        comparison = self._compared(index, new, chosen.share)
        ratio = comparison.ratio
        if comparison.faster(run.settings.beta):
            judgement = self._trained(index, new.tuned.network, chosen.epochs, comparison)
        else:
            reason = f"not clearly faster: {ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of the time"
            judgement = Judgement("rejected", reason, comparison)
        step = Step(
            index,
            "the whole network",
            0,
            chosen.groups,
            comparison.new_ms,
            comparison.old_ms,
            ratio,
            judgement.accuracy,
            judgement.verdict,
            judgement.reason,
            new.tuned.trials,
            run.cost.since(before),
            f"round {index}",
            judgement.loss,
        )
        run.happened(step)
        if judgement.verdict == "accepted":
            if self.held != "before":
                run.bench.drop(self.held)
            self.current, self.held = new, f"step{index}"
        else:
            run.bench.drop(f"step{index}")
        return step

    def _compared(self, index: int, new: Version, forecast: float) -> Comparison:
        """Time the candidate against the current model; twice where it contradicts the forecast."""
        run, name = self.run, f"step{index}"
        run.load(name, new)
        known = run.history.measured.get(name)
        if known is not None:
            return known.comparison
        comparison = run.compare(self.held, name, run.settings.rounds, run.settings.beta)
        if comparison.contradicts(forecast):
            run.progress.say(
                f"{comparison.ratio.median:.3f} of the time was measured, {forecast:.3f} forecast: measured again"
            )
            comparison = run.compare(self.held, name, run.settings.rounds, run.settings.beta)
        run.happened(Measured(name, comparison.old_ms, comparison.new_ms, comparison.ratio))
        return comparison

    def _trained(self, index: int, network: Network, epochs: float, comparison: Comparison) -> Judgement:
        """Train a network long, in place, and look at it."""
        run = self.run
        faster = f"{1 / comparison.ratio.median:.3f}x faster"
        known = run.history.trained.get(index)
        if known is not None:  # an earlier life ended just here
            network.load_state_dict(run.keeper.load(index, long_trained=True).state_dict())
            return Judgement("accepted", faster, comparison, known.accuracy, known.loss)
        checkpoint = run.keeper.checkpoint(f"round{index}", run.progress.say)
        try:
            run.fine_tune(network, self._schedule(epochs), run.settings.seed * 1000 + index, checkpoint)
        except FineTuneDiverged as error:
            return Judgement("excluded", f"training diverged: {error}", comparison)
        look = run.look(network, "decide")
        loss = run.loss(look, "decide")
        if look.accuracy < run.start.floor:
            reason = f"accuracy {look.accuracy:.2%} is below {run.start.floor:.2%}"
            return Judgement("excluded", reason, comparison, look.accuracy, loss)
        for long_trained in (False, True):
            run.keeper.save(index, network, long_trained)
        run.happened(Trained(index, look.accuracy, look.accuracy, "", loss))
        if checkpoint is not None:
            checkpoint.discard()
        return Judgement("accepted", faster, comparison, look.accuracy, loss)

    def _schedule(self, epochs: float, long: bool = True) -> Schedule:
        return Schedule(epochs, LR, varied=long, ema=long)

    def _epochs(self, network: Network, seconds: float, long: bool = True) -> float:
        """Return how many epochs of training a network has in so many seconds, a tenth at least."""
        with self.run.cost.spent("train"):
            pace = self.run.trainer.pace(network, self._schedule(1.0, long))
        assert pace is not None
        return round(max(0.1, pace.epochs(seconds)), 2)

    # -- scouts

    def _chosen(self, index: int) -> Chosen:
        """Plan, scout, and return the scout that long training is thought to bring back far enough."""
        run = self.run
        samples = run.trainer.samples(STATISTICS_IMAGES + DAMAGE_IMAGES, run.settings.seed + index)
        assert samples is not None  # where nothing can be seen another method runs
        latency_ms = run.history.steps[run.history.last].latency_ms if run.history.last is not None else None
        plan = planned(run, self.current, (latency_ms or run.start.latency_ms).median, samples)
        aim = self._aim(index)
        scouts = self._scouts(index, plan, aim)
        good = [scout for scout in scouts if scout.loss.loss <= NEAR * aim]
        scout = min(good, key=lambda scout: scout.share) if good else self._milder(index, plan, scouts, aim)
        seconds = self.budget.of_round(index, ROUNDS, len(run.history.scouted))
        chosen = Chosen(
            index,
            scout.number,
            scout.share,
            self._epochs(run.keeper.load_scout(index, scout.number), seconds),
            scout.loss.loss,
            tuple(GroupChange(g, plan.graph.group(g).channels, w) for g, w in scout.allocation.widths),
            scout.allocation.gone,
        )
        run.happened(chosen)
        run.progress.say(
            f"round {index + 1}: {chosen.share:.2f} of the latency, {len(chosen.gone)} branches less; "
            f"{chosen.epochs:.1f} epochs, about {seconds / 60:.1f} min"
        )
        return chosen

    def _milder(self, index: int, plan: Plan, scouts: Sequence[_Scout], aim: float) -> _Scout:
        """Return an allocation that loses less than all scouts, by what they lost; it was not trained."""
        run = self.run
        share = max(next_share([(s.share, s.loss.loss) for s in scouts], aim), max(s.share for s in scouts))
        allocation, measured = self._fastest_near(index, plan, min(0.95, share))
        with run.cost.spent("evaluate"):
            run.keeper.save_scout(index, len(scouts), plan.cut(allocation))
        return _Scout(len(scouts), allocation, measured, Paired(aim))

    def _scouts(self, index: int, plan: Plan, aim: float) -> list[_Scout]:
        """Return short trainings of allocations, nearer and nearer to what may lose `aim`."""
        run = self.run
        share = FIRST_SHARES[index]
        scouts: list[_Scout] = []
        while len(scouts) < SCOUTS[index]:
            known = run.history.scouted.get((index, len(scouts)))
            if known is not None:
                allocation = next(one for one in plan.front if _told(one) == (known.widths, known.gone))
                scouts.append(_Scout(known.number, allocation, known.share, known.loss))
            else:
                allocation, measured = self._fastest_near(index, plan, share)
                if any(scout.allocation == allocation for scout in scouts):
                    break
                scouts.append(self._scout(index, len(scouts), plan, allocation, measured))
            if aim / NEAR <= scouts[-1].loss.loss <= aim * NEAR:
                break
            share = next_share([(s.share, s.loss.loss) for s in scouts], aim)
        return scouts

    def _fastest_near(self, index: int, plan: Plan, share: float) -> tuple[Allocation, float]:
        """Return the best of some allocations that are compiled and timed, and its measured share of the latency.

        Whole models have costs that the sum of their tasks does not show.  The best has the least damage, where every
        share is taken to be worth what STEEP says.
        """
        run = self.run
        found: list[tuple[Allocation, float]] = []
        run.progress.start("timing allocations", TIMED)
        for allocation in plan.near(share / self.error, TIMED):
            name = "candidate"
            version = self._tuned(plan.cut(allocation), trials=TIMED_TRIALS)
            run.load(name, version)
            ratio = run.compare(self.held, name, TIMED_ROUNDS).ratio.median
            run.bench.drop(name)
            found.append((allocation, ratio))
            run.progress.advance()
        run.progress.done()
        self.error = statistics.median(ratio / plan.share(allocation) for allocation, ratio in found)
        return min(found, key=lambda one: one[0].damage * one[1] ** STEEP)

    def _aim(self, index: int) -> float:
        """Return what a scout may lose, so that long training is thought to leave what may be lost."""
        run, allowed = self.run, self.run.start.allowed
        if not run.history.accepted:
            return AIM * allowed / RECOVERY / (1 if index == 0 else 2)
        last = run.history.accepted[-1]
        assert last.loss is not None
        lost = run.history.chosen[last.index].scout_loss
        low, high = RECOVERIES
        recovery = min(high, max(low, last.loss.loss / max(lost, 1e-4)))
        return max(0.25 * allowed, allowed - RESERVED * last.loss.se) / recovery

    def _scout(self, index: int, number: int, plan: Plan, allocation: Allocation, share: float) -> _Scout:
        """Train an allocation for a short time, keep it, and return what it lost."""
        run = self.run
        with run.cost.spent("evaluate"):
            network = plan.cut(allocation)
        epochs = self._epochs(network, self.budget.of_scout, long=False)
        try:
            run.fine_tune(
                network, self._schedule(epochs, long=False), run.settings.seed * 1000 + 100 * (index + 1) + number
            )
            loss = run.loss(run.look(network, "decide"), "decide")
        except FineTuneDiverged:
            loss = Paired(1.0)
        run.keeper.save_scout(index, number, network)
        widths, gone = _told(allocation)
        forecast = plan.share(allocation)
        run.happened(Scouted(index, number, share, forecast, allocation.damage, epochs, loss, widths, gone))
        run.progress.say(
            f"scout: {share:.2f} of the latency loses {100 * loss.loss:.2f} points after {epochs:.1f} epochs "
            f"({len(allocation.gone)} branches less, {len(allocation.widths)} groups narrower)"
        )
        return _Scout(number, allocation, share, loss)


def _told(allocation: Allocation) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the widths of an allocation as texts, "layer1.conv 16", and the branches that are gone."""
    return tuple(f"{group} {width}" for group, width in allocation.widths), allocation.gone


def next_share(known: Sequence[tuple[float, float]], aim: float) -> float:
    """Return the share of the latency at which a model is thought to lose `aim`.

    `known` are shares with what was lost at each, the newest last.  Between two that lost less and more the logarithms
    are interpolated; else a power law is gone along from the newest.
    """
    points = [(math.log(share), math.log(max(lost, 0.1 * aim))) for share, lost in known]
    below = min((p for p in points if p[1] <= math.log(aim)), default=None)
    above = max((p for p in points if p[1] > math.log(aim)), default=None)
    if below and above and above[0] < below[0]:
        part = (math.log(aim) - below[1]) / (above[1] - below[1])
        return math.exp(below[0] + part * (above[0] - below[0]))
    share, lost = points[-1]
    step = min(0.5, max(-0.5, (lost - math.log(aim)) / STEEP))
    return min(0.95, math.exp(share + step))
