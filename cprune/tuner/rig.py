"""The rig that trials and races are run on: the session, the store, the programs that may still win, the clock."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cprune.targets.errors import ours, unknown
from cprune.targets.npu.machine import described
from cprune.targets.session import Array, Built, Failure, Program, Session, Timed
from cprune.targets.target import Target
from cprune.tuner.programs import program as programs
from cprune.tuner.programs import space
from cprune.tuner.programs.dots import on_multiplier
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Tir, Workload, key
from cprune.tuner.records.record import Record
from cprune.tuner.records.store import Store
from cprune.tuner.search import npu
from cprune.tuner.search.cost_model import Memory
from cprune.tuner.search.features import Hidden, Machine

SPACES = ("sketch", "metaschedule")
FINALISTS = 3


@dataclass
class Clock:
    """Where the seconds went."""

    searching: float = 0.0
    lowering: float = 0.0
    building: float = 0.0
    measuring: float = 0.0


class Rig:
    """One session, one store, one target, and the space out of which programs come.

    `spaces` is "sketch", or "metaschedule" for TVM's generic space of every task, drawn by `seed`.  `spreads` are those
    of the runs of every program that was raced: (high - low) / median.
    """

    def __init__(self, session: Session, store: Store, target: Target, seed: int = 0, spaces: str = SPACES[0]) -> None:
        if spaces not in SPACES:
            raise unknown("space", spaces, SPACES)
        self.session, self.store, self.target, self.seed, self.spaces = session, store, target, seed, spaces
        self.clock = Clock()
        self.spreads: list[float] = []
        self.expected: dict[str, Array] = {}  # by task, what the arguments of a check must give
        self._memory: Memory | None = None
        self._leading: dict[str, dict[str, Built]] = {}  # of every open task the built programs that may win
        self._points: dict[str, frozenset[Candidate]] = {}

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

    def space_of(self, workload: Workload) -> tuple[Candidate, ...]:
        """Return the points that may be tried for this workload."""
        if isinstance(workload, Tir) or self.spaces == "metaschedule":
            from cprune.tuner.programs import metaschedule

            points = metaschedule.POINTS if isinstance(workload, Tir) else metaschedule.MANY
            if self.target.simulated:  # a processor's share there does not depend on the program
                points = 0
            return metaschedule.candidates(workload, self.target, self.seed, points)
        return space.of_target(workload, self.target)

    def prior_s(self, workload: Workload) -> list[float] | None:
        """Return about how long every point takes where the target's description says that; None elsewhere."""
        if not self.target.simulated or not on_multiplier(workload):
            return None
        machine = described(self.target.cpu)
        found: list[float] = npu.expected_s(workload, self.space_of(workload), machine).tolist()
        return found

    def known(self, task: str) -> list[Record]:
        """Return the records of a task, oldest first, whose programs this space has.

        A store keeps one record of a program, whichever space tried it first.
        """
        records = self.store.of_task(task, self.target.fingerprint)
        return [r for r in records if r.space == self.spaces or _in_both_spaces(r)]

    def makes(self, workload: Workload, record: Record) -> bool:
        """Tell whether this cprune can make a record's program: others may write into the store, later versions too."""
        candidate = Candidate.parse(record.candidate)
        task = key(workload)
        if task not in self._points:
            self._points[task] = frozenset(self.space_of(workload))
        if candidate in self._points[task]:
            return True
        if "trace" not in dict(candidate.knobs) and _form(candidate) not in map(_form, self._points[task]):
            return False
        try:
            programs.program(workload, candidate)
        except Exception as error:
            if ours(error):
                raise
            return False
        return True

    def record(
        self,
        task: str,
        candidate: Candidate,
        timed: Timed | Failure,
        checked: bool = False,
        features: Hidden | None = None,
    ) -> Record:
        """Return the record of what came of a candidate just now."""
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
            hidden=json.dumps(features, sort_keys=True, separators=(",", ":")) if features else "",
            created=time.time(),
        )

    def build(self, entries: Sequence[Program], assembly: bool = False) -> list[Built | Failure]:
        """Build programs; those that may win stay built."""
        keep = [built for leading in self._leading.values() for built in leading.values()]
        return self.session.build(entries, assembly=assembly, keep=keep)

    def leading(self, task: str) -> dict[str, Built]:
        """Return the programs of a task that stay built, by the text of their candidate; what is added stays too."""
        return self._leading.setdefault(task, {})

    def hold(self, task: str, built: Mapping[str, Built], leaders: Collection[str]) -> None:
        """Let those that lead a task stay built: of the ones that stayed until now and of these."""
        candidates = {**self.leading(task), **built}
        self._leading[task] = {text: entry for text, entry in candidates.items() if text in leaders}

    def let_go(self, task: str) -> None:
        """Let go of a task's programs: it is tuned."""
        self._leading.pop(task, None)
        self.expected.pop(task, None)


def ranked(records: Sequence[Record]) -> list[Record]:
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
