"""The drawings of the report, as SVG text that takes its colours and its font from the page around it.

Shapes have classes and `STYLE` says how these look, so one drawing serves the light and the dark page.  Text stays
text: it can be searched, and phones need not carry a font.  Light: only the standard library.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cprune.runs.front import FrontPoint
from cprune.targets.interval import Interval

STYLE = """\
svg text { font-size: 9.5px; fill: var(--ink); } svg text.soft { font-size: 10px; fill: var(--soft); }
svg path { fill: none; stroke-width: 1.4px; stroke: var(--after); } svg path.grid { stroke: var(--grid); }
svg path.limit { stroke: var(--soft); stroke-dasharray: 4 3; } svg path.grid, svg path.thin { stroke-width: 0.8px; }
svg path.band { fill: var(--after); fill-opacity: 0.18; stroke: none; }
svg circle, svg rect.after { fill: var(--after); } svg rect.before { fill: var(--before); }
svg rect.more { fill: var(--bad); } svg path.rejected { stroke: var(--bad); }
svg path.excluded { stroke: var(--warn); }
"""
"""The rules of a page with drawings; it has to set the variables."""
_ON_WHITE = {
    **{"ink": "#1b1b1f", "soft": "#5f6368", "grid": "#dadce0", "before": "#9aa0a6", "after": "#00695c"},
    **{"bad": "#b3261e", "warn": "#b06000"},
}
_LETTER = 6.1  # the width of a wide letter at the size of STYLE
_ROW = 19  # the height of a bar with the space around it


@dataclass(frozen=True)
class Point:
    """One step of the run: its place, its verdict, its latency and its accuracy in [0, 1], None where not known."""

    index: int
    verdict: str
    latency_ms: Interval | None
    accuracy: float | None


@dataclass(frozen=True)
class Bar:
    """One layer or task: a value before and after; `after` is None where it is not known."""

    label: str
    before: float
    after: float | None


@dataclass(frozen=True)
class _Axis:
    """Values along a line of the drawing: `first` lies at `start`, `last` at `end` (in SVG units)."""

    first: float
    last: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return where `value` lies."""
        span = self.last - self.first or 1.0
        return round(self.start + (value - self.first) / span * (self.end - self.start), 1)

    def ticks(self, most: int, whole: bool = False) -> list[tuple[float, str]]:
        """Return at most `most` + 1 round numbers on the axis, with their text."""
        least = max((self.last - self.first) / most, 1.0 if whole else 1e-12)
        power = 10.0 ** math.floor(math.log10(least))
        step = next((factor * power for factor in (1, 2, 5) if factor * power >= least), 10 * power)
        places = range(math.ceil(self.first / step - 1e-9), math.floor(self.last / step + 1e-9) + 1)
        decimals = max(0, -math.floor(math.log10(step)))
        return [(place * step, f"{place * step:,.{decimals}f}") for place in places]


def steps(points: Sequence[Point], limit: float | None, width: float) -> str:
    """Return the course of the run as SVG, `width` units wide: latency above, accuracy below, a column a step.

    Accepted steps are joined by a line (with their intervals as a band), the others are marks beside it.
    `limit` is the accuracy that every step has to keep.
    """
    places = [point.index for point in points]
    timed = [(point, point.latency_ms) for point in points if point.latency_ms is not None]
    percents = [(point, 100 * point.accuracy) for point in points if point.accuracy is not None]
    kept = [value for _, value in percents] + ([] if limit is None else [100 * limit])
    low, high = min(kept, default=0.0), max(kept, default=1.0)
    margin = (high - low) / 6 or 1.0
    latencies = _Axis(0, max((interval.high for _, interval in timed), default=1.0) * 1.04, 180, 20)
    accuracies = _Axis(low - margin, high + margin, 296, 210)
    left = 10 + _LETTER * max(len(text) for axis in (latencies, accuracies) for _, text in axis.ticks(5))
    across = _Axis(min(places), max(places), left + 12, width - 12)
    size = 2.6 if len(points) <= width / 16 else 1.6

    shapes = [*_rows(latencies, left, width, "Latency (ms)")]
    shapes += _rows(accuracies, left, width, "Accuracy on the images that decide (%)")
    band = [(across.at(point.index), interval) for point, interval in timed if point.verdict == "accepted"]
    edge = [f"{x} {latencies.at(interval.high)}" for x, interval in band]
    edge += [f"{x} {latencies.at(interval.low)}" for x, interval in reversed(band)]
    if band:
        shapes.append(f'<path class="band" d="M{"L".join(edge)}Z"/>')
    shapes += _course([(point, interval.median) for point, interval in timed], across, latencies, size)
    if limit is not None:
        y = accuracies.at(100 * limit)
        shapes.append(f'<path class="limit" d="M{left:.1f} {y}H{width}"/>')
        shapes.append(_text(left + 3, y + 11, f"limit: {100 * limit:.2f} %", "start", soft=True))
    shapes += _course(percents, across, accuracies, size)
    shapes += [_text(across.at(value), 310, text) for value, text in across.ticks(8, whole=True)]
    shapes.append(_text((left + width) / 2, 326, "steps tried", soft=True))
    return _svg(width, 330, "Latency and accuracy along the steps of the run", shapes)


def bars(bars: Sequence[Bar], unit: str, title: str, width: float) -> str:
    """Return pairs of horizontal bars as SVG, `width` units wide: after on top of before.

    What is left to see of before was saved; what after has beyond before is in the colour of bad news.
    """
    labels = [_short(bar.label, 26 if width > 500 else 16) for bar in bars]
    left = 6 + _LETTER * max(map(len, labels), default=0)
    bottom = _ROW * len(bars) + 4
    longest = max((max(bar.before, bar.after or 0.0) for bar in bars), default=0.0) or 1.0
    across = _Axis(0, longest, left, width - 12)
    shapes = []
    for value, text in across.ticks(8 if width > 500 else 4):
        shapes.append(f'<path class="grid" d="M{across.at(value)} 0V{bottom}"/>')
        shapes.append(_text(across.at(value), bottom + 14, text))
    for row, (bar, label) in enumerate(zip(bars, labels, strict=True)):
        shapes.append(_text(left - 5, _ROW * row + 14, label, "end"))
        after = bar.after or 0.0
        for kind, start, end in (
            *(("before", 0.0, bar.before), ("after", 0.0, after)),
            ("more", bar.before, after),
        ):
            if end > start:
                x, length = across.at(start), across.at(end) - across.at(start)
                shapes.append(f'<rect class="{kind}" x="{x}" y="{_ROW * row + 4}" width="{length:.1f}" height="13"/>')
    shapes.append(_text((left + width) / 2, bottom + 30, unit, soft=True))
    return _svg(width, bottom + 34, title, shapes)


def front(points: Sequence[FrontPoint], allowed: float | None, width: float) -> str:
    """Return accuracy lost over speed-up as SVG, `width` units wide, a mark a model by its status; 1x loses nothing.

    `allowed` is what may be lost.  Where it was measured, the standard error of a loss is a line.
    """
    errors = [point.se or 0.0 for point in points]
    lost = [0.0, *(100 * point.loss for point in points), *([] if allowed is None else [100 * allowed])]
    low = min(0.0, *(100 * (point.loss - se) for point, se in zip(points, errors, strict=True)), 0.0)
    high = max(*lost, *(100 * (point.loss + se) for point, se in zip(points, errors, strict=True)), 0.1)
    up = _Axis(low, high * 1.1, 220, 22)
    left = 10 + _LETTER * max(len(text) for _, text in up.ticks(5))
    across = _Axis(1, max((point.speedup for point in points), default=2.0) * 1.03, left + 8, width - 10)
    shapes = [*_rows(up, left, width, "Points of accuracy lost")]
    if allowed is not None:
        y = up.at(100 * allowed)
        shapes.append(f'<path class="limit" d="M{left:.1f} {y}H{width}"/>')
        shapes.append(_text(left + 3, y - 4, f"may be lost: {100 * allowed:.2f}", "start", soft=True))
    shapes.append(f'<rect class="before" x="{across.at(1) - 3:.1f}" y="{up.at(0) - 3:.1f}" width="6" height="6"/>')
    for point, se in zip(points, errors, strict=True):
        x, y = across.at(point.speedup), up.at(100 * point.loss)
        if se:
            ends = up.at(100 * (point.loss - se)), up.at(100 * (point.loss + se))
            shapes.append(f'<path class="thin" d="M{x} {ends[0]}V{ends[1]}"/>')
        if point.status == "certified":
            shapes.append(f'<circle cx="{x}" cy="{y}" r="3.2"/>')
        elif point.status == "trained":
            shapes.append(f'<path class="excluded" d="M{x} {y}m0-4l4 4l-4 4l-4-4z"/>')
        else:
            shapes.append(f'<rect class="before" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>')
    shapes += [_text(across.at(value), 234, f"{text}x") for value, text in across.ticks(6)]
    shapes.append(_text((left + width) / 2, 250, "speed-up over the unpruned model, tuned", soft=True))
    return _svg(width, 254, "Models to choose from: accuracy lost over speed-up", shapes)


def staircase(title: str, step: int, rows: Sequence[Mapping[str, float]]) -> str:
    """Return a file of its own: latency in us over output channels, with intervals, the channel steps as lines.

    `rows` have `channels`, `median_us`, `low_us` and `high_us`, the widest last.
    """
    width, height, widest = 480, 300, int(rows[-1]["channels"])
    up = _Axis(0, max(row["high_us"] for row in rows) * 1.05 or 1.0, height - 40, 22)
    left = 10 + _LETTER * max(len(text) for _, text in up.ticks(5))
    across = _Axis(0, widest * 1.03, left, width - 4)
    marks = (across.at(channels) for channels in (range(widest, 0, -step) if step else ()))
    shapes = [f'<path class="grid" d="M{x} {up.end}V{up.start}"/>' for x in marks]
    shapes += _rows(up, left, width, f"us: {title}")
    stairs = ""
    for row in rows:
        x, y = across.at(row["channels"]), up.at(row["median_us"])
        stairs += f"V{y}H{x}" if stairs else f"M{x} {y}"
        shapes.append(f'<path class="thin" d="M{x} {up.at(row["low_us"])}V{up.at(row["high_us"])}"/>')
        shapes.append(f'<circle cx="{x}" cy="{y}" r="2"/>')
    shapes.append(f'<path d="{stairs}"/>')
    shapes += [_text(across.at(value), height - 26, text) for value, text in across.ticks(8, whole=True)]
    shapes.append(_text((left + width) / 2, height - 8, "output channels", soft=True))
    rules = re.sub(r"var\(--(\w+)\)", lambda variable: _ON_WHITE[variable[1]], STYLE)
    drawing = _svg(width, height, title, [f"<style>\n{rules}</style>", *shapes])
    alone = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
    return drawing.replace("<svg ", alone, 1) + "\n"


def _rows(axis: _Axis, left: float, width: float, title: str) -> Iterator[str]:
    """Draw the lines of an upright axis with their numbers, and its title above."""
    for value, text in axis.ticks(5):
        yield f'<path class="grid" d="M{left:.1f} {axis.at(value)}H{width}"/>'
        yield _text(left - 6, axis.at(value) + 3.3, text, "end")
    yield _text(left, axis.end - 8, title, "start", soft=True)


def _course(values: Sequence[tuple[Point, float]], across: _Axis, up: _Axis, size: float) -> Iterator[str]:
    """Draw accepted steps as dots on a line, the others as marks."""
    line = [f"{across.at(point.index)} {up.at(value)}" for point, value in values if point.verdict == "accepted"]
    if line:
        yield f'<path d="M{"L".join(line)}"/>'
    for point, value in values:
        x, y = across.at(point.index), up.at(value)
        if point.verdict == "accepted":
            yield f'<circle cx="{x}" cy="{y}" r="{size}"/>'
        elif point.verdict == "rejected":
            mark = f"m-{size}-{size}l{2 * size} {2 * size}m0-{2 * size}l-{2 * size} {2 * size}"
            yield f'<path class="rejected" d="M{x} {y}{mark}"/>'
        else:
            far = 1.3 * size
            mark = f"m0-{far:.2f}l{far:.2f} {far:.2f}l-{far:.2f} {far:.2f}l-{far:.2f}-{far:.2f}z"
            yield f'<path class="excluded" d="M{x} {y}{mark}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", soft: bool = False) -> str:
    kind = ' class="soft"' if soft else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{html.escape(text)}</text>'


def _short(label: str, longest: int) -> str:
    label = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in label)
    if len(label) <= longest:
        return label
    head = longest // 3
    return f"{label[:head]}…{label[head + 1 - longest :]}"


def _svg(width: float, height: float, title: str, shapes: Sequence[str]) -> str:
    name = html.escape("".join(sign for sign in title if sign.isprintable()))
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{"".join(shapes)}</svg>'
