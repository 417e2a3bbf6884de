"""One batch of trials of a task: propose, lower, build, time, record.

Building uses every core, timing has the machine for itself: a batch is built, then it is timed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cprune.targets.errors import DeviceLost, first_line, ours
from cprune.targets.session import Built, Failure, Program
from cprune.tuner.programs import program as programs
from cprune.tuner.programs.space import Candidate
from cprune.tuner.race import compared
from cprune.tuner.records.record import Record
from cprune.tuner.rig import FINALISTS, Rig, ranked
from cprune.tuner.search.assembly import hidden
from cprune.tuner.task import OpenTask

BATCH = 4
SLOW = 2.0  # a candidate this many times slower than the best is timed by one call only


def try_batch(rig: Rig, task: OpenTask) -> list[Record]:
    """Build and time the next candidates of a task; returns their records, none if the task has no candidates left.

    The records are in the store, those of a device that is lost (DeviceLost) as well.
    """
    n = min(BATCH, task.left)
    start = time.perf_counter()
    asked = task.search.ask(n) if n > 0 else []
    rig.clock.searching += time.perf_counter() - start
    if not asked:
        task.used_up = True
        return []
    ready, records = _build(rig, task, asked)
    features = {c: hidden(built.assembly) if task.search.needs_hidden else None for c, built in ready.items()}
    chosen = task.search.choose(list(features.items()), n)
    start = time.perf_counter()
    try:
        if rig.target.simulated:
            answers = compared(rig, task.workload, {candidate: ready[candidate] for candidate in chosen})
        else:
            answers = rig.session.time([ready[candidate] for candidate in chosen], slow_s=task.best_s * SLOW)
    except DeviceLost as lost:
        known = zip(chosen, lost.answers, strict=True)
        rig.store.add([rig.record(task.key, c, t, features=features[c]) for c, t in known if t is not None])
        raise
    rig.clock.measuring += time.perf_counter() - start
    records += [
        rig.record(task.key, candidate, timed, checked=rig.target.simulated, features=features[candidate])
        for candidate, timed in zip(chosen, answers, strict=True)
    ]
    rig.store.add(records)
    rig.memory.add(records)
    task.tell(records)
    task.measured += len(records)
    leaders = {record.candidate for record in ranked(task.records)[:FINALISTS]}
    rig.hold(task.key, {c.text(): built for c, built in ready.items()}, leaders)
    return records


def _build(rig: Rig, task: OpenTask, asked: Sequence[Candidate]) -> tuple[dict[Candidate, Built], list[Record]]:
    """Return what was built, and the records of what could not be."""
    start = time.perf_counter()
    lowered: dict[Candidate, Program] = {}
    failed: list[Record] = []
    for candidate in asked:
        try:
            lowered[candidate] = programs.program(task.workload, candidate)
        except Exception as error:
            if ours(error):
                raise
            # The candidate does not fit, which is data.
            failed.append(rig.record(task.key, candidate, Failure("lower", first_line(error))))
    rig.clock.lowering += time.perf_counter() - start
    start = time.perf_counter()
    answers = rig.build(list(lowered.values()), assembly=task.search.needs_hidden)
    rig.clock.building += time.perf_counter() - start
    ready: dict[Candidate, Built] = {}
    for candidate, built in zip(lowered, answers, strict=True):
        if isinstance(built, Built):
            ready[candidate] = built
        else:
            failed.append(rig.record(task.key, candidate, built))
    return ready, failed
