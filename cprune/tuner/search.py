"""Strategies that propose candidates: ask(n) / tell(records).  A strategy never measures.

The spaces are compact (tens to hundreds of points), so the strategy is simple: what was fast for a sibling first,
then random points, then the neighbours of the best.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cprune.tuner.records import Record
from cprune.tuner.space import Candidate, nearest

EXPLORE = 0.5  # the share of the trials that goes to random points before neighbours are asked for


class Search:
    """Proposes untried points of one task's space.

    `start` are programs of a sibling of another width: their refitted forms are asked for first.  `trials` tells how
    long the search will be, so that exploring ends in time.
    """

    def __init__(
        self, space: Sequence[Candidate], rng: random.Random, trials: int, start: Sequence[Candidate] = ()
    ) -> None:
        self.space = tuple(space)
        self.tried: set[Candidate] = set()
        self.valid: dict[Candidate, float] = {}
        self.trials = trials
        self.queue = list(dict.fromkeys(near for c in start for near in nearest(c, self.space)[:1]))
        self.start = bool(self.queue)
        self.shuffled = list(self.space)
        rng.shuffle(self.shuffled)

    def ask(self, n: int) -> list[Candidate]:
        """Return up to `n` candidates that were not tried; fewer (or none) when the space is used up."""
        found: list[Candidate] = []
        while len(found) < n:
            candidate = self._next(set(found))
            if candidate is None:
                break
            found.append(candidate)
        return found

    needs_assembly = False

    def choose(self, built: Sequence[tuple[Candidate, str]], n: int) -> list[Candidate]:
        """Return the candidates to time: the first `n`."""
        return [candidate for candidate, _ in built[:n]]

    def tell(self, records: Sequence[Record]) -> None:
        """Take note of what was measured, failures included."""
        for record in records:
            candidate = Candidate.parse(record.candidate)
            self.tried.add(candidate)
            if not record.failure:
                self.valid[candidate] = record.latency_s

    def _next(self, asked: set[Candidate]) -> Candidate | None:
        def fresh(candidate: Candidate) -> bool:
            return candidate not in self.tried and candidate not in asked

        while self.queue:
            candidate = self.queue.pop(0)
            if fresh(candidate):
                return candidate
        # A warm start knows where to look: it spends a quarter of the exploration on random points.
        explore = self.trials * (EXPLORE / 4 if self.start else EXPLORE)
        if len(self.tried) + len(asked) >= explore and self.valid:
            leaders = sorted(self.valid, key=self.valid.__getitem__)[:3]
            for leader in leaders:
                near = next((c for c in nearest(leader, self.space)[1:13] if fresh(c)), None)
                if near is not None:
                    return near
        return next((c for c in self.shuffled if fresh(c)), None)
