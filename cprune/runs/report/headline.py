"""The top of a report: what came of a run in one sentence and five numbers; and the table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cprune.runs.events import Status
from cprune.runs.limits import NAMES, Limited, said
from cprune.runs.report.accuracy import new_images
from cprune.runs.report.numbers import MISSING, count, duration, median, percent, speedup, with_interval
from cprune.runs.report.run import Precision, Result, Run, Size

Mood = Literal["good", "warn", "bad", "open"]


@dataclass(frozen=True)
class Headline:
    """How a run ended, how good the news is, and what it means."""

    status: str
    mood: Mood
    meaning: str


@dataclass(frozen=True)
class Tile:
    """One number of the headline, with what it was before and what it says."""

    title: str
    value: str
    detail: str


HEADLINES: Mapping[Status, Headline] = {
    "pruned": Headline(
        "pruned",
        "good",
        "The pruned model is faster than the tuned unpruned one and keeps the accuracy asked for.",
    ),
    "stepped-back": Headline(
        "stepped-back",
        "warn",
        "The newest steps did not keep the accuracy asked for on the images that certify; this is an earlier pruned"
        " model, which keeps it and is faster than the tuned unpruned one.",
    ),
    "unpruned": Headline(
        "unpruned",
        "bad",
        "No pruned model was both clearly faster and accurate enough; this is the unpruned model, tuned.",
    ),
}
"""One for each way a run ends."""


def headline(run: Run) -> Headline:
    """Return how the run ended, or how to go on with it."""
    if run.result is None:
        meaning = f"This run is not finished.  Go on with it: cprune resume {run.path}"
        return Headline("not finished", "open", meaning)
    found = HEADLINES[run.result.status]
    if not run.result.missed:
        return found
    missed = "; ".join(limit.told() for limit in run.result.missed)
    return Headline(f"{found.status}, limit missed", "bad", f"{found.meaning}  A limit was missed: {missed}.")


def title(run: Run) -> str:
    """Return `model on target`, as far as they are known, or else the name of the folder."""
    return " on ".join(name for name in (run.setup.model, run.setup.target) if name) or run.path.name


def tiles(run: Run) -> list[Tile]:
    """Return the numbers of the headline; of a run that is not finished, where its newest accepted step is."""
    return _tiles_so_far(run) if run.result is None else _tiles_of(run.result)


def _tiles_of(result: Result) -> list[Tile]:
    times, latency, accuracy = result.speedup, result.latency_ms, result.accuracy
    return [
        Tile(
            "Speedup",
            f"{times.median:.2f}×" if times else MISSING,
            f"interval {times.low:.2f}× to {times.high:.2f}×" if times else "",
        ),
        Tile(
            "Latency",
            median(latency.after),
            f"before: {median(latency.before)}, tuned as well",
        ),
        Tile(
            "Accuracy",
            percent(accuracy.after),
            f"before: {percent(accuracy.before)}, asked for: {percent(accuracy.required)}",
        ),
        _size_tile("Parameters", result.params),
        _size_tile("MACs", result.macs),
    ]


def _size_tile(name: str, size: Size) -> Tile:
    detail = f"before: {count(size.before)}"
    if size.before and size.after is not None:
        detail += f", {100 * (size.after / size.before - 1):+.0f} %".replace("-", "−")
    return Tile(name, count(size.after), detail)


def _tiles_so_far(run: Run) -> list[Tile]:
    if not run.accepted:
        return []
    newest = run.accepted[-1]
    gain = ""
    if run.first_ms and newest.latency_ms:
        gain = f"{run.first_ms.median / newest.latency_ms.median:.2f}× as fast as at the start"
    return [
        Tile("Latency so far", median(newest.latency_ms), gain),
        Tile("Accuracy so far", percent(newest.accuracy), "on the images that decide, before the long training"),
        Tile("Steps accepted", str(len(run.accepted)), f"of {len(run.steps)} tried"),
    ]


def _of(images: int) -> str:
    return f" ({images:,} images)" if images else ""


def _asked(limit: Limited) -> str:
    missed = "met" if limit.met else f"missed by {100 * limit.missed_by:.2g} %"
    return f"{said(limit.name, limit.asked)}, {missed}"


def _precision(precision: Precision) -> list[tuple[str, str, str]]:
    """Return the rows about it, none where both models are of fp32."""
    if precision == Precision():
        return []
    alone = [] if precision.alone is None else [(f"Speedup of {precision.after} alone", "", f"{precision.alone:.2f}x")]
    return [*alone, ("Precision", precision.before, precision.after)]


def table(result: Result) -> list[tuple[str, str, str]]:
    """Return the rows (what, before, after) that sum up a result, as text; "–" where a number is missing."""
    accuracy, trials = result.accuracy, result.trials
    later = [trials[phase] for phase in ("loop", "final") if phase in trials]
    verdicts = [
        f"{count(result.steps[verdict])} {verdict}"
        for verdict in ("accepted", "rejected", "excluded")
        if verdict in result.steps
    ]
    return [
        (
            "Latency",
            with_interval(result.latency_ms.before, " ms"),
            with_interval(result.latency_ms.after, " ms"),
        ),
        ("Speedup", "1x", speedup(result.speedup)),
        ("Accuracy" + _of(accuracy.images.report), percent(accuracy.before), percent(accuracy.after)),
        ("Accuracy asked for", "", percent(accuracy.required)),
        *((f"{NAMES[limit.name].capitalize()} asked for", "", _asked(limit)) for limit in result.limits),
        ("Lost on new images", "", new_images(accuracy.bound)),
        *_precision(result.precision),
        ("Parameters", count(result.params.before), count(result.params.after)),
        ("MACs", count(result.macs.before), count(result.macs.after)),
        ("Trials", count(trials.get("before")), count(sum(later) if later else None)),
        ("Steps", "", ", ".join(verdicts) or MISSING),
        ("Time", "", duration(result.seconds.get("total"))),
    ]
