"""Where the buffers of a program lie in the memories on the chip: one behind the other, once for every thread."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from cprune.targets.npu.affine import Numbers
from cprune.targets.npu.machine import NpuMachine
from cprune.targets.npu.tree import Leaf, Program

INPUT, WEIGHT, RESIDUAL, SUMS, RESULT = "local.input", "local.weight", "local.residual", "local.sums", "local.result"
MEMORIES = (INPUT, WEIGHT, SUMS, RESULT)


@dataclass(frozen=True, eq=False)
class Place:
    """A buffer's first address in its memory, and how many addresses one thread's copy of it takes."""

    start: int
    size: int


class Memory:
    """The places of all buffers.  `used` says how many addresses of each memory are taken.

    Raises ValueError for a scope that is no memory of the accelerator.  Residuals lie in the accumulator.
    """

    def __init__(self, program: Program, machine: NpuMachine) -> None:
        self.machine, self.threads = machine, program.threads
        self.used = dict.fromkeys(MEMORIES, 0)
        self._places: dict[Any, Place] = {}
        for scope, buffers in program.buffers.items():
            memory = SUMS if scope == RESIDUAL else scope
            if memory not in self.used:
                raise ValueError(f"the accelerator has no memory {scope}")
            for buffer in buffers:
                size = -(-prod(int(n) for n in buffer.shape) // self.unit(scope))
                self._places[buffer] = Place(self.used[memory], size)
                self.used[memory] += size * program.thread_count

    def unit(self, scope: str) -> int:
        """Return how many elements one address of a memory holds."""
        return self.machine.lanes ** (2 if scope == WEIGHT else 1)

    def first(self, leaf: Leaf, buffer: Any) -> Numbers:
        """Return where a buffer begins, for every execution of a leaf."""
        place, values = self._places[buffer], leaf.values
        thread: Numbers | np.int64 = np.int64(0)
        for loop in self.threads:
            thread = thread * loop.extent + values[loop.variable]
        return leaf.each(place.start + thread * place.size)

    def shares(self) -> dict[str, float]:
        """Return which share of every memory is taken, more than 1 where a program does not fit."""
        machine = self.machine
        there = (machine.input_vectors, machine.weight_blocks, machine.sums_vectors, machine.sums_vectors)
        return {scope.partition(".")[2]: self.used[scope] / n for scope, n in zip(MEMORIES, there, strict=True)}
