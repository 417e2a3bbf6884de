"""`cprune profile`: the staircase of every task, latency over width, and a table that other tools can read.

The latency of compiled code does not fall evenly with the channels that are removed: it has steps, at multiples of
the vector and of the tile of the fastest program, and a narrower layer can even be slower.  Here every convolution of a
model is tuned at several widths (each warm-started from the next wider one), and then all widths of a task are timed
in turns, so that two points of one staircase can be compared.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cprune.channels.groups import analyse
from cprune.compiling.lowered import Layout, Task
from cprune.compiling.tuned import opened_tuner, tune
from cprune.method.channel_step import channel_step
from cprune.method.settings import Settings
from cprune.models.source import Source
from cprune.progress import Progress
from cprune.targets.interval import interval
from cprune.targets.session import Built, Session, Timed
from cprune.targets.session import arguments as random_arguments
from cprune.targets.target import Target, find
from cprune.tuner.programs import program as programs
from cprune.tuner.programs.space import channel_splits
from cprune.tuner.programs.workload import Conv2d, describe, key, padded
from cprune.tuner.records.place import default_records
from cprune.tuner.tune import Best, Tuner

ROUNDS = 15
COLUMNS = (
    *("task", "layers", "uses", "operator", "batch", "in_channels", "out_channels", "height", "width"),
    *("kernel", "stride", "groups", "threads", "target", "median_us", "low_us", "high_us"),
)
"""The columns of the CSV table, one row a width; see docs/latency-table.md."""


@dataclass(frozen=True)
class Options:
    """At most `widths` widths a task, `trials` candidates for each of them."""

    widths: int = 12
    trials: int = 12


def profile(
    source: Source,
    target: str | Target,
    threads: int | None,
    settings: Settings,
    records: str | None,
    options: Options,
    progress: Progress,
) -> dict[str, Any]:
    """Return the contract's object: every convolution task with its channel step and its latency at several widths."""
    loaded = source.opened(settings.seed)
    network = loaded.network
    where = find(target, threads)
    with opened_tuner(where, records or default_records(where.name), settings.seed, progress) as (session, tuner):
        tuned = tune(network, loaded.example_inputs, tuner, settings.trials, progress)
        graph = analyse(network, loaded.example_inputs, settings.ignore, settings.whole_heads)
        tasks = [(t, t.workload) for t in tuned.lowered.tasks() if isinstance(t.workload, Conv2d)]
        grain = max(4, where.vector // 2)
        plans = {t.key: widths(w.out_channels, grain, options.widths) for t, w in tasks}
        progress.start("tuning narrower widths", sum(map(len, plans.values())))
        rows = []
        for task, workload in tasks:
            best = tuned.best[task.key]
            points = _staircase(task, best, plans[task.key], tuned.lowered.layout, tuner, session, options, progress)
            step = channel_step(channel_splits(task.workload, best.candidate), settings.step_join)
            layers = [name for name in task.layers if name in graph.layers]
            rows.append(
                {
                    "id": describe(task.workload),
                    "layers": layers or list(task.layers),
                    "uses": task.uses,
                    "step": step,
                    "workload": _shape(workload),
                    "widths": points,
                }
            )
        progress.done()
    return {"model": loaded.name, "target": where.name, "threads": where.threads, "tasks": rows}


def widths(channels: int, grain: int, most: int) -> list[int]:
    """Return up to `most` multiples of `grain` up to `channels`, spread evenly, the full width always among them."""
    every = list(range(grain, channels + 1, grain)) or [channels]
    if every[-1] != channels:
        every.append(channels)
    if len(every) <= most:
        return every
    picked = {every[round(i * (len(every) - 1) / (most - 1))] for i in range(most)} if most > 1 else {channels}
    return sorted(picked)


def narrowed(workload: Conv2d, channels: int, layout: Layout) -> Conv2d:
    """Return the task of the same layer with fewer output channels (of a depthwise layer: channels)."""
    out = layout.of(channels)
    if workload.depthwise:
        stored = padded(channels, out)
        return replace(workload, in_channels=stored, out_channels=stored, groups=stored, in_block=out, out_block=out)
    return replace(workload, out_channels=padded(channels, out), out_block=out)


def _staircase(
    task: Task,
    best: Best,
    plan: Sequence[int],
    layout: Layout,
    tuner: Tuner,
    session: Session,
    options: Options,
    progress: Progress,
) -> list[dict[str, Any]]:
    assert isinstance(task.workload, Conv2d)
    found: dict[int, tuple[Conv2d, Best]] = {}
    wider = best
    for channels in sorted(plan, reverse=True):
        workload = narrowed(task.workload, channels, layout)
        if key(workload) == task.key:
            found[channels] = (workload, best)
        else:
            wider = tuner.tune(workload, options.trials, (wider.candidate,))
            found[channels] = (workload, wider)
        progress.advance()
    runs = _timed_in_turns(session, [(w, b) for w, b in found.values()])
    rows = []
    for channels, seconds in zip(found, runs, strict=True):
        us = interval([1e6 * s for s in seconds])
        rows.append({"channels": channels, "median_us": us.median, "low_us": us.low, "high_us": us.high})
    return sorted(rows, key=lambda row: row["channels"])


def _timed_in_turns(session: Session, entries: Sequence[tuple[Conv2d, Best]]) -> list[tuple[float, ...]]:
    unique = dict.fromkeys(entries)
    built = session.build([programs.program(w, b.candidate) for w, b in unique])
    given = [random_arguments(programs.shapes(w, b.candidate), 0) for w, b in unique]
    ready = [b for b in built if isinstance(b, Built)]
    timed = session.race(ready, given, ROUNDS) if len(ready) == len(built) else []
    runs = {e: t.runs_s for e, t in zip(unique, timed, strict=False) if isinstance(t, Timed)}
    # A width whose program does not run again (a crash, a deadline) keeps the time of its tuning.
    return [runs.get(entry, (entry[1].latency_s,)) for entry in entries]


def _shape(w: Conv2d) -> dict[str, Any]:
    return {
        "operator": "depthwise" if w.depthwise else "conv2d",
        "batch": w.batch,
        "in_channels": w.in_channels,
        "height": w.height,
        "width": w.width,
        "kernel": f"{w.kernel[0]}x{w.kernel[1]}",
        "stride": w.stride[0],
        "groups": "channels" if w.depthwise else 1,
    }


def write(told: dict[str, Any], folder: Path) -> list[Path]:
    """Write profile.json, latency.csv and one SVG a task into `folder`, and return their paths."""
    from cprune.runs.report.plots import staircase

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "profile.json", folder / "latency.csv"]
    paths[0].write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    with paths[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table(told))
    for index, task in enumerate(told["tasks"]):
        path = folder / f"task{index:02}.svg"
        path.write_text(staircase(f"{task['id']}, step {task['step']}", task["step"], task["widths"]), "utf-8")
        paths.append(path)
    return paths


def table(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the CSV table: one a task and width, columns as in COLUMNS."""
    return [
        {
            "task": task["id"],
            "layers": " ".join(task["layers"]),
            "uses": task["uses"],
            **task["workload"],
            "out_channels": row["channels"],
            "threads": told["threads"],
            "target": told["target"],
            **{name: round(row[name], 3) for name in ("median_us", "low_us", "high_us")},
        }
        for task in told["tasks"]
        for row in task["widths"]
    ]


def show(told: dict[str, Any]) -> None:
    """Print one line a width with a bar; the widths that keep the structure of the fastest program are marked."""
    from rich.console import Console

    console = Console()
    for task in told["tasks"]:
        console.print(f"\n{task['id']}  ({task['uses']}x: {', '.join(task['layers'])})", highlight=False)
        full = max(row["median_us"] for row in task["widths"])
        widest = task["widths"][-1]["channels"]
        for row in task["widths"]:
            bar = "█" * max(1, round(40 * row["median_us"] / full))
            kept = task["step"] and (widest - row["channels"]) % task["step"] == 0
            mark = "step" if kept else ""
            console.print(
                f"  {row['channels']:5} {mark:4} {row['median_us']:9.2f} us "
                f"[{row['low_us']:.2f}, {row['high_us']:.2f}] {bar}",
                highlight=False,
                markup=False,
            )
