"""The levels of ML^2Tuner (arXiv 2411.10764): models propose what to build, and pick what to measure."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

import numpy as np

from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Workload
from cprune.tuner.records.record import Record
from cprune.tuner.search import cost_model
from cprune.tuner.search.cost_model import Memory, Samples
from cprune.tuner.search.features import Hidden, Machine, Table, hidden_table, visible
from cprune.tuner.search.points import SPREAD, Points

ALPHA = 1  # P+A compiles (ALPHA + 1) times as many as it measures
EXPLORE = 0.1  # the share of proposals that goes where nobody looked, whatever a model says
APART = 1.0  # two proposals of one batch differ by a word, or by a factor of two in a number
LEAST = 1e-6  # the smallest probability of working that counts
OWN = 4.0  # how much a record of the task itself weighs against one of another task


class MultiLevel(Points):
    """P proposes, V discounts what may not work, A picks among what was compiled.

    After ML^2Tuner (arXiv 2411.10764): P and V choose (alpha + 1) N candidates, all are compiled, A ranks them, N are
    measured; what worked trains P and A, everything trains V.  What was compiled and not measured is censored, not
    slow: it trains nothing.  Ours differs:

    * The models learn from the records of every task (`history`), so that a layer that was pruned a little starts
      with a model of its wider sibling.  Refits of that sibling's programs and P's favourites then take turns.
    * Without enough records of the kind (`cost_model.MIN_VALID`) no model is asked: refits and points that fill the
      space.
    * Where a target's own description says about how long a program takes and what cannot work (`prior_s`), the latter
      is never tried, the former is a feature of P, and the order of trials until there is a P.
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
        levels: str,
        start: Sequence[Candidate] = (),
        history: Memory | None = None,
        threads: int = 1,
        prior_s: Sequence[float] | None = None,
    ) -> None:
        super().__init__(space, rng, trials, start)
        self.prior_s = None if prior_s is None else np.asarray(prior_s, dtype=np.float64)
        if self.prior_s is not None and np.isfinite(self.prior_s).any():
            self.fresh &= np.isfinite(self.prior_s)
        self.workload, self.machine, self.threads = workload, machine, threads
        self.uses_v, self.uses_a = "V" in levels.split("+"), "A" in levels.split("+")
        self.seed = rng.getrandbits(31)
        self.features = Table(*visible(workload, self.space, *machine))
        if self.prior_s is not None:
            rate = cost_model.rates(workload, self.prior_s.tolist())
            self.features = self.features.beside(Table(("prior",), rate[:, None].astype(np.float32)))
        self.history = history or Memory(machine)
        self.past: Samples | None = None
        self.recalled = -1  # how much the history held when it was asked last
        self.elsewhere: list[tuple[Candidate, Record]] = []  # records of points that this space does not have
        self.hidden: dict[int, Hidden] = {}
        self.outcome: dict[int, int] = {}
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
        batch = [self._take(i) for i in self._proposals(n * (ALPHA + 1) if more else n)]
        while self.passed and len(batch) < n:
            batch.append(self.passed.pop(0))
        return [self.space[i] for i in batch]

    def choose(self, built: Sequence[tuple[Candidate, Hidden | None]], n: int) -> list[Candidate]:
        """See `Strategy`.  What explores is measured in any case."""
        points = [self.index[candidate] for candidate, _ in built]
        self.hidden |= {i: features for i, (_, features) in zip(points, built, strict=True) if features}
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
                continue
            self.outcome[self.index[candidate]] = cost_model.outcome(record.failure)
            if record.hidden:
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
        """Return all points by falling prediction of P; None without a P.

        Where V speaks it is the throughput to be expected: what P says times the probability that the program works.
        """
        if self._ranking is None:
            self._remember()
            known = self._samples(deep=False)
            p = cost_model.performance(known, self.seed, self.threads)
            if p is None and self.prior_s is None:
                return None
            score = p(self.features) if p is not None else -np.log(np.asarray(self.prior_s))
            v = cost_model.validity(known, self.seed, self.threads) if self.uses_v else None
            if v is not None:
                score = score + np.log(np.maximum(v(self.features), LEAST))
            self._ranking = np.argsort(-score, kind="stable").tolist()
        return self._ranking

    def _rows(self, points: Sequence[int], deep: bool) -> Table:
        table = self.features.rows(points)
        return table.beside(hidden_table([self.hidden.get(i) for i in points])) if deep else table

    def _remember(self) -> None:
        """Ask the history again once it has grown by a quarter."""
        if len(self.history) >= 1.25 * self.recalled:
            self.recalled = max(1, len(self.history))
            self.past = self.history.recall(self.workload)

    def _samples(self, deep: bool) -> Samples:
        """Return what is known: this task's points, its records of other spaces, other tasks' records."""
        points = list(self.latency_s)
        rate = cost_model.rates(self.workload, [self.latency_s[i] for i in points])
        stage = np.array([self.outcome[i] for i in points], dtype=np.int64)
        parts = [Samples(self._rows(points, deep), rate, np.full(len(points), OWN), stage)]
        if self.elsewhere:
            candidates, records = zip(*self.elsewhere, strict=True)
            parts.append(cost_model.samples(self.workload, candidates, records, self.machine))
        if self.past is not None:
            parts.append(self.past)
        return cost_model.joined(parts) if len(parts) > 1 else parts[0]
