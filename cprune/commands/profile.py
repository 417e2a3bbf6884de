"""`cprune profile`: the staircase of every task, latency over width, and a table that other tools can read.

The latency of compiled code does not fall evenly with the channels that are removed: it has steps, at multiples of
the vector and of the tile of the fastest program, and a narrower layer can even be slower.  Here every convolution of a
model is tuned at several widths (each warm-started from the next wider one), and then all widths of a task are timed
in turns, so that two points of one staircase can be compared.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cprune.channels.groups import analyse
from cprune.commands.request import Request
from cprune.compiling.lowered import Layout
from cprune.compiling.narrowing import narrowed as narrow
from cprune.compiling.tuned import tune
from cprune.method.channel_step import step_of
from cprune.progress import Progress
from cprune.targets.interval import interval
from cprune.targets.session import Session
from cprune.tuner.estimate import Entry
from cprune.tuner.programs.describing import describe
from cprune.tuner.programs.workload import Conv2d, key
from cprune.tuner.search.estimator import Errors, Estimate, fitted
from cprune.tuner.tune import Best, Tuner
from cprune.tuner.turns import in_turns

ROUNDS = 15
COLUMNS = (
    *("task", "layers", "uses", "operator", "batch", "in_channels", "out_channels", "height", "width"),
    *("kernel", "stride", "groups", "threads", "target", "median_us", "low_us", "high_us", "estimated"),
)
"""The columns of the CSV table, one row a width; see docs/latency-table.md."""


@dataclass(frozen=True)
class Options:
    """At most `widths` widths a task, `trials` candidates for each of them; of `both_axes` as many squared.

    With `estimate` no width is tuned but the whole one: what the store does not know is estimated.
    """

    widths: int = 12
    trials: int = 12
    both_axes: bool = False
    estimate: bool = False


@dataclass(frozen=True)
class Width:
    """The latency of a task with this many channels: median and its 95 % interval; none of one that is estimated."""

    channels: int
    median_us: float
    low_us: float
    high_us: float
    estimated: bool = False


@dataclass(frozen=True)
class Pair:
    """The latency of a task with this many channels on both sides, as in `Width`."""

    in_channels: int
    channels: int
    median_us: float
    low_us: float
    high_us: float
    estimated: bool = False

    @property
    def of_output(self) -> Width:
        """Return the width without that of the input."""
        return Width(self.channels, self.median_us, self.low_us, self.high_us, self.estimated)


@dataclass(frozen=True)
class LayerShape:
    """A convolution as other tools say it, but for its output channels; `groups` is "channels" for a depthwise one."""

    operator: str
    batch: int
    in_channels: int
    height: int
    width: int
    kernel: str
    stride: int
    groups: int | str


@dataclass(frozen=True)
class Staircase:
    """One task: its description, the layers that run it, its channel step (0: none), its widths, the widest last.

    `pairs` are the widths of both sides, where they were asked for and the task has two.
    """

    id: str
    layers: tuple[str, ...]
    uses: int
    step: int
    workload: LayerShape
    widths: tuple[Width, ...]
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Staircases:
    """The staircase of every convolution task of a model.

    `estimate_error` is the median error of estimates, as a share, of tasks that are known and were left out; None
    where nothing was estimated, or too little is known to tell.
    """

    model: str
    target: str
    threads: int
    tasks: tuple[Staircase, ...]
    estimate_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `cprune profile --json` prints."""
        return asdict(self)


def profile(request: Request, options: Options, progress: Progress) -> Staircases:
    """Return every convolution task with its channel step and its latency at several widths."""
    settings, opened = request.settings, request.opened()
    network, example = opened.network, opened.example_inputs
    with request.tuner(progress) as (session, tuner):
        tuned = tune(network, example, tuner, settings.trials, progress)
        graph = analyse(network, example, settings.ignore, settings.whole_heads)
        tasks = [(t, t.workload) for t in tuned.lowered.tasks() if isinstance(t.workload, Conv2d)]
        grain = max(4, request.target.vector // 2)
        plans = {t.key: _plan(w, grain, options) for t, w in tasks}
        estimate: Estimate | None = None
        errors: Errors | None = None
        if options.estimate:
            estimate, errors = fitted(tuner.entries(), request.target.threads, request.target.vector)
        progress.start("tuning narrower widths", sum(map(len, plans.values())))
        staircases = []
        for task, workload in tasks:
            best = tuned.best[task.key]
            layout = tuned.lowered.layout
            forms = {pair: narrowed(workload, *pair, layout) for pair in plans[task.key]}
            pairs = _measured(forms, task.key, best, tuner, session, options.trials, progress, estimate)
            layers = tuple(name for name in task.layers if name in graph.layers)
            staircases.append(
                Staircase(
                    describe(workload),
                    layers or tuple(task.layers),
                    task.uses,
                    step_of(workload, best.candidate, request.target.threads, settings.step_join),
                    _shape(workload),
                    tuple(p.of_output for p in pairs if p.in_channels == workload.in_channels),
                    pairs if options.both_axes and not workload.depthwise else (),
                )
            )
        progress.done()
    error = None if errors is None else min(errors.plain, errors.learned)
    return Staircases(opened.name, request.target.name, request.target.threads, tuple(staircases), error)


def widths(channels: int, grain: int, most: int) -> list[int]:
    """Return up to `most` multiples of `grain` up to `channels`, spread evenly, the full width always among them."""
    every = list(range(grain, channels + 1, grain)) or [channels]
    if every[-1] != channels:
        every.append(channels)
    if len(every) <= most:
        return every
    picked = {every[round(i * (len(every) - 1) / (most - 1))] for i in range(most)} if most > 1 else {channels}
    return sorted(picked)


def _plan(w: Conv2d, grain: int, options: Options) -> list[tuple[int, int]]:
    """Return the pairs (input channels, output channels) to measure; an image keeps its channels."""
    both = options.both_axes and w.in_block and not w.depthwise
    inputs = widths(w.in_channels, grain, options.widths) if both else [w.in_channels]
    return [(i, o) for i in inputs for o in widths(w.out_channels, grain, options.widths)]


def narrowed(workload: Conv2d, in_channels: int, channels: int, layout: Layout) -> Conv2d:
    """Return the task of the same layer with other channels; a side that keeps its stored width keeps its block.

    A depthwise layer has `channels` on both sides.
    """
    changed = narrow(workload, in_channels, channels, layout)
    assert isinstance(changed, Conv2d)
    if in_channels != workload.in_channels or workload.depthwise:
        return changed
    return replace(changed, in_channels=workload.in_channels, in_block=workload.in_block)


def _measured(
    forms: Mapping[tuple[int, int], Conv2d],
    whole: str,
    best: Best,
    tuner: Tuner,
    session: Session,
    trials: int,
    progress: Progress,
    estimate: Estimate | None,
) -> tuple[Pair, ...]:
    """Tune every form of a task by its channels, each from the nearest wider one, and return their latencies.

    `best` is the program of the whole task, the one with the key `whole`.  With an `estimate` nothing is tuned: it says
    what forms take that nobody measured.
    """
    entries: dict[tuple[int, int], tuple[Conv2d, Best]] = {}
    for pair in sorted(forms, reverse=True):
        workload = forms[pair]
        if key(workload) == whole:
            entries[pair] = (workload, best)
        elif estimate is not None:
            known = tuner.known(workload, 1)
            if known is not None:
                entries[pair] = (workload, known)
        else:
            wider = [other for other in entries if other[0] >= pair[0] and other[1] >= pair[1]]
            start = entries[min(wider)][1] if wider else best
            entries[pair] = (workload, tuner.tune(workload, trials, (start.candidate,)))
        progress.advance()
    runs = _timed_in_turns(session, list(entries.values()))
    rows = []
    for pair, seconds in zip(entries, runs, strict=True):
        us = interval([1e6 * s for s in seconds])
        rows.append(Pair(*pair, us.median, us.low, us.high))
    if estimate is not None:
        measured = [(entries[row.in_channels, row.channels], row.median_us) for row in rows]
        known_ones = [Entry(w, b.candidate, us / 1e6) for (w, b), us in measured]
        for pair in forms.keys() - entries.keys():
            us_estimated = 1e6 * estimate(forms[pair], known_ones)
            rows.append(Pair(*pair, us_estimated, us_estimated, us_estimated, estimated=True))
    return tuple(sorted(rows, key=lambda row: (row.in_channels, row.channels)))


def _timed_in_turns(session: Session, entries: Sequence[tuple[Conv2d, Best]]) -> list[tuple[float, ...]]:
    unique = dict.fromkeys(entries)
    timed = in_turns(session, session.build, [(w, b.candidate) for w, b in unique], ROUNDS)
    runs = dict(zip(unique, timed, strict=True))
    # A width whose program does not run again (a crash, a deadline) keeps the time of its tuning.
    return [runs[entry] or (entry[1].latency_s,) for entry in entries]


def _shape(w: Conv2d) -> LayerShape:
    return LayerShape(
        operator="depthwise" if w.depthwise else "conv2d",
        batch=w.batch,
        in_channels=w.in_channels,
        height=w.height,
        width=w.width,
        kernel=f"{w.kernel[0]}x{w.kernel[1]}",
        stride=w.stride[0],
        groups="channels" if w.depthwise else 1,
    )


def write(staircases: Staircases, folder: Path) -> list[Path]:
    """Write profile.json, latency.csv and one SVG a task into `folder`, and return their paths."""
    from cprune.runs.report.plots import staircase

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "profile.json", folder / "latency.csv"]
    paths[0].write_text(json.dumps(staircases.to_dict(), indent=1) + "\n", encoding="utf-8")
    with paths[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table(staircases))
    for index, task in enumerate(staircases.tasks):
        path = folder / f"task{index:02}.svg"
        title = f"{task.id}, step {task.step}"
        path.write_text(staircase(title, task.step, [asdict(width) for width in task.widths]), "utf-8")
        paths.append(path)
    return paths


def table(staircases: Staircases) -> list[dict[str, str | int | float]]:
    """Return the rows of the CSV table: one a task and width, or pair of widths, columns as in COLUMNS."""
    return [
        {
            "task": task.id,
            "layers": " ".join(task.layers),
            "uses": task.uses,
            **asdict(task.workload),
            "in_channels": width.in_channels if isinstance(width, Pair) else task.workload.in_channels,
            "out_channels": width.channels,
            "threads": staircases.threads,
            "target": staircases.target,
            **{name: round(getattr(width, name), 3) for name in ("median_us", "low_us", "high_us")},
            "estimated": int(width.estimated),
        }
        for task in staircases.tasks
        for width in (task.pairs or task.widths)
    ]
