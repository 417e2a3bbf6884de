"""The seam to the machine that measures: one program in, its timing or a failure out.

A session never raises for a candidate that fails: it returns a `Failure`, which is data.  It raises BrokenWorld when
the machine itself is gone, and Bug where our own code is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""An argument of a program: float32, or bytes (uint8), weights of them (int8), bfloat16 (uint16), float16."""
Shapes = tuple[tuple[int, ...], ...]
"""The shapes of a program's arguments; the last one is the output."""
Forms = tuple[tuple[tuple[int, ...], str], ...]
"""Shape and type of every argument of a program; the last one is the output."""

STAGES = ("lower", "build", "load", "run", "check", "timeout")


@dataclass(frozen=True)
class Failure:
    """Why a candidate is no program: `stage` is one of STAGES, `reason` the first line of what was said."""

    stage: str
    reason: str


@dataclass(frozen=True)
class Timed:
    """The runs of one program, in seconds for one call each, and its output where it was asked for."""

    runs_s: tuple[float, ...]
    output: Array | None = None


@dataclass(frozen=True)
class Program:
    """A scheduled TIR module as TVM's JSON text, and the shapes of its arguments; the last one is the output.

    `dtypes` are the arguments' types where not all of them are float32.
    """

    module: str
    shapes: Shapes
    dtypes: tuple[str, ...] = ()

    @property
    def forms(self) -> Forms:
        """Return shape and type of every argument."""
        return forms(self.shapes, self.dtypes)


@dataclass(frozen=True)
class Built:
    """A program that a session holds built.  `assembly` is its machine code as text where that was asked for."""

    handle: int
    program: Program
    assembly: str = ""


@dataclass(frozen=True)
class Kernel:
    """A scheduled TIR module as TVM's JSON text with one function, `name`.  Equal names mean equal code."""

    name: str
    module: str


@dataclass(frozen=True)
class Model:
    """A Relax module as TVM's JSON text, the kernels it calls, and the weights its `main` takes after the input."""

    module: str
    kernels: tuple[Kernel, ...]
    weights: tuple[Array, ...]


class Session(Protocol):
    """Builds programs and times them on one machine."""

    def build(
        self, programs: Sequence[Program], *, assembly: bool = False, keep: Sequence[Built] = ()
    ) -> list[Built | Failure]:
        """Build `programs` on all cores of the host, and hold them until a later `build` that does not `keep` them.

        Nothing is timed meanwhile, so building never disturbs a measurement.
        """

    def time(self, entries: Sequence[Built], *, slow_s: float = float("inf")) -> list[Timed | Failure]:
        """Return the runs of built programs on random arguments, one program after the other (on each device).

        A first call slower than `slow_s` seconds ends the timing there: that one run is returned.
        """

    def race(self, entries: Sequence[Built], inputs: Sequence[Sequence[Array]], rounds: int) -> list[Timed | Failure]:
        """Time built programs in turns, one run each a round, each on its own arguments (without the output).

        The outputs come back as well.
        """

    def load(self, key: str, model: Model) -> Failure | None:
        """Build `model` and hold it under `key` until `drop`; None when it is there.

        Kernels of models that are held already are not built again.
        """

    def run(self, key: str, inputs: Sequence[Array]) -> tuple[Array, ...] | Failure:
        """Return the outputs of the held model `key`."""

    def time_models(
        self, keys: Sequence[str], inputs: Sequence[Array], rounds: int, run_ms: float
    ) -> dict[str, tuple[float, ...]] | Failure:
        """Return for every key one timing in seconds a call for each round; the keys take turns in every round."""

    def drop(self, key: str) -> None:
        """Forget the held model."""

    def close(self) -> None:
        """End the session and everything it started."""


def forms(shapes: Shapes, dtypes: Sequence[str] = ()) -> Forms:
    """Return the shapes with their types, float32 where `dtypes` is empty."""
    return tuple(zip(shapes, dtypes or ("float32",) * len(shapes), strict=True))


def arguments(wanted: Forms, seed: int) -> list[Array]:
    """Return random arguments: floats of variance 1, bytes of their full range.  The output's place is left out."""
    rng = np.random.default_rng(seed)
    return [_random(rng, shape, np.dtype(dtype)) for shape, dtype in wanted[:-1]]


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype, copy=False)
    if dtype == np.uint16:  # the upper half of a float32 is a bfloat16
        return (rng.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def empty(wanted: Forms) -> Array:
    """Return zeros for the output."""
    shape, dtype = wanted[-1]
    return np.zeros(shape, dtype)
