"""What is asked of a model beside its accuracy: a latency, a speed-up, parameters, multiply-adds.

The accuracy that is promised holds in any case.  Without a limit the fastest model that keeps it is looked for; with
one the most accurate model that meets all limits, so a run aims at them exactly and goes no further.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cprune.method.settings import Settings
from cprune.method.state import RunState
from cprune.network.facts import Size, size_of
from cprune.runs.limits import Limited

MARGIN = 0.97
"""Of the latency asked for is aimed at: two measurements of one model differ, and so do programs after final tuning."""
REACHED = 1.01  # times the share that is aimed at counts as reached


class Sized(Protocol):
    """A model, or an allocation, of which parameters and multiply-adds are known."""

    @property
    def params(self) -> int:
        """Return its parameters."""

    @property
    def macs(self) -> int:
        """Return its multiply-adds."""


@dataclass(frozen=True)
class Limits:
    """What was asked for, None where nothing was."""

    latency_ms: float | None = None
    speedup: float | None = None
    params: int | None = None
    macs: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits of a run."""
        return cls(settings.max_latency_ms, settings.speedup, settings.max_params, settings.max_macs)

    def __bool__(self) -> bool:
        """Tell whether anything was asked for."""
        return self != Limits()

    @property
    def sized(self) -> bool:
        """Tell whether the size is limited."""
        return self.params is not None or self.macs is not None

    def share(self, whole_ms: float) -> float:
        """Return which share of the unpruned model's latency a model may take at most; infinite without a limit."""
        shares = (
            math.inf if self.latency_ms is None else self.latency_ms / whole_ms,
            math.inf if self.speedup is None else 1 / self.speedup,
        )
        return min(shares)

    def fits(self, size: Sized) -> bool:
        """Tell whether a model is small enough."""
        most = ((self.params, size.params), (self.macs, size.macs))
        return all(limit is None or value <= limit for limit, value in most)

    def largest(self, size: Sized) -> float:
        """Return what a model has of the limited size that it has most of, as a share of its limit; 0.0 without one."""
        most = ((self.params, size.params), (self.macs, size.macs))
        return max((value / limit for limit, value in most if limit is not None), default=0.0)

    def all_of(self, latency_ms: float, speedup: float, size: Sized) -> tuple[Limited, ...]:
        """Return every limit with what a model has of it."""
        asked = (
            Limited.of("latency_ms", self.latency_ms, latency_ms) if self.latency_ms is not None else None,
            Limited.of("speedup", self.speedup, speedup) if self.speedup is not None else None,
            Limited.of("params", self.params, size.params) if self.params is not None else None,
            Limited.of("macs", self.macs, size.macs) if self.macs is not None else None,
        )
        return tuple(one for one in asked if one is not None)


def share_after(run: RunState, index: int | None) -> float:
    """Return the share of the unpruned model's latency that the model after an accepted step takes, as measured.

    It is the product of what every step on the way was measured to take of the one before, the first of them of the
    unpruned model in the precision of the run.
    """
    share = run.start.share
    for step in run.history.accepted if index is not None else ():
        assert step.ratio is not None  # what was accepted was timed
        share *= step.ratio.median
        if step.index == index:
            break
    return share


def meets(run: RunState, index: int | None) -> bool:
    """Tell whether limits were asked for, and the model after an accepted step (None: the unpruned one) meets them."""
    limits = Limits.of(run.settings)
    if not limits or share_after(run, index) > limits.share(run.start.latency_ms.median):
        return False
    return not limits.sized or limits.fits(size_after(run, index))


def size_after(run: RunState, index: int | None) -> Size:
    """Return the size of the model after an accepted step; None: of the unpruned one."""
    return size_of(run.first if index is None else run.keeper.load(index), run.example)


def least_share(run: RunState, shares: Sequence[tuple[float, Sized]]) -> float:
    """Return the share of the current model's latency below which nothing is looked for; 0.0 without a limit.

    `shares` are those that the points of the predicted front take, with their sizes.  What is not small enough must be
    cut until it is: then it is that of the slowest point which is, and if none is, of the smallest.
    """
    limits = Limits.of(run.settings)
    if not limits:
        return 0.0
    now = share_after(run, run.history.last)
    least = min(1.0, MARGIN * limits.share(run.start.latency_ms.median) / now)
    if limits.sized:
        fitting = [share for share, size in shares if limits.fits(size)]
        smallest = min(shares, key=lambda one: limits.largest(one[1]))[0]
        least = min(least, max(fitting, default=smallest))
    return least
