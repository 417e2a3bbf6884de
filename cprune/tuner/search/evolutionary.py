"""Evolutionary search: neighbours and crossings of the fastest points."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from cprune.tuner.programs.space import Candidate
from cprune.tuner.search.features import Floats, knobs
from cprune.tuner.search.points import Points


class Evolutionary(Points):
    """Fill the space with a quarter of the trials, then breed.

    A child is a neighbour of a leader, or takes every knob from one of two leaders; what a crossing gives is moved to
    the nearest fresh point, so that every child is a point of the space.  One of seven proposals stays random.
    """

    FILL, RANDOM, PARENTS, NEAR = 0.25, 1 / 7, 6, 12

    def __init__(
        self, space: Sequence[Candidate], rng: random.Random, trials: int, start: Sequence[Candidate] = ()
    ) -> None:
        super().__init__(space, rng, trials, start)
        # A warm start knows where to look: it fills the space with a quarter of what a cold one takes.
        self.fill = trials * (self.FILL / 4 if self.queue else self.FILL)

    def _next(self) -> int | None:
        leaders = self.leaders[: self.PARENTS]
        if not leaders or int((~self.fresh).sum()) < self.fill:
            return self._spread()
        if self.rng.random() < self.RANDOM:
            return self._random()
        fresh = np.flatnonzero(self.fresh)
        if not len(fresh):
            return None
        mother = leaders[min(self.rng.randrange(len(leaders)), self.rng.randrange(len(leaders)))]
        if len(leaders) == 1 or self.rng.random() < 0.5:
            near = fresh[np.argsort(self._distances(mother)[fresh], kind="stable")[: self.NEAR]]
            return int(near[min(self.rng.randrange(len(near)), self.rng.randrange(len(near)))])
        father = self.rng.choice([i for i in leaders if i != mother])
        child = self._crossed(mother, father)
        return int(fresh[np.argmin(np.abs(self.place[fresh] - child).sum(axis=1))])

    def _crossed(self, a: int, b: int) -> Floats:
        """Return a place that has every knob of `a` or of `b`; the columns of one knob go together."""
        parents = {0: knobs((self.space[a],)), 1: knobs((self.space[b],))}
        names = dict.fromkeys(name.partition("=")[0] for table in parents.values() for name in table.names)
        whose = {name: self.rng.randrange(2) for name in names}
        every = [name.partition("=")[0] for name in knobs(self.space).names]
        pick = np.array([whose.get(name, 0) for name in every])
        child: Floats = np.where(pick == 0, self.place[a], self.place[b])
        return child
