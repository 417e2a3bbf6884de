"""Activations that a model writes out, x · sigmoid(x) as most ONNX files do: found, so that they can join a kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from cprune.network.node import Node, Ref, alive, operator_name

SWISHES = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
"""What the product of a value with a gate of it is called, by the gate."""


def joined(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes with every SiLU and hard-swish as one operator under the name of its last node.

    Found are x · sigmoid(x), x · hardsigmoid(x) and x · relu6(x + 3) / 6, divided before or after the product, where
    nobody else reads what is in between.
    """
    swishes = _Swishes(nodes)
    return alive([swishes.named(node) for node in nodes])


class _Swishes:
    """What of a network is a SiLU or a hard-swish that is written out."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.by_name = {node.name: node for node in nodes}
        self.uses = Counter(name for node in nodes for name in node.refs())

    def named(self, node: Node) -> Node:
        """Return SiLU or hard-swish in place of the last node that writes it out; any other node as it is."""
        whole = self.sixth(node)
        name, x = self.product(node if whole is None else whole)
        if not name or (name == "six") != (whole is not None):
            return node
        return replace(node, op=f"aten.{name.replace('six', 'hardswish')}.default", args=(x,), kwargs=())

    def product(self, node: Node) -> tuple[str, Ref | None]:
        """Return what x · gate(x) is called, and x; "six" for a hard-swish times six, "" for anything else."""
        if operator_name(node) != "mul" or not all(isinstance(a, Ref) for a in node.args[:2]):
            return "", None
        for x, other in (node.args[:2], node.args[1::-1]):
            name, of = self.gate(other)
            if name and of == x:
                return name, x
        return "", None

    def gate(self, ref: Ref) -> tuple[str, Ref | None]:
        """Return what the product with this value would be called, and what the value is computed from."""
        node = self.alone(ref)
        if node is None:
            return "", None
        if operator_name(node) in SWISHES:
            return SWISHES[operator_name(node)], node.args[0]
        clipped = self.sixth(node)
        name, clipped = ("six", node) if clipped is None else ("hardswish", clipped)
        moved = self.alone(clipped.args[0]) if _is_relu6(clipped) else None
        if moved is None or operator_name(moved) != "add" or _number(moved, 1) != 3 or moved.kwargs:
            return "", None
        return name, moved.args[0]

    def sixth(self, node: Node) -> Node | None:
        """Return the node of whose value this one is a sixth, None if it is no sixth."""
        kind, number = operator_name(node), _number(node, 1)
        divided = (kind == "div" and number == 6) or (kind == "mul" and abs(6 * number - 1) < 1e-6)
        return self.alone(node.args[0]) if divided and not node.kwargs else None

    def alone(self, ref: object) -> Node | None:
        """Return the node behind `ref` if nobody else reads it."""
        return self.by_name[ref.name] if isinstance(ref, Ref) and self.uses[ref.name] == 1 else None


def _number(node: Node, position: int) -> float:
    """Return an argument that is a number, 0 if it is something else."""
    value = node.args[position] if len(node.args) > position else None
    return float(value) if isinstance(value, (int, float)) else 0.0


def _is_relu6(node: Node) -> bool:
    kind = operator_name(node)
    return kind == "relu6" or (kind in ("clamp", "hardtanh") and tuple(node.args[1:]) == (0, 6) and not node.kwargs)
