"""The nodes of a `Network`: plain frozen data, and what one reads of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Ref:
    """The value of another node, by its name."""

    name: str


@dataclass(frozen=True)
class Node:
    """One line of the graph.

    `op` is "input" (`args[0]`, where given, is the shape it must have, None for a size that is open), "param"
    (`args[0]` is its state-dict name), "output", "getitem", an ATen overload ("aten.conv2d.default") or
    arithmetic on sizes ("operator.mul").  `args` and `kwargs` are nested tuples of Ref, int, float, bool,
    str, None, and pairs such as ("dtype", "float32") or ("memory_format", "contiguous_format"); the one
    argument of "output" may hold dicts as well.  `source` is "model.py:42" of the user's code where known.
    """

    name: str
    op: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    source: str = ""

    def refs(self) -> tuple[str, ...]:
        """Return the names of the nodes that this one reads, in order, repeated where it reads one twice."""
        return tuple(ref.name for ref in find_refs((self.args, tuple(v for _, v in self.kwargs))))


def operator_name(node: Node) -> str:
    """Return the name of a node's operator without the overload: "conv2d", "getitem"."""
    return node.op.split(".")[1] if node.op.startswith("aten.") else node.op


def find_refs(value: object) -> Iterator[Ref]:
    """Yield every Ref inside nested tuples, lists and dicts."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from find_refs(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from find_refs(item)


def map_refs(value: Any, function: Callable[[Ref], Any]) -> Any:
    """Return `value` with every Ref inside it replaced by `function(ref)`; lists become tuples."""
    if isinstance(value, Ref):
        return function(value)
    if isinstance(value, (tuple, list)):
        return tuple(map_refs(item, function) for item in value)
    if isinstance(value, dict):
        return {key: map_refs(item, function) for key, item in value.items()}
    return value


def alive(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes that the output needs; inputs stay."""
    needed: set[str] = set()
    kept: list[Node] = []
    for node in reversed(nodes):
        if node.op in ("output", "input") or node.name in needed:
            needed.update(node.refs())
            kept.append(node)
    return kept[::-1]


def tensors_of(value: object) -> list[Tensor]:
    """Return the tensors of a node's value or of a model's output, in order: one, several or none."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
