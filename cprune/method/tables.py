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
from collections.abc import Iterator
from dataclasses import replace

from cprune.method.aiming import Aim
from cprune.method.beginning import begin
from cprune.method.certify import room
from cprune.method.judgement import Judgement
from cprune.method.limits import least_share, meets
from cprune.method.planning import planned
from cprune.method.scouting import STEEP, Scouting
from cprune.method.seconds import Budget
from cprune.method.state import RunState, Version
from cprune.network.network import Network
from cprune.runs.events import Chosen, GroupChange, Measured, Start, Step, Trained
from cprune.targets.interval import Comparison
from cprune.targets.paired import Paired
from cprune.training.fine_tune import FineTuneDiverged

ROUNDS = 2
FIRST_SHARE, NEXT_SHARE = 0.5, 0.85  # of the latency of the current model, for the first scout of a round
TIMED_TRIALS, TIMED_ROUNDS = 3, 5
SCOUTS = (4, 2)  # at most, of each round
AIM = 0.5  # of the accuracy that may be lost, for the first round: the second one uses the rest
RECOVERY = 0.35  # of what a scout lost is still lost after long training, before anything is known of this network
RECOVERIES = (0.1, 1.0)  # what is believed of it at least and at most
NEARLY = 1.6  # times what may be lost: a model that lost no more than this is trained on


class Tables:
    """The steps of one run: `begin()` first, then `steps()`, to its end or not."""

    def __init__(self, run: RunState) -> None:
        self.run = run
        self.held = "before"  # the name under which the workbench holds the current model

    def begin(self) -> Start:
        """See `cprune.method.beginning.begin`."""
        self.before = self.current = begin(self.run)
        return self.run.start

    def steps(self) -> Iterator[Step]:
        """Yield a step for every round, until one brings no faster model, or nothing is left that could go.

        After the last round comes a short one more if that ended with a model that is nearly accurate enough.
        """
        run = self.run
        self.budget = Budget.of(run)
        self._go_on()
        while len(run.history.steps) < ROUNDS + self._is_to_go_on() and not meets(run, run.history.last):
            step = self._round(len(run.history.steps))
            if step is None:
                return
            yield step
            if step.verdict == "rejected":
                return

    def _is_to_go_on(self) -> bool:
        """Tell whether the model of the last round lost a little too much, so that it is trained on."""
        steps = self.run.history.steps
        return bool(steps) and steps[-1].verdict == "excluded" and self._nearly(steps[-1].index, steps[-1].loss)

    def _nearly(self, index: int, loss: Paired | None) -> bool:
        """Tell whether what a model lost after a round is more than it should, and little enough to train it on."""
        if loss is None or index >= ROUNDS:
            return False
        return room(self.run, loss) < loss.loss <= NEARLY * self.run.start.allowed

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

    def _round(self, index: int) -> Step | None:
        """Cut, scout, time, train, look; an accepted model becomes `current`.  None if there is nothing to cut."""
        run, before = self.run, self.run.cost.now()
        chosen = run.history.chosen.get(index) or self._chosen(index)
        if chosen is None:
            return None
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
            f"the whole network, {len(chosen.gone)} branches less" if chosen.gone else "the whole network",
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
            run.fine_tune(network, self.budget.schedule(epochs), run.settings.seed * 1000 + index, checkpoint)
        except FineTuneDiverged as error:
            return Judgement("excluded", f"training diverged: {error}", comparison)
        look = run.look(network, "decide")
        loss = run.loss(look, "decide")
        if self._nearly(index, loss):
            run.keeper.save_scout(index + 1, 0, network)
            reason = f"{100 * loss.loss:.2f} points lost are too many to be sure of: it is trained on"
            return Judgement("excluded", reason, comparison, look.accuracy, loss)
        if look.accuracy < run.start.floor:
            reason = f"accuracy {look.accuracy:.2%} is below {run.start.floor:.2%}"
            return Judgement("excluded", reason, comparison, look.accuracy, loss)
        for long_trained in (False, True):
            run.keeper.save(index, network, long_trained)
        run.happened(Trained(index, look.accuracy, look.accuracy, "", loss))
        if checkpoint is not None:
            checkpoint.discard()
        return Judgement("accepted", faster, comparison, look.accuracy, loss)

    # -- the choice of a round

    def _chosen(self, index: int) -> Chosen | None:
        """Plan, scout, and return the scout that long training is thought to bring back far enough.

        None where the front is the whole model alone: all layers are ignored, or as narrow as they may be.
        """
        run = self.run
        if self._is_to_go_on():
            return self._same_again(index)
        latency_ms = run.history.steps[run.history.last].latency_ms if run.history.last is not None else None
        usual_ms = (latency_ms or run.start.latency_ms).median
        plan = planned(run, self.current, usual_ms, self.budget.of_looking, run.settings.seed + index, index)
        if len(plan.front) == 1:
            run.progress.say("nothing is left whose removal would make the model faster")
            return None
        limit = Aim(least_share(run, [(plan.share(one), one) for one in plan.front]))
        scouting = Scouting(run, index, plan, self.budget, self._share, limit)
        scout = scouting.found(max(limit.share, self._first_share()), SCOUTS[index], self._aim())
        last = index + 1 if limit.reached(scout.share) else ROUNDS  # nothing faster is asked for
        seconds = self.budget.of_round(index, last, len(run.history.scouted))
        chosen = Chosen(
            index,
            scout.number,
            scout.share,
            self.budget.epochs(run, run.keeper.load_scout(index, scout.number), seconds),
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

    def _same_again(self, index: int) -> Chosen:
        """Choose the model of the last round once more, to be trained on."""
        run = self.run
        last, lost = run.history.chosen[index - 1], run.history.steps[-1].loss
        assert lost is not None
        seconds = self.budget.of_round(index, ROUNDS, len(run.history.scouted))
        epochs = self.budget.epochs(run, run.keeper.load_scout(index, 0), seconds)
        chosen = replace(last, round=index, number=0, epochs=epochs, scout_loss=lost.loss, so_far=None)
        run.happened(chosen)
        run.progress.say(f"the same model is trained on: {epochs:.1f} epochs, about {seconds / 60:.1f} min")
        return chosen

    def _share(self, network: Network) -> float:
        """Return which share of the current model's latency a network takes: compiled, and timed with it in turns."""
        run, name = self.run, "candidate"
        run.load(name, self._tuned(network, "tuning an allocation to time it", TIMED_TRIALS))
        ratio = run.compare(self.held, name, TIMED_ROUNDS).ratio.median
        run.bench.drop(name)
        return ratio

    def _first_share(self) -> float:
        """Return the share of the latency for the first scout: more than that of a model that lost too much."""
        run = self.run
        if not run.history.steps:
            return FIRST_SHARE
        last = run.history.steps[-1]
        if last.verdict == "accepted":
            return NEXT_SHARE
        share = run.history.chosen[last.index].share
        if last.loss is None:  # its training diverged
            return math.sqrt(share)
        return float(share * max(1.0, last.loss.loss / room(run, last.loss)) ** (1 / STEEP))

    def _aim(self) -> float:
        """Return what a scout may lose, so that long training is thought to leave what may be lost."""
        run, allowed = self.run, self.run.start.allowed
        trained = [step for step in run.history.steps if step.loss is not None]
        if not trained:
            return AIM * allowed / RECOVERY
        last = trained[-1]
        assert last.loss is not None
        low, high = RECOVERIES
        recovery = min(high, max(low, last.loss.loss / max(run.history.chosen[last.index].scout_loss, 1e-4)))
        return room(run, last.loss) / recovery
