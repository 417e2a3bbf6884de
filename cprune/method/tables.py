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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cprune.method.allocation import Allocation
from cprune.method.beginning import begin
from cprune.method.planning import DAMAGE_IMAGES, STATISTICS_IMAGES, Plan, planned
from cprune.method.seconds import Budget
from cprune.method.state import RunState, Version
from cprune.network.network import Network
from cprune.runs.events import GroupChange, Measured, Scouted, Start, Step, Trained
from cprune.targets.paired import Paired
from cprune.training.fine_tune import FineTuneDiverged
from cprune.training.trainer import Schedule

ROUNDS = 2
FIRST_SHARE = 0.5  # of the latency, for the first scout
SCOUTS = (4, 2)  # at most, of each round
AIM = 0.5  # of the accuracy that may be lost, for the first round: the second one uses the rest
RECOVERY = 0.35  # of what a scout lost is still lost after long training, before anything is known of this network
RECOVERIES = (0.1, 1.0)  # what is believed of it at least and at most
STEEP = 3.0  # what a scout loses grows about with this power of 1 / latency
NEAR = 1.25  # a scout this close to what is looked for ends the search
LR = 0.02


@dataclass(frozen=True, eq=False)
class _Scout:
    """An allocation after a short training: what it lost, in accuracy, and its network."""

    allocation: Allocation
    loss: Paired
    network: Network


class Tables:
    """The steps of one run: `begin()` first, then `steps()`, to its end or not."""

    def __init__(self, run: RunState) -> None:
        self.run = run
        self.held = "before"  # the name under which the workbench holds the current model

    def begin(self) -> Start:
        """Look at the accuracy, tune the unpruned model, check it against PyTorch."""
        self.before = self.current = begin(self.run)
        return self.run.start

    def steps(self) -> Iterator[Step]:
        """Yield a step for every round, until one does not bring a model that is faster and accurate enough."""
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

    def _tuned(self, network: Network, text: str = "") -> Version:
        run = self.run
        siblings = self.current.tuned.layer_programs
        return run.tune(network, run.layout, run.settings.loop_trials, siblings, text, "loop")

    # -- one round

    def _round(self, index: int) -> Step:
        """Cut, scout, time, train, look; an accepted model becomes `current`."""
        run, before = self.run, self.run.cost.now()
        samples = run.trainer.samples(STATISTICS_IMAGES + DAMAGE_IMAGES, run.settings.seed + index)
        assert samples is not None  # where nothing can be seen another method runs
        plan = planned(run, self.current, samples)
        scout = self._scouted(index, plan)
        new = self._tuned(scout.network, "tuning changed tasks")
        name = f"step{index}"
        run.load(name, new)
        comparison = run.compare(self.held, name, run.settings.rounds, run.settings.beta)
        run.happened(Measured(f"{index}", comparison.old_ms, comparison.new_ms, comparison.ratio))
        ratio, accuracy, loss = comparison.ratio, None, None
        if not comparison.faster(run.settings.beta):
            verdict, reason = "rejected", f"not clearly faster: {ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        else:
            verdict, reason, accuracy, loss = self._trained_long(index, new.tuned.network)
        if verdict == "accepted":
            self.current, self.held = new, name
        elif verdict == "excluded" and run.history.last is not None:
            pass
        step = Step(
            index,
            "all",
            0,
            _changes(plan, scout.allocation),
            comparison.new_ms,
            comparison.old_ms,
            comparison.ratio,
            accuracy,
            verdict,
            reason,
            new.tuned.trials,
            run.cost.since(before),
            " ".join(scout.allocation.gone),
            loss=loss,
        )
        run.happened(step)
        return step

    def _trained_long(self, index: int, network: Network) -> tuple[str, str, float | None, Paired | None]:
        """Train a network in place and return the verdict, its reason, the accuracy where it is decided, the loss."""
        run = self.run
        seconds = self.budget.of_round(index, ROUNDS)
        schedule = self._schedule(network, seconds)
        run.progress.say(f"long training: {schedule.epochs:.1f} epochs, about {seconds / 60:.1f} min")
        try:
            run.fine_tune(network, schedule, run.settings.seed * 1000 + index)
        except FineTuneDiverged as error:
            return "excluded", f"training diverged: {error}", None, None
        look = run.look(network, "decide")
        loss = run.loss(look, "decide")
        if look.accuracy < run.start.floor:
            return "excluded", f"accuracy {look.accuracy:.2%} is below {run.start.floor:.2%}", look.accuracy, loss
        run.keeper.save(index, network)
        run.keeper.save(index, network, long_trained=True)
        run.happened(Trained(index, look.accuracy, look.accuracy, "", loss))
        return "accepted", f"loses {100 * loss.loss:.2f} points where it is decided", look.accuracy, loss

    def _schedule(self, network: Network, seconds: float) -> Schedule:
        schedule = Schedule(1.0, LR, varied=True, ema=True)
        pace = self.run.trainer.pace(network, schedule)
        assert pace is not None
        return replace(schedule, epochs=max(0.1, pace.epochs(seconds)))

    # -- scouts

    def _scouted(self, index: int, plan: Plan) -> _Scout:
        """Return the scout that is the fastest of those which long training is thought to bring back far enough."""
        run = self.run
        aim = self._aim(index)
        whole = plan.front[0].seconds
        share = FIRST_SHARE if index == 0 else 0.75
        scouts: list[_Scout] = []
        while len(scouts) < SCOUTS[index]:
            allocation = plan.fastest_within(share * whole)
            if any(scout.allocation == allocation for scout in scouts):
                break
            scouts.append(self._scout(index, len(scouts), plan, allocation))
            lost = scouts[-1].loss.loss
            if aim / NEAR <= lost <= aim * NEAR:
                break
            share = _next_share(scouts, aim, whole)
        good = [scout for scout in scouts if scout.loss.loss <= aim * NEAR]
        if good:
            return min(good, key=lambda scout: scout.allocation.seconds)
        return max(scouts, key=lambda scout: scout.allocation.seconds)

    def _aim(self, index: int) -> float:
        """Return what a scout may lose, so that long training is thought to leave what may be lost."""
        run = self.run
        if index == 0 or not run.history.accepted:
            return AIM * run.start.allowed / RECOVERY
        last = run.history.accepted[-1]
        assert last.loss is not None
        low, high = RECOVERIES
        recovery = min(high, max(low, last.loss.loss / max(self.first_scout_loss, 1e-4)))
        return max(0.1 * run.start.allowed, run.start.allowed - last.loss.se) / recovery

    def _scout(self, index: int, number: int, plan: Plan, allocation: Allocation) -> _Scout:
        run = self.run
        network = plan.cut(allocation)
        schedule = self._schedule(network, self.budget.of_scout)
        try:
            run.fine_tune(network, schedule, run.settings.seed * 1000 + 100 * (index + 1) + number)
        except FineTuneDiverged:
            return _Scout(allocation, Paired(1.0), network)
        loss = run.loss(run.look(network, "decide"), "decide")
        share = allocation.seconds / plan.front[0].seconds
        run.happened(Scouted(index, number, share, allocation.damage, schedule.epochs, loss, allocation.gone))
        run.progress.say(
            f"scout: {share:.2f} of the latency loses {100 * loss.loss:.2f} points after {schedule.epochs:.1f} epochs "
            f"({len(allocation.gone)} branches gone, {len(allocation.widths)} groups narrower)"
        )
        if index == 0:
            self.first_scout_loss = loss.loss
        return _Scout(allocation, loss, network)


def _next_share(scouts: Sequence[_Scout], aim: float, whole: float) -> float:
    """Return the share of the latency at which a scout is thought to lose `aim`.

    Between two scouts that lost more and less the logarithms are interpolated; else a power law is gone along.
    """
    least = 0.1 * aim

    def point(scout: _Scout) -> tuple[float, float]:
        return math.log(scout.allocation.seconds / whole), math.log(max(scout.loss.loss, least))

    below = max((point(s) for s in scouts if s.loss.loss <= aim), default=None, key=lambda p: -p[0])
    above = min((point(s) for s in scouts if s.loss.loss > aim), default=None, key=lambda p: -p[0])
    if below and above and below[1] < above[1]:
        part = (math.log(aim) - below[1]) / (above[1] - below[1])
        return math.exp(below[0] + part * (above[0] - below[0]))
    last, lost = point(scouts[-1])
    step = min(0.5, max(-0.5, (lost - math.log(aim)) / STEEP))
    return min(0.95, math.exp(last + step))


def _changes(plan: Plan, allocation: Allocation) -> tuple[GroupChange, ...]:
    return tuple(GroupChange(g, plan.graph.group(g).channels, w) for g, w in allocation.widths)
