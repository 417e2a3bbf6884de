"""One run while it goes on: who trains, who measures, what happened so far and what it has cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

from torch import Tensor

from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.compiling.lowered import Layout
from cprune.compiling.tuned import NO_PROGRAMS, Tuned, layout_in, precision_of
from cprune.compiling.workbench import Workbench
from cprune.method.cost import Cost
from cprune.method.fewer_bits import FewerBits
from cprune.method.history import History
from cprune.method.kept import Keeper
from cprune.method.settings import Settings
from cprune.network.network import Network
from cprune.network.rounding import Rounding
from cprune.progress import Progress, Watched
from cprune.runs.events import CostSoFar, Event, Start, Trained
from cprune.targets.errors import UserError
from cprune.targets.interval import Comparison
from cprune.targets.paired import Paired
from cprune.training.accuracy import Look, paired
from cprune.training.fine_tune import FineTuneDiverged
from cprune.training.trainer import Checkpoint, PartName, Schedule, Trainer
from cprune.tuner.programs.space import Candidate

LEAST_EPOCHS = 0.1  # of long training, however few seconds are left
ROUNDING_FROM = 0.2
"""Of what may be lost.  Where integers cost next to nothing (the built-in network), a training whose last part rounds
left a pruned model 0.0272 nats from the unpruned one, one of as many seconds that does not 0.0259, both in int8."""
SAME_DATA = 0.002  # accuracies on the same images differ by no more: an image or two at a tie
ROUNDED = "whole"  # under this name the workbench holds the unpruned model in fewer bits
BEAT_S = 30.0  # what a run has cost is written at least so often while it tunes and trains


@dataclass(frozen=True)
class Version:
    """The model at one time of the run: tuned, with the channel groups of its network.

    `network` is what is cut and trained; in a run in fewer bits it is compiled as another, `tuned.network`.
    """

    tuned: Tuned
    graph: Graph
    network: Network


class RunState:
    """What all parts of a method share.  Whatever takes time goes through here, so that it is counted.

    `first` is the unpruned network.  The history is that of earlier lives of the run, too.
    """

    def __init__(
        self,
        network: Network,
        example: tuple[Tensor, ...],
        trainer: Trainer,
        bench: Workbench,
        settings: Settings,
        keeper: Keeper,
        progress: Progress,
    ) -> None:
        self.first, self.example = network, example
        self.trainer, self.bench, self.settings, self.keeper = trainer, bench, settings, keeper
        self.progress: Progress = Watched(progress, self._advanced)
        events = keeper.events()
        self.history, self.cost = History.of(events), Cost.of(events)
        floats = self.history.start.floats if self.history.start else ()
        self.bits = FewerBits(example, trainer, settings.seed, floats)
        self._parents: dict[PartName, Look] = {}
        self.kept_at = time.monotonic()

    @property
    def start(self) -> Start:
        """Return what was known before the first step."""
        assert self.history.start is not None
        return self.history.start

    @property
    def first_layout(self) -> Layout:
        """Return the layout of the unpruned model in fp32."""
        return Layout(self.start.block, self.start.narrow)

    @property
    def layout(self) -> Layout:
        """Return the layout of the models that are cut: that of the unpruned one, or of fewer bits."""
        return self.first_layout if self.precision == "fp32" else self.layout_in(self.precision)

    def layout_in(self, precision: str) -> Layout:
        """Return the layout of models in fewer bits.  Raises UserError where the target does not multiply these."""
        return layout_in(precision, self.bench.tuner.target)

    @property
    def precision(self) -> str:
        """Return fp32, bf16, fp16 or int8: as the settings say, or as it was found in the beginning."""
        asked, start = self.settings.precision, self.history.start
        if asked != "auto":
            return asked
        return "fp32" if start is None else start.precision

    @property
    def whole(self) -> str:
        """Return under which name the workbench holds the unpruned model in the precision of the run."""
        return "before" if self.precision == "fp32" else ROUNDED

    def happened(self, event: Event) -> None:
        """Take note of `event`, and write it with what the run has cost so far."""
        self.history.apply(event)
        self.keeper.append(replace(event, so_far=self.cost.so_far()))
        self.kept_at = time.monotonic()

    def _advanced(self) -> None:
        """Count a trial (outside of tuning this counts nothing), and now and then write what the run has cost."""
        self.cost.trial()
        if time.monotonic() - self.kept_at > BEAT_S:
            self.happened(CostSoFar())

    def choose_layout(
        self, network: Network, layout: Layout | None = None, siblings: Mapping[str, Candidate] = NO_PROGRAMS
    ) -> Layout:
        """Return the layout by measured cost; `layout` is a first one, None to look for its block too."""
        with self.cost.spent("tune"):
            return self.bench.choose_layout(network, self.settings.trials, self.progress, layout, siblings)

    def tune(
        self,
        network: Network,
        layout: Layout,
        trials: int,
        siblings: Mapping[str, Candidate] = NO_PROGRAMS,
        text: str = "",
        phase: str = "",
    ) -> Version:
        """Tune the tasks of `network`; `siblings` gives each layer the program of its wider form.

        In a layout of fewer bits those of the network in that are tuned.  The trials count for `phase` of the run, if
        there is one.
        """
        compiled = network
        if layout.dot:
            with self.cost.spent("evaluate"):
                compiled = self.bits.rounded(network, precision_of(layout))
        with self.cost.spent("tune"), self.cost.counting(phase):
            tuned = self.bench.tune(compiled, layout, trials, self.progress, siblings, text)
        graph = analyse(network, self.example, self.settings.ignore, self.settings.whole_heads)
        return Version(tuned, graph, network)

    def load(self, key: str, version: Version) -> None:
        """Hold a model as `key`, compared with PyTorch on the example input."""
        with self.cost.spent("measure"):
            self.bench.load(key, version.tuned)

    def compare(self, old: str, new: str, rounds: int, beta: float | None = None) -> Comparison:
        """Time two held models in turns."""
        with self.cost.spent("measure"):
            return self.bench.compare(old, new, rounds, self.settings.run_ms, beta)

    def deployed(self, network: Network) -> Network:
        """Return the network as it is delivered: in fewer bits a copy in these; the first stays."""
        if self.precision == "fp32" or network is self.first:
            return network
        return self.bits.rounded(network, self.precision)

    def look(self, network: Network, part: PartName) -> Look:
        """Return what the network, as it is delivered, answers on that part of the data."""
        with self.cost.spent("evaluate"):
            return self.trainer.look(self.deployed(network), part)

    def parent(self, part: PartName) -> Look:
        """Return what the unpruned network answers on that part of the data; it is looked at once in a life."""
        if part not in self._parents:
            self._parents[part] = self.look(self.first, part)
            if part == "decide" and self.history.start is not None:
                _must_be_as_before(self._parents[part], self.history.start)
        return self._parents[part]

    def loss(self, look: Look, part: PartName) -> Paired:
        """Return what is lost against the unpruned network, image by image; `look` is one with that part."""
        return paired(self.parent(part), look)

    def fine_tune(self, network: Network, schedule: Schedule, seed: int, checkpoint: Checkpoint | None = None) -> None:
        """Train in place, from the `checkpoint` of an earlier life on if there is one.  Raises FineTuneDiverged.

        Where integers alone cost accuracy, the last part of a training on varied images rounds as they will.
        """
        costly = self.precision == "int8" and self.start.integers_lose > ROUNDING_FROM * self.start.allowed
        floats, integers = schedule.parts() if costly and schedule.varied else (schedule, None)
        with self.cost.spent("train"):
            self.trainer.fine_tune(network, floats, seed, self.progress, checkpoint)
            if integers is not None:
                rounding = Rounding(network, self.bits.shown())
                beside = checkpoint.beside("rounding") if checkpoint else None
                self.trainer.fine_tune(rounding, integers, seed, self.progress, beside)
                rounding.settle()

    def _long_epochs(self, network: Network) -> float:
        """Return those of the settings; with `train_time_s`, as many as fit into what is left of it."""
        settings = self.settings
        if settings.train_time_s is None:
            return settings.long_epochs
        with self.cost.spent("train"):
            pace = self.trainer.pace(network, Schedule(1.0, settings.long_lr, settings.long_varied))
        if pace is None:  # only the user knows how long training takes
            return settings.long_epochs
        return max(LEAST_EPOCHS, pace.epochs(settings.train_time_s - self.cost.now()["train"]))

    def long_trained(self, index: int) -> tuple[Network, float]:
        """Return the model after step `index`, trained long if that helps, and its accuracy where it is decided."""
        trained = self.history.trained.get(index)
        if trained is not None:
            return self.keeper.load(index, long_trained=True), trained.accuracy
        short = self.keeper.load(index)
        network = deepcopy(short)
        self.progress.say(f"long training of the model after step {index}")
        before = after = self.look(short, "decide")
        note = ""
        try:
            schedule = Schedule(self._long_epochs(short), self.settings.long_lr, self.settings.long_varied)
            self.fine_tune(network, schedule, self.settings.seed * 1000 + 900 + index)
            after = self.look(network, "decide")
        except FineTuneDiverged as error:
            note = f"long training diverged ({error}); the model of step {index} is used as it was"
            network = short
        if after.accuracy < before.accuracy:
            note = f"long training did not help ({after.accuracy:.2%} after {before.accuracy:.2%} where it is decided)"
            network, after = short, before
        if note:
            self.progress.say(note)
        self.keeper.save(index, network, long_trained=True)
        self.happened(Trained(index, before.accuracy, after.accuracy, note, self.loss(after, "decide")))
        return network, after.accuracy


def _must_be_as_before(look: Look, start: Start) -> None:
    """Raise UserError if the unpruned model does not answer as it did when the run began."""
    if abs(look.accuracy - start.decide) > SAME_DATA:
        raise UserError(
            f"the unpruned model is right on {look.accuracy:.2%} of the images that decide, and was on "
            f"{start.decide:.2%} when this run began: the data, the weights or cprune's version are others",
            "Give the run what it began with, or start a new one.",
        )
