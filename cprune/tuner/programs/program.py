"""One door to the programs: a workload and a candidate become code, whichever sketch or space it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cprune.targets.session import Array, Program, arguments, forms
from cprune.tuner.programs import reference, sketch, winograd
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Shape, Tir, Workload, dtypes


def module_of(workload: Workload, candidate: Candidate) -> Any:
    """Return the scheduled IRModule with one PrimFunc "main"."""
    if isinstance(workload, Tir) or "trace" in dict(candidate.knobs):
        from cprune.tuner.programs import metaschedule

        return metaschedule.module(workload, candidate)
    if isinstance(workload, Conv2d) and filtering(candidate):
        return winograd.module(workload, candidate)
    return sketch.module(workload, candidate)


def program(workload: Workload, candidate: Candidate) -> Program:
    """Return the program of `candidate`, ready to be sent to a session.

    Raises ValueError or an error of TVM where the candidate does not fit the workload (stage "lower"); `errors.ours`
    tells them from a bug of ours.
    """
    import tvm

    return Program(tvm.ir.save_json(module_of(workload, candidate)), shapes(workload, candidate), dtypes(workload))


def expected(workload: Workload, arguments: Sequence[Array]) -> Array:
    """Return the output in memory that every program of `workload` must give for these arguments."""
    if isinstance(workload, Tir):
        from cprune.tuner.programs import metaschedule

        return metaschedule.expected(workload, arguments)
    return reference.expected(workload, arguments)


def filtering(candidate: Candidate) -> int:
    """Return the m of a Winograd program F(m x m, 3 x 3), 0 for any other."""
    return candidate.number("winograd", 0)


def shapes(workload: Workload, candidate: Candidate) -> tuple[Shape, ...]:
    """Return the shapes in memory of the program's arguments, the output last."""
    plain = workload.arguments()
    m = filtering(candidate)
    if not m:
        return plain
    assert isinstance(workload, Conv2d)
    return (*plain[:-3], winograd.weight_shape(workload, m), *plain[-2:])


def arranged(workload: Workload, candidate: Candidate, weight: Array) -> Array:
    """Return a convolution's stored weight as this candidate's program reads it."""
    m = filtering(candidate)
    if not m:
        return weight
    assert isinstance(workload, Conv2d)
    return winograd.transformed(reference.unpack_conv_weight(weight, workload).numpy(), workload, m)


def inputs_of(workload: Workload, candidate: Candidate, arguments: Sequence[Array]) -> list[Array]:
    """Return the arguments (without the output) of this candidate's program for those of the workload."""
    if not filtering(candidate):
        return list(arguments)
    *before, weight, bias = arguments
    return [*before, arranged(workload, candidate, weight), bias]


def example(workload: Workload, candidate: Candidate, seed: int) -> list[Array]:
    """Return random arguments (without the output) of this candidate's program, for timing it."""
    return arguments(forms(shapes(workload, candidate), dtypes(workload)), seed)


def scheduled(workload: Workload, candidate: Candidate) -> Any:
    """Return the Schedule of `candidate`; its trace leads from `computation` to `module_of`.

    Raises ValueError for a Winograd program: it is written out, not scheduled.
    """
    if filtering(candidate):
        raise ValueError("a Winograd program has no trace")
    if isinstance(workload, Tir) or "trace" in dict(candidate.knobs):
        from cprune.tuner.programs import metaschedule

        return metaschedule.scheduled(workload, candidate)
    return sketch.scheduled(workload, candidate)


def computation(workload: Workload) -> Any:
    """Return the IRModule of the workload before any schedule."""
    if isinstance(workload, Tir):
        from cprune.tuner.programs import metaschedule

        return metaschedule.computation(workload)
    return sketch.computation(workload)
