"""Tuned programs of several tasks, timed in turns: numbers of one minute, which can be compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cprune.targets.session import Built, Failure, Program, Session, Timed
from cprune.tuner.programs import program as programs
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Workload

Tuned = tuple[Workload, Candidate]
Build = Callable[[Sequence[Program]], "list[Built | Failure]"]


def in_turns(session: Session, build: Build, entries: Sequence[Tuned], rounds: int) -> list[tuple[float, ...]]:
    """Return the runs of every program in seconds, one a round; none of one that is not built or does not run again.

    Programs are compared round by round: run `i` of all of them was timed in the same turn.
    """
    answers = build([programs.program(*entry) for entry in entries])
    built = {index: answer for index, answer in enumerate(answers) if isinstance(answer, Built)}
    inputs = [programs.example(*entries[index], 0) for index in built]
    timed = session.race(list(built.values()), inputs, rounds) if built else []
    runs = {index: answer.runs_s for index, answer in zip(built, timed, strict=True) if isinstance(answer, Timed)}
    return [runs.get(index, ()) for index in range(len(entries))]
