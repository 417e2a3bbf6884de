"""A number that was measured, with its interval.  Light: only the standard library."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NOISY = 0.15  # rounds, or runs of one program, that spread by more of the median: something else is running


@dataclass(frozen=True)
class Interval:
    """A median with the 95 % confidence interval of the median."""

    median: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers for JSON, six significant digits each."""
        return {name: float(f"{getattr(self, name):.6g}") for name in ("median", "low", "high")}

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Interval:
        """Return the interval of a `to_dict`."""
        return cls(values["median"], values["low"], values["high"])


def interval(values: Sequence[float]) -> Interval:
    """Return the median of `values` and its 95 % interval by order statistics, free of any distribution.

    The interval runs from the k-th smallest to the k-th largest value, k the largest number for which a binomial
    (n, 1/2) falls below k with a probability of at most 2.5 %.  With fewer than six values it is their range.
    """
    ordered = sorted(values)
    n = len(ordered)
    below, k = 0.0, 0
    for i in range(n // 2):
        below += math.comb(n, i) / 2**n
        if below > 0.025:
            break
        k = i
    return Interval(statistics.median(ordered), ordered[k], ordered[n - 1 - k])


@dataclass(frozen=True)
class Comparison:
    """Two models timed in turns.  `ratio` is new / old per round: below 1 the new one is faster."""

    old_ms: Interval
    new_ms: Interval
    ratio: Interval

    def faster(self, beta: float) -> bool:
        """Tell whether the new model takes at most `beta` of the time, and less time in any case."""
        return self.ratio.median <= beta and self.ratio.high < 1

    @property
    def noisy(self) -> bool:
        """Tell whether the rounds spread so far that the machine must be busy with something else."""
        return (self.ratio.high - self.ratio.low) > NOISY * self.ratio.median
