"""From TIR to instructions: a walk through a lowered program.

A statement at the bottom, with the loops that hold nothing else, is one instruction or several (`emit.py`).  The loops
above are gone through by whoever fetches instructions; the addresses of all of them are computed at once (`affine.py`).

Tokens are given by place in the program, as VTA's compiler does: the first load of a step waits for a free input and
the last one says that it is there, the multiplier gives the input back (after the last step of a tile the ALU does),
the ALU says that a result is there, the store gives that back.  An instruction that a condition leaves out leaves its
tokens out as well: where a tile is cut off by the end of an axis the queues then wait for each other for ever, or end
out of step, as they do on the hardware.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from cprune.targets.npu import stream as at
from cprune.targets.npu.affine import Numbers
from cprune.targets.npu.emit import Emitted, Emitter
from cprune.targets.npu.machine import NpuMachine
from cprune.targets.npu.memory import Memory
from cprune.targets.npu.stream import Code, Stream
from cprune.targets.npu.tree import Leaf, Node, Program, Repeat, Sequence, read

Strides = tuple[tuple[Any, int], ...]
"""Loop variables with how many instructions lie between two of their values."""


def stream_of(function: Any, machine: NpuMachine) -> Stream:
    """Return the instructions of a lowered PrimFunc (`lower.py`).

    Raises ValueError where it does what the accelerator cannot do.
    """
    program = read(function)
    memory = Memory(program, machine)
    emitter = Emitter(memory)
    emitted = {leaf: emitter.emitted(leaf) for leaf in program.leaves}
    places = _Places(program, emitted)
    tokens = _tokens([emitted[leaf] for leaf in program.leaves])
    alu = next(leaf for leaf, one in emitted.items() if one.op == at.ALU)
    code = np.zeros((places.total, at.WIDTH), np.int64)
    there = np.zeros(places.total, np.bool_)
    for leaf, one in emitted.items():
        rows, first, runs = one.rows.copy(), places.of(leaf), one.runs
        if one.op == at.GEMM:
            rows[:, 0, at.TOKENS] |= np.where(_is_last(leaf, alu), 0, at.PUSH_PREVIOUS)
        rows[:, 0, at.TOKENS] |= tokens[one.op][0]
        rows[:, -1, at.TOKENS] |= tokens[one.op][1]
        for i in range(one.each):
            code[first + i] = rows[:, i]
            there[first + i] = runs
    left_out = int((~there).sum())
    code = code[there]
    return Stream(code, emitter.uops, program.thread_count, _facts(program, memory, emitter, code, left_out))


class _Places:
    """Where every execution of every leaf stands among all instructions, those that are left out counted."""

    def __init__(self, program: Program, emitted: dict[Leaf, Emitted]) -> None:
        self.threads, self.thread_count, self._emitted = program.threads, program.thread_count, emitted
        self._found: dict[Leaf, tuple[int, Strides]] = {}
        self.total = self._span(program.tree)
        self._set(program.tree, (), 0)

    def of(self, leaf: Leaf) -> Numbers:
        """Return the place of the first instruction of every execution."""
        (start, strides), values = self._found[leaf], leaf.values
        return leaf.each(start + sum(values[variable] * stride for variable, stride in strides))

    def _span(self, node: Node) -> int:
        """Return how many instructions a part of the program has at most."""
        if isinstance(node, Leaf):
            return self._emitted[node].each * self.thread_count
        if isinstance(node, Sequence):
            return sum(map(self._span, node.parts))
        return node.loop.extent * self._span(node.body)

    def _set(self, node: Node, loops: Strides, start: int) -> None:
        if isinstance(node, Repeat):
            self._set(node.body, (*loops, (node.loop.variable, self._span(node.body))), start)
            return
        parts = node.parts if isinstance(node, Sequence) else (node,)
        for queue, group in groupby(parts, lambda part: isinstance(part, Leaf) and self._emitted[part].group):
            members = list(group)
            if queue:
                self._set_group([part for part in members if isinstance(part, Leaf)], loops, start)
            for part in members:
                if not queue:
                    self._set(part, loops, start)
                start += self._span(part)

    def _set_group(self, group: list[Leaf], loops: Strides, start: int) -> None:
        """Place leaves that follow one another in one queue: one virtual thread after the other goes through them."""
        each = sum(self._emitted[leaf].each for leaf in group)
        for leaf in group:
            strides, stride = list(loops), each
            for loop in reversed(self.threads):
                strides.append((loop.variable, stride))
                stride *= loop.extent
            self._found[leaf] = (start, tuple(strides))
            start += self._emitted[leaf].each


def _tokens(emitted: list[Emitted]) -> dict[int, tuple[int, int]]:
    """Return by operation the tokens of the first and of the last instruction of an execution."""
    ops = [one.op for one in emitted]
    loads = [op for op in ops if op in (at.LOAD_INPUT, at.LOAD_WEIGHT)]
    if len(ops) != len({*ops}) or not {at.RESET, at.GEMM, at.ALU, at.STORE} <= {*ops} or len(loads) != 2:
        raise ValueError("the accelerator's programs load, multiply and store in one place each")
    return {
        at.LOAD_RESIDUAL: (0, 0),
        loads[0]: (at.POP_NEXT, 0),
        loads[1]: (0, at.PUSH_NEXT),
        at.RESET: (at.POP_NEXT, 0),
        at.GEMM: (at.POP_PREVIOUS, 0),  # and see `_is_last`
        at.ALU: (0, at.PUSH_PREVIOUS | at.PUSH_NEXT),
        at.STORE: (at.POP_PREVIOUS, at.PUSH_PREVIOUS),
    }


def _is_last(gemm: Leaf, alu: Leaf) -> Any:
    """Tell which products are the last ones of their tile: the ALU gives their input back."""
    steps = [loop for loop in gemm.outer if loop not in alu.outer]
    last, values = np.bool_(True), gemm.values
    for loop in steps:
        last = last & (values[loop.variable] == loop.extent - 1)
    return gemm.each(last).astype(np.bool_)


def _facts(program: Program, memory: Memory, emitter: Emitter, code: Code, left_out: int) -> dict[str, float]:
    """Return the hidden features of a program: what its author did not write, and compiling it shows."""
    ops = code[:, at.OP]
    gemm = code[ops == at.GEMM]
    moved = code[np.isin(ops, (at.LOAD_INPUT, at.LOAD_WEIGHT, at.LOAD_RESIDUAL))]
    lanes = memory.machine.lanes
    row_bytes = moved[:, at.COLUMNS] * np.where(moved[:, at.OP] == at.LOAD_WEIGHT, lanes**2, lanes)
    padded = (moved[:, [at.TOP, at.BOTTOM, at.LEFT, at.RIGHT]] > 0).any(axis=1)
    return {
        "instructions": float(len(code)),
        "left_out": float(left_out),
        "loads": float(len(moved)),
        "stores": float((ops == at.STORE).sum()),
        "uops": float(emitter.uops.shape[1]),
        "gemms": float(len(gemm)),
        "gemm_uops": _mean(gemm[:, at.UOPS]),
        "gemm_work": _mean(gemm[:, at.UOPS] * gemm[:, at.OUTER] * gemm[:, at.INNER]),
        "outer": _mean(gemm[:, at.OUTER]),
        "inner": _mean(gemm[:, at.INNER]),
        "load_bytes": float((row_bytes * moved[:, at.ROWS]).sum()),
        "row_bytes": _mean(row_bytes),
        "rows": float(moved[:, at.ROWS].sum()),
        "padded_loads": _mean(padded),
        "loops": float(program.loops),
        "branches": float(sum(len(leaf.guards) + len(leaf.within) for leaf in program.leaves)),
        **{f"use_{memory_}": share for memory_, share in memory.shares().items()},
    }


def _mean(numbers: Any) -> float:
    return float(numbers.mean()) if len(numbers) else 0.0
