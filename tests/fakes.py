"""A run without a compiler, a clock or a device: latency and accuracy are functions of what was pruned and trained.

The model is `Tiny`: how long it takes and how right it is follow from its widths and from how many epochs it was
trained for, which is written into a number of its head.  So everything is exact, and a network that was saved and
loaded again is what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cprune.compiling.lowered import Layout, Lowered, Task
from cprune.compiling.lowering import lower
from cprune.compiling.tuned import Tuned
from cprune.method.settings import Settings
from cprune.method.state import RunState
from cprune.network.capture import capture
from cprune.network.halving import half_of
from cprune.network.network import Network
from cprune.progress import Progress
from cprune.runs.events import Event
from cprune.targets.interval import Comparison, Interval
from cprune.targets.target import find
from cprune.training.accuracy import Look
from cprune.training.data import Split
from cprune.training.fine_tune import FineTuneDiverged
from cprune.training.trainer import Checkpoint, Pace, PartName, Schedule
from cprune.tuner.estimate import Entry
from cprune.tuner.programs.space import Candidate, candidates
from cprune.tuner.programs.workload import Conv2d, Workload, key
from cprune.tuner.tune import Best, Job

EXAMPLE = (torch.zeros(1, 1, 12, 12),)
VECTOR = 16


class Tiny(nn.Module):
    """A residual block: the groups are `stem` (with `b`, 64 channels) and `a` (128 channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, padding=1)
        self.a = nn.Conv2d(64, 128, 3, padding=1)
        self.b = nn.Conv2d(128, 64, 3, padding=1)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Seen:
    """What a fake looks at: channels of the residual stream and inside the block, epochs of training, fewer bits."""

    stem: int
    a: int
    epochs: float
    integers: bool = False
    halves: int = 0
    """How many values are rounded to bfloat16."""

    @property
    def whole(self) -> bool:
        """Tell whether nothing was pruned."""
        return (self.stem, self.a) == (64, 128)


def seen(network: nn.Module) -> Seen:
    """Return what the fakes know of a network, also of one in training that rounds."""
    network = getattr(network, "network", network)
    tensors = dict(network.named_parameters())
    return Seen(
        len(tensors["stem.weight"]),
        len(tensors["a.weight"]) if "a.weight" in tensors else 0,  # the branch is gone
        round(float(tensors["head.bias"].detach()[0]), 2),
        any("fake_quantize" in node.op for node in getattr(network, "nodes", ())),
        sum(bool(half_of(node)) for node in getattr(network, "nodes", ())),
    )


def tiny() -> Network:
    """Return the captured model, with no epoch of training."""
    return deepcopy(_tiny())


@cache
def _tiny() -> Network:
    torch.manual_seed(0)
    model = Tiny().eval()
    with torch.no_grad():
        model.head.bias.zero_()
    return capture(model, EXAMPLE)


def width_ms(model: Seen) -> float:
    """Return a latency that falls with every channel: 1 ms for each of the 64 and 128."""
    return float(model.stem + model.a)


class FakeTasks:
    """What tunes single tasks for a `FakeBench`: the latency of a task is its multiplications, 1 ns each and 1 us."""

    def __init__(self) -> None:
        self.target = find("local", 1)
        self.tuned: dict[str, Best] = {}

    def known(self, workload: Workload, trials: int) -> Best | None:
        return self.tuned.get(key(workload))

    def entries(self) -> list[Entry]:
        return []

    def tune_all(
        self,
        jobs: Sequence[Job],
        trials: int,
        time_limit_s: float = float("inf"),
        on_trial: Callable[[], object] = lambda: None,
    ) -> dict[str, Best]:
        for job in jobs:
            task = key(job.workload)
            self.tuned[task] = Best(task, _program(job.workload), task_s(job.workload), trials)
            for _ in range(trials):
                on_trial()
        return {key(job.workload): self.tuned[key(job.workload)] for job in jobs}

    def in_turns(self, entries: Sequence[tuple[Workload, Candidate]], rounds: int) -> list[tuple[float, ...]]:
        return [(task_s(workload),) * rounds for workload, _ in entries]


def task_s(workload: Workload) -> float:
    """Return what a task takes."""
    return 1e-6 + 1e-9 * workload.macs


class FakeBench:
    """A workbench whose models take `latency_ms` and whose tasks are forecast to take `forecast_ms` together.

    With `by_task` a task takes what its multiplications say (`task_s`).

    `broken_at` is the number of a call that raises `error` (calls count from 1).  A task that is new costs `trials`
    trials.
    """

    vector, threads = VECTOR, 1

    def __init__(
        self,
        latency_ms: Callable[[Seen], float] = width_ms,
        forecast_ms: Callable[[Seen], float] | None = None,
        spread: float = 0.0,
        broken_at: int = 0,
        error: BaseException | None = None,
        by_task: bool = False,
    ) -> None:
        self.by_task = by_task
        self.latency_ms, self.forecast_ms, self.spread = latency_ms, forecast_ms or latency_ms, spread
        self.broken_at, self.error = broken_at, error
        self.calls = 0
        self.tuner = FakeTasks()
        self.models: dict[str, Seen] = {}
        self.known: set[str] = set()
        self.compared: list[tuple[str, str]] = []

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.broken_at and self.error is not None:
            raise self.error

    def choose_layout(
        self,
        network: Network,
        trials: int,
        progress: Progress,
        layout: Layout | None = None,
        siblings: Mapping[str, Candidate] | None = None,
    ) -> Layout:
        self._call()
        return layout or Layout(VECTOR)

    def tune(
        self,
        network: Network,
        layout: Layout,
        trials: int,
        progress: Progress,
        siblings: Mapping[str, Candidate] | None = None,
        text: str = "",
    ) -> Tuned:
        self._call()
        lowered, tasks = _lowered(network, layout)
        each_s = 1e-3 * self.forecast_ms(seen(network)) / sum(task.uses for task in tasks)
        best = {}
        for task in tasks:
            measured = 0 if key(task.workload) in self.known else trials
            self.known.add(key(task.workload))
            for _ in range(measured):
                progress.advance()
            latency_s = task_s(task.workload) if self.by_task else each_s
            best[task.key] = Best(task.key, _program(task.workload), latency_s, measured)
        return Tuned(network, EXAMPLE, lowered, best)

    def load(self, key: str, tuned: Tuned) -> None:
        self._call()
        self.models[key] = seen(tuned.network)

    def compare(self, old: str, new: str, rounds: int, run_ms: float, beta: float | None = None) -> Comparison:
        self._call()
        self.compared.append((old, new))
        old_ms, new_ms = self.latency_ms(self.models[old]), self.latency_ms(self.models[new])
        return Comparison(*(self._interval(value) for value in (old_ms, new_ms, new_ms / old_ms)))

    def _interval(self, value: float) -> Interval:
        return Interval(value, value * (1 - self.spread), value * (1 + self.spread))

    def drop(self, key: str) -> None:
        del self.models[key]  # what is dropped was held


_LOWERED: dict[tuple[int, int, int, Layout], tuple[Lowered, tuple[Task, ...]]] = {}


def _lowered(network: Network, layout: Layout) -> tuple[Lowered, tuple[Task, ...]]:
    """Return the calls and tasks of a network, looked for once: the weights in them do not matter here."""
    model = seen(network)
    place = model.stem, model.a, model.halves, layout
    if place not in _LOWERED:
        lowered = lower(network, EXAMPLE, layout)
        _LOWERED[place] = lowered, lowered.tasks()
    return _LOWERED[place]


def _program(workload: Any) -> Candidate:
    """Return a program of one block of output channels a loop: its channel step is the vector, 16."""
    points = candidates(workload, VECTOR, 32, 1)
    if isinstance(workload, Conv2d):
        points = tuple(p for p in points if dict(p.knobs).get("oc_tile") == 1)
    return points[0]


@dataclass
class FakeTrainer:
    """A trainer whose accuracies are functions: `deciding`, `certifying` and `reporting` on the parts of those names.

    Where a function is missing, the one before it answers.  Training writes its epochs into the network.  `diverges`
    says of which models the training does.  With `images` a look is at so many, and its accuracy is a share of them;
    `divergence` says how far the answers are from the first model's, None that nobody knows.
    `shown` training images can be seen, noise; with none a method must do without.
    """

    deciding: Callable[[Seen], float] = lambda _: 0.9
    certifying: Callable[[Seen], float] | None = None
    reporting: Callable[[Seen], float] | None = None
    diverges: Callable[[Seen], bool] = lambda _: False
    images: int = 0
    shown: int = 0
    divergence: Callable[[Seen], float | None] = lambda _: None
    recalibrated: list[Seen] = field(default_factory=list)
    looked: list[tuple[PartName, Seen]] = field(default_factory=list)

    def look(self, model: nn.Module, part: PartName) -> Look:
        self.looked.append((part, seen(model)))
        certifying = self.certifying or self.deciding
        says = {"decide": self.deciding, "certify": certifying, "report": self.reporting or certifying}[part]
        accuracy = says(seen(model))
        if not self.images:
            return Look(accuracy)
        divergence = self.divergence(seen(model)) if part == "decide" else None
        return Look.of(np.arange(self.images) < round(accuracy * self.images), divergence)

    def looks(self, part: PartName) -> list[Seen]:
        """Return the models that were looked at with that part."""
        return [model for of, model in self.looked if of == part]

    def samples(self, images: int, seed: int) -> Split | None:
        count = min(images, self.shown)
        noise = torch.Generator().manual_seed(seed)
        return Split(torch.randn(count, 1, 12, 12, generator=noise), torch.zeros(count).long()) if count else None

    def recalibrate(self, model: nn.Module, seed: int) -> None:
        self.recalibrated.append(seen(model))

    def fine_tune(
        self,
        model: nn.Module,
        schedule: Schedule,
        seed: int,
        progress: Progress,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        progress.start("fine-tuning", 1)
        progress.advance()
        progress.done()
        with torch.no_grad():
            dict(getattr(model, "network", model).named_parameters())["head.bias"][0] += schedule.epochs
        if self.diverges(seen(model)):
            raise FineTuneDiverged("the loss is nan")

    def pace(self, model: nn.Module, schedule: Schedule) -> Pace:
        return Pace(seconds_per_epoch=1.0)

    def gradients(self, model: nn.Module, seed: int) -> Mapping[str, Tensor]:
        return {name: torch.ones_like(tensor) for name, tensor in model.named_parameters()}


class Killed(BaseException):
    """What a kill is to a test."""


class MemoryKeeper:
    """Keeps a run in memory.  After `lives` more events it is killed: the event is kept, nothing comes after it."""

    def __init__(self, events: Sequence[Event] = (), lives: int | None = None) -> None:
        self.kept, self.lives = list(events), lives
        self.networks: dict[tuple[int, bool], Network] = {}
        self.scouts: dict[tuple[int, int], Network] = {}
        self.tables: dict[int, Mapping[str, Any]] = {}

    def events(self) -> Sequence[Event]:
        return list(self.kept)

    def append(self, event: Event) -> None:
        self.kept.append(event)
        if self.lives is not None and len(self.kept) >= self.lives:
            raise Killed

    def save(self, index: int, network: Network, long_trained: bool = False) -> None:
        self.networks[index, long_trained] = deepcopy(network)

    def load(self, index: int, long_trained: bool = False) -> Network:
        return deepcopy(self.networks[index, long_trained])

    def save_scout(self, round_: int, number: int, network: Network) -> None:
        self.scouts[round_, number] = deepcopy(network)

    def load_scout(self, round_: int, number: int) -> Network:
        return deepcopy(self.scouts[round_, number])

    def save_tables(self, round_: int, values: Mapping[str, Any]) -> None:
        self.tables[round_] = values

    def load_tables(self, round_: int) -> Mapping[str, Any] | None:
        return self.tables.get(round_)

    def checkpoint(self, name: str, say: Callable[[str], None]) -> None:
        pass

    def without_cost(self) -> list[Event]:
        """Return what was kept but for what it cost, which differs from life to life."""
        return [_without_cost(event) for event in self.kept if event.kind != "cost"]


def _without_cost(event: Event) -> Event:
    """Return `event` without seconds and trials."""
    event = replace(event, so_far=None)
    if event.kind in ("start", "step"):
        event = replace(event, seconds={}, trials=0)  # type: ignore[call-arg]
    return event


DEFAULT = Settings(precision="fp32", short_epochs=1.0, retry_epochs=3.0, long_epochs=12.0, max_steps=40)


def a_run(
    bench: FakeBench | None = None,
    trainer: FakeTrainer | None = None,
    keeper: MemoryKeeper | None = None,
    settings: Settings = DEFAULT,
    progress: Progress | None = None,
) -> RunState:
    """Return a run of `Tiny` on fakes."""
    return RunState(
        tiny(),
        EXAMPLE,
        trainer or FakeTrainer(),
        bench or FakeBench(),
        settings,
        keeper or MemoryKeeper(),
        progress or Progress(),
    )
