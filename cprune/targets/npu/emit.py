"""The instructions of one statement: a copy moves rows, what computes has two loops and micro-operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from cprune.targets.npu import stream as at
from cprune.targets.npu.affine import Numbers, Values, axes, conditions, loads, operator, parts, reads, strides, value
from cprune.targets.npu.memory import INPUT, RESIDUAL, RESULT, SUMS, WEIGHT, Memory
from cprune.targets.npu.stream import Code
from cprune.targets.npu.tree import Leaf, Loop

LOADS = {INPUT: at.LOAD_INPUT, WEIGHT: at.LOAD_WEIGHT, RESIDUAL: at.LOAD_RESIDUAL}
PASSES = ("Min", "Max", "Add", "Sub", "Mul", "RShift", "LShift")  # what the ALU does in one pass over a tile


@dataclass(frozen=True, eq=False)
class Emitted:
    """The instructions of a leaf: [executions, instructions each, WIDTH], and what they do.

    `outputs` is how many different sums the micro-operations of one that computes have.
    """

    leaf: Leaf
    op: int
    rows: Code
    outputs: int = 0

    @property
    def each(self) -> int:
        """Return how many instructions one execution has."""
        return int(self.rows.shape[1])

    @property
    def queue(self) -> str:
        """Return the queue that they go to."""
        return "load" if self.op in (at.LOAD_INPUT, at.LOAD_WEIGHT) else "store" if self.op == at.STORE else "compute"

    @property
    def group(self) -> str:
        """Return what one virtual thread goes through together: what is of one queue.

        Products of a kernel of one pixel are a group of their own.  VTA's cycles say so (the next loads wait for the
        products of all threads there); why it is we do not know.
        """
        return "pixel" if self.op == at.GEMM and not (self.rows[:, :, at.UOPS] > self.outputs).any() else self.queue

    @property
    def runs(self) -> Any:
        """Tell which executions no condition leaves out, and that have anything to move."""
        values = self.leaf.values
        run = np.ones([loop.extent for loop in self.leaf.outer], np.bool_)
        for guard in self.leaf.guards:
            run = run & value(guard, values)
        runs = run.reshape(-1)
        if self.op in (*LOADS.values(), at.STORE):
            runs = runs & (self.rows[:, :, [at.ROWS, at.TOP, at.BOTTOM]].sum(axis=(1, 2)) > 0)
        return runs


class Emitter:
    """Makes the instructions of leaves, one after the other; `uops` are the micro-operations of all of them."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.lanes = memory, memory.machine.lanes
        self.kernels: list[Numbers] = []

    @property
    def uops(self) -> Numbers:
        """Return offsets of sums, input and weight, [3, n]."""
        return np.concatenate(self.kernels, axis=1) if self.kernels else np.zeros((3, 1), np.int64)

    def emitted(self, leaf: Leaf) -> Emitted:
        """Return the instructions of a leaf.

        Raises ValueError where it does what the accelerator cannot do.
        """
        statement = leaf.statement
        if type(statement).__name__ == "Evaluate":  # a call of the multiplier
            pointers = [arg for arg in statement.value.args if type(arg).__name__ == "Call"]
            buffers = [pointer.args[1].args[0] for pointer in pointers]
            return self._compute(leaf, at.GEMM, [pointer.args[2] for pointer in pointers], buffers)
        scope = statement.buffer.scope()
        if scope in LOADS:
            return self._copy(leaf, LOADS[scope], scope)
        if scope == SUMS:
            return self._compute(leaf, at.RESET, [statement.indices[0]], [statement.buffer])
        if scope == RESULT:
            source = next(load for load in loads(statement.value) if load.source.scope() == SUMS)
            addresses = [statement.indices[0], source.indices[0]]
            once = self._compute(leaf, at.ALU, addresses, [statement.buffer, source.source])
            return Emitted(leaf, at.ALU, np.repeat(once.rows, max(1, _passes(statement.value)), axis=1))
        return self._copy(leaf, at.STORE, RESULT)

    def _copy(self, leaf: Leaf, op: int, scope: str) -> Emitted:
        """Make instructions that move rows of vectors (blocks) between the chip and an argument."""
        statement, unit = leaf.statement, self.memory.unit(scope)
        read, inside = _source(statement.value)
        on_chip, outside = (read, statement) if op == at.STORE else (statement, read)
        buffer = read.source if op == at.STORE else statement.buffer
        loops = _without_unit(leaf.inner, unit)
        variables, extents = [loop.variable for loop in loops], [loop.extent for loop in loops]
        zero = {**leaf.values, **{loop.variable: np.int64(0) for loop in leaf.inner}}
        steps = [strides(each.indices[0], variables, extents, zero) for each in (on_chip, outside)]
        moves = [
            _Move(v, n, c // unit, a // unit) for v, n, c, a in zip(variables, extents, *steps, strict=True) if n > 1
        ]
        if op == at.LOAD_WEIGHT:
            moves = _merged(moves)
        column = moves.pop() if moves and moves[-1].chip == moves[-1].away == 1 else _Move(None, 1, 1, 1)
        row = moves.pop() if moves and moves[-1].chip == column.extent else _Move(None, 1, column.extent, 0)
        inside = [*inside, *leaf.within]
        if any(reads(one, move.variable) for one in inside for move in moves):
            raise ValueError("the accelerator pads rows and columns only")
        pieces = [(0, 0)]
        for move in moves:
            pieces = [(c + i * move.chip, a + i * move.away) for c, a in pieces for i in range(move.extent)]
        to = self.memory.first(leaf, buffer) + leaf.each(value(on_chip.indices[0], zero)) // unit
        base = leaf.each(value(outside.indices[0], zero)) // unit
        top, height = _let_through(leaf, inside, row, zero)
        left, width = _let_through(leaf, inside, column, zero)
        nothing = (height == 0) | (width == 0)
        rows = np.zeros((len(to), len(pieces), at.WIDTH), np.int64)
        rows[:, :, at.OP], rows[:, :, at.STRIDE] = op, row.away
        for i, (c, a) in enumerate(pieces):
            rows[:, i, at.CHIP] = to + c
            rows[:, i, at.OUTSIDE] = base + a + top * row.away + left * column.away
        rows[:, :, at.ROWS] = np.where(nothing, 0, height)[:, None]
        rows[:, :, at.COLUMNS] = np.where(nothing, 0, width)[:, None]
        if op != at.STORE:
            rows[:, :, at.TOP] = np.where(nothing, row.extent, top)[:, None]
            rows[:, :, at.BOTTOM] = np.where(nothing, 0, row.extent - top - height)[:, None]
            rows[:, :, at.LEFT] = np.where(nothing, column.extent, left)[:, None]
            rows[:, :, at.RIGHT] = np.where(nothing, 0, column.extent - left - width)[:, None]
        return Emitted(leaf, op, rows)

    def _compute(self, leaf: Leaf, op: int, addresses: Sequence[Any], buffers: Sequence[Any]) -> Emitted:
        """Make one instruction for every execution: the two outermost loops are its own, the others become uops."""
        loops = leaf.inner if op == at.GEMM else _without_unit(leaf.inner, self.lanes)
        loops = [loop for loop in loops if loop.extent > 1]
        variables, extents = [loop.variable for loop in loops], [loop.extent for loop in loops]
        zero = {**leaf.values, **{loop.variable: np.int64(0) for loop in leaf.inner}}
        rows = np.zeros((prod(loop.extent for loop in leaf.outer), 1, at.WIDTH), np.int64)
        offsets = np.zeros((3, prod(extents[2:])), np.int64)
        units = (self.lanes, self.lanes, self.lanes**2)
        for i, (address, buffer, unit) in enumerate(zip(addresses, buffers, units, strict=False)):
            steps = [step // unit for step in strides(address, variables, extents, zero)]
            rows[:, 0, at.SUMS + i] = self.memory.first(leaf, buffer) + leaf.each(value(address, zero)) // unit
            for loop, step in enumerate(steps[:2]):
                rows[:, 0, at.S0 + 2 * i + loop] = step
            total = sum((s * a for s, a in zip(steps[2:], axes(extents[2:]), strict=True)), np.int64(0))
            offsets[i] = np.broadcast_to(total, extents[2:] or [1]).reshape(-1)
        rows[:, 0, at.OP] = op
        rows[:, 0, [at.OUTER, at.INNER]] = [*extents[:2], 1, 1][:2]
        rows[:, 0, [at.FIRST, at.UOPS]] = self._kernel(offsets), offsets.shape[1]
        return Emitted(leaf, op, rows, len(np.unique(offsets[0])))

    def _kernel(self, offsets: Numbers) -> int:
        """Return where micro-operations begin; equal ones are there once."""
        start = 0
        for known in self.kernels:
            if np.array_equal(known, offsets):
                return start
            start += known.shape[1]
        self.kernels.append(offsets)
        return start


@dataclass(frozen=True)
class _Move:
    """A loop of a copy: its extent, and its steps on the chip and outside."""

    variable: Any
    extent: int
    chip: int
    away: int


def _let_through(leaf: Leaf, inside: Sequence[Any], move: _Move, zero: Values) -> tuple[Numbers, Numbers]:
    """Return for every execution the first number of a loop that conditions let through, and how many."""
    count, mine = prod(loop.extent for loop in leaf.outer), [one for one in inside if reads(one, move.variable)]
    if not mine:
        return np.zeros(count, np.int64), np.full(count, move.extent, np.int64)
    rank = len(leaf.outer)
    steps = np.arange(move.extent, dtype=np.int64).reshape((1,) * rank + (move.extent,))
    values = {v: n[..., None] if np.ndim(n) else n for v, n in zero.items()} | {move.variable: steps}
    let = np.ones((1,) * rank + (move.extent,), np.bool_)
    for one in mine:
        let = let & value(one, values)
    let = np.broadcast_to(let, [*(loop.extent for loop in leaf.outer), move.extent]).reshape(-1, move.extent)
    return let.argmax(axis=1).astype(np.int64), let.sum(axis=1).astype(np.int64)


def _merged(moves: Sequence[_Move]) -> list[_Move]:
    """Join loops that walk on where the next one ends, in both places; the outermost is the first."""
    done: list[_Move] = []
    for move in reversed(moves):
        inner = done[-1] if done else None
        if inner and move.chip == inner.chip * inner.extent and move.away == inner.away * inner.extent:
            done[-1] = _Move(inner.variable, move.extent * inner.extent, inner.chip, inner.away)
        else:
            done.append(move)
    return done[::-1]


def _without_unit(loops: Sequence[Loop], unit: int) -> list[Loop]:
    """Return the loops without the innermost ones, which walk through one address of `unit` elements."""
    kept, left = list(loops), unit
    while left > 1:
        if not kept or left % kept[-1].extent:
            raise ValueError(f"an address of the accelerator has {unit} elements")
        left //= kept.pop().extent
    return kept


def _source(expression: Any) -> tuple[Any, list[Any]]:
    """Return what a copy reads, and the conditions under which it does; where they do not hold it is padding."""
    if operator(expression) == "if_then_else":
        read, inside = _source(expression.args[1])
        return read, [*conditions(expression.args[0]), *inside]
    if type(expression).__name__ == "Select":
        read, inside = _source(expression.true_value)
        return read, [*conditions(expression.condition), *inside]
    return expression, []


def _passes(expression: Any) -> int:
    """Return how often the ALU goes over a tile: once for every operation on sums; casts and addresses cost nothing."""
    found = [part for part in parts(expression) if type(part).__name__ in PASSES]
    return sum(1 for part in found if any(True for _ in loads(part)))
