"""Algorithm 1 of CPrune: tune, prune the task with the largest impact, measure, train, accept or not, repeat.

===========================  ===================================  ==============================================
                             released code                        here
===========================  ===================================  ==============================================
task -> layers               by position and equal cost           exact: a call names its layers
tuning of a candidate        all tasks from scratch               only tasks that changed, from the wider program
latency gate                 one number, 1 %                      interleaved rounds, more of them in noise: median
                                                                  below beta, and the whole interval below 1
accuracy decisions           on the test set                      on held-out data; the test set is read before
                                                                  and after
a step that fails on time    next visit prunes one step more      the same
a step that fails on         task excluded for good               the same; of several groups, the halves and
accuracy                                                          quarters are still tried, and each alone
short-term training          plain                                BatchNorm recalibrated, distillation
accuracy is nearly used up   long training, the end               long training; if that leaves room, every task
                                                                  may be tried again from there
end                          long training, 10x tuning            long training, equal trials for both models;
                                                                  steps back if the test set says so
===========================  ===================================  ==============================================

The loop is a generator of steps.  Everything that took time is in the journal or the record store when a step ends,
so a killed run goes on where it was: decisions are replayed, measurements are read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from cprune.channels.groups import Graph, analyse
from cprune.channels.importance import importance
from cprune.channels.surgery import prune
from cprune.compiling.lowering import Layout
from cprune.compiling.tuned import NO_PROGRAMS, Tuned, choose_layout, tune
from cprune.method.channel_step import channel_step
from cprune.method.cost import Cost
from cprune.method.plan import Impact, Memory, Proposal, Scores, change, channels, proposals, widths
from cprune.method.settings import Settings
from cprune.network import network as networks
from cprune.network.facts import Size, size_of
from cprune.network.network import Network
from cprune.progress import Progress, Watched
from cprune.targets.errors import UserError
from cprune.targets.interval import Comparison, Interval
from cprune.targets.measure import compare
from cprune.targets.session import Session
from cprune.training.train import FineTuneDiverged
from cprune.training.trainer import Schedule, Trainer
from cprune.tuner.programs.space import Candidate, channel_splits
from cprune.tuner.programs.workload import describe
from cprune.tuner.tune import Tuner

BEYOND_REACH = 0.98  # a step whose accuracy is below this share of what it needs gets no second training
ROOM = 0.25  # of the loss that is allowed, to be left after long training, makes another round worth while
BEAT_S = 30.0  # what a run has cost is written at least so often while it tunes and trains
HOPELESS = 1.25  # a forecast is the sum of single measurements: only the gate may say that a candidate is slower

Status = Literal["pruned", "stepped-back", "unpruned"]
"""How a run ends: with its newest accepted model, with an earlier one, with none.  `cprune.runs.report.sections` has a
headline for each."""


class Keeper(Protocol):
    """Where a run writes what it must not lose: `cprune.runs.journal` behind `cprune.api`, or nothing."""

    def append(self, event: dict[str, Any]) -> None:
        """Keep one event."""

    def events(self) -> list[dict[str, Any]]:
        """Return the events of earlier lives of this run."""

    def step_dir(self, index: int) -> Path | None:
        """Return the folder for the network after step `index`; None to keep nothing."""

    def final_dir(self, index: int) -> Path | None:
        """Return the folder for the network of step `index` after long training."""


class NoKeeper:
    """Keeps nothing."""

    def append(self, event: dict[str, Any]) -> None:
        """Do nothing."""

    def events(self) -> list[dict[str, Any]]:
        """Return no events."""
        return []

    def step_dir(self, index: int) -> Path | None:
        """Return None."""
        return None

    def final_dir(self, index: int) -> Path | None:
        """Return None."""
        return None


@dataclass(frozen=True)
class Version:
    """The model at one time of the run: tuned, with the channel groups of its network."""

    tuned: Tuned
    graph: Graph


@dataclass(frozen=True)
class Step:
    """One visit to a task and its verdict: accepted, rejected (not faster) or excluded (too inaccurate)."""

    index: int
    task: str
    step: int
    groups: tuple[dict[str, Any], ...]
    latency_ms: Interval | None
    before_ms: Interval | None
    accuracy: float | None
    verdict: str
    reason: str
    trials: int
    seconds: dict[str, float]
    key: str


@dataclass(frozen=True)
class Start:
    """What was known before the first step.  `floor` is the accuracy on held-out data that decisions keep."""

    test: float
    decide: float
    required: float
    floor: float
    layout: Layout
    trials: int
    latency_ms: Interval


@dataclass(frozen=True)
class Outcome:
    """What a run ends with."""

    status: Status
    network: Network
    before: Version
    after: Version
    start: Start
    test_after: float
    comparison: Comparison
    sizes: tuple[Size, Size]
    trials: dict[str, int]
    seconds: dict[str, float]
    counts: dict[str, int]
    notes: tuple[str, ...]


class Loop:
    """One run over a network.  `steps()` first, to its end or not, then `finish()`."""

    def __init__(
        self,
        network: Network,
        example_inputs: tuple[Tensor, ...],
        trainer: Trainer,
        session: Session,
        tuner: Tuner,
        settings: Settings,
        keeper: Keeper,
        progress: Progress,
    ) -> None:
        self.first, self.example = network, example_inputs
        self.trainer, self.session, self.tuner = trainer, session, tuner
        self.settings, self.keeper, self.progress = settings, keeper, Watched(progress, self._advanced)
        self.target = tuner.target
        self.inputs = [x.detach().numpy() for x in example_inputs]
        self.events = keeper.events()
        self.cost, self.kept_at = Cost.of(self.events), time.monotonic()
        self.notes: list[str] = []
        self.history: list[Step] = []
        self.remembered: dict[int, Network] = {}  # accepted networks of a run without a folder
        self.trained: dict[int, tuple[Network, float]] = {}  # after long training, by step
        self.renewed: set[int] = set()  # steps whose model went on after long training
        self.hopeful = True  # long training helped, or was not tried yet
        self.held = "before"  # the session's name of the current model

    # -- before the first step

    def begin(self) -> Start:
        """Look at the accuracy, tune the unpruned model, check it against PyTorch.

        Raises UserError if the accuracy asked for is more than the model has.
        """
        if self.settings.strict:
            analyse(self.first, self.example, self.settings.ignore, self.settings.whole_heads).must_be_free()
        kept = next((e for e in self.events if e["event"] == "start"), None)
        with self.cost.spent("evaluate"):
            test = kept["test"] if kept else self.trainer.test(self.first)
        required = self.settings.min_acc
        if required is None:
            required = max(0.0, test - self.settings.max_drop)
        elif required > test:
            raise UserError(
                f"--min-acc {required:.2%} is above what the model reaches: {test:.2%} on the test set",
                f"Type --min-acc {max(0.0, test - 0.01):.4f}, or leave it out to allow a loss of one point.",
            )
        with self.cost.spent("evaluate"):
            decide = kept["decide"] if kept else self.trainer.decide(self.first)
        floor = decide - (test - required)
        self.progress.say(
            f"accuracy {test:.2%} on the test set, {decide:.2%} on held-out data; {required:.2%} is to be kept"
        )
        if kept:
            layout = Layout(int(kept["block"]), tuple(kept.get("narrow", ())))
        else:
            layout = self._layout(self.first)
        version = self._tuned(
            self.first, layout, self.settings.trials, NO_PROGRAMS, "tuning the model as it is", "before"
        )
        self._load("before", version.tuned)
        if kept:
            latency = Interval.from_dict(kept["latency_ms"])
        else:
            with self.cost.spent("measure"):
                latency = compare(
                    self.session, "before", "before", self.inputs, self.settings.rounds, self.settings.run_ms
                ).old_ms
        trials = self.cost.trials["before"]
        start = Start(test, decide, required, floor, layout, trials, latency)
        if not kept:
            self._keep(
                {
                    "event": "start",
                    "test": test,
                    "decide": decide,
                    "required": required,
                    "floor": floor,
                    "block": layout.block,
                    "narrow": list(layout.narrow),
                    "trials": trials,
                    "latency_ms": latency.to_dict(),
                    "seconds": self.cost.so_far()["seconds"],
                }
            )
        self.start, self.before, self.current, self.accuracy = start, version, version, decide
        self.first_widths = widths(version.graph)
        self.progress.say(
            f"tuned: {latency.median:.3f} ms [{latency.low:.3f}, {latency.high:.3f}], "
            f"{len(version.tuned.lowered.tasks())} tasks, blocks of {layout.block} channels, {trials} trials"
        )
        return start

    def _layout(
        self, network: Network, layout: Layout | None = None, siblings: Mapping[str, Candidate] = NO_PROGRAMS
    ) -> Layout:
        """Return the layout by measured cost; `layout` is a first one, None to look for its block too."""
        with self.cost.spent("tune"):
            return choose_layout(
                network,
                self.example,
                self.tuner,
                self.settings.trials,
                self.progress,
                layout=layout,
                siblings=siblings,
            )

    # -- the loop

    def steps(self) -> Iterator[Step]:
        """Yield every visit to a task until no task is left or the limits of the settings are reached."""
        excluded, rejected = self._replayed()
        index = len(self.history)
        while index < self.settings.max_steps:
            if self.hopeful and self._excluded_last() and not self._roomy():
                self.hopeful = self._renew()  # what comes now would be excluded as well
                if self.hopeful:
                    excluded, rejected = set(), {}
            scores = self._scores(self.current)
            memory = Memory(frozenset(excluded), rejected)
            proposal = next(
                proposals(
                    self._impacts(self.current.tuned),
                    self.current.graph,
                    scores,
                    self.first_widths,
                    memory,
                    self.target.vector // 2,
                    self.settings.max_sparsity,
                ),
                None,
            )
            if proposal is None:
                self.progress.say("no task is left")
                if not self._renew():
                    return
                excluded, rejected = set(), {}
                continue
            step = self._visit(index, proposal, scores)
            if step.verdict != "accepted":
                self.session.drop(f"step{index}")
            if step.verdict == "excluded":
                excluded.add(step.key)
            elif step.verdict == "rejected":
                rejected[step.key] = rejected.get(step.key, 0) + 1
            else:
                rejected = {}
            self.history.append(step)
            yield step
            index += 1

    def _replayed(self) -> tuple[set[str], dict[str, int]]:
        """Go to the last accepted model of an earlier life, and return what was excluded and rejected."""
        excluded: set[str] = set()
        rejected: dict[str, int] = {}
        last: int | None = None
        for event in self.events:
            if event["event"] == "renewed":
                self.renewed.add(event["index"])
                self.accuracy = event["accuracy"]
                excluded, rejected = set(), {}
            if event["event"] != "step":
                continue
            self.history.append(_step_of(event))
            if event["verdict"] == "accepted":
                last, rejected, self.accuracy = event["index"], {}, event["accuracy"]
            elif event["verdict"] == "excluded":
                excluded.add(event["key"])
            else:
                rejected[event["key"]] = rejected.get(event["key"], 0) + 1
        if last is not None:
            folder = self.keeper.final_dir(last) if last in self.renewed else self.keeper.step_dir(last)
            assert folder is not None
            self.current = self._again(networks.load(folder), self.before)
            self._load(f"step{last}", self.current.tuned)
            self._hold(f"step{last}")
        if self.history:
            self.progress.say(f"resumed after {len(self.history)} steps")
        return excluded, rejected

    def _again(self, network: Network, wider: Version) -> Version:
        """Return a network whose tasks were tuned before."""
        return self._tuned(network, self.start.layout, self.settings.loop_trials, wider.tuned.layer_programs, "")

    def _excluded_last(self) -> bool:
        return bool(self.history) and self.history[-1].verdict == "excluded"

    def _roomy(self, accuracy: float | None = None) -> bool:
        """Tell whether an accuracy (default: the current model's) leaves enough of the allowed loss to go on."""
        room = (self.accuracy if accuracy is None else accuracy) - self.start.floor
        return room > 0 and room >= ROOM * (self.start.decide - self.start.floor)

    def _renew(self) -> bool:
        """Train the current model long, and go on with it if that helps and leaves room for more."""
        last = max((s.index for s in self.history if s.verdict == "accepted"), default=None)
        if last is None or last in self.renewed:
            return False
        network, accuracy = self._long_trained(last)
        if accuracy <= self.accuracy or not self._roomy(accuracy):
            return False
        self.renewed.add(last)
        self.accuracy = accuracy
        self.current = self._again(network, self.current)
        self._keep({"event": "renewed", "index": last, "accuracy": accuracy})
        self.progress.say(f"{accuracy:.2%} on held-out data after long training: every task is tried again")
        return True

    def _hold(self, key: str) -> None:
        """Make the model `key` of the session the one that candidates are compared with."""
        if self.held != "before":
            self.session.drop(self.held)
        self.held = key

    def _visit(self, index: int, proposal: Proposal, scores: Scores) -> Step:
        """Try one proposal and say what came of it; an accepted one becomes `current`."""
        before = self.cost.now()
        old = self.current
        groups = tuple(change(proposal, old.graph))
        smaller = prune(old.tuned.network, old.graph, channels(proposal, scores))
        new = self._tuned(
            smaller,
            self.start.layout,
            self.settings.loop_trials,
            old.tuned.layer_programs,
            "tuning changed tasks",
            "loop",
        )
        trials = new.tuned.trials
        name = describe(proposal.task.workload)

        def verdict(word: str, reason: str, found: Comparison | None, accuracy: float | None = None) -> Step:
            step = Step(
                index,
                name,
                proposal.step,
                groups,
                found.new_ms if found else None,
                found.old_ms if found else None,
                accuracy,
                word,
                reason,
                trials,
                self.cost.since(before),
                proposal.key,
            )
            self._keep(_event_of(step, found))
            return step

        forecast = new.tuned.forecast_s / old.tuned.forecast_s
        if forecast >= HOPELESS:
            return verdict("rejected", f"the changed tasks are slower (forecast {forecast:.3f} of the time)", None)
        found = self._gate(index, proposal, new.tuned)
        if not found.faster(self.settings.beta):
            told = f"{found.ratio.median:.3f} [{found.ratio.low:.3f}, {found.ratio.high:.3f}] of the time"
            return verdict("rejected", f"not clearly faster: {told}", found)
        network = new.tuned.network
        seed = self.settings.seed * 1000 + index
        floor = max(self.start.floor, self.settings.alpha * self.accuracy)
        with self.cost.spent("train"):
            self.trainer.recalibrate(network, seed)
        try:
            accuracy = self._trained(network, self.settings.short_epochs, seed)
            if BEYOND_REACH * floor <= accuracy < floor and self.settings.retry_epochs:
                # One more, longer attempt before a task is given up for good.
                accuracy = self._trained(network, self.settings.retry_epochs, seed + 500)
        except FineTuneDiverged as error:
            return verdict("excluded", f"training diverged: {error}", found)
        if accuracy < floor:
            return verdict("excluded", f"accuracy {accuracy:.2%} is below {floor:.2%}", found, accuracy)
        folder = self.keeper.step_dir(index)
        if folder is not None:
            networks.save(network, folder)
        else:
            self.remembered[index] = network
        self.current, self.accuracy = new, accuracy
        self._hold(f"step{index}")
        return verdict("accepted", f"{1 / found.ratio.median:.3f}x faster", found, accuracy)

    def _trained(self, network: Network, epochs: float, seed: int) -> float:
        """Train a little, in place, and return the accuracy on held-out data."""
        with self.cost.spent("train"):
            self.trainer.fine_tune(network, Schedule(epochs, self.settings.short_lr, False), seed, self.progress)
        with self.cost.spent("evaluate"):
            return self.trainer.decide(network)

    def _gate(self, index: int, proposal: Proposal, new: Tuned) -> Comparison:
        """Time the candidate against the current model, or read what an earlier life of this run measured."""
        key, name = f"{index} {proposal.key} {proposal.removed}", f"step{index}"
        for event in self.events:
            if event["event"] == "measured" and event["key"] == key:
                self._load(name, new)
                return Comparison(*(Interval.from_dict(event[n]) for n in ("before_ms", "latency_ms", "ratio")))
        self._load(name, new)
        with self.cost.spent("measure"):
            found = compare(
                self.session,
                self.held,
                name,
                self.inputs,
                self.settings.rounds,
                self.settings.run_ms,
                self.settings.beta,
            )
        self._keep(
            {
                "event": "measured",
                "key": key,
                "before_ms": found.old_ms.to_dict(),
                "latency_ms": found.new_ms.to_dict(),
                "ratio": found.ratio.to_dict(),
            }
        )
        return found

    # -- the end

    def finish(self) -> Outcome:
        """Train long, tune both models with equal trials, measure them in turns, look at the test set once more.

        Where the test set says less than was asked for, the newest accepted model that holds it is returned instead
        (status "stepped-back"), and if there is none, the unpruned one (status "unpruned").
        """
        network, test, status = self._last_model()
        self.progress.say(f"accuracy {test:.2%} on the test set ({self.start.required:.2%} asked for)")
        siblings = self.current.tuned.layer_programs
        before = self._tuned(self.first, self.start.layout, self.settings.trials, NO_PROGRAMS, "tuning, unpruned")
        after = before
        if status != "unpruned":
            layout = self._layout(network, self.start.layout, siblings)
            after = self._tuned(network, layout, self.settings.trials, siblings, "tuning, pruned", "final")
        self._load("before", before.tuned)
        if after is not before:
            self._load("after", after.tuned)
        with self.cost.spent("measure"):
            found = compare(
                self.session,
                "before",
                "after" if after is not before else "before",
                self.inputs,
                2 * self.settings.rounds,
                self.settings.run_ms,
            )
        if status != "unpruned" and found.ratio.high >= 1:
            self.notes.append("the pruned model is not clearly faster after final tuning; the model stays as it is")
            network, test, status, after = self.first, self.start.test, "unpruned", before
        counts = {v: sum(s.verdict == v for s in self.history) for v in ("accepted", "rejected", "excluded")}
        outcome = Outcome(
            status,
            network,
            before,
            after,
            self.start,
            test,
            found,
            (size_of(self.first, self.example), size_of(network, self.example)),
            dict(self.cost.trials),
            {name: round(value, 1) for name, value in self.cost.now().items()},
            counts,
            tuple(self.notes),
        )
        self._keep({"event": "final", "status": status, "test": test})
        return outcome

    def _last_model(self) -> tuple[Network, float, Status]:
        """Return the newest accepted model that keeps the promise after long training, its test accuracy, a status.

        A model is looked at with the test set only if it keeps the floor on held-out data.  Where long training did not
        help a model, the ones before it are looked at as they are.
        """
        accepted = [s for s in self.history if s.verdict == "accepted"]
        helped = True
        for back, step in enumerate(reversed(accepted)):
            if helped or step.index in self.renewed:
                network, decided = self._long_trained(step.index)
                helped = decided > (step.accuracy or 0.0)
            else:
                network, decided = self._accepted(step.index), step.accuracy or 0.0
            if decided < self.start.floor:
                told = f"{decided:.2%} on held-out data is below {self.start.floor:.2%}"
            else:
                with self.cost.spent("evaluate"):
                    test = self.trainer.test(network)
                if test >= self.start.required:
                    return network, test, "stepped-back" if back else "pruned"
                told = f"{test:.2%} on the test set is below {self.start.required:.2%}"
            self._note(f"the model after step {step.index}: {told}; stepping back")
        if accepted:
            self._note("no pruned model holds the accuracy asked for; the model stays as it is, tuned")
        else:
            self._note("no step was both faster and accurate enough; the model stays as it is, tuned")
        return self.first, self.start.test, "unpruned"

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.progress.say(text)

    def _long_trained(self, index: int) -> tuple[Network, float]:
        """Return the model after step `index`, trained long if that helps, and its accuracy on held-out data."""
        if index in self.trained:
            return self.trained[index]
        folder = self.keeper.final_dir(index)
        for event in self.events:
            if event["event"] == "trained" and event["index"] == index and folder is not None:
                return networks.load(folder), event["accuracy"]
        short = self._accepted(index)
        network = deepcopy(short)
        self.progress.say(f"long training of the model after step {index}")
        schedule = Schedule(self.settings.long_epochs, self.settings.long_lr, self.settings.long_varied)
        with self.cost.spent("evaluate"):
            before = after = self.trainer.decide(short)
        try:
            with self.cost.spent("train"):
                self.trainer.fine_tune(network, schedule, self.settings.seed * 1000 + 900 + index, self.progress)
            with self.cost.spent("evaluate"):
                after = self.trainer.decide(network)
        except FineTuneDiverged as error:
            self._note(f"long training diverged ({error}); the model of step {index} is used as it was")
            network = short
        if after < before:
            self._note(f"long training did not help ({after:.2%} after {before:.2%} on held-out data)")
            network, after = short, before
        if folder is not None:
            networks.save(network, folder)
        self._keep({"event": "trained", "index": index, "before": before, "accuracy": after})
        self.trained[index] = network, after
        return network, after

    # -- helpers

    def _keep(self, event: dict[str, Any]) -> None:
        """Write an event with what the run has cost so far."""
        self.keeper.append({**event, "so_far": self.cost.so_far()})
        self.kept_at = time.monotonic()

    def _advanced(self) -> None:
        """Count a trial (outside of tuning this counts nothing), and now and then write what the run has cost."""
        self.cost.trial()
        if time.monotonic() - self.kept_at > BEAT_S:
            self._keep({"event": "cost"})

    def _accepted(self, index: int) -> Network:
        """Return the model as it was accepted."""
        folder = self.keeper.step_dir(index)
        return networks.load(folder) if folder is not None else self.remembered[index]

    def _tuned(
        self,
        network: Network,
        layout: Layout,
        trials: int,
        siblings: Mapping[str, Candidate],
        text: str,
        phase: str = "",
    ) -> Version:
        """Tune the tasks of `network`; `siblings` gives each layer the program of its wider form.

        The trials count for `phase`, if there is one.
        """
        with self.cost.spent("tune"), self.cost.counting(phase):
            tuned = tune(
                network, self.example, self.tuner, trials, self.progress, layout=layout, siblings=siblings, text=text
            )
        return Version(tuned, analyse(network, self.example, self.settings.ignore, self.settings.whole_heads))

    def _impacts(self, tuned: Tuned) -> list[Impact]:
        found = []
        for task in tuned.lowered.tasks():
            best = tuned.best[task.key]
            splits = channel_splits(task.workload, best.candidate)
            found.append(Impact(task, best.latency_s, channel_step(splits, self.settings.step_join)))
        return found

    def _scores(self, version: Version) -> Scores:
        gradients = None
        if self.settings.importance == "taylor":
            with self.cost.spent("train"):
                gradients = self.trainer.gradients(version.tuned.network, self.settings.seed)
        return {
            g.id: importance(
                version.tuned.network,
                version.graph,
                g.id,
                self.settings.importance,
                seed=self.settings.seed,
                gradients=gradients,
            )
            for g in version.graph.groups
        }

    def _load(self, key: str, tuned: Tuned) -> None:
        """Build a model in the session and compare it with PyTorch on the example input."""
        with self.cost.spent("measure"):
            tuned.load(self.session, key)


def _event_of(step: Step, found: Comparison | None) -> dict[str, Any]:
    return {
        "event": "step",
        "index": step.index,
        "task": step.task,
        "step": step.step,
        "groups": list(step.groups),
        "latency_ms": step.latency_ms.to_dict() if step.latency_ms else None,
        "before_ms": step.before_ms.to_dict() if step.before_ms else None,
        "ratio": found.ratio.to_dict() if found else None,
        "accuracy": step.accuracy,
        "verdict": step.verdict,
        "reason": step.reason,
        "trials": step.trials,
        "seconds": step.seconds,
        "key": step.key,
    }


def _step_of(event: dict[str, Any]) -> Step:
    def maybe(name: str) -> Interval | None:
        return Interval.from_dict(event[name]) if event[name] else None

    return Step(
        event["index"],
        event["task"],
        event["step"],
        tuple(event["groups"]),
        maybe("latency_ms"),
        maybe("before_ms"),
        event["accuracy"],
        event["verdict"],
        event["reason"],
        event["trials"],
        event["seconds"],
        event["key"],
    )
