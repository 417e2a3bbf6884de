"""Who wins a task: the leaders take turns, and each is compared with PyTorch before it counts."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from cprune.targets.errors import BrokenWorld
from cprune.targets.session import Array, Built, Failure, Timed
from cprune.tuner.programs import program as programs
from cprune.tuner.programs import reference
from cprune.tuner.programs.describing import describe
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Workload, key
from cprune.tuner.records.record import Record
from cprune.tuner.rig import FINALISTS, Rig, ranked

RACE_ROUNDS = 7
CHECK_SEED = 7


def winner(rig: Rig, workload: Workload) -> Record:
    """Race the leaders until all of them were compared with PyTorch; returns the record of the fastest that is right.

    Raises BrokenWorld if not one program of the task works.
    """
    while True:
        leaders = _leaders(rig, workload)
        if not leaders:
            raise BrokenWorld(
                f"not one program of the task '{describe(workload)}' works on {rig.target.name}; "
                "the reasons are in the records"
            )
        if all(r.checked for r in leaders):
            return leaders[0]
        rig.store.add(_raced(rig, workload, leaders))


def settled(rig: Rig, workload: Workload) -> Record | None:
    """Return what `winner` would without a race; None where it would have to run one."""
    leaders = _leaders(rig, workload)
    return leaders[0] if leaders and all(r.checked for r in leaders) else None


def _leaders(rig: Rig, workload: Workload) -> list[Record]:
    working = (r for r in ranked(rig.known(key(workload))) if rig.makes(workload, r))
    return list(itertools.islice(working, FINALISTS))


def _raced(rig: Rig, workload: Workload, leaders: Sequence[Record]) -> list[Record]:
    """Return the leaders' records with the runs of a race (earlier runs of a race stay) and their check."""
    plain, expected = _example(rig, workload)
    candidates = {r.candidate: Candidate.parse(r.candidate) for r in leaders}
    answers = _race(rig, workload, candidates, plain)
    records = []
    for record in leaders:
        answer = answers[record.candidate]
        if isinstance(answer, Timed) and not record.checked:
            answer = _checked(answer, expected(), workload)
        if isinstance(answer, Timed):
            rig.spreads.append(_spread(answer.runs_s))
            answer = Timed((*(record.runs_s if record.checked else ()), *answer.runs_s))
        records.append(rig.record(record.task, candidates[record.candidate], answer, checked=True))
    return records


def compared(rig: Rig, workload: Workload, entries: Mapping[Candidate, Built]) -> list[Timed | Failure]:
    """Return what came of built programs, each run once and compared with PyTorch.

    Of a target whose programs may compute something wrong without a word every trial is compared.
    """
    plain, expected = _example(rig, workload)
    inputs = [programs.inputs_of(workload, candidate, plain) for candidate in entries]
    answers = rig.session.race(list(entries.values()), inputs, 1)
    return [_checked(answer, expected(), workload) if isinstance(answer, Timed) else answer for answer in answers]


def _example(rig: Rig, workload: Workload) -> tuple[list[Array], Callable[[], Array]]:
    """Return arguments of a workload, and what computes once in a task what they must give."""
    plain = reference.sample(workload, CHECK_SEED)

    def expected() -> Array:
        known = rig.expected.get(key(workload))
        if known is None:
            known = rig.expected[key(workload)] = programs.expected(workload, plain)
        return known

    return plain, expected


def _checked(answer: Timed, expected: Array, workload: Workload) -> Timed | Failure:
    """Return an answer without its output, or the failure that its output is."""
    assert answer.output is not None  # a race brings it back
    difference = reference.agrees(answer.output, expected, reference.tolerance(workload))
    return Failure("check", difference) if difference else Timed(answer.runs_s)


def _race(
    rig: Rig, workload: Workload, candidates: Mapping[str, Candidate], plain: Sequence[Array]
) -> dict[str, Timed | Failure]:
    """Return what came of each candidate in a race; what is not built any more is built first."""
    start = time.perf_counter()
    leading = rig.leading(key(workload))
    missing = {text: programs.program(workload, c) for text, c in candidates.items() if text not in leading}
    answers: dict[str, Timed | Failure] = {}
    for text, built in zip(missing, rig.build(list(missing.values())) if missing else (), strict=True):
        if isinstance(built, Built):
            leading[text] = built
        else:
            answers[text] = built
    entries = {text: built for text, built in leading.items() if text in candidates}
    inputs = [programs.inputs_of(workload, candidates[text], plain) for text in entries]
    answers |= zip(entries, rig.session.race(list(entries.values()), inputs, RACE_ROUNDS), strict=True)
    rig.clock.measuring += time.perf_counter() - start
    return answers


def _spread(runs_s: Sequence[float]) -> float:
    """Return (high - low) / median; 0 for a single run."""
    return (max(runs_s) - min(runs_s)) / statistics.median(runs_s)
