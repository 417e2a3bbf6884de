"""Spend trials on tasks: propose, lower, build, time, record; then race the leaders and compare them with PyTorch.

Every task may have `trials` trials, the one from which the whole model gains most at the time goes first, and a task
whose last trials brought nothing ends early.  All of this is decided from the records alone, and whatever was ever
recorded for a task on this target counts as spent: tuning again measures nothing.

Building uses every core, timing has the machine for itself: a batch is built, then it is timed.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cprune.targets.errors import BrokenWorld, DeviceLost, ours, unknown
from cprune.targets.session import Array, Built, Failure, Program, Session, Timed, arguments
from cprune.targets.target import Target
from cprune.tuner.programs import program as programs
from cprune.tuner.programs import reference, space
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Tir, Workload, describe, key
from cprune.tuner.records.record import Record
from cprune.tuner.records.store import Store
from cprune.tuner.search.assembly import hidden
from cprune.tuner.search.cost_model import Memory
from cprune.tuner.search.features import Hidden, Machine
from cprune.tuner.search.strategy import DEFAULT, strategy

SPACES = ("sketch", "metaschedule")
BATCH = 4
FINALISTS = 3
RACE_ROUNDS = 7
CHECK_SEED = 7
SLOW = 2.0  # a candidate this many times slower than the best is timed by one call only
LEAST = 24  # no task ends early before so many trials: the models know nothing before a dozen
PATIENCE = 12
GAIN = 0.01  # an improvement of less is none
NOISY = 0.15  # leaders whose runs spread by more than this say that something else is running


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


@dataclass
class Clock:
    """Where the seconds went."""

    searching: float = 0.0
    lowering: float = 0.0
    building: float = 0.0
    measuring: float = 0.0


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
        if spaces not in SPACES:
            raise unknown("space", spaces, SPACES)
        self.spaces, self.search = spaces, search
        self.session, self.store, self.target, self.seed = session, store, target, seed
        self.clock = Clock()
        self.spreads: list[float] = []
        self._noise_said = False
        self._settled: dict[tuple[str, int], Best] = {}
        self._memory: Memory | None = None
        self._leading: dict[str, dict[str, Built]] = {}  # of every open task the built programs that may win
        self._spaces: dict[str, frozenset[Candidate]] = {}

    @property
    def machine(self) -> Machine:
        """Return what the features need to know of the target."""
        return Machine(self.target.vector, self.target.vector_registers, self.target.threads)

    @property
    def memory(self) -> Memory:
        """Return what all tasks of the store taught on this target, those of other runs and models included."""
        if self._memory is None:
            records = self.store.all(self.target.fingerprint)
            self._memory = Memory(self.machine, [r for r in records if r.space == self.spaces])
        return self._memory

    @property
    def noise(self) -> float:
        """Return the median spread of the leaders' runs, (high - low) / median; 0 before the first race."""
        return statistics.median(self.spreads) if self.spreads else 0.0

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
        size = len(self.space_of(workload))
        records = self.known(task)
        return 0 if stalled(records) else max(0, min(trials, size) - len(records))

    def known(self, task: str) -> list[Record]:
        """Return the records of a task, oldest first, whose programs this space has.

        A store keeps one record of a program, whichever space tried it first.
        """
        records = self.store.of_task(task, self.target.fingerprint)
        return [r for r in records if r.space == self.spaces or _in_both_spaces(r)]

    def space_of(self, workload: Workload) -> tuple[Candidate, ...]:
        """Return the points that may be tried for this workload."""
        if isinstance(workload, Tir) or self.spaces == "metaschedule":
            from cprune.tuner.programs import metaschedule

            points = metaschedule.POINTS if isinstance(workload, Tir) else metaschedule.MANY
            return metaschedule.candidates(workload, self.target, self.seed, points)
        return space.of_target(workload, self.target)

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
        found: dict[str, Best] = {}
        open_tasks: list[_Task] = []
        for job in jobs:
            settled = self._settled.get((key(job.workload), trials))
            if settled is not None:
                found[settled.task] = replace(settled, measured=0)
            else:
                open_tasks.append(_Task(self, job, trials))
        for task in open_tasks:  # every task first gets what no task goes without
            while task.known < min(LEAST, trials) and (task.best_s == float("inf") or time.monotonic() < deadline):
                if not self._batch(task, on_trial):
                    break
        while time.monotonic() < deadline:
            gaining = [task for task in open_tasks if not task.finished]
            if not gaining:
                break
            self._batch(max(gaining, key=lambda task: task.gain), on_trial)
        for task in open_tasks:
            best = self._winner(task.job.workload, task.key, task.measured)
            self._leading.pop(task.key, None)
            found[task.key] = best
            if time_limit_s == float("inf"):
                self._settled[task.key, trials] = best
        return found

    def _batch(self, task: _Task, on_trial: Callable[[], object]) -> bool:
        """Build and time the next candidates of a task; False if it has none left."""
        n = min(BATCH, task.trials - task.known)
        start = time.perf_counter()
        asked = task.search.ask(n) if n > 0 else []
        self.clock.searching += time.perf_counter() - start
        if not asked:
            task.used_up = True
            return False
        built, made = self._built(task, asked)
        ready = {c: b for c, b in built.items() if isinstance(b, Built)}
        features = {c: hidden(b.assembly) if task.search.needs_hidden else None for c, b in ready.items()}
        chosen = task.search.choose(list(features.items()), n)
        start = time.perf_counter()
        try:
            answers = self.session.time([ready[candidate] for candidate in chosen], slow_s=task.best_s * SLOW)
        except DeviceLost as lost:
            known = zip(chosen, lost.answers, strict=True)
            self.store.add([self._record(task.key, c, t, seen=features[c]) for c, t in known if t is not None])
            raise
        for candidate, timed in zip(chosen, answers, strict=True):
            made.append(self._record(task.key, candidate, timed, seen=features[candidate]))
            task.best_s = min(task.best_s, made[-1].latency_s)
        leading = self._leading.setdefault(task.key, {})
        leading.update((c.text(), b) for c, b in ready.items())
        self.clock.measuring += time.perf_counter() - start
        self.store.add(made)
        self.memory.add(made)
        task.tell(made)
        best = {r.candidate for r in _fastest(task.records)[:FINALISTS]}
        self._leading[task.key] = {text: b for text, b in leading.items() if text in best}
        task.measured += len(made)
        for _ in made:
            on_trial()
        return True

    def _built(self, task: _Task, asked: Sequence[Candidate]) -> tuple[dict[Candidate, Built | Failure], list[Record]]:
        """Return what was built, and the records of what could not be."""
        start = time.perf_counter()
        lowered: dict[Candidate, Program] = {}
        failed: list[Record] = []
        for candidate in asked:
            try:
                lowered[candidate] = programs.program(task.job.workload, candidate)
            except Exception as error:
                if ours(error):
                    raise
                # The candidate does not fit, which is data.
                lines = str(error).splitlines() or [""]
                failed.append(self._record(task.key, candidate, Failure("lower", lines[0][:300])))
        self.clock.lowering += time.perf_counter() - start
        start = time.perf_counter()
        asm = task.search.needs_hidden
        built = dict(
            zip(lowered, self.session.build(list(lowered.values()), assembly=asm, keep=self._held), strict=True)
        )
        self.clock.building += time.perf_counter() - start
        failed += [self._record(task.key, c, b) for c, b in built.items() if isinstance(b, Failure)]
        return {**built}, failed

    @property
    def _held(self) -> list[Built]:
        return [built for leading in self._leading.values() for built in leading.values()]

    def _record(
        self,
        task: str,
        candidate: Candidate,
        timed: Timed | Failure,
        checked: bool = False,
        seen: Hidden | None = None,
    ) -> Record:
        failure = timed if isinstance(timed, Failure) else None
        return Record(
            task=task,
            target=self.target.fingerprint,
            candidate=candidate.text(),
            runs_s=() if isinstance(timed, Failure) else timed.runs_s,
            failure=failure.stage if failure else "",
            reason=failure.reason if failure else "",
            checked=checked,
            space=self.spaces,
            hidden=json.dumps(seen, sort_keys=True, separators=(",", ":")) if seen else "",
            created=time.time(),
        )

    def _winner(self, workload: Workload, task: str, measured: int) -> Best:
        """Race the leaders in turns, compare each with PyTorch, and return the fastest that is right."""
        while True:
            records = (r for r in _fastest(self.known(task)) if self._makes(workload, r))
            leaders = list(itertools.islice(records, FINALISTS))
            if not leaders:
                raise BrokenWorld(
                    f"not one program of the task '{describe(workload)}' works on {self.target.name}; "
                    "the reasons are in the records"
                )
            if all(r.checked for r in leaders):
                return Best(task, Candidate.parse(leaders[0].candidate), leaders[0].latency_s, measured)
            self.store.add(self._raced(workload, leaders))

    def _makes(self, workload: Workload, record: Record) -> bool:
        """Tell whether this cprune can make a record's program: others may write into the store, later versions too."""
        candidate = Candidate.parse(record.candidate)
        if candidate in self._points(workload):
            return True
        if "trace" not in dict(candidate.knobs) and _form(candidate) not in map(_form, self._points(workload)):
            return False
        try:
            programs.program(workload, candidate)
        except Exception as error:
            if ours(error):
                raise
            return False
        return True

    def _points(self, workload: Workload) -> frozenset[Candidate]:
        task = key(workload)
        if task not in self._spaces:
            self._spaces[task] = frozenset(self.space_of(workload))
        return self._spaces[task]

    def _raced(self, workload: Workload, leaders: Sequence[Record]) -> list[Record]:
        """Return the leaders' records with the runs of a race (earlier runs of a race stay) and their check."""
        plain = arguments(workload.arguments(), CHECK_SEED)
        candidates = {r.candidate: Candidate.parse(r.candidate) for r in leaders}
        held = self._leading.setdefault(key(workload), {})
        start = time.perf_counter()
        entries = {text: programs.program(workload, c) for text, c in candidates.items() if text not in held}
        new = self.session.build(list(entries.values()), keep=self._held) if entries else []
        built: dict[str, Built | Failure] = {**held, **dict(zip(entries, new, strict=True))}
        held.update((text, b) for text, b in built.items() if isinstance(b, Built))
        ready = {text: b for text, b in built.items() if text in candidates and isinstance(b, Built)}
        given = [programs.given(workload, candidates[text], plain) for text in ready]
        raced = dict(zip(ready, self.session.race(list(ready.values()), given, RACE_ROUNDS), strict=True))
        self.clock.measuring += time.perf_counter() - start
        wanted: Array | None = None
        made = []
        for record in leaders:
            timed: Timed | Failure | Built = raced.get(record.candidate, built[record.candidate])
            assert not isinstance(timed, Built)
            if isinstance(timed, Timed):
                assert timed.output is not None  # a race brings it back
                if not record.checked:
                    if wanted is None:
                        wanted = _expected(workload, plain)
                    wrong = reference.agrees(timed.output, wanted)
                    if wrong:
                        timed = Failure("check", wrong)
            if isinstance(timed, Timed):
                low, *_, high = sorted(timed.runs_s) if len(timed.runs_s) > 1 else (0.0, 0.0)
                self.spreads.append((high - low) / statistics.median(timed.runs_s))
                kept = record.runs_s if record.checked else ()
                timed = Timed((*kept, *timed.runs_s))
            made.append(self._record(record.task, candidates[record.candidate], timed, checked=True))
        return made


def _fastest(records: Sequence[Record]) -> list[Record]:
    """Return the records that work, the fastest first."""
    return sorted((r for r in records if not r.failure), key=lambda r: r.latency_s)


def _form(candidate: Candidate) -> list[tuple[str, type]]:
    """Return the names of a candidate's knobs and what they hold: the sketches read no others."""
    return [(name, type(value)) for name, value in candidate.knobs]


def _in_both_spaces(record: Record) -> bool:
    """Tell whether a record is of an operator without a sketch, or of a plain schedule that works."""
    if record.task.startswith('["tir",'):
        return True
    return not record.failure and [name for name, _ in Candidate.parse(record.candidate).knobs] == ["parallel"]


def stalled(records: Sequence[Record]) -> bool:
    """Tell whether a task may end before its trials are spent: its last third (PATIENCE at least) brought nothing."""
    last = max(PATIENCE, len(records) // 3)
    if len(records) < LEAST:
        return False
    before = min(r.latency_s for r in records[:-last])
    after = min(r.latency_s for r in records[-last:])
    return before < float("inf") and after > (1 - GAIN) * before


class _Task:
    """A task while it is tuned."""

    def __init__(self, tuner: Tuner, job: Job, trials: int) -> None:
        self.job, self.trials, self.key = job, trials, key(job.workload)
        points = tuner.space_of(job.workload)
        self.trials = min(trials, len(points))
        self.search = strategy(
            tuner.search,
            job.workload,
            points,
            random.Random(f"{tuner.seed} {self.key}"),
            trials,
            tuner.machine,
            job.start,
            tuner.memory,
            tuner.target.threads,
        )
        self.records: list[Record] = []
        self.used_up = False
        self.measured = 0
        self.best_s = float("inf")
        self.tell(tuner.known(self.key))

    def tell(self, records: Sequence[Record]) -> None:
        """Take note of records."""
        self.records += records
        self.search.tell(records)
        self.best_s = min([self.best_s, *(r.latency_s for r in records)])

    @property
    def known(self) -> int:
        """Return how many candidates were tried."""
        return len(self.records)

    @property
    def finished(self) -> bool:
        """Tell whether nothing more should be tried."""
        return self.used_up or self.known >= self.trials or stalled(self.records)

    @property
    def gain(self) -> float:
        """Return the seconds of the whole model that the next trials may bring.

        That is how often the task runs times what its best improved by over its last trials, a trial (the idea of
        Ansor's task scheduler, Zheng et al. 2020, section 6, without its similarity term).
        """
        last = max(PATIENCE, self.known // 3)
        before = min((r.latency_s for r in self.records[:-last]), default=float("inf"))
        if before == float("inf"):
            return float("inf")
        return self.job.uses * (before - self.best_s) / last


def _expected(workload: Workload, given: Sequence[Array]) -> Array:
    if isinstance(workload, Tir):
        from cprune.tuner.programs import metaschedule

        return metaschedule.expected(workload, given)
    return reference.expected(workload, given)
