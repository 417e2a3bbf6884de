"""How a round aims at limits.

No model is looked for that is faster than asked for, and of those that are fast enough the most accurate is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cprune.method.allocation import Allocation
from cprune.method.limits import REACHED


class Timed(Protocol):
    """An allocation that was compiled and timed."""

    @property
    def allocation(self) -> Allocation:
        """Return it."""

    @property
    def share(self) -> float:
        """Return its measured share of the current model's latency."""


class Tried(Protocol):
    """A model that was trained for a short time."""

    @property
    def share(self) -> float:
        """Return its measured share of the current model's latency."""

    @property
    def lost(self) -> float:
        """Return what it is thought to have lost."""


S = TypeVar("S", bound=Timed)
T = TypeVar("T", bound=Tried)


@dataclass(frozen=True)
class Aim:
    """The share of the current model's latency beyond which nothing is to be gained; 0.0 without a limit."""

    share: float

    def reached(self, share: float) -> bool:
        """Tell whether a model of this share is as fast as it need be."""
        return share <= REACHED * self.share

    def ends(self, scout: Tried, most: float) -> bool:
        """Tell whether a scout is as fast as it need be and lost no more than `most`."""
        return self.reached(scout.share) and scout.lost <= most

    def best(self, scouts: Sequence[T]) -> T:
        """Return the most accurate of the scouts that are as fast as need be, else the fastest."""
        enough = [scout for scout in scouts if self.reached(scout.share)]
        if enough:
            return min(enough, key=lambda scout: scout.lost)
        return min(scouts, key=lambda scout: scout.share)

    def most_accurate(self, found: Sequence[S], share: float) -> S | None:
        """Return the one with the least damage that is as fast as need be, where that is what was looked for."""
        enough = [one for one in found if self.reached(one.share)]
        if not enough or share > REACHED * self.share:
            return None
        return min(enough, key=lambda one: one.allocation.damage)


NO_AIM = Aim(0.0)
