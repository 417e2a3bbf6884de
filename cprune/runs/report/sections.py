"""The sections of a report: paragraphs, a drawing, tables.  Both files are made of them, so they never disagree.

A section that has nothing to show says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cprune.runs.forecasts import forecasts
from cprune.runs.front import FrontPoint
from cprune.runs.report import plots
from cprune.runs.report.accuracy import sentences
from cprune.runs.report.headline import table
from cprune.runs.report.numbers import MISSING, count, duration, microseconds, percent, with_interval
from cprune.runs.report.run import Run, TaskTime

_WIDTHS = (720, 310)  # of a drawing on a large screen and on a phone
_MOST_BARS = 70  # a drawing stays readable up to here; the table has the rest


@dataclass(frozen=True)
class Table:
    """Head and rows of text.  `kinds` gives every row a kind, for its colour; text columns are named by index."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[int, ...] = (0,)
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """One part of the report: paragraphs, a drawing (SVG for wide and for narrow screens), tables."""

    id: str
    title: str
    paragraphs: tuple[str, ...] = ()
    plot: tuple[str, str] | None = None
    legend: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    fold: str = ""  # what to call the tables when they are folded away


def sections(run: Run) -> list[Section]:
    """Return the sections of the report of a run, in their order."""
    return [
        *(_summary(run), *_front(run), _course(run), _channels(run), _tasks(run)),
        *(_steps(run), _frozen(run), _measured(run), _versions(run)),
    ]


def _summary(run: Run) -> Section:
    if run.result is None:
        return Section("summary", "Summary", ("There is no result yet.",))
    notes = tuple(f"Note: {note}" for note in dict.fromkeys(run.result.notes))
    rows = tuple(table(run.result))
    return Section(
        "summary", "Summary", (*sentences(run.result.accuracy), *notes), tables=(Table(("", "before", "after"), rows),)
    )


def _front(run: Run) -> Iterator[Section]:
    """Yield the models worth choosing from, if anything is known of them."""
    front = run.front
    if front is None:
        return
    whole = front.unpruned
    rows = [("unpruned", with_interval(whole.latency_ms), "1x", "0", count(whole.params), count(whole.macs), "0", "")]
    for point in front.points:
        forecast = point.status == "forecast"
        lost = f"{100 * point.loss:.2f}" + (f" ± {100 * point.se:.2f}" if point.se is not None else "")
        rows.append(
            (
                *(point.status, f"{point.latency_ms.median:.4g}" if forecast else with_interval(point.latency_ms)),
                *(f"{point.speedup:.2f}x", f"about {lost}" if forecast else lost),
                *(count(point.params), count(point.macs), str(point.gone)),
                ", ".join(_remarks(point)),
            )
        )
    asked = run.start.allowed if run.start is not None else None
    wide, narrow = (plots.front(front.points, asked, width) for width in _WIDTHS)
    head = ("model", "latency (ms)", "speed-up", "points lost", "parameters", "MACs", "branches gone", "")
    yield Section(
        "front",
        "Models to choose from",
        (
            "cprune export DIR --pick 2x (or 1.5ms) writes the most accurate trained model that is so fast;"
            " cprune resume DIR --speedup 2 trains one more where only a forecast is.",
            "A certified model was looked at with the images that certify, a trained one with those that decide;"
            f" {front.estimate}.",
        ),
        plot=(wide, narrow),
        legend=(("after", "certified"), ("warn diamond", "trained, not certified"), ("before", "forecast")),
        tables=(Table(head, tuple(rows), text_columns=(0, 7)),),
    )


def _remarks(point: FrontPoint) -> Iterator[str]:
    if point.delivered:
        yield "delivered"
    if point.afterwards:
        yield "asked for when the run was over, looked at after the others"
    if point.meets is not None:
        yield "meets the limits" if point.meets else "does not meet the limits"


def _course(run: Run) -> Section:
    title = "Accuracy and latency along the steps"
    if not run.steps:
        return Section("course", title, ("No step has been tried yet.",))
    points = [
        plots.Point(tried, step.verdict, step.latency_ms, step.accuracy)
        for tried, step in enumerate(run.steps, start=1)
    ]
    limit = None
    if run.start is not None:
        points.insert(0, plots.Point(0, "accepted", run.first_ms, run.start.decide))
        limit = run.start.floor  # on the images that decide, which differs a little from what the report's must keep
    wide, narrow = (plots.steps(points, limit, width) for width in _WIDTHS)
    return Section(
        "course",
        title,
        (
            "A step is accepted if it is faster by more than the noise and the accuracy holds after a short"
            " training.  The band is the interval of the measured latency.",
        ),
        plot=(wide, narrow),
        legend=(
            ("after", "accepted"),
            ("bad cross", "rejected: not faster"),
            ("warn diamond", "excluded: costs too much accuracy"),
        ),
    )


def _channels(run: Run) -> Section:
    title = "Channels per layer"
    layers = run.analysis.channels
    if not layers:
        return Section("channels", title, ("Nothing is known of the channels (analysis.json).",))
    bars = [plots.Bar(width.layer, width.before, width.after) for width in layers]
    fewer = sum(width.after < width.before for width in layers)
    whole = sum(width.bits < 32 for width in layers)
    told = (
        f"{fewer} of {len(layers)} layers are narrower than before.",
        *((f"{whole} of {len(layers)} have weights of 8 bits.",) if whole else ()),
    )
    rows = tuple(
        (
            *(width.layer, f"{width.before:,}", f"{width.after:,}"),
            f"{100 * (1 - width.after / width.before):.0f} %" if width.before else MISSING,
            str(width.bits),
        )
        for width in layers
    )
    return Section(
        "channels",
        title,
        (*(_unfinished(run) or told), *_cut(bars)),
        plot=_bars(bars, "output channels", "Output channels of every layer before and after"),
        legend=(("before", "before"), ("after", "after")),
        tables=(Table(("layer", "before", "after", "removed", "bits"), rows),),
        fold=f"{len(rows)} layers as a table",
    )


def _tasks(run: Run) -> Section:
    """Latency per task: every task of the unpruned model beside what its layers take now."""
    title = "Latency per task"
    times = sorted(run.analysis.task_times(), key=lambda time: -time[0].total_us)
    if not times:
        return Section("tasks", title, ("Nothing is known of the tasks (analysis.json).",))
    rows = tuple(
        (
            *(task.id, ", ".join(task.layers) or MISSING, f"{task.uses:,}"),
            *(MISSING if task.step is None else f"{task.step:,}", microseconds(task.total_us), microseconds(after)),
            f"{task.total_us / after:.2f}×" if after else MISSING,
        )
        for task, after in times
    )
    bars = [plots.Bar(_task_label(task), task.total_us, after) for task, after in times]
    known = [(task.total_us, after) for task, after in times if after is not None]
    sums: tuple[str, ...] = ()
    if known:
        before_us, after_us = (microseconds(sum(column)) for column in zip(*known, strict=True))
        sums = (f"All tasks together: {before_us} µs before, {after_us} µs after.",)
    head = ("task", "layers", "uses", "step", "before (µs)", "after (µs)", "speedup")
    return Section(
        "tasks",
        title,
        (
            "A task is one operator with what the compiler fuses into it, in one shape; its time counts once"
            " for every layer that uses it.  The step is how many channels go at once so that the tuned"
            " program keeps its loops.",
            *(_unfinished(run) or sums),
            *_cut(bars),
        ),
        plot=_bars(bars, "µs", "Latency of every task before and after"),
        legend=(("before", "before"), ("after", "after")),
        tables=(Table(head, rows, text_columns=(0, 1)),),
        fold=f"{len(rows)} tasks as a table",
    )


def _steps(run: Run) -> Section:
    if not run.steps:
        return Section("steps", "Steps", ("No step has been tried yet.",))
    rows = tuple(
        (
            *(str(step.index), step.verdict, step.task),
            ", ".join(f"{group.id} {group.before:,} → {group.after:,}" for group in step.groups) or MISSING,
            *(with_interval(step.latency_ms), percent(step.accuracy), step.reason),
            *(f"{step.trials:,}", duration(step.seconds.get("total"))),
        )
        for step in run.steps
    )
    told = run.result.forecasts if run.result else forecasts(run.steps)
    verdicts = tuple(step.verdict for step in run.steps)
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("accepted", "rejected", "excluded"))
    head = ("#", "verdict", "task", "channels", "latency (ms)", "accuracy", "why", "trials", "time")
    return Section(
        "steps",
        "Steps",
        (f"{counts}.", *told.sentences()),
        tables=(Table(head, rows, text_columns=(1, 2, 3, 6), kinds=verdicts),),
    )


def _frozen(run: Run) -> Section:
    title = "Frozen, and why"
    if not run.analysis.frozen:
        unknown = run.analysis.frozen is None
        return Section(
            "frozen", title, ("Nothing is known of it (analysis.json)." if unknown else "Nothing is frozen.",)
        )
    rows = tuple((", ".join(frozen.layers) or MISSING, frozen.reason) for frozen in run.analysis.frozen)
    return Section(
        "frozen",
        title,
        ("These layers keep all their output channels.",),
        tables=(Table(("layers", "reason"), rows, text_columns=(0, 1)),),
    )


def _measured(run: Run) -> Section:
    setup = run.setup
    required = run.result.accuracy.required if run.result else run.start.required if run.start else None
    so_far = "" if run.result else " so far"
    facts = [
        *(("threads", setup.threads), ("timing runs", setup.repeats), ("rounds of a comparison", setup.rounds)),
        *(("time of a model in a round (ms)", setup.run_ms), ("seed", setup.seed)),
        ("accuracy asked for", None if required is None else percent(required)),
    ]
    rows = [(title, str(value)) for title, value in facts if value is not None]
    for kind, title in (
        *(("tune", "time to tune"), ("measure", "time to measure"), ("train", "time to train")),
        *(("evaluate", "time to evaluate"), ("other", "other time"), ("total", "time in all")),
    ):
        if kind in run.seconds:
            rows.append((title, duration(run.seconds[kind]) + so_far))
    paragraphs = [
        "Latency is the median of repeated runs with the interval of that median.  What is compared is"
        " measured in turn (interleaved), so that a machine that gets slower does so for both.",
        "Before and after are measured together at the end, both tuned with equal trials per task."
        "  Decisions along the way look at images of their own.  At the end the accepted models are certified with"
        " others, from the safest to the fastest, up to the first that loses too much.  The images of this report are"
        " looked at twice: before the first step, and with the model that was chosen.",
    ]
    if (setup.cpu or "").startswith("emulated"):
        paragraphs.insert(0, "The device was EMULATED: its latencies say nothing of a real one.")
    return Section(
        "measured",
        "How it was measured",
        tuple(paragraphs),
        tables=(Table(("what", "value"), tuple(rows), text_columns=(0, 1)),) if rows else (),
    )


def _versions(run: Run) -> Section:
    """Everything that `run.json` says, as it stands there."""
    apart = ("target", "versions")
    parts = [(name, values) for name in apart if isinstance(values := run.config.get(name), Mapping)]
    rest = {name: value for name, value in run.config.items() if name not in dict(parts)}
    rest = dict(sorted(rest.items(), key=lambda item: isinstance(item[1], Mapping)))  # single values first
    tables = [
        Table((name, ""), rows, text_columns=(0, 1))
        for name, values in (*parts, ("configuration", rest))
        if (rows := tuple(_flat(values)))
    ]
    paragraphs = () if tables else ("Nothing is known of them (run.json).",)
    return Section("versions", "Target and versions", paragraphs, tables=tuple(tables))


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        elif value is not None and value != "":
            yield f"{prefix}{name}", str(value)


def _unfinished(run: Run) -> tuple[str, ...]:
    """Say of which model `analysis.json` is: it is written when a run begins and when it ends."""
    return () if run.result else ("The run is not finished; until it is, this shows the model as it was at the start.",)


def _bars(bars: Sequence[plots.Bar], unit: str, title: str) -> tuple[str, str]:
    wide, narrow = (plots.bars(bars[:_MOST_BARS], unit, title, width) for width in _WIDTHS)
    return wide, narrow


def _cut(bars: Sequence[plots.Bar]) -> tuple[str, ...]:
    if len(bars) <= _MOST_BARS:
        return ()
    return (f"The plot shows the first {_MOST_BARS} of {len(bars)}; the table has them all.",)


def _task_label(task: TaskTime) -> str:
    if not task.layers:
        return task.id
    return task.layers[0] + (f" +{len(task.layers) - 1}" if len(task.layers) > 1 else "")
