"""From a run folder to `report.html` and `report.md`, and to the rows of the table on the terminal.

The report reads what the run wrote: `run.json`, `journal.jsonl`, `result.json` and `analysis.json` (tasks,
channels, frozen groups).  Each of them may be missing or incomplete, since a run that was stopped has a
report too; a section that has nothing to show says so.  Both reports are made of the same sections, so they
never disagree.  Light: matplotlib and jinja2 are imported by the functions.

`analysis.json`: {"tasks_before": [{"id", "layers": […], "latency_us", "uses", "step", "macs"}],
"tasks_after": the same, "channels": [{"layer", "before", "after"}], "frozen": [{"layers": […], "reason"}]}.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cprune.files import atomic_write, read_json
from cprune.runs.events import to_line
from cprune.runs.folder import RunFolder
from cprune.runs.journal import Journal
from cprune.targets.interval import Interval

STATUSES: dict[str, tuple[str, str]] = {
    "pruned": (
        "good",
        "The pruned model is faster than the tuned unpruned one and keeps the accuracy asked for.",
    ),
    "stepped-back": (
        "warn",
        "The newest steps did not keep the accuracy asked for; this is an earlier pruned model, which keeps it and is"
        " faster than the tuned unpruned one.",
    ),
    "unpruned": (
        "bad",
        "No pruned model was both clearly faster and accurate enough; this is the unpruned model, tuned.",
    ),
}
"""The values of "status" in `result.json` (`cprune.method.loop.Status`): how good the news is, and what it means.
Others are shown as they are."""

_NONE = "–"
_WIDTHS = (720, 310)  # of a plot on a large screen and on a phone
_MOST_BARS = 70  # a plot stays readable up to here; the table has the rest


@dataclass(frozen=True)
class Table:
    """Head and rows of text.  `kinds` gives every row a kind, for its colour; text columns are named by
    index."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[int, ...] = (0,)
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """One part of the report: paragraphs, a plot (SVG for wide and for narrow screens), tables."""

    id: str
    title: str
    paragraphs: tuple[str, ...] = ()
    plot: tuple[str, str] | None = None
    legend: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    fold: str = ""  # what to call the tables when they are folded away


@dataclass(frozen=True)
class Tile:
    """One number of the headline, with what it was before and what it says."""

    title: str
    value: str
    detail: str


@dataclass
class Run:
    """Everything that is known of a run; `result` and `analysis` are empty while they are not written."""

    path: Path
    config: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    analysis: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The steps of the journal, oldest first."""
        return [event for event in self.events if event["event"] == "step"]


def write_report(folder: RunFolder) -> None:
    """Write `report.html` (one file, nothing loaded from elsewhere) and `report.md` of the run in `folder`.

    Works at any time of a run.  Raises UserError if a file of the run is damaged, BrokenWorld if the disk is
    full.
    """
    import jinja2
    from markupsafe import Markup

    from cprune.runs.report import plots

    run = read_run(folder)
    sections = list(_sections(run))
    status, mood, meaning = _status(run)
    values = {
        "title": _name(run),
        "status": status,
        "mood": mood,
        "meaning": meaning,
        "tiles": _tiles(run),
        "sections": sections,
        "plot_style": plots.STYLE,
        "version": _version(),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: bool(name) and ".html" in str(name),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = Markup  # ours, from cprune.runs.report.plots, which escapes every label
    environment.filters["md"] = _markdown
    environment.filters["tied"] = _tied
    for template, path in (("report.html.j2", folder.report_html), ("report.md.j2", folder.report_md)):
        text = environment.get_template(template).render(values)
        atomic_write(path, text.encode("utf-8", "replace"))


def read_run(folder: RunFolder) -> Run:
    """Return what the files of `folder` say; files that are missing leave their part empty."""
    return Run(
        path=folder.path,
        config=read_json(folder.run_json) or {},
        events=[{"event": event.kind, **to_line(event)} for event in Journal(folder.journal).events()],
        result=read_json(folder.result) or {},
        analysis=read_json(folder.analysis) or {},
    )


def table(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows (what, before, after) that sum up a `result.json`, as text; "–" where a number is
    missing."""
    before, after = _interval_ms(result, "before"), _interval_ms(result, "after")
    rows = [
        ("Latency", before, after),
        ("Speedup", "1x", _speedup(result)),
        (
            "Accuracy (test set)",
            _percent(result, "accuracy", "before"),
            _percent(result, "accuracy", "after"),
        ),
        ("Accuracy asked for", "", _percent(result, "accuracy", "required")),
    ]
    for title, key in (("Parameters", "params"), ("MACs", "macs")):
        rows.append((title, _count(_number(result, key, "before")), _count(_number(result, key, "after"))))
    trials = [_number(result, "trials", key) for key in ("before", "loop", "final")]
    rows.append(("Trials", _count(trials[0]), _count(sum(n for n in trials[1:] if n) if any(trials) else None)))
    steps = [
        f"{_count(_number(result, 'steps', key))} {key}"
        for key in ("accepted", "rejected", "excluded")
        if _number(result, "steps", key) is not None
    ]
    rows.append(("Steps", "", ", ".join(steps) or _NONE))
    rows.append(("Time", "", _duration(_number(result, "seconds", "total"))))
    return rows


# ------------------------------------------------------------------------------------------------- headline


def _status(run: Run) -> tuple[str, str, str]:
    """Return the status, its mood (good, warn, bad, open) and what it means."""
    if not run.result:
        return "not finished", "open", f"This run is not finished.  Go on with it: cprune resume {run.path}"
    status = str(run.result.get("status", "finished"))
    mood, meaning = STATUSES.get(status, ("open", ""))
    return status, mood, meaning


def _name(run: Run) -> str:
    model = run.result.get("model") or _find(run, "model")
    target = run.result.get("target") or _find(run, "target")
    if isinstance(target, Mapping):
        target = target.get("name")
    parts = [str(part) for part in (model, target) if isinstance(part, str) and part]
    return " on ".join(parts) or run.path.name


def _tiles(run: Run) -> list[Tile]:
    result = run.result
    if not result:
        return _tiles_so_far(run)
    low, high = _number(result, "speedup", "low"), _number(result, "speedup", "high")
    median = _number(result, "speedup", "median")
    required = _percent(result, "accuracy", "required")
    tiles = [
        Tile(
            "Speedup",
            f"{median:.2f}×" if median is not None else _NONE,
            f"interval {low:.2f}× to {high:.2f}×" if low is not None and high is not None else "",
        ),
        Tile(
            "Latency",
            _ms(_number(result, "latency_ms", "after", "median")),
            f"before: {_ms(_number(result, 'latency_ms', 'before', 'median'))}, tuned as well",
        ),
        Tile(
            "Accuracy",
            _percent(result, "accuracy", "after"),
            f"before: {_percent(result, 'accuracy', 'before')}, asked for: {required}",
        ),
    ]
    for title, key in (("Parameters", "params"), ("MACs", "macs")):
        before, after = _number(result, key, "before"), _number(result, key, "after")
        saved = f", {100 * (after / before - 1):+.0f} %" if before and after is not None else ""
        tiles.append(Tile(title, _count(after), f"before: {_count(before)}{saved.replace('-', '−')}"))
    return tiles


def _tiles_so_far(run: Run) -> list[Tile]:
    """The headline of a run that is not finished: where its newest accepted step is."""
    accepted = [step for step in run.steps if step.get("verdict") == "accepted"]
    if not accepted:
        return []
    first = _number(run.steps[0], "before_ms", "median")
    now = _number(accepted[-1], "latency_ms", "median")
    gain = f"{first / now:.2f}× as fast as at the start" if first and now else ""
    return [
        Tile("Latency so far", _ms(now), gain),
        Tile(
            "Accuracy so far",
            _percent(accepted[-1], "accuracy"),
            "on held-out data, before the long training",
        ),
        Tile("Steps accepted", str(len(accepted)), f"of {len(run.steps)} tried"),
    ]


# ------------------------------------------------------------------------------------------------- sections


def _sections(run: Run) -> Iterator[Section]:
    yield _summary(run)
    yield _course(run)
    yield _channels(run)
    yield _tasks(run)
    yield _steps_table(run)
    yield _frozen(run)
    yield _measured(run)
    yield _versions(run)


def _summary(run: Run) -> Section:
    if not run.result:
        return Section("summary", "Summary", ("There is no result yet.", *_notes(run)))
    rows = tuple(table(run.result))
    return Section("summary", "Summary", _notes(run), tables=(Table(("", "before", "after"), rows),))


def _notes(run: Run) -> tuple[str, ...]:
    """What the run has to say about its result, for instance that it stepped back; each thing once."""
    notes = [str(event.get("text", "")) for event in run.events if event["event"] == "note"]
    return tuple(f"Note: {note}" for note in dict.fromkeys([*_strings(run.result.get("notes")), *notes]))


def _course(run: Run) -> Section:
    from cprune.runs.report import plots

    title = "Accuracy and latency along the steps"
    points = []
    for place, step in enumerate(run.steps, start=1):
        points.append(
            plots.Point(
                index=place,
                verdict=str(step.get("verdict", "")),
                latency_ms=_interval_of(step.get("latency_ms")),
                accuracy=_number(step, "accuracy"),
            )
        )
    if not points:
        return Section("course", title, ("No step has been tried yet.",))
    before = _interval_of(run.steps[0].get("before_ms"))
    if before is not None:
        points.insert(0, plots.Point(0, "accepted", before, _started(run, "decide")))
    limit = _limit(run)
    drawn = tuple(plots.steps(points, limit, width) for width in _WIDTHS)
    return Section(
        "course",
        title,
        (
            "A step is accepted if it is faster by more than the noise and the accuracy holds after a short"
            " training.  The band is the interval of the measured latency.",
        ),
        plot=(drawn[0], drawn[1]),
        legend=(
            ("after", "accepted"),
            ("bad cross", "rejected: not faster"),
            ("warn diamond", "excluded: costs too much accuracy"),
        ),
    )


def _channels(run: Run) -> Section:
    title = "Channels per layer"
    rows = []
    bars = []
    for entry in _dicts(run.analysis.get("channels")):
        before, after = _number(entry, "before"), _number(entry, "after")
        if before is None:
            continue
        removed = f"{100 * (1 - after / before):.0f} %" if before and after is not None else _NONE
        rows.append((str(entry.get("layer", "?")), _whole(before), _whole(after), removed))
        bars.append((rows[-1][0], before, after))
    if not rows:
        return Section("channels", title, ("Nothing is known of the channels (analysis.json).",))
    fewer = sum(1 for _, before, after in bars if after is not None and after < before)
    return Section(
        "channels",
        title,
        (f"{fewer} of {len(bars)} layers are narrower than before.", *_cut(bars)),
        plot=_bars(bars, "output channels", "Output channels of every layer before and after"),
        legend=(("before", "before"), ("after", "after")),
        tables=(Table(("layer", "before", "after", "removed"), tuple(rows)),),
        fold=f"{len(rows)} layers as a table",
    )


def _tasks(run: Run) -> Section:
    """Latency per task: every task of the unpruned model beside what its layers take now.

    Pruning gives layers other shapes, so a task may fall apart into several or join another.  Layers are what
    stays: the time of a task is shared out to its layers, and these are added up again by the tasks of
    before.
    """
    title = "Latency per task"
    before = _dicts(run.analysis.get("tasks_before"))
    after = _dicts(run.analysis.get("tasks_after"))
    if not before and not after:
        return Section("tasks", title, ("Nothing is known of the tasks (analysis.json).",))
    layer_us: dict[str, float] = {}
    plain_us: dict[str, float] = {}
    for task in after:
        total, layers = _total_us(task), _strings(task.get("layers"))
        if total is None:
            continue
        for layer in layers:
            layer_us[layer] = layer_us.get(layer, 0.0) + total / len(layers)
        if not layers:
            plain_us[str(task.get("id", "?"))] = total
    entries = []
    for task in before or after:
        layers = _strings(task.get("layers"))
        total = _total_us(task)
        if layers:
            now = sum(layer_us[layer] for layer in layers) if all(one in layer_us for one in layers) else None
        else:
            now = plain_us.get(str(task.get("id", "?")))
        entries.append((task, layers, total, now))
    entries.sort(key=lambda entry: -(entry[2] or 0))
    rows = tuple(
        (
            str(task.get("id", "?")),
            ", ".join(layers) or _NONE,
            _whole(_number(task, "uses")),
            _whole(_number(task, "step")),
            _us(total),
            _us(now),
            f"{total / now:.2f}×" if total and now else _NONE,
        )
        for task, layers, total, now in entries
    )
    bars = [(_task_label(task, layers), total, now) for task, layers, total, now in entries if total is not None]
    known = [(total, now) for _, _, total, now in entries if total is not None and now is not None]
    sums: tuple[str, ...] = ()
    if known:
        first, second = sum(total for total, _ in known), sum(now for _, now in known)
        sums = (f"All tasks together: {_us(first)} µs before, {_us(second)} µs after.",)
    return Section(
        "tasks",
        title,
        (
            "A task is one operator with what the compiler fuses into it, in one shape; its time counts once"
            " for every layer that uses it.  The step is how many channels go at once so that the tuned"
            " program keeps its loops.",
            *sums,
            *_cut(bars),
        ),
        plot=_bars(bars, "µs", "Latency of every task before and after") if bars else None,
        legend=(("before", "before"), ("after", "after")),
        tables=(
            Table(
                ("task", "layers", "uses", "step", "before (µs)", "after (µs)", "speedup"),
                rows,
                text_columns=(0, 1),
            ),
        ),
        fold=f"{len(rows)} tasks as a table",
    )


def _steps_table(run: Run) -> Section:
    title = "Steps"
    if not run.steps:
        return Section("steps", title, ("No step has been tried yet.",))
    rows, kinds = [], []
    for place, step in enumerate(run.steps, start=1):
        groups = [
            f"{group.get('id', '?')} {_whole(_number(group, 'before'))} → {_whole(_number(group, 'after'))}"
            for group in _dicts(step.get("groups"))
        ]
        verdict = str(step.get("verdict", _NONE))
        seconds = [_number(step, "seconds", key) for key in _as_dict(step.get("seconds"))]
        rows.append(
            (
                _whole(_number(step, "index")) if _number(step, "index") is not None else str(place),
                verdict,
                str(step.get("task", _NONE)),
                ", ".join(groups) or _NONE,
                _interval(step, "latency_ms"),
                _percent(step, "accuracy"),
                str(step.get("reason") or ""),
                _whole(_number(step, "trials")),
                _duration(sum(one for one in seconds if one is not None) if seconds else None),
            )
        )
        kinds.append(verdict)
    counts = [f"{kinds.count(kind)} {kind}" for kind in ("accepted", "rejected", "excluded")]
    head = (*("#", "verdict", "task", "channels", "latency (ms)", "accuracy", "why", "trials", "time"),)
    return Section(
        "steps",
        title,
        (f"{', '.join(counts)}.",),
        tables=(Table(head, tuple(rows), text_columns=(1, 2, 3, 6), kinds=tuple(kinds)),),
    )


def _frozen(run: Run) -> Section:
    title = "Frozen, and why"
    rows = tuple(
        (", ".join(_strings(entry.get("layers"))) or _NONE, str(entry.get("reason", _NONE)))
        for entry in _dicts(run.analysis.get("frozen"))
    )
    if not rows:
        known = "frozen" in run.analysis
        return Section("frozen", title, ("Nothing is frozen." if known else "Nothing is known of it (analysis.json).",))
    return Section(
        "frozen",
        title,
        ("These layers keep all their output channels.",),
        tables=(Table(("layers", "reason"), rows, text_columns=(0, 1)),),
    )


def _measured(run: Run) -> Section:
    rows = []
    for title, keys in (
        ("threads", ("threads",)),
        ("timing runs", ("runs", "repeats", "repeat")),
        ("rounds of a comparison", ("rounds",)),
        ("time of a model in a round (ms)", ("run_ms",)),
        ("seed", ("seed",)),
        ("accuracy asked for", ("required",)),
    ):
        found = next((value for key in keys if (value := _find(run, key)) is not None), None)
        if title == "accuracy asked for":
            found = None if _required(run) is None else f"{100 * (_required(run) or 0):.2f} %"
        if found is not None and not isinstance(found, (Mapping, list)):
            rows.append((title, str(found)))
    for key in ("tune", "measure", "train", "evaluate", "other"):
        total = _number(run.result, "seconds", key)
        what = "in the whole run"
        if total is None:
            parts = [_number(step, "seconds", key) for step in run.steps]
            total = sum(part for part in parts if part is not None) if any(parts) else None
            what = "in the steps"
        if total is not None:
            rows.append((f"time to {key}" if key != "other" else "other time", f"{_duration(total)} {what}"))
    for event in run.events:
        if event["event"] == "tuned":
            rows.append(
                (
                    f"tuning ({event.get('what', '?')})",
                    f"{_whole(_number(event, 'trials'))} trials in {_duration(_number(event, 'seconds'))}",
                )
            )
    starts = sum(event["event"] == "start" for event in run.events)
    if starts > 1:
        rows.append(("started", f"{starts} times (the run was resumed)"))
    paragraphs: tuple[str, ...] = (
        "Latency is the median of repeated runs with the interval of that median.  What is compared is"
        " measured in turn (interleaved), so that a machine that gets slower does so for both.",
        "Before and after are measured together at the end, both tuned with equal trials per task."
        "  Decisions along the way look at held-out data; the test set is read once before and once after.",
    )
    if str(_find(run, "cpu") or "").startswith("emulated"):
        paragraphs = ("The device was EMULATED: its latencies say nothing of a real one.", *paragraphs)
    return Section(
        "measured",
        "How it was measured",
        paragraphs,
        tables=(Table(("what", "value"), tuple(rows), text_columns=(0, 1)),) if rows else (),
    )


def _versions(run: Run) -> Section:
    tables = [
        Table((title, ""), tuple(_flat(value)), text_columns=(0, 1))
        for title, value in (
            ("target", run.config.get("target")),
            ("versions", run.config.get("versions")),
        )
        if isinstance(value, Mapping) and value
    ]
    rest = {key: value for key, value in run.config.items() if not isinstance(value, Mapping)}
    rest |= {
        key: value
        for key, value in run.config.items()
        if isinstance(value, Mapping) and key not in ("target", "versions")
    }
    if rest:
        tables.append(Table(("configuration", ""), tuple(_flat(rest)), text_columns=(0, 1)))
    if not tables:
        return Section("versions", "Target and versions", ("Nothing is known of them (run.json).",))
    return Section("versions", "Target and versions", tables=tuple(tables))


# ---------------------------------------------------------------------------------------------------- plots


def _bars(bars: Sequence[tuple[str, float, float | None]], unit: str, title: str) -> tuple[str, str]:
    from cprune.runs.report import plots

    drawn = [plots.Bar(*bar) for bar in bars[:_MOST_BARS]]
    wide, narrow = (plots.bars(drawn, unit, title, width) for width in _WIDTHS)
    return wide, narrow


def _cut(bars: Sequence[object]) -> tuple[str, ...]:
    if len(bars) <= _MOST_BARS:
        return ()
    return (f"The plot shows the first {_MOST_BARS} of {len(bars)}; the table has them all.",)


def _task_label(task: Mapping[str, Any], layers: Sequence[str]) -> str:
    if not layers:
        return str(task.get("id", "?"))
    return layers[0] + (f" +{len(layers) - 1}" if len(layers) > 1 else "")


# ------------------------------------------------------------- reading values that may be missing or of any
# type


def _as_dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [str(item) for item in value] if isinstance(value, list) else []


def _number(value: Any, *keys: str) -> float | None:
    """Return the number at the end of `keys`, None if there is none."""
    for key in keys:
        value = _as_dict(value).get(key)
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def _interval_of(value: Any) -> Interval | None:
    median, low, high = (_number(value, key) for key in ("median", "low", "high"))
    return None if median is None or low is None or high is None else Interval(median, low, high)


def _find(run: Run, key: str) -> Any:
    """Return the value of `key`, wherever in run.json, result.json or the start of the journal; outermost
    first."""
    level: list[Any] = [run.config, run.result, *(e for e in run.events if e["event"] == "start")]
    while level:
        for entry in level:
            if entry.get(key) is not None:
                return entry[key]
        level = [value for entry in level for value in entry.values() if isinstance(value, Mapping)]
    return None


def _required(run: Run) -> float | None:
    required = _number(run.result, "accuracy", "required")
    if required is None:
        found = _find(run, "required")
        required = _number({"required": found}, "required")
    return required


def _started(run: Run, key: str) -> float | None:
    """A number of the event that begins the run."""
    events = (event for event in run.events if event["event"] == "start")
    return next((number for event in events if (number := _number(event, key)) is not None), None)


def _limit(run: Run) -> float | None:
    """The accuracy on held-out data that decisions keep, which differs a little from the one on the test
    set."""
    floor = _started(run, "floor")
    return _required(run) if floor is None else floor


def _total_us(task: Mapping[str, Any]) -> float | None:
    latency = _number(task, "latency_us")
    uses = _number(task, "uses")
    return None if latency is None else latency * (1 if uses is None else uses)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        elif isinstance(item, list):
            yield f"{prefix}{key}", ", ".join(map(str, item))
        elif item is not None and item != "":
            yield f"{prefix}{key}", str(item)


# ------------------------------------------------------------------------------------------ numbers for
# people


def _ms(value: float | None) -> str:
    return _NONE if value is None else f"{_digits(value)} ms"


def _us(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _digits(value: float) -> str:
    """Three or four digits that count: 0.0123, 1.234, 12.34, 123.4."""
    places = 4 if value < 0.1 else 3 if value < 10 else 2 if value < 100 else 1
    return f"{value:,.{places}f}"


def _interval(value: Mapping[str, Any], *keys: str) -> str:
    """Return a latency as in `1.234 (1.230 to 1.239)`."""
    median, low, high = (_number(value, *keys, key) for key in ("median", "low", "high"))
    if median is None:
        return _NONE
    if low is None or high is None:
        return _digits(median)
    return f"{_digits(median)} ({_digits(low)} to {_digits(high)})"


def _interval_ms(result: Mapping[str, Any], key: str) -> str:
    text = _interval(result, "latency_ms", key)
    if text == _NONE:
        return text
    median, _, interval = text.partition(" ")
    return f"{median} ms {interval}".rstrip()


def _speedup(result: Mapping[str, Any]) -> str:
    median, low, high = (_number(result, "speedup", key) for key in ("median", "low", "high"))
    if median is None:
        return _NONE
    return f"{median:.2f}x" + (f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else "")


def _percent(value: Mapping[str, Any], *keys: str) -> str:
    share = _number(value, *keys)
    return _NONE if share is None else f"{100 * share:.2f} %"


def _count(value: float | None) -> str:
    """12, 1,234, 0.27 M, 41.2 M."""
    if value is None:
        return _NONE
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.{2 if abs(scaled) < 10 else 1}f} {letter}"
    return f"{value / 1e6:.3f} M" if abs(value) >= 1e5 else f"{value:,.0f}"


def _whole(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def _duration(seconds: float | None) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return _NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _version() -> str:
    from cprune import __version__

    return __version__


def _tied(text: str) -> str:
    """Return `text` with its numbers tied to what belongs to them, so that a line never ends between the
    two."""
    for pair in (" %", " ms", " M", " G", " → "):
        text = text.replace(pair, pair.replace(" ", "\N{NO-BREAK SPACE}"))
    return text


def _markdown(text: object) -> str:
    """Return `text` so that Markdown shows it as it is, in a paragraph and in the cell of a table."""
    escaped = str(text).replace("\\", "\\\\")
    for sign in "`*_[]|#~$":
        escaped = escaped.replace(sign, f"\\{sign}")
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(escaped.split())
