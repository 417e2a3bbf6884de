"""Strategies that propose candidates: ask(n) / choose(built, n) / tell(records).  A strategy never measures.

============  ====================================================================================================
random        points in random order
evolutionary  neighbours and crossings of the fastest points
P             a model of speed on visible features proposes what to measure
P+A           P proposes twice as many; they are compiled, and a model that sees their assembly picks half
P+V, P+V+A    the same without points that a model of validity expects to fail
============  ====================================================================================================

Every strategy asks for the refitted programs of a sibling (`start`) first.  The models are in `models.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from cprune.targets.errors import unknown
from cprune.tuner.programs.space import Candidate, nearest
from cprune.tuner.programs.workload import Workload
from cprune.tuner.records.store import Record
from cprune.tuner.search import cost_model
from cprune.tuner.search.cost_model import Memory, Model, Samples
from cprune.tuner.search.features import Floats, Hidden, Machine, Table, hidden_table, knobs, visible

STRATEGIES = ("random", "evolutionary", "P", "P+A", "P+V", "P+V+A")
DEFAULT = "P"

ALPHA = 1  # P+A compiles (ALPHA + 1) times as many as it measures
EXPLORE = 0.1  # the share of proposals that goes where nobody looked, whatever a model says
APART = 1.0  # two proposals of one batch differ by a word, or by a factor of two in a number
OWN = 4.0  # how much a record of the task itself weighs against one of another task
WAY, OWN_ROUNDS = "joint", 60
SPREAD = 8  # the farthest of so many random points is taken to fill the space


class Strategy(Protocol):
    """What the tuner asks.  Nothing that was measured is proposed again; an empty `ask` means the space is used up."""

    @property
    def needs_hidden(self) -> bool:
        """Tell whether `choose` wants the hidden features of what was built."""

    def ask(self, n: int) -> list[Candidate]:
        """Return what to build next so that `n` can be measured: up to `n`, or up to (ALPHA + 1) n with an A."""

    def choose(self, built: Sequence[tuple[Candidate, Hidden | None]], n: int) -> list[Candidate]:
        """Return up to `n` of the candidates that were built (with their hidden features, if known) to be measured."""

    def tell(self, records: Sequence[Record]) -> None:
        """Take note of what was measured or failed, in this session or in an earlier one."""


def strategy(
    name: str,
    workload: Workload,
    space: Sequence[Candidate],
    rng: random.Random,
    trials: int,
    machine: Machine,
    start: Sequence[Candidate] = (),
    history: Memory | None = None,
    threads: int = 1,
) -> Strategy:
    """Return the strategy of this name for one task.

    `trials` is how long the search will be, earlier trials included.  `start` are fast programs of a sibling of
    another width.  `history` is what other tasks taught on the same target; it may grow while the strategy is used.
    What is known of this task itself has to be told.  `threads` is how many threads training a model may use.
    Raises UserError for an unknown name.
    """
    if name == "random":
        return Random(space, rng, trials, start)
    if name == "evolutionary":
        return Evolutionary(space, rng, trials, start)
    if name in STRATEGIES:
        return MultiLevel(workload, space, rng, trials, machine, start, history, name, threads)
    raise unknown("strategy", name, STRATEGIES)


class _Points:
    """The points of a space: which are fresh, what came of the others, and how far apart they are."""

    def __init__(self, space: Sequence[Candidate], rng: random.Random, trials: int, start: Sequence[Candidate]) -> None:
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
        found: list[int] = []
        while len(found) < n:
            i = self._refit()
            if i is None:
                i = self._next()
            if i is None:
                break
            found.append(self._take(i))
        return [self.space[i] for i in found]

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
        found: Floats = np.abs(self.place - self.place[i]).sum(axis=1)
        return found


class Random(_Points):
    """Points in random order, without return."""

    def __init__(
        self, space: Sequence[Candidate], rng: random.Random, trials: int, start: Sequence[Candidate] = ()
    ) -> None:
        super().__init__(space, rng, trials, start)

    def _next(self) -> int | None:
        return self._random()


class Evolutionary(_Points):
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


class MultiLevel(_Points):
    """P proposes, V forbids, A picks among what was compiled.

    After ML^2Tuner (arXiv 2411.10764): P and V choose (alpha + 1) N candidates, all are compiled, A ranks them, N are
    measured; what worked trains P and A, everything trains V.  What was compiled and not measured is censored, not
    slow: it trains nothing.  Ours differs:

    * The models learn from the records of every task (`history`), so that a layer that was pruned a little starts
      with a model of its wider sibling.  Refits of that sibling's programs and P's favourites then take turns.
    * Without enough records of the kind (`models.MIN_VALID`) no model is asked: refits and points that fill the space.
    * The proposals of a batch are no near-copies (APART), and a share of them (EXPLORE) fills the space.
    * A is asked once enough points were measured whose assembly is known; until then nothing is compiled in vain.
      A point that A passed over may be proposed once more (A may be wrong about a kind of program for long), one
      that it passed over twice comes back when no fresh one is left.
    """

    def __init__(
        self,
        workload: Workload,
        space: Sequence[Candidate],
        rng: random.Random,
        trials: int,
        machine: Machine,
        start: Sequence[Candidate] = (),
        history: Memory | None = None,
        levels: str = DEFAULT,
        threads: int = 1,
    ) -> None:
        super().__init__(space, rng, trials, start)
        self.workload, self.machine, self.threads = workload, machine, threads
        self.uses_v, self.uses_a = "V" in levels.split("+"), "A" in levels.split("+")
        self.seed = rng.getrandbits(31)
        self.features = Table(*visible(workload, self.space, *machine))
        self.history = history or Memory(machine)
        self.past: Samples | None = None
        self.recalled = -1  # how much the history held when it was asked last
        self.base: Model | None = None
        self.elsewhere: list[tuple[Candidate, Record]] = []  # records of points that this space does not have
        self.hidden: dict[int, Hidden] = {}
        self.doubted: set[int] = set()
        self.passed: list[int] = []
        self.exploring: set[int] = set()
        self.explored = 0.0
        self._ranking: list[int] | None = None

    @property
    def needs_hidden(self) -> bool:
        """See `Strategy`."""
        return self.uses_a

    def ask(self, n: int) -> list[Candidate]:
        """See `Strategy`.  The proposals that P likes best come first."""
        left = int(self.fresh.sum()) + len(self.passed)
        more = self._picky and left > max(n, self.trials - len(self.latency_s))
        wanted = n * (ALPHA + 1) if more else n
        found: list[int] = []
        for i in self._proposals(wanted):
            found.append(self._take(i))
        while self.passed and len(found) < n:
            found.append(self.passed.pop(0))
        return [self.space[i] for i in found]

    def choose(self, built: Sequence[tuple[Candidate, Hidden | None]], n: int) -> list[Candidate]:
        """See `Strategy`.  What explores is measured in any case."""
        points = [self.index[candidate] for candidate, _ in built]
        self.hidden |= {i: found for i, (_, found) in zip(points, built, strict=True) if found}
        picked = points[:n]
        if len(points) > n:
            a = cost_model.performance(self._samples(deep=True), self.seed, self.threads) if self._picky else None
            if a is not None:
                score = dict(zip(points, a(self._rows(points, deep=True)).tolist(), strict=True))
                picked = sorted(points, key=lambda i: (i not in self.exploring, -score[i]))[:n]
        for i in (i for i in points if i not in picked):
            if i in self.doubted:
                self.passed.append(i)
            else:
                self.doubted.add(i)
                self.fresh[i] = True
        return [self.space[i] for i in picked]

    def tell(self, records: Sequence[Record]) -> None:
        """See `Strategy`."""
        super().tell(records)
        for record in records:
            candidate = Candidate.parse(record.candidate)
            if candidate not in self.index:
                self.elsewhere.append((candidate, record))
            elif record.hidden:
                self.hidden[self.index[candidate]] = json.loads(record.hidden)
        self.passed = [i for i in self.passed if i not in self.latency_s]
        self._ranking = None

    @property
    def _picky(self) -> bool:
        """Tell whether A knows enough to pick."""
        known = sum(s < np.inf and i in self.hidden for i, s in self.latency_s.items())
        return self.uses_a and known >= cost_model.MIN_VALID

    def _proposals(self, n: int) -> Iterator[int]:
        """Yield up to `n` fresh points; each is taken before the next is asked for."""
        if int(self.fresh.sum()) <= n:
            yield from np.flatnonzero(self.fresh).tolist()
            return
        ranking = self._ranked()
        batch: list[int] = []
        while len(batch) < n:
            i: int | None = None
            if ranking is None or len(batch) % 2 == 0:
                i = self._refit()
            if i is None and ranking is not None:
                self.explored += EXPLORE
                i = None if self.explored >= 1 else self._favourite(ranking, batch)
            if i is None:
                self.explored = max(0.0, self.explored - 1)
                i = self._spread()
                if i is None:
                    return
                if ranking is not None:
                    self.exploring.add(i)
            batch.append(i)
            yield i

    def _favourite(self, ranking: list[int], batch: list[int]) -> int | None:
        """Return the best fresh point that is no near-copy of one in the batch, else the best one."""
        best = None
        looked = 0
        for i in ranking:
            if not self.fresh[i]:
                continue
            best = i if best is None else best
            if all(float(np.abs(self.place[i] - self.place[j]).sum()) >= APART for j in batch):
                return i
            looked += 1
            if looked == 4 * SPREAD:
                break
        return best

    def _ranked(self) -> list[int] | None:
        """Return all points by falling prediction of P, those that V forbids last; None without a P."""
        if self._ranking is None:
            self._remember()
            known = self._samples(deep=False)
            if WAY == "joint":
                p = cost_model.performance(known, self.seed, self.threads)
            else:
                own = self._samples(deep=False, past=False)
                p = cost_model.performance(own, self.seed, self.threads, base=self.base, rounds=OWN_ROUNDS)
            if p is None:
                return None
            score = p(self.features)
            v = cost_model.validity(known, self.seed, self.threads) if self.uses_v else None
            forbidden = v(self.features) < 0.5 if v is not None else np.zeros(len(score), dtype=np.bool_)
            self._ranking = np.lexsort((-score, forbidden)).tolist()
        return self._ranking

    def _rows(self, points: Sequence[int], deep: bool) -> Table:
        table = self.features.rows(points)
        return table.beside(hidden_table([self.hidden.get(i) for i in points])) if deep else table

    def _remember(self) -> None:
        """Ask the history again once it has grown by a quarter."""
        if len(self.history) >= 1.25 * self.recalled:
            self.recalled = max(1, len(self.history))
            self.past = self.history.recall(self.workload)
            if WAY != "joint" and self.past is not None:
                self.base = cost_model.performance(self.past, self.seed, self.threads)

    def _samples(self, deep: bool, past: bool = True) -> Samples:
        """Return what is known: this task's points, its records of other spaces, other tasks' records."""
        points = list(self.latency_s)
        rate = cost_model.rates(self.workload, [self.latency_s[i] for i in points])
        n = len(points)
        parts = [Samples(self._rows(points, deep), rate, np.zeros(n, np.int64), np.full(n, OWN))]
        if self.elsewhere:
            candidates, records = zip(*self.elsewhere, strict=True)
            parts.append(cost_model.samples(self.workload, candidates, records, self.machine))
        if self.past is not None and past:
            parts.append(self.past)
        return cost_model.joined(parts) if len(parts) > 1 else parts[0]


Search = Evolutionary
"""The strategy that needs no workload."""
