"""A limit beside the accuracy that a run was asked for, and what a model has of it.  Light: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LimitName = Literal["latency_ms", "speedup", "params", "macs"]

NAMES: dict[LimitName, str] = {
    "latency_ms": "latency",
    "speedup": "speed-up",
    "params": "parameters",
    "macs": "multiply-adds",
}


@dataclass(frozen=True)
class Limited:
    """One limit: `asked` for and `reached`, in ms, times or a count.  A speed-up is asked for at least, others at most.

    `met` says whether it holds.
    """

    name: LimitName
    asked: float
    reached: float
    met: bool

    @classmethod
    def of(cls, name: LimitName, asked: float, reached: float) -> Limited:
        """Return a limit with what a model has."""
        return cls(name, asked, reached, reached >= asked if name == "speedup" else reached <= asked)

    @property
    def missed_by(self) -> float:
        """Return by which share of what was asked for it is missed; 0.0 where it is met."""
        return 0.0 if self.met else abs(self.reached / self.asked - 1)

    def told(self) -> str:
        """Return `latency 3.4 ms, at most 3 ms was asked for: missed by 13 %`."""
        side = "least" if self.name == "speedup" else "most"
        reached, asked = said(self.name, self.reached), said(self.name, self.asked)
        missed = "" if self.met else f": missed by {100 * self.missed_by:.2g} %"
        return f"{NAMES[self.name]} {reached}, at {side} {asked} was asked for{missed}"


def said(name: LimitName, value: float) -> str:
    """Return a value with its unit: 3.4 ms, 2x, 1.5 M, 12,000."""
    if name == "latency_ms":
        return f"{value:.4g} ms"
    if name == "speedup":
        return f"{value:.3g}x"
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g} {letter}"
    return f"{value:,.0f}"
