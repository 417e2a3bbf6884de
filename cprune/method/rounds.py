"""What every method that trains few models long does in a round: a cut is tuned, timed, trained and looked at.

A method says which cut comes next (`Rounds._chosen`).  One that is faster than the current model and keeps the floor
after its training takes its place; all of these are what the end chooses from (`cprune.method.ending`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from cprune.method.beginning import begin
from cprune.method.estimating import compared, say_errors
from cprune.method.judgement import Judgement, faster, not_faster
from cprune.method.seconds import Budget
from cprune.method.state import RunState, Version
from cprune.network.network import Network
from cprune.runs.events import Chosen, Measured, Start, Step, Trained
from cprune.targets.interval import Comparison
from cprune.targets.paired import Paired
from cprune.training.checkpoint import Checkpoint
from cprune.training.fine_tune import FineTuneDiverged


class Rounds(ABC):
    """The steps of one run: `begin()` first, then `steps()`, to its end or not."""

    def __init__(self, run: RunState) -> None:
        self.run = run
        self.held = ""  # the name under which the workbench holds the current model
        self.checkpoint: Checkpoint | None = None  # of the newest long training

    def begin(self) -> Start:
        """See `cprune.method.beginning.begin`."""
        self.before = self.current = begin(self.run)
        self.held = self.run.whole  # not before: in which precision that is may have been found only now
        return self.run.start

    def steps(self) -> Iterator[Step]:
        """Yield a step for every round, until nothing is chosen any more."""
        self.budget = Budget.of(self.run)
        self._go_on()
        while (step := self._round(len(self.run.history.steps))) is not None:
            yield step

    @abstractmethod
    def _chosen(self, index: int) -> Chosen | None:
        """Return what round `index` trains, noted and its network kept as a scout of that round; None: the end."""

    def _is_nearly_enough(self, index: int, loss: Paired | None) -> bool:
        """Tell whether a model that lost so much in a round is kept as the scout of the next one, to be trained on."""
        return False

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

    def _round(self, index: int) -> Step | None:
        """Cut, time, train, look; an accepted model becomes `current`.  None if there is nothing to cut."""
        run, before = self.run, self.run.cost.now()
        chosen = run.history.chosen.get(index) or self._chosen(index)
        if chosen is None:
            return None
        new = self._tuned(run.keeper.load_scout(index, chosen.number), "tuning changed tasks")
        comparison = self._compared(index, new, chosen.share)
        if comparison.faster(run.settings.beta):
            judgement = self._trained(index, new.network, chosen.epochs, comparison)
        else:
            judgement = Judgement("rejected", not_faster(comparison), comparison)
        step = Step(
            index,
            f"the whole network, {len(chosen.gone)} branches less" if chosen.gone else "the whole network",
            0,
            chosen.groups,
            comparison.new_ms,
            comparison.old_ms,
            comparison.ratio,
            judgement.accuracy,
            judgement.verdict,
            judgement.reason,
            new.tuned.trials,
            run.cost.since(before),
            f"round {index}",
            judgement.loss,
            chosen.forecast,
            compared(chosen.estimated_us, new.tuned),
        )
        run.happened(step)
        if self.checkpoint is not None:  # whatever came of it, it is in the journal
            self.checkpoint.discard()
        say_errors(run, step)
        if judgement.verdict == "accepted":
            if self.held != self.run.whole:
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
        known = run.history.trained.get(index)
        if known is not None:  # an earlier life ended just here
            network.load_state_dict(run.keeper.load(index, long_trained=True).state_dict())
            return Judgement("accepted", faster(comparison), comparison, known.accuracy, known.loss)
        self.checkpoint = checkpoint = run.keeper.checkpoint(f"round{index}", run.progress.say)
        try:
            run.fine_tune(network, self.budget.schedule(epochs), run.settings.seed * 1000 + index, checkpoint)
        except FineTuneDiverged as error:
            return Judgement("excluded", f"training diverged: {error}", comparison)
        look = run.look(network, "decide")
        loss = run.loss(look, "decide")
        if self._is_nearly_enough(index, loss):
            run.keeper.save_scout(index + 1, 0, network)
            reason = f"{100 * loss.loss:.2f} points lost are too many to be sure of: it is trained on"
            return Judgement("excluded", reason, comparison, look.accuracy, loss)
        if look.accuracy < run.start.floor:
            reason = f"accuracy {look.accuracy:.2%} is below {run.start.floor:.2%}"
            return Judgement("excluded", reason, comparison, look.accuracy, loss)
        for long_trained in (False, True):
            run.keeper.save(index, network, long_trained)
        run.happened(Trained(index, look.accuracy, look.accuracy, "", loss))
        return Judgement("accepted", faster(comparison), comparison, look.accuracy, loss)
