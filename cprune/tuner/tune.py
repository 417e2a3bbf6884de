"""Spend trials on tasks: propose, lower, build, time, record; then race the leaders and compare them with PyTorch.

Every task may have `trials` trials, the one from which the whole model gains most at the time goes first, and a task
whose last trials brought nothing ends early.  All of this is decided from the records alone, and whatever was ever
recorded for a task on this target counts as spent: tuning again measures nothing.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from cprune.targets.interval import NOISY
from cprune.targets.session import Session
from cprune.targets.target import Target
from cprune.tuner.batch import try_batch
from cprune.tuner.estimate import Entry
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Workload, from_key, key
from cprune.tuner.race import settled, winner
from cprune.tuner.records.record import Record
from cprune.tuner.records.store import Store
from cprune.tuner.rig import Rig, ranked
from cprune.tuner.search.strategy import DEFAULT, strategy
from cprune.tuner.task import OpenTask, stalled
from cprune.tuner.turns import Tuned, in_turns


@dataclass(frozen=True)
class Job:
    """A task to tune: how often the model calls it, and fast programs of siblings of another width."""

    workload: Workload
    uses: int = 1
    start: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Best:
    """The fastest program of a task.  `measured` is how many candidates this call had to time."""

    task: str
    candidate: Candidate
    latency_s: float
    measured: int


class Tunes(Protocol):
    """What a latency table asks of a `Tuner`."""

    target: Target

    def known(self, workload: Workload, trials: int) -> Best | None:
        """Return what was tuned before, None if something would have to be measured."""

    def entries(self) -> list[Entry]:
        """Return what the store knows of all tasks: what estimates learn from."""

    def tune_all(
        self,
        jobs: Sequence[Job],
        trials: int,
        time_limit_s: float = float("inf"),
        on_trial: Callable[[], object] = lambda: None,
    ) -> dict[str, Best]:
        """Return the fastest program of every job by task key."""

    def in_turns(self, entries: Sequence[Tuned], rounds: int) -> list[tuple[float, ...]]:
        """Return the runs in seconds of tuned programs that take turns; see `cprune.tuner.turns`."""


class Tuner:
    """Tunes tasks on one session, on one store.

    `search` names the strategy (`cprune.tuner.search.strategy`).  `spaces` is "sketch", or "metaschedule" for TVM's
    generic space of every task (to compare with); records of one are not seen by the other.
    """

    def __init__(
        self,
        session: Session,
        store: Store,
        target: Target,
        seed: int = 0,
        spaces: str = "sketch",
        search: str = DEFAULT,
    ) -> None:
        self.target, self.seed, self.search = target, seed, search
        self._rig = Rig(session, store, target, seed, spaces)
        self.clock = self._rig.clock
        self._noise_said = False
        self._settled: dict[tuple[str, int], Best] = {}

    @property
    def noise(self) -> float:
        """Return the median spread of the leaders' runs, (high - low) / median; 0 before the first race."""
        return statistics.median(self._rig.spreads) if self._rig.spreads else 0.0

    def say_if_noisy(self, say: Callable[[str], object]) -> None:
        """Say once if the runs of one program spread so much that winners are chosen by chance."""
        if self.noise > NOISY and not self._noise_said:
            self._noise_said = True
            say(
                f"this machine is noisy: runs of one program spread by {self.noise:.0%}. Close what else is "
                "running, or expect winners that another run would not choose"
            )

    def left(self, workload: Workload, trials: int) -> int:
        """Return how many candidates `tune` would at most have to measure."""
        task = key(workload)
        if (task, trials) in self._settled:
            return 0
        size = len(self._rig.space_of(workload))
        records = self._rig.known(task)
        return 0 if stalled(records) else max(0, min(trials, size) - len(records))

    def known(self, workload: Workload, trials: int) -> Best | None:
        """Return what `tune` would return without trying or racing anything; None where it would have to."""
        best = self._settled.get((key(workload), trials))
        if best is None and not self.left(workload, trials):
            record = settled(self._rig, workload)
            if record is not None:
                best = Best(record.task, Candidate.parse(record.candidate), record.latency_s, 0)
        return best and replace(best, measured=0)

    def entries(self) -> list[Entry]:
        """Return the fastest program of every task that the store has for this target: what estimates learn from."""
        fastest: dict[str, Record] = {}
        for record in ranked(self._rig.store.all(self.target.fingerprint)):
            if record.space == self._rig.spaces and not record.task.startswith('["tir",'):
                fastest.setdefault(record.task, record)
        return [Entry(from_key(task), Candidate.parse(r.candidate), r.latency_s) for task, r in fastest.items()]

    def in_turns(self, entries: Sequence[Tuned], rounds: int) -> list[tuple[float, ...]]:
        """Return the runs in seconds of tuned programs that take turns; see `cprune.tuner.turns`.

        They are not recorded: a record has what was measured of a program, and these are for comparing several.
        """
        start = time.perf_counter()
        runs = in_turns(self._rig.session, self._rig.build, entries, rounds)
        self.clock.measuring += time.perf_counter() - start
        return runs

    def tune(
        self,
        workload: Workload,
        trials: int,
        start: Sequence[Candidate] = (),
        on_trial: Callable[[], object] = lambda: None,
    ) -> Best:
        """Return the fastest correct program of one workload; see `tune_all`."""
        return self.tune_all([Job(workload, 1, tuple(start))], trials, on_trial=on_trial)[key(workload)]

    def tune_all(
        self,
        jobs: Sequence[Job],
        trials: int,
        time_limit_s: float = float("inf"),
        on_trial: Callable[[], object] = lambda: None,
    ) -> dict[str, Best]:
        """Return the fastest correct program of every job by task key, after at most `trials` trials each.

        `on_trial` is called after every candidate that was tried.  Earlier records of a task count as its trials.
        After `time_limit_s` seconds nothing new is proposed, but every task gets its first batch.  Raises BrokenWorld
        if not one candidate of a task works.
        """
        deadline = time.monotonic() + time_limit_s
        best: dict[str, Best] = {}
        open_tasks: list[OpenTask] = []
        for job in jobs:
            known = self._settled.get((key(job.workload), trials))
            if known is not None:
                best[known.task] = replace(known, measured=0)
            else:
                open_tasks.append(self._task(job, trials))
        for task in open_tasks:  # every task first gets what no task goes without
            while not task.begun and (task.best_s == float("inf") or time.monotonic() < deadline):
                self._try(task, on_trial)
        while time.monotonic() < deadline:
            gaining = [task for task in open_tasks if not task.finished]
            if not gaining:
                break
            self._try(max(gaining, key=lambda task: task.gain), on_trial)
        for task in open_tasks:
            record = winner(self._rig, task.workload)
            self._rig.let_go(task.key)
            best[task.key] = Best(task.key, Candidate.parse(record.candidate), record.latency_s, task.measured)
            if time_limit_s == float("inf"):
                self._settled[task.key, trials] = best[task.key]
        return best

    def _task(self, job: Job, trials: int) -> OpenTask:
        rig, task = self._rig, key(job.workload)
        points = rig.space_of(job.workload)
        search = strategy(
            self.search,
            job.workload,
            points,
            random.Random(f"{self.seed} {task}"),
            trials,
            rig.machine,
            job.start,
            rig.memory,
            self.target.threads,
            rig.prior_s(job.workload),
        )
        return OpenTask(job.workload, job.uses, min(trials, len(points)), search, rig.known(task))

    def _try(self, task: OpenTask, on_trial: Callable[[], object]) -> None:
        for _ in try_batch(self._rig, task):
            on_trial()
