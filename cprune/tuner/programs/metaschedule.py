"""The generic space: programs for PrimFuncs that have no sketch, and for all others on request.

Every PrimFunc that has no sketch of many knobs has a plain schedule, serial or parallel.  Where it reduces something,
random points of MetaSchedule's space are offered as well, each stored as its trace, so that a record can be replayed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np
import tvm
from tvm.s_tir import Schedule

from cprune.targets.errors import ours
from cprune.targets.session import Array
from cprune.targets.target import Target
from cprune.tuner.programs import sketch
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Dense, Tir, Workload

POINTS = 32
MANY = 256  # points of a task that has a sketch of its own, where this space was asked for by name


@lru_cache(maxsize=256)
def candidates(workload: Workload, target: Target, seed: int, points: int = POINTS) -> tuple[Candidate, ...]:
    """Return the plain schedules and up to `points` random ones of MetaSchedule; the same ones for one seed.

    Convolutions and dense layers have no plain one: what has no trace is made by their sketches, which have more knobs.
    """
    plain = []
    if not isinstance(workload, (Conv2d, Dense)):
        plain = [Candidate.of(parallel=way) for way in (("none", "outer") if target.threads > 1 else ("none",))]
    if not points or not _reduces(workload):
        return tuple(plain)
    return tuple(dict.fromkeys([*plain, *(Candidate.of(trace=t) for t in _traces(workload, target, seed, points))]))


def module(workload: Workload, candidate: Candidate) -> Any:
    """Return the scheduled IRModule of a candidate."""
    return scheduled(workload, candidate).mod


def scheduled(workload: Workload, candidate: Candidate) -> Any:
    """Return the Schedule of a candidate."""
    schedule = Schedule(computation(workload), debug_mask="none")
    knobs = dict(candidate.knobs)
    if "trace" in knobs:
        from tvm.s_tir.schedule import Trace

        Trace.apply_json_to_schedule(json.loads(str(knobs["trace"])), schedule)
    else:
        _plain(schedule, knobs["parallel"] != "none")
    return schedule


def expected(workload: Tir, arguments: Sequence[Array]) -> Array:
    """Return what the PrimFunc computes as TVM's importer wrote it, unscheduled and on one thread.

    The whole model is compared with PyTorch when it is loaded; this one tells which program is to blame.
    """
    library = tvm.driver.build(computation(workload), tvm.target.Target({"kind": "llvm"}))
    args = [tvm.runtime.tensor(a) for a in arguments]
    args.append(tvm.runtime.tensor(np.zeros(workload.shapes[-1], np.float32)))
    library["main"](*args)
    output: Array = args[-1].numpy()
    return output


def computation(workload: Workload) -> Any:
    """Return the IRModule of the workload before any schedule."""
    if not isinstance(workload, Tir):
        return sketch.computation(workload)
    return tvm.ir.load_json(workload.module)


def _blocks(schedule: Any) -> list[Any]:
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def _reduces(workload: Workload) -> bool:
    schedule = Schedule(computation(workload))
    return any(
        int(iterator.iter_type) == 2 for block in _blocks(schedule) for iterator in schedule.get(block).iter_vars
    )


def _plain(schedule: Any, parallel: bool) -> None:
    """Fuse the leading spatial loops of every block and run them in parallel, if asked."""
    for block in _blocks(schedule):
        loops = schedule.get_loops(block)
        iterators = schedule.get(block).iter_vars
        spatial = 0
        while spatial < min(len(loops), len(iterators)) and int(iterators[spatial].iter_type) == 0:
            spatial += 1
        if spatial and parallel:
            schedule.parallel(schedule.fuse(*loops[:spatial]))


def _traces(workload: Workload, target: Target, seed: int, points: int) -> list[str]:
    kind = tvm.target.Target(json.loads(target.compiler))
    # The rules for any CPU: those for AVX-512 add int8 intrinsics, whose registration alone takes a minute.
    return [trace for trace, _, _ in islice(drawn(computation(workload), kind, "llvm", seed, points), points)]


def drawn(
    source: Any, target: Any, rules: str, seed: int, rounds: int, apart: str = ""
) -> Iterator[tuple[str, Any, bool]]:
    """Yield random points of MetaSchedule's space for an IRModule: trace, scheduled module, what a rule says of it.

    `rules` names the set that makes the space and checks its points, "llvm" or "cuda".  A point is one that all checks
    let pass but the one of the class `apart`, whose verdict is given instead (True without one).  Each of the space's
    sketches is tried `rounds` times; points of one seed are the same.
    """
    from tvm.s_tir import meta_schedule as ms
    from tvm.s_tir.schedule import Trace

    made = ms.space_generator.PostOrderApply(
        sch_rules=ms.ScheduleRule.create(rules),
        postprocs=ms.Postproc.create(rules),
        mutator_probs=ms.Mutator.create(rules),
    )
    with _without_intrinsics():
        context = ms.TuneContext(mod=source, target=target, space_generator=made, rand_state=seed + 1, num_threads=1)
    checks = list(context.space_generator.postprocs)
    last = [check for check in checks if type(check).__name__ == apart]
    for index, space in enumerate(list(context.generate_design_space()) * rounds):
        schedule = Schedule(source, seed=seed * 1000 + index + 1, debug_mask="none")
        try:
            Trace(space.trace.insts, {}).apply_to_schedule(schedule, remove_postproc=True)
            if not all(check.apply(schedule) for check in checks if check not in last):
                continue
            trace = json.dumps(_plain_values(schedule.trace.as_json()))
            verdict = all(check.apply(schedule) for check in last)
        except Exception as error:
            if ours(error):
                raise
            continue  # a random point that does not fit: the space is larger than the program
        yield trace, schedule.mod, verdict


@contextmanager
def _without_intrinsics() -> Iterator[None]:
    """Keep TuneContext from importing TVM's tensor intrinsics, which no rule of ours needs (86 s here)."""
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


def _plain_values(value: Any) -> Any:
    if isinstance(value, (tvm.tirx.IntImm, tvm.tirx.FloatImm)):
        value = value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (bool, int, float, type(None))):
        return value
    return [_plain_values(item) for item in value]
