"""A lowered program as a tree: loops and sequences above, and at the bottom the statements that become instructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from cprune.targets.npu.affine import Numbers, Values, axes, conditions, reads, spread


@dataclass(frozen=True)
class Loop:
    """A loop: its variable, and how often it is gone through."""

    variable: Any
    extent: int


@dataclass(frozen=True, eq=False)
class Leaf:
    """A statement at the bottom.

    `inner` are the loops that hold nothing else, and `within` the conditions that read them: both are part of its
    instructions.  `outer` are all other loops, the virtual threads last, and `guards` all other conditions.
    """

    statement: Any
    inner: tuple[Loop, ...]
    within: tuple[Any, ...]
    outer: tuple[Loop, ...]
    guards: tuple[Any, ...]

    @property
    def values(self) -> Values:
        """Return the variables of the outer loops, each along an axis of its own."""
        extents = [loop.extent for loop in self.outer]
        return dict(zip((loop.variable for loop in self.outer), axes(extents), strict=True))

    def each(self, numbers: Any) -> Numbers:
        """Return one number for every execution, of an array along the axes of `values`."""
        return spread(numbers, [loop.extent for loop in self.outer])


@dataclass(frozen=True, eq=False)
class Sequence:
    """Parts, one after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """A loop that holds more than one statement."""

    loop: Loop
    body: Node


Node = Leaf | Sequence | Repeat


@dataclass(frozen=True, eq=False)
class Program:
    """A lowered PrimFunc: its tree, its virtual threads, and the buffers on the chip by scope."""

    tree: Node
    threads: tuple[Loop, ...]
    buffers: Mapping[str, tuple[Any, ...]]

    @property
    def thread_count(self) -> int:
        """Return how many virtual threads there are."""
        return prod(loop.extent for loop in self.threads)

    @property
    def leaves(self) -> list[Leaf]:
        """Return the statements at the bottom in their order."""
        return list(_leaves(self.tree))

    @property
    def loops(self) -> int:
        """Return how many loops were written."""
        return sum(len(leaf.inner) for leaf in self.leaves) + _repeats(self.tree)


def read(function: Any) -> Program:
    """Return the tree of a lowered PrimFunc.  Raises ValueError for a statement that the accelerator does not know."""
    reader = _Reader()
    reader.look(function.body)
    node = reader.node(function.body, (), ())
    if node is None:
        raise ValueError("the program has no statement")
    return Program(node, tuple(reader.threads), {scope: tuple(found) for scope, found in reader.buffers.items()})


class _Reader:
    """What is met on the way down: virtual threads and buffers first, then the nodes."""

    def __init__(self) -> None:
        self.threads: list[Loop] = []
        self.buffers: dict[str, list[Any]] = {}

    def look(self, statement: Any) -> None:
        """Take note of all threads and buffers."""
        kind = type(statement).__name__
        if kind == "SeqStmt":
            for part in statement.seq:
                self.look(part)
        elif kind == "AllocBuffer":
            self.buffers.setdefault(statement.buffer.scope(), []).append(statement.buffer)
        elif kind == "AttrStmt":
            if statement.attr_key in ("virtual_thread", "thread_extent"):
                self.threads.append(Loop(statement.node.var, int(statement.value)))
            self.look(statement.body)
        elif kind == "For":
            self.look(statement.body)
        elif kind == "IfThenElse":
            self.look(statement.then_case)

    def node(self, statement: Any, loops: tuple[Loop, ...], guards: tuple[Any, ...]) -> Node | None:
        """Return the node of a statement below some loops and conditions; None for one that does nothing."""
        bottom = _bottom(statement)
        if bottom is not None:
            inner, met, last = bottom
            within = tuple(one for one in met if any(reads(one, loop.variable) for loop in inner))
            more = tuple(one for one in met if not any(reads(one, loop.variable) for loop in inner))
            return Leaf(last, tuple(inner), within, (*loops, *self.threads), (*guards, *more))
        kind = type(statement).__name__
        if kind == "SeqStmt":
            parts = [node for part in statement.seq if (node := self.node(part, loops, guards)) is not None]
            return Sequence(tuple(parts)) if parts else None
        if kind == "For":
            loop = Loop(statement.loop_var, int(statement.extent))
            body = self.node(statement.body, (*loops, loop), guards)
            return None if body is None else Repeat(loop, body)
        if kind == "IfThenElse":
            return self.node(statement.then_case, loops, (*guards, *conditions(statement.condition)))
        if kind == "AttrStmt":
            return self.node(statement.body, loops, guards)
        if kind in ("AllocBuffer", "DeclBuffer", "Evaluate"):
            return None
        raise ValueError(f"the accelerator has no instruction for {kind}")


def _bottom(statement: Any) -> tuple[list[Loop], list[Any], Any] | None:
    """Return loops, conditions and the statement where nothing else is below; None where there is more, or nothing."""
    kind = type(statement).__name__
    if kind == "BufferStore" or (kind == "Evaluate" and type(statement.value).__name__ == "Call"):
        return [], [], statement
    if kind == "For":
        below = _bottom(statement.body)
        if below is not None:
            below[0].insert(0, Loop(statement.loop_var, int(statement.extent)))
        return below
    if kind == "IfThenElse":
        below = _bottom(statement.then_case)
        if below is not None:
            below[1].extend(conditions(statement.condition))
        return below
    if kind == "SeqStmt" and len(statement.seq) == 1:
        return _bottom(statement.seq[0])
    return None


def _leaves(node: Node) -> Iterator[Leaf]:
    if isinstance(node, Leaf):
        yield node
    elif isinstance(node, Sequence):
        for part in node.parts:
            yield from _leaves(part)
    else:
        yield from _leaves(node.body)


def _repeats(node: Node) -> int:
    if isinstance(node, Leaf):
        return 0
    if isinstance(node, Sequence):
        return sum(map(_repeats, node.parts))
    return 1 + _repeats(node.body)
