"""Numbers as people read them; `MISSING` for one that is not known."""

from __future__ import annotations

from cprune.targets.interval import Interval

MISSING = "–"


def median(latency_ms: Interval | None) -> str:
    """Return the median of a latency as in `1.234 ms`."""
    return MISSING if latency_ms is None else f"{_digits(latency_ms.median)} ms"


def microseconds(value: float | None) -> str:
    """Return a latency as in `12.3` or `1,234`, without its unit."""
    return MISSING if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def with_interval(latency: Interval | None, unit: str = "") -> str:
    """Return a latency as in `1.234 (1.230 to 1.239)`, with `unit` (perhaps " ms") behind the median."""
    if latency is None:
        return MISSING
    return f"{_digits(latency.median)}{unit} ({_digits(latency.low)} to {_digits(latency.high)})"


def speedup(times: Interval | None) -> str:
    """Return a speedup as in `1.85x (1.84 to 1.87)`."""
    return MISSING if times is None else f"{times.median:.2f}x ({times.low:.2f} to {times.high:.2f})"


def percent(share: float | None) -> str:
    """Return a share of 1 as in `91.27 %`."""
    return MISSING if share is None else f"{100 * share:.2f} %"


def count(value: float | None) -> str:
    """Return 12, 1,234, 0.272 M, 41.2 M."""
    if value is None:
        return MISSING
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.{2 if abs(scaled) < 10 else 1}f} {letter}"
    return f"{value / 1e6:.3f} M" if abs(value) >= 1e5 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Return 0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _digits(value: float) -> str:
    """Return three or four digits that count: 0.0123, 1.234, 12.34, 123.4."""
    places = 4 if value < 0.1 else 3 if value < 10 else 2 if value < 100 else 1
    return f"{value:,.{places}f}"
