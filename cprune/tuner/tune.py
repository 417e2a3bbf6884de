"""Spend trials on a task: propose, lower, build and time, record; then compare the winner with PyTorch.

Everything that was ever recorded for the same task on the same target counts as spent: tuning again measures
nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cprune.targets.errors import BrokenWorld
from cprune.targets.session import Failure, Session, arguments
from cprune.targets.target import Target
from cprune.tuner import programs, reference, space
from cprune.tuner.records import Record, Store
from cprune.tuner.search import Search
from cprune.tuner.space import Candidate
from cprune.tuner.workload import Tir, Workload, describe, key

BATCH = 4
FINALISTS = 3
CHECK_SEED = 7
SLOW = 3.0  # a candidate this many times slower than the best is timed by one call only


@dataclass(frozen=True)
class Best:
    """The fastest program of a task.  `measured` is how many candidates this call had to time."""

    task: str
    candidate: Candidate
    latency_s: float
    measured: int


@dataclass
class Clock:
    """Where the seconds went."""

    lowering: float = 0.0
    measuring: float = 0.0


class Tuner:
    """Tunes tasks on one session, on one store."""

    def __init__(
        self,
        session: Session,
        store: Store,
        target: Target,
        seed: int = 0,
        on_trial: Callable[[], None] | None = None,
    ) -> None:
        self.session, self.store, self.target, self.seed = session, store, target, seed
        self.on_trial = on_trial or (lambda: None)
        self.clock = Clock()
        self._settled: dict[tuple[str, int], Best] = {}

    def left(self, workload: Workload, trials: int) -> int:
        """Return how many candidates `tune` would still have to measure."""
        task = key(workload)
        if (task, trials) in self._settled:
            return 0
        size = len(self.space_of(workload))
        known = len(self.store.of_task(task, self.target.fingerprint))
        return max(0, min(trials, size) - known)

    def space_of(self, workload: Workload) -> tuple[Candidate, ...]:
        """Return the points that may be tried for this workload."""
        if isinstance(workload, Tir):
            from cprune.tuner import metaschedule

            return metaschedule.candidates(workload, self.target, self.seed)
        return space.of_target(workload, self.target)

    def tune(self, workload: Workload, trials: int, start: Sequence[Candidate] = ()) -> Best:
        """Return the fastest correct program of `workload` after `trials` trials, earlier ones included.

        `start` are fast programs of a sibling of another width.  Raises BrokenWorld if not one candidate works.
        """
        task = key(workload)
        settled = self._settled.get((task, trials))
        if settled is not None:
            return replace(settled, measured=0)
        points = self.space_of(workload)
        search = Search(points, random.Random(f"{self.seed} {task}"), trials, start)
        records = self.store.of_task(task, self.target.fingerprint)
        search.tell(records)
        best_s = min((r.latency_s for r in records if not r.failure), default=float("inf"))
        count, measured = len(records), 0
        while count < trials:
            asked = search.ask(min(BATCH, trials - count))
            if not asked:
                break
            made = []
            for candidate in asked:
                record = self._try(workload, task, candidate, best_s * SLOW)
                best_s = min(best_s, record.latency_s)
                made.append(record)
                measured += 1
                self.on_trial()
            self.store.add(made)
            search.tell(made)
            count += len(made)
        best = self._winner(workload, task, measured)
        self._settled[task, trials] = best
        return best

    def _try(self, workload: Workload, task: str, candidate: Candidate, slow_s: float) -> Record:
        start = time.perf_counter()
        try:
            program = programs.program(workload, candidate)
        except Exception as error:  # whatever TVM raises: the candidate does not fit, which is data
            lines = str(error).splitlines() or [""]
            return self._record(task, candidate, failure=Failure("lower", lines[0][:300]))
        finally:
            self.clock.lowering += time.perf_counter() - start
        start = time.perf_counter()
        timed = self.session.time(program, slow_s=slow_s)
        self.clock.measuring += time.perf_counter() - start
        if isinstance(timed, Failure):
            return self._record(task, candidate, failure=timed)
        return self._record(task, candidate, timed.runs_s)

    def _record(
        self,
        task: str,
        candidate: Candidate,
        runs_s: tuple[float, ...] = (),
        failure: Failure | None = None,
        checked: bool = False,
    ) -> Record:
        return Record(
            task=task,
            target=self.target.fingerprint,
            candidate=candidate.text(),
            runs_s=runs_s,
            failure=failure.stage if failure else "",
            reason=failure.reason if failure else "",
            checked=checked,
            created=time.time(),
        )

    def _winner(self, workload: Workload, task: str, measured: int) -> Best:
        """Time the leaders once more in turns, compare each with PyTorch, and return the fastest that is right."""
        while True:
            records = [r for r in self.store.of_task(task, self.target.fingerprint) if not r.failure]
            leaders = sorted(records, key=lambda r: r.latency_s)[:FINALISTS]
            if not leaders:
                raise BrokenWorld(
                    f"not one program of the task '{describe(workload)}' works on {self.target.name}; "
                    "the reasons are in the records"
                )
            doubtful = [r for r in leaders if not r.checked]
            if not doubtful:
                best = leaders[0]
                return Best(task, Candidate.parse(best.candidate), best.latency_s, measured)
            self.store.add([self._checked(workload, record) for record in doubtful])

    def _checked(self, workload: Workload, record: Record) -> Record:
        candidate = Candidate.parse(record.candidate)
        start = time.perf_counter()
        program = programs.program(workload, candidate)
        timed = self.session.time(program, seed=CHECK_SEED)
        self.clock.measuring += time.perf_counter() - start
        if isinstance(timed, Failure):
            return self._record(record.task, candidate, failure=timed, checked=True)
        given = arguments(program, CHECK_SEED)
        if isinstance(workload, Tir):
            from cprune.tuner import metaschedule

            wanted = metaschedule.expected(workload, given)
        else:
            wanted = reference.expected(workload, given)
        assert timed.output is not None  # it was asked for with the seed
        wrong = reference.agrees(timed.output, wanted)
        if wrong:
            return self._record(record.task, candidate, failure=Failure("check", wrong), checked=True)
        return self._record(record.task, candidate, (*record.runs_s, *timed.runs_s), checked=True)
