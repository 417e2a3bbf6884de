"""The plots of the report, as SVG text that takes its colours and its font from the page around it.

matplotlib draws with stand-in colours, which are then replaced by the page's CSS variables: so one drawing
serves the light and the dark page.  Text stays text (it can be searched, and phones need not carry a font).
Light: matplotlib is imported by the functions.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# stand-in colour -> CSS variable of the page
_COLOURS = {
    "ink": "#010203",
    "soft": "#010204",
    "grid": "#010205",
    "before": "#010206",
    "after": "#010207",
    "bad": "#010208",
    "warn": "#010209",
    "paper": "#01020a",
}
_ON_WHITE = {
    **{"ink": "#1b1b1f", "soft": "#5f6368", "grid": "#dadce0", "before": "#9aa0a6", "after": "#00695c"},
    **{"bad": "#b3261e", "warn": "#b06000", "paper": "#ffffff"},
}
"""The colours of a plot that is a file of its own."""
_INCH = 72.0  # SVG units to an inch, as matplotlib counts


@dataclass(frozen=True)
class Point:
    """One step of the run: its verdict, its latency in ms with interval, its accuracy in [0, 1] or None."""

    index: int
    verdict: str
    median_ms: float | None
    low_ms: float | None
    high_ms: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Bar:
    """One layer or task: a value before and after; `after` is None where it is not known."""

    label: str
    before: float
    after: float | None


def steps(points: Sequence[Point], limit: float | None, width: float, name: str) -> str:
    """Return the course of the run as SVG, `width` units wide: latency above, accuracy below, one step a
    column.

    Accepted steps are joined by a line (with their intervals as a band), the others are marks beside it.
    `limit` is the accuracy that every step has to keep.  `name` keeps the ids of the plots of one page apart.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = _figure(width, 330)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    size = 5 if len(points) <= width / 16 else 3
    taken = [point for point in points if point.verdict == "accepted"]

    timed = [point for point in taken if point.median_ms is not None]
    if timed:
        x = [point.index for point in timed]
        band = [(point.low_ms or point.median_ms, point.high_ms or point.median_ms) for point in timed]
        upper.fill_between(
            x,
            [low for low, _ in band],
            [high for _, high in band],
            color=_COLOURS["after"],
            alpha=0.18,
            linewidth=0,
        )
        upper.plot(
            x,
            [point.median_ms for point in timed],
            color=_COLOURS["after"],
            marker="o",
            markersize=size,
            zorder=3,
        )
    right = [point for point in taken if point.accuracy is not None]
    if right:
        x = [point.index for point in right]
        lower.plot(
            x,
            [point.accuracy for point in right],
            color=_COLOURS["after"],
            marker="o",
            markersize=size,
            zorder=3,
        )
    for verdict, marker, colour in (("rejected", "x", "bad"), ("excluded", "D", "warn")):
        marks = [point for point in points if point.verdict == verdict]
        style: dict[str, Any] = {
            "linestyle": "none",
            "marker": marker,
            "color": _COLOURS[colour],
            "markerfacecolor": "none",
            "markersize": size,
            "markeredgewidth": 1.3,
            "zorder": 2,
        }
        slow = [point for point in marks if point.median_ms is not None]
        upper.plot([point.index for point in slow], [point.median_ms for point in slow], **style)
        poor = [point for point in marks if point.accuracy is not None]
        lower.plot([point.index for point in poor], [point.accuracy for point in poor], **style)
    if limit is not None:
        lower.axhline(limit, color=_COLOURS["soft"], linestyle=(0, (4, 3)), linewidth=1.2)
        lower.annotate(
            f"limit: {100 * limit:.2f} %",
            (1, limit),
            xycoords=("axes fraction", "data"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            color=_COLOURS["soft"],
            fontsize=9,
        )
    upper.set_ylim(bottom=0)
    upper.set_title("Latency (ms)", loc="left")
    lower.set_title("Accuracy on held-out data (%)", loc="left")
    lower.set_xlabel("step")
    lower.margins(y=0.25)
    upper.yaxis.set_major_locator(MaxNLocator(5))
    lower.yaxis.set_major_locator(MaxNLocator(4))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (upper, lower):
        axes.grid(axis="y", color=_COLOURS["grid"], linewidth=0.8)
    return _svg(figure, "Latency and accuracy along the steps of the run", name)


def bars(bars: Sequence[Bar], unit: str, title: str, width: float, name: str) -> str:
    """Return pairs of horizontal bars as SVG, `width` units wide: after on top of before.

    What is left to see of before was saved; what after has beyond before is in the colour of bad news.
    """
    rows = len(bars)
    figure = _figure(width, 44 + 19 * rows)
    axes = figure.subplots()
    places = range(rows)
    height = 0.7
    axes.barh(places, [bar.before for bar in bars], height=height, color=_COLOURS["before"])
    axes.barh(places, [bar.after or 0 for bar in bars], height=height, color=_COLOURS["after"])
    more = [max(0.0, bar.after - bar.before) if bar.after is not None else 0.0 for bar in bars]
    if any(more):
        axes.barh(places, more, left=[bar.before for bar in bars], height=height, color=_COLOURS["bad"])
    longest = 26 if width > 500 else 16
    axes.set_yticks(places, [_short(bar.label, longest) for bar in bars])
    axes.invert_yaxis()
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlabel(unit)
    axes.xaxis.set_label_position("bottom")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=_COLOURS["grid"], linewidth=0.8)
    return _svg(figure, title, name)


def staircase(title: str, step: int, rows: Sequence[Mapping[str, float]]) -> str:
    """Return a file of its own: latency in us over output channels, with intervals, the channel steps as lines.

    `rows` have `channels`, `median_us`, `low_us` and `high_us`, the widest last.
    """
    figure = _figure(480, 300)
    axes = figure.add_subplot()
    channels = [row["channels"] for row in rows]
    medians = [row["median_us"] for row in rows]
    below = [row["median_us"] - row["low_us"] for row in rows]
    above = [row["high_us"] - row["median_us"] for row in rows]
    for mark in range(int(channels[-1]), 0, -step) if step else ():
        axes.axvline(mark, color=_COLOURS["grid"], linewidth=0.8)
    axes.step(channels, medians, where="pre", color=_COLOURS["after"], linewidth=1.4)
    axes.errorbar(channels, medians, (below, above), fmt="o", color=_COLOURS["after"], markersize=3, linewidth=1)
    axes.set_xlim(0, channels[-1] * 1.03)
    axes.set_ylim(0)
    axes.set_xlabel("output channels")
    axes.set_title(f"us: {title}", loc="left")
    text = _svg(figure, title, "staircase")
    for name, colour in _ON_WHITE.items():
        text = text.replace(f"var(--{name})", colour)
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1)


def _short(label: str, longest: int) -> str:
    label = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in label)
    if len(label) <= longest:
        return label
    head = longest // 3
    return f"{label[:head]}…{label[head + 1 - longest :]}"


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _INCH, height / _INCH), layout="constrained")


def _svg(figure: Any, title: str, name: str) -> str:
    """Draw `figure` and make the text fit for the inside of a page: no header, no links, no ids in common."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "cprune",
        "text.parse_math": False,  # a layer may be called $x$
    }
    for axes in figure.axes:
        axes.set_axisbelow(True)
        axes.patch.set_visible(False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(_COLOURS["grid"])
        axes.tick_params(colors=_COLOURS["soft"], labelcolor=_COLOURS["ink"], labelsize=9.5, length=0)
        axes.title.set_color(_COLOURS["ink"])
        for text in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label):
            text.set_color(_COLOURS["soft"])
            text.set_fontsize(10)
    figure.patch.set_visible(False)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context(settings), warnings.catch_warnings():
        # A sign that matplotlib's own font lacks is no loss: the browser draws the text.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Its style rule would apply to the whole page; its font list is the machine's, not the page's.
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    for variable, stand_in in _COLOURS.items():
        text = text.replace(stand_in, f"var(--{variable})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    return re.sub(r"<svg[^>]*>", lambda found: _opening(found[0], title), text, count=1)


def _opening(tag: str, title: str) -> str:
    box = re.search(r'viewBox="([^"]*)"', tag)
    return f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{title}">'
