"""A number that was measured, with its interval.  Light: only the standard library."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDE = 0.10  # no interval that is wider, as a share of its median, is believed
SURPRISING = 1.10  # a ratio this far from its forecast is measured again before it counts
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
    """Two models timed in turns.  `ratio` is new / old per round: below 1 the new one is faster.

    `set_aside` is the number of rounds that do not count, because the machine ran at another speed in them.
    """

    old_ms: Interval
    new_ms: Interval
    ratio: Interval
    set_aside: int = 0

    def faster(self, beta: float) -> bool:
        """Tell whether the new model takes at most `beta` of the time, less time in any case, and believably so."""
        return self.ratio.median <= beta and self.ratio.high < 1 and self.believable

    @property
    def believable(self) -> bool:
        """Tell whether the interval of the ratio is narrow enough to decide on."""
        return self.ratio.high - self.ratio.low <= WIDE * self.ratio.median

    def contradicts(self, forecast: float) -> bool:
        """Tell whether the ratio is so far from its forecast that it has to be measured again, separately."""
        return abs(math.log(self.ratio.median / forecast)) > math.log(SURPRISING)


APART, LEAST_ROUNDS = 1.10, 3


def one_level(values: Sequence[float]) -> list[int]:
    """Return the places of the values that were taken at one speed of the machine: all, or those of the larger level.

    There are two levels where the sorted values jump by more than APART between two neighbours, and more than the
    values spread on either side of the jump, with at least LEAST_ROUNDS on both.  Of two equal levels the fast one.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    cuts = range(LEAST_ROUNDS, len(order) - LEAST_ROUNDS + 1)
    cut = max(cuts, key=lambda i: values[order[i]] / values[order[i - 1]], default=0)
    if not cut:
        return list(range(len(values)))
    fast, slow = order[:cut], order[cut:]
    jump = values[slow[0]] / values[fast[-1]]
    if jump < max(APART, *(values[level[-1]] / values[level[0]] for level in (fast, slow))):
        return list(range(len(values)))
    return sorted(fast if len(fast) >= len(slow) else slow)
