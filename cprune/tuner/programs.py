"""One door to the spaces: a workload and a candidate become a program, whichever space the candidate comes from."""

from __future__ import annotations

from typing import Any

from cprune.targets.session import Program
from cprune.tuner import sketch
from cprune.tuner.space import Candidate
from cprune.tuner.workload import Tir, Workload


def module_of(workload: Workload, candidate: Candidate) -> Any:
    """Return the scheduled IRModule with one PrimFunc "main"."""
    if isinstance(workload, Tir):
        from cprune.tuner import metaschedule

        return metaschedule.module(workload, candidate)
    return sketch.module(workload, candidate)


def program(workload: Workload, candidate: Candidate) -> Program:
    """Return the program of `candidate`, ready to be sent to a session.

    Raises whatever TVM says where the candidate does not fit the workload (stage "lower").
    """
    import tvm

    return Program(tvm.ir.save_json(module_of(workload, candidate)), workload.arguments())


def scheduled(workload: Workload, candidate: Candidate) -> Any:
    """Return the Schedule of `candidate`; its trace leads from `computation` to `module_of`."""
    if isinstance(workload, Tir):
        from cprune.tuner import metaschedule

        return metaschedule.scheduled(workload, candidate)
    return sketch.scheduled(workload, candidate)


def computation(workload: Workload) -> Any:
    """Return the IRModule of the workload before any schedule."""
    if isinstance(workload, Tir):
        from cprune.tuner import metaschedule

        return metaschedule.computation(workload)
    return sketch.computation(workload)
