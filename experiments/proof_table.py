"""What the runs of `proof.py` gave, out of their folders: a row a run, and the tables that are printed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cprune.runs.events import Chosen, CostSoFar, Event, Final, Measured, Reported, Scouted, Step, Trained
from cprune.runs.journal import Journal

DEFAULT = "tables"
GOES_ON = ("tables", "cprune")
"""These go on from the model that they accepted last, so its training is in what they deliver."""


@dataclass(frozen=True)
class Row:
    """One run: accuracies on the images of the report in [0, 1]; `elsewhere` is a share of the training seconds.

    `forecast_error` is None where no forecast is in the journal.
    """

    model: str
    method: str
    seed: int
    status: str
    speedup: float
    low: float
    high: float
    before: float
    after: float
    minutes: float
    train_s: float
    elsewhere: float
    forecast_error: float | None
    trials: int


def row_of(model: str, method: str, seed: int, folder: Path) -> Row:
    """Return the row of a run that is finished."""
    result = json.loads((folder / "result.json").read_text())
    events = Journal(folder / "journal.jsonl").events()
    accuracy, speedup = result["accuracy"], result["speedup"]
    return Row(
        model,
        method,
        seed,
        result["status"],
        *(speedup[name] for name in ("median", "low", "high")),
        accuracy["before"],
        accuracy["after"],
        round(result["seconds"]["total"] / 60, 1),
        result["seconds"]["train"],
        elsewhere(events, method),
        forecast_error(events, method),
        sum(result["trials"].values()),
    )


def elsewhere(events: Sequence[Event], method: str) -> float:
    """Return the share of the training seconds in models that are not the delivered one, nor one that led to it.

    What is spent on proposals of NetAdapt, and on measuring how fast a model trains, counts as elsewhere.
    """
    in_it = _in_delivered(events, method)
    before = since = 0.0  # seconds of training when the last event was written, and since the last that tells of some
    total = here = 0.0
    for event in events:
        now = event.so_far.seconds.get("train", 0.0) if event.so_far is not None else before
        since, before = since + now - before, now
        if isinstance(event, CostSoFar):
            continue
        total += since
        here += since if in_it(event) else 0.0
        since = 0.0
    return 1 - here / total if total else 0.0


def _in_delivered(events: Sequence[Event], method: str) -> Callable[[Event], bool]:
    """Return what tells whether the training before an event is in the model that is delivered."""
    ends = [event for event in events if isinstance(event, Final) and event.status != "unpruned"]
    looks = [event for event in events if isinstance(event, Reported)]
    if not looks or not ends:
        return lambda event: False
    # Several may have been looked at; those after the delivered one failed.
    delivered = next(look.index for look in reversed(looks) if look.accuracy == ends[-1].report)
    accepted = [event.index for event in events if isinstance(event, Step) and event.verdict == "accepted"]
    line = {index for index in accepted if index < delivered and method in GOES_ON} | {delivered}
    chosen = {(event.round, event.number) for event in events if isinstance(event, Chosen) and event.round in line}

    def told(event: Event) -> bool:
        if isinstance(event, Scouted):
            return method == DEFAULT and (event.round, event.number) in chosen
        if isinstance(event, Trained):
            return event.index in line
        return isinstance(event, Step) and event.index in line

    return told


def forecast_error(events: Sequence[Event], method: str) -> float | None:
    """Return the median of |measured / forecast - 1| over the models that were timed; None if there is no forecast.

    The default method forecasts every scout out of its tables, the others what they train out of its tuned tasks.
    """
    if method == DEFAULT:
        pairs = [(event.share, event.forecast) for event in events if isinstance(event, Scouted)]
    else:
        ratios = {event.key: event.ratio.median for event in events if isinstance(event, Measured)}
        chosen = [event for event in events if isinstance(event, Chosen)]
        pairs = [(ratios[f"step{e.round}"], e.share) for e in chosen if f"step{e.round}" in ratios]
    return statistics.median(abs(measured / forecast - 1) for measured, forecast in pairs) if pairs else None


def mean(values: Iterable[float]) -> float:
    """Return the geometric mean."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def told(rows: Sequence[Row]) -> str:
    """Return the tables in Markdown: every run, then the geometric means over seeds, and the default's ratio."""
    return "\n\n".join([_runs(rows), _means(rows)]) if rows else "no run is finished"


def _runs(rows: Sequence[Row]) -> str:
    lines = [
        "| model | method | seed | speed-up | accuracy in the report | minutes | elsewhere | forecast's error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = "" if row.forecast_error is None else f"{row.forecast_error:.1%}"
        unpruned = " (unpruned)" if row.status == "unpruned" else ""
        lines.append(
            f"| {row.model} | {row.method} | {row.seed} "
            f"| {row.speedup:.2f}x ({row.low:.2f} to {row.high:.2f}){unpruned} "
            f"| {row.before:.2%} → {row.after:.2%} | {row.minutes:.1f} | {row.elsewhere:.0%} | {error} |"
        )
    return "\n".join(lines)


def _means(rows: Sequence[Row]) -> str:
    """Return geometric means over the seeds of each model, over the models that all methods ran on, and the ratios.

    A method that has no run on a model has an empty cell, and no mean over models.
    """
    models, methods = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("model", "method"))
    cells = {
        (model, method): mean(found)
        for model in models
        for method in methods
        if (found := [row.speedup for row in rows if (row.model, row.method) == (model, method)])
    }
    others = [method for method in methods if method != DEFAULT]
    lines = [
        f"| speed-up, geometric mean of the seeds | {' | '.join(methods)} | {DEFAULT} / best other |",
        "|---|" + "---|" * (len(methods) + 1),
    ]
    ratios = []
    for model in models:
        best = max((cells[model, method] for method in others if (model, method) in cells), default=None)
        ours = cells.get((model, DEFAULT))
        ratio = ours / best if ours is not None and best is not None else None
        ratios += [ratio] if ratio is not None else []
        lines.append(_line(model, [cells.get((model, method)) for method in methods], ratio))
    whole = [
        mean(cells[model, method] for model in models) if all((model, method) in cells for model in models) else None
        for method in methods
    ]
    lines.append(_line("all models, geometric mean", whole, mean(ratios) if ratios else None))
    return "\n".join(lines)


def _line(name: str, values: Sequence[float | None], ratio: float | None) -> str:
    shown = ["" if value is None else f"{value:.2f}x" for value in values]
    return f"| {name} | {' | '.join(shown)} | {'' if ratio is None else f'{ratio:.2f}'} |"
