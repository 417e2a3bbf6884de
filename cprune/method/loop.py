"""Algorithm 1 of CPrune: tune, prune the task with the largest impact, measure, train, accept or not, repeat.

===========================  ===================================  ==============================================
                             released code                        here
===========================  ===================================  ==============================================
task -> layers               by position and equal cost           exact: a call names its layers
tuning of a candidate        all tasks from scratch               only tasks that changed, from the wider program
latency gate                 one number, 1 %                      interleaved rounds, more of them in noise: median
                                                                  below beta, and the whole interval below 1
accuracy decisions           on the test set                      on images of their own, paired with the unpruned
                                                                  model; the report's are read before and after
a step that fails on time    next visit prunes one step more      the same
a step that fails on         task excluded for good               the same; of several groups, the halves and
accuracy                                                          quarters are still tried, and each alone
short-term training          plain                                BatchNorm recalibrated, distillation
accuracy is nearly used up   long training, the end               long training; if that leaves room, every task
                                                                  may be tried again from there
end                          long training, 10x tuning            long training, equal trials for both models;
                                                                  the accepted models are certified on other
                                                                  images, from the safest to the first that fails
===========================  ===================================  ==============================================

The loop is a generator of steps.  Everything that took time is in the journal or the record store when a step ends,
so a killed run goes on where it was: its events make the same state (`cprune.method.history`), measurements are read.
What decides is in `cprune.method.judgement`, the end in `cprune.method.ending`, what is promised in
`cprune.method.promise` and how it is kept in `cprune.method.certify`.
"""

from __future__ import annotations

from collections.abc import Iterator

from cprune.channels.importance import importance
from cprune.channels.surgery import prune
from cprune.method.beginning import begin
from cprune.method.channel_step import step_of
from cprune.method.estimating import Estimating, say_errors
from cprune.method.judgement import Judgement, judge
from cprune.method.limits import meets
from cprune.method.plan import Impact, Memory, Proposal, Scores, change, channels, proposals, widths
from cprune.method.state import RunState, Version
from cprune.network.network import Network
from cprune.runs.events import Renewed, Start, Step
from cprune.tuner.programs.describing import describe

STEPS_PART = 0.5  # of the seconds of training, where some are asked for (`train_time_s`), go into steps at most


class Loop:
    """The steps of one run: `begin()` first, then `steps()`, to its end or not."""

    def __init__(self, run: RunState) -> None:
        self.run = run
        self.held = ""  # the name under which the workbench holds the current model
        self._estimating = Estimating(run)

    def begin(self) -> Start:
        """See `cprune.method.beginning.begin`."""
        self.before = self.current = begin(self.run)
        self.held = self.run.whole
        self.first_widths = widths(self.before.graph)
        return self.run.start

    # -- the loop

    def steps(self) -> Iterator[Step]:
        """Yield every visit to a task until no task is left or the limits of the settings are reached."""
        run, history = self.run, self.run.history
        self._go_on()
        while len(history.steps) < run.settings.max_steps and not (self._is_late() or meets(run, history.last)):
            if history.should_renew:
                self._renew()
            scores = self._scores()
            proposal = self._propose(scores)
            if proposal is None:
                run.progress.say("no task is left")
                if not self._renew():
                    return
                continue
            yield self._visit(proposal, scores)

    def _is_late(self) -> bool:
        """Tell whether half of the seconds that were asked for are used up: the rest is for long training."""
        asked = self.run.settings.train_time_s
        return asked is not None and self.run.cost.now()["train"] >= STEPS_PART * asked

    def _go_on(self) -> None:
        """Go to the last accepted model of an earlier life, if there was one."""
        run, last = self.run, self.run.history.last
        if last is not None:
            self.current = self._again(run.keeper.load(last, long_trained=last in run.history.renewed), self.before)
            run.load(f"step{last}", self.current)
            self.held = f"step{last}"
        if run.history.steps:
            run.progress.say(f"resumed after {len(run.history.steps)} steps")

    def _again(self, network: Network, wider: Version) -> Version:
        """Return a network whose tasks were tuned before."""
        return self.run.tune(network, self.run.layout, self.run.settings.loop_trials, wider.tuned.layer_programs)

    def _renew(self) -> bool:
        """Train the current model long, and go on with it if that helps and leaves room for more."""
        run, last = self.run, self.run.history.last
        if last is None or not run.history.may_renew:
            return False
        network, accuracy = run.long_trained(last)
        if not run.history.would_renew(accuracy):
            return False
        self.current = self._again(network, self.current)
        run.happened(Renewed(last, accuracy))
        run.progress.say(f"{accuracy:.2%} on the images that decide after long training: every task is tried again")
        return True

    def _propose(self, scores: Scores) -> Proposal | None:
        """Return what to try next, None if no task is left."""
        tuned, history, settings = self.current.tuned, self.run.history, self.run.settings
        impacts = []
        for task in tuned.lowered.tasks():
            best = tuned.best[task.key]
            step = step_of(task.workload, best.candidate, self.run.bench.threads, settings.step_join)
            impacts.append(Impact(task, best.latency_s, step))
        memory = Memory(frozenset(history.excluded), history.rejected)
        grain = self.run.bench.vector // 2
        return next(
            proposals(impacts, self.current.graph, scores, self.first_widths, memory, grain, settings.max_sparsity),
            None,
        )

    def _scores(self) -> Scores:
        """Return how much every channel of every group of the current model matters."""
        run, settings = self.run, self.run.settings
        network, graph = self.current.network, self.current.graph
        gradients = None
        if settings.importance == "taylor":
            with run.cost.spent("train"):
                gradients = run.trainer.gradients(network, settings.seed)
        return {
            group.id: importance(
                network, graph, group.id, settings.importance or "l1", seed=settings.seed, gradients=gradients
            )
            for group in graph.groups
        }

    # -- one step

    def _visit(self, proposal: Proposal, scores: Scores) -> Step:
        """Try one proposal and return what came of it; an accepted one becomes `current`."""
        run, old = self.run, self.current
        index, before = len(run.history.steps), run.cost.now()
        smaller = prune(old.network, old.graph, channels(proposal, scores))
        judgement, new = self._judged(index, proposal, smaller)
        comparison = judgement.comparison
        if judgement.verdict == "accepted":
            assert new is not None  # it was timed
            run.keeper.save(index, new.network)
            self.current = new
            if self.held != run.whole:
                run.bench.drop(self.held)
            self.held = f"step{index}"
        elif comparison is not None:
            run.bench.drop(f"step{index}")
        step = Step(
            index,
            describe(proposal.task.workload),
            proposal.step,
            change(proposal, old.graph),
            comparison.new_ms if comparison else None,
            comparison.old_ms if comparison else None,
            comparison.ratio if comparison else None,
            judgement.accuracy,
            judgement.verdict,
            judgement.reason,
            new.tuned.trials if new else 0,
            run.cost.since(before),
            proposal.key,
            judgement.loss,
            judgement.forecast,
            judgement.estimated,
        )
        run.happened(step)
        say_errors(run, step)
        return step

    def _judged(self, index: int, proposal: Proposal, smaller: Network) -> tuple[Judgement, Version | None]:
        """Return the verdict on a candidate, and the tuned one; None where estimates were enough."""
        run, old = self.run, self.current

        def tuned(network: Network) -> Version:
            siblings = old.tuned.layer_programs
            return run.tune(network, run.layout, run.settings.loop_trials, siblings, "tuning changed tasks", "loop")

        if run.settings.estimate:
            return self._estimating.judged(index, proposal, old, smaller, self.held, tuned)
        new = tuned(smaller)
        return judge(run, index, proposal, old, new, self.held), new
