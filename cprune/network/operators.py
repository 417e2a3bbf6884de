"""The operators and constants that a graph may name.

A graph may come from a file, so an operator name is only ever looked up among the ATen overloads that change
nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeGuard

import torch

from cprune.network.node import Node
from cprune.targets.errors import UserError

_SIZES: dict[str, Callable[..., Any]] = {
    f"operator.{name}": getattr(operator, name)
    for name in (
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "neg",
        "pow",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    )
} | {f"torch.{name}": getattr(torch, name) for name in ("sym_int", "sym_float", "sym_max", "sym_min")}

SIZE_OPERATORS = {function: name for name, function in _SIZES.items()}
"""Arithmetic on sizes that a graph may hold: function to operator name."""

Constant = torch.dtype | torch.layout | torch.memory_format | torch.device
"""What stands in a graph as a pair of its kind and its name."""

_ENCODED: dict[str, type[Constant]] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
    "device": torch.device,
}


RESHAPES = ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
"""The operators that give a value another shape, all run as the last one."""


def lookup(op: str, where: str = "") -> Callable[..., Any]:
    """Return the function behind an operator name.

    UserError, ending in `where`, unless it is an ATen overload that changes nothing or arithmetic on sizes.
    """
    if op in _SIZES:
        return _SIZES[op]
    if op == "getitem":
        return operator.getitem
    place = f" ({where})" if where else ""
    namespace, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    function = None
    if namespace == "aten" and overload and not name.startswith("__"):
        function = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if not isinstance(function, torch._ops.OpOverload):
        raise UserError(f"the graph uses {op!r}, which is not an ATen operator{place}")
    if function._schema.is_mutable or name == "from_file":
        raise UserError(f"the graph uses {op!r}, which cprune does not run{place}")
    # A view needs memory in an order that a pruned value, of one channel for example, may not have.
    return torch.ops.aten.reshape.default if op in RESHAPES else function


def encode(value: object) -> tuple[str, str]:
    """Return the pair that stands for a torch constant, ("dtype", "float32"); ValueError if it has none."""
    for kind, its_type in _ENCODED.items():
        if isinstance(value, its_type):
            return kind, str(value).removeprefix("torch.")
    raise ValueError(f"{type(value).__name__} {value!r} cannot stand in a graph")


def is_encoded(value: object) -> TypeGuard[tuple[str, str]]:
    """Tell whether a tuple of a node's arguments is a pair made by `encode`."""
    return isinstance(value, tuple) and len(value) == 2 and value[0] in _ENCODED and isinstance(value[1], str)


def decode(pair: tuple[str, str]) -> Constant:
    """Return the torch constant behind a pair such as ("dtype", "float32"); UserError if there is none."""
    kind, name = pair
    try:
        constant = torch.device(name) if kind == "device" else getattr(torch, name, None)
    except RuntimeError:
        constant = None
    if not isinstance(constant, _ENCODED[kind]):
        raise UserError(f"the graph names the {kind} {name!r}, which this torch does not know")
    return constant


def on_meta(node: Node) -> Node:
    """Return the node with torch's meta device wherever it names a device."""

    def moved(value: Any) -> Any:
        if is_encoded(value):
            return ("device", "meta") if value[0] == "device" else value
        if isinstance(value, (tuple, list)):
            return tuple(moved(item) for item in value)
        return value

    return replace(node, args=moved(node.args), kwargs=tuple((key, moved(value)) for key, value in node.kwargs))
