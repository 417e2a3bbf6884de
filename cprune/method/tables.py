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
from collections.abc import Callable, Iterator
from dataclasses import replace

from cprune.method.aiming import Aim
from cprune.method.certify import room
from cprune.method.expected import Law, looked_at
from cprune.method.limits import least_share, meets
from cprune.method.planning import planned
from cprune.method.rounds import Rounds
from cprune.method.scouting import STEEP, Scouting
from cprune.method.seconds import Budget
from cprune.network.network import Network
from cprune.runs.events import Chosen, GroupChange, Step
from cprune.targets.paired import Paired

ROUNDS = 2
FIRST_SHARE, NEXT_SHARE = 0.5, 0.85  # of the latency of the current model, for the first scout of a round
TIMED_TRIALS, TIMED_ROUNDS = 3, 5
SCOUTS = (4, 3)  # at most, of each round
AIM = 0.5  # of the accuracy that may be lost, for the first round: a model to fall back on; the second uses the rest
NEARLY = 1.6  # times what may be lost: a model that lost no more than this is trained on
WORTH = 0.85  # of the room: a first model that lost more is trained on, as no faster one is worth a round
RECOVERY = 0.45
"""Of what a scout lost is still lost after long training, before anything is known of a network: 0.46 on the built-in
one, 0.11 to 0.45 on three runs of a ResNet-20."""
LEFT = 0.53
"""Of a scout's divergence is left after long training: 0.50 to 0.53 in the first round of four runs of the built-in
network, 0.64 of a ResNet-56.  Losses scatter far more."""
AGAIN = 1.25
"""Times as much is left in the second round: 1.04 to 1.34 in four runs, 1.19 of the ResNet-56.  What was easy to bring
back was so in the first round."""


class Tables(Rounds):
    """The steps of one run: `begin()` first, then `steps()`, to its end or not."""

    def steps(self) -> Iterator[Step]:
        """Yield a step for every round, until one brings no faster model, or nothing is left that could go."""
        run = self.run
        self.budget = Budget.of(run)
        self._go_on()
        while not self._is_over():
            step = self._round(len(run.history.steps))
            if step is None:
                return
            yield step

    def _is_over(self) -> bool:
        """Tell whether no round is left, the last one brought no faster model, or what was asked for is reached."""
        run, steps = self.run, self.run.history.steps
        if steps and steps[-1].verdict == "rejected":
            return True
        return len(steps) >= ROUNDS or meets(run, run.history.last)

    def _is_to_go_on(self) -> bool:
        """Tell whether the model of the first round lost a little too much, so that it is trained on."""
        last = next(reversed(self.run.history.steps), None)
        return last is not None and last.verdict == "excluded" and self._is_nearly_enough(last.index, last.loss)

    def _is_nearly_enough(self, index: int, loss: Paired | None) -> bool:
        """Tell whether what a model lost after a round is more than it should, and little enough to train it on."""
        if loss is None or index >= ROUNDS - 1:
            return False
        lost = Law.of(looked_at(self.run.history, index, with_scouts=True)).loss(loss)
        return WORTH * room(self.run, loss) < lost <= NEARLY * self.run.start.allowed

    def _chosen(self, index: int) -> Chosen | None:
        """Plan, scout, and return the scout that long training is thought to bring back far enough.

        None where the front is the whole model alone: all layers are ignored, or as narrow as they may be.
        """
        run = self.run
        if self._is_to_go_on():
            return self._same_again(index)
        latency_ms = run.history.steps[run.history.last].latency_ms if run.history.last is not None else None
        usual_ms = latency_ms.median if latency_ms else run.start.whole_ms
        looking_s, seed = self.budget.of_looking, run.settings.seed + index
        plan = planned(run, self.current, usual_ms, looking_s, seed, index, self.share_of)
        if len(plan.front) == 1:
            run.progress.say("nothing is left whose removal would make the model faster")
            return None
        limit = Aim(least_share(run, [(plan.share(one), one) for one in plan.front]))
        scouting = Scouting(run, index, plan, self.budget, self.share_of, limit)
        scout = scouting.found(max(limit.share, self._first_share()), SCOUTS[index], self._aim())
        last = index + 1 if limit.reached(scout.share) else ROUNDS  # nothing faster is asked for
        seconds = self.budget.of_round(index, last, len(run.history.scouted), run.cost.now()["train"])
        chosen = Chosen(
            index,
            scout.number,
            scout.share,
            self.budget.epochs(run, run.keeper.load_scout(index, scout.number), seconds),
            scout.lost,
            tuple(GroupChange(g, plan.graph.group(g).channels, w) for g, w in scout.allocation.widths),
            scout.allocation.gone,
            round(plan.share(scout.allocation), 6),
            plan.estimated_us(scout.allocation),
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
        seconds = self.budget.of_round(index, ROUNDS, len(run.history.scouted), run.cost.now()["train"])
        epochs = self.budget.epochs(run, run.keeper.load_scout(index, 0), seconds)
        chosen = replace(last, round=index, number=0, epochs=epochs, scout_loss=lost.loss, so_far=None)
        run.happened(chosen)
        run.progress.say(f"the same model is trained on: {epochs:.1f} epochs, about {seconds / 60:.1f} min")
        return chosen

    def share_of(self, network: Network) -> float:
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
        return float(share * max(1.0, self._law().loss(last.loss) / room(run, last.loss)) ** (1 / STEEP))

    def _law(self) -> Law:
        """Return what the models of all rounds before this one say of losses."""
        return Law.of(looked_at(self.run.history, len(self.run.history.steps)))

    def _aim(self) -> Callable[[Law], float]:
        """Return what a scout may lose by a law, so that long training is thought to leave what may be lost.

        What training left of a scout's divergence in the last round says how much comes back.
        """
        run, allowed = self.run, self.run.start.allowed
        trained = [step for step in run.history.steps if step.loss is not None]
        if not trained:
            return lambda law: AIM * allowed / RECOVERY
        last = trained[-1]
        assert last.loss is not None
        scouted = run.history.scouted.get((last.index, run.history.chosen[last.index].number))
        before = None if scouted is None else scouted.loss.divergence
        left = LEFT if not before or last.loss.divergence is None else last.loss.divergence / before
        left = min(1.0, left * (AGAIN if last.verdict == "accepted" else 1.0))
        may = room(run, last.loss)
        return lambda law: law.before(may, left)
