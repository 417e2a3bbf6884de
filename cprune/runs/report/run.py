"""What is known of a run: its folder, read once into values with types.

Each file but `run.json` may be missing, since a run that is not finished has a report too.  Files of another version
may hold more than is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from cprune.files import read_json
from cprune.runs.events import PartSizes, Start, Status, Step, cost_so_far
from cprune.runs.folder import RunFolder
from cprune.runs.forecasts import Forecasts
from cprune.runs.front import Front, read_front
from cprune.runs.journal import Journal
from cprune.runs.limits import Limited
from cprune.targets.interval import Interval
from cprune.targets.paired import Bound, Paired
from cprune.targets.plain import read

T = TypeVar("T")


@dataclass(frozen=True)
class Accuracy:
    """Accuracies on the images of the report in [0, 1]: asked for, of the unpruned model, of the final one.

    `loss` is between the last two, image by image, and `bound` on what is lost on new images (None: not known);
    `memorised` says that the images which decide and certify look as if the model had been trained on them.
    """

    required: float | None = None
    before: float | None = None
    after: float | None = None
    images: PartSizes = field(default_factory=PartSizes)
    loss: Paired | None = None
    bound: Bound | None = None
    memorised: bool = False


@dataclass(frozen=True)
class Latency:
    """Latencies in ms of the unpruned and of the final model, measured in turns."""

    before: Interval | None = None
    after: Interval | None = None


@dataclass(frozen=True)
class Precision:
    """What the unpruned and the final model compute in, fp32 or int8; `alone` is what that brings without pruning."""

    before: str = "fp32"
    after: str = "fp32"
    alone: float | None = None


@dataclass(frozen=True)
class Size:
    """A count in the unpruned and in the final model."""

    before: int | None = None
    after: int | None = None


@dataclass(frozen=True)
class Result:
    """`result.json`: what came of a finished run; None for what it does not say.

    `trials` are by phase (before, loop, final), `seconds` by what they went for, `steps` are counts by verdict.
    """

    status: Status
    model: str | None = None
    target: str | None = None
    precision: Precision = Precision()
    accuracy: Accuracy = Accuracy()
    latency_ms: Latency = Latency()
    speedup: Interval | None = None
    macs: Size = Size()
    params: Size = Size()
    trials: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    limits: tuple[Limited, ...] = ()
    notes: tuple[str, ...] = ()
    forecasts: Forecasts = field(default_factory=Forecasts)

    @property
    def missed(self) -> tuple[Limited, ...]:
        """Return the limits that the model does not meet."""
        return tuple(limit for limit in self.limits if not limit.met)


@dataclass(frozen=True)
class TaskTime:
    """One task of a tuned model: its layers (none for a task without weights), the time of one use, its uses.

    `step` is how many channels go at once, 0 for none.
    """

    id: str
    layers: tuple[str, ...]
    latency_us: float
    uses: int = 1
    step: int | None = None
    macs: int | None = None

    @property
    def total_us(self) -> float:
        """Return the time of all its uses in one inference."""
        return self.latency_us * self.uses


@dataclass(frozen=True)
class LayerWidth:
    """The output channels of a layer before and after, and the bits of a weight after (before: 32)."""

    layer: str
    before: int
    after: int
    bits: int = 32


@dataclass(frozen=True)
class FrozenLayers:
    """Layers that keep all their output channels, and why."""

    layers: tuple[str, ...]
    reason: str
    channels: int | None = None


@dataclass(frozen=True)
class Analysis:
    """`analysis.json`: the tasks of the unpruned and of the newest model, channels, what is frozen (None: unknown)."""

    tasks_before: tuple[TaskTime, ...] = ()
    tasks_after: tuple[TaskTime, ...] = ()
    channels: tuple[LayerWidth, ...] = ()
    frozen: tuple[FrozenLayers, ...] | None = None

    def task_times(self) -> list[tuple[TaskTime, float | None]]:
        """Return every task of before with what its work takes after, in us; None where that is not known.

        Pruning gives layers other shapes, so a task may fall apart into several or join another.  Layers are what
        stays: the time of a task of after is shared out to its layers, and these are added up again.
        """
        layer_us: dict[str, float] = {}
        plain_us: dict[str, float] = {}
        for task in self.tasks_after:
            for layer in task.layers:
                layer_us[layer] = layer_us.get(layer, 0.0) + task.total_us / len(task.layers)
            if not task.layers:
                plain_us[task.id] = task.total_us
        times: list[tuple[TaskTime, float | None]] = []
        for task in self.tasks_before:
            if not task.layers:
                times.append((task, plain_us.get(task.id)))
            elif all(layer in layer_us for layer in task.layers):
                times.append((task, sum(layer_us[layer] for layer in task.layers)))
            else:
                times.append((task, None))
        return times


@dataclass(frozen=True)
class Setup:
    """How a run was set up, by its `run.json`: model, device, and how time is taken."""

    model: str | None = None
    target: str | None = None
    cpu: str | None = None
    threads: int | None = None
    repeats: int | None = None
    rounds: int | None = None
    run_ms: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Run:
    """Everything that is known of a run.

    `config` is `run.json` as it stands and `setup` the part of it that is understood; `seconds` is what the run has
    cost by what it went for, all its lives together, and has a "total".
    """

    path: Path
    config: Mapping[str, object]
    setup: Setup
    start: Start | None
    steps: tuple[Step, ...]
    seconds: Mapping[str, float]
    result: Result | None
    analysis: Analysis
    front: Front | None = None

    @property
    def accepted(self) -> tuple[Step, ...]:
        """The steps that made the model smaller."""
        return tuple(step for step in self.steps if step.verdict == "accepted")

    @property
    def first_ms(self) -> Interval | None:
        """The latency of the unpruned model: beside the first candidate, or as it was when the run began."""
        if self.steps and self.steps[0].before_ms is not None:
            return self.steps[0].before_ms
        return None if self.start is None else self.start.latency_ms


def read_run(folder: RunFolder) -> Run:
    """Return what the files of `folder` say.  Raises UserError for one that is damaged, with what is wrong in it."""
    config = read_json(folder.run_json) or {}
    events = Journal(folder.journal).events()
    result_values, analysis_values = read_json(folder.result), read_json(folder.analysis)
    result = None if result_values is None else read_result(result_values, str(folder.result))
    return Run(
        path=folder.path,
        config=config,
        setup=_setup(config, str(folder.run_json)),
        start=next((event for event in events if isinstance(event, Start)), None),
        steps=tuple(event for event in events if isinstance(event, Step)),
        seconds=cost_so_far(events).seconds if result is None else result.seconds,
        result=result,
        analysis=_read(Analysis, analysis_values or {}, str(folder.analysis)),
        front=read_front(folder.front),
    )


def read_result(values: Mapping[str, object], where: str = "") -> Result:
    """Return the contents of a `result.json`.  Raises UserError, which names `where`, for what is none."""
    return _read(Result, values, where)


def _read(kind: type[T], values: Mapping[str, object], where: str) -> T:
    names = {declared.name for declared in fields(kind)}  # type: ignore[arg-type]
    return read(kind, {name: value for name, value in values.items() if name in names}, "field", where)


def _setup(config: Mapping[str, object], where: str) -> Setup:
    target, settings = _part(config, "target"), _part(config, "settings")
    values = {
        **{"model": config.get("model"), "seed": config.get("seed")},
        **{"target": target.get("name"), "cpu": target.get("cpu"), "threads": target.get("threads")},
        "repeats": _part(target, "timing").get("repeats"),
        **{"rounds": settings.get("rounds"), "run_ms": settings.get("run_ms")},
    }
    return read(Setup, values, "field", where)


def _part(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    part = values.get(name)
    return part if isinstance(part, Mapping) else {}
