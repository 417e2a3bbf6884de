"""What every strategy shares: what the tuner asks of it, and the points of a space while they are tried.

The plainest strategy is here as well: points in random order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cprune.tuner.programs.space import Candidate, nearest
from cprune.tuner.records.record import Record
from cprune.tuner.search.features import Floats, Hidden, knobs

SPREAD = 8  # the farthest of so many random points is taken to fill the space


class Strategy(Protocol):
    """What the tuner asks.  Nothing that was measured is proposed again; an empty `ask` means the space is used up."""

    @property
    def needs_hidden(self) -> bool:
        """Tell whether `choose` wants the hidden features of what was built."""

    def ask(self, n: int) -> list[Candidate]:
        """Return what to build next so that `n` can be measured: up to `n`, or more where `choose` picks among them."""

    def choose(self, built: Sequence[tuple[Candidate, Hidden | None]], n: int) -> list[Candidate]:
        """Return up to `n` of the candidates that were built (with their hidden features, if known) to be measured."""

    def tell(self, records: Sequence[Record]) -> None:
        """Take note of what was measured or failed, in this session or in an earlier one."""


class Points:
    """The points of a space: which are fresh, what came of the others, and how far apart they are.

    A strategy is a subclass that says which point is `_next`.
    """

    def __init__(
        self, space: Sequence[Candidate], rng: random.Random, trials: int, start: Sequence[Candidate] = ()
    ) -> None:
        self.space, self.rng, self.trials = tuple(space), rng, trials
        self.index = {candidate: i for i, candidate in enumerate(self.space)}
        self.fresh = np.ones(len(self.space), dtype=np.bool_)
        self.latency_s: dict[int, float] = {}
        table = knobs(self.space)
        words = np.array(["=" in name for name in table.names], dtype=np.bool_)
        # A doubling and another word are one step; a knob that only one of two points has is a step as well.
        place = np.where(words, table.values / 2, np.log2(1 + np.maximum(0, table.values)))
        self.place = np.nan_to_num(place, nan=-1.0).astype(np.float32)
        self.gap = np.full(len(self.space), np.inf)  # the distance to the nearest point that was asked for
        refits = (near for one in start for near in nearest(one, self.space)[:1])
        self.queue = [self.index[near] for near in dict.fromkeys(refits)]

    @property
    def needs_hidden(self) -> bool:
        """See `Strategy`."""
        return False

    def ask(self, n: int) -> list[Candidate]:
        """See `Strategy`."""
        batch: list[int] = []
        while len(batch) < n:
            i = self._refit()
            if i is None:
                i = self._next()
            if i is None:
                break
            batch.append(self._take(i))
        return [self.space[i] for i in batch]

    def choose(self, built: Sequence[tuple[Candidate, Hidden | None]], n: int) -> list[Candidate]:
        """See `Strategy`."""
        return [candidate for candidate, _ in built[:n]]

    def tell(self, records: Sequence[Record]) -> None:
        """See `Strategy`."""
        for record in records:
            i = self.index.get(Candidate.parse(record.candidate))
            if i is not None:
                self._take(i)
                self.latency_s[i] = record.latency_s

    @property
    def leaders(self) -> list[int]:
        """Return the points that worked, the fastest first."""
        return sorted((i for i, s in self.latency_s.items() if s < np.inf), key=self.latency_s.__getitem__)

    def _next(self) -> int | None:
        """Return a fresh point; None if there is none."""
        raise NotImplementedError

    def _refit(self) -> int | None:
        while self.queue:
            i = self.queue.pop(0)
            if self.fresh[i]:
                return i
        return None

    def _random(self) -> int | None:
        fresh = np.flatnonzero(self.fresh)
        return int(fresh[self.rng.randrange(len(fresh))]) if len(fresh) else None

    def _spread(self) -> int | None:
        """Return the one of a few random points that is farthest from all that were asked for (Mitchell 1991)."""
        few = [i for i in (self._random() for _ in range(SPREAD)) if i is not None]
        return max(few, key=lambda i: float(self.gap[i]), default=None)

    def _take(self, i: int) -> int:
        if self.fresh[i]:
            self.fresh[i] = False
            self.gap = np.minimum(self.gap, self._distances(i))
        return i

    def _distances(self, i: int) -> Floats:
        distances: Floats = np.abs(self.place - self.place[i]).sum(axis=1)
        return distances


class Random(Points):
    """Points in random order, without return."""

    def _next(self) -> int | None:
        return self._random()
