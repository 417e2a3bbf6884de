"""Values that are rounded to the 256 steps of a byte (`fake_quantize`): bytes where the target multiplies them."""

from __future__ import annotations

from dataclasses import replace

from cprune.compiling.kinds import Conv, Linear, Stored, Value
from cprune.compiling.lowered import Step
from cprune.compiling.values import Lowering, Values
from cprune.compiling.written import write_bytes
from cprune.network.node import Node, operator_name
from cprune.network.quantizing import HIGHEST, LOWEST


def _fake_quantize(values: Values, node: Node) -> Value | None:
    x, step = node.args[0], step_of(node)
    if step is None:
        return None
    shape = values.shape(node.name)
    if not values.layout.dot or len(shape) not in (2, 4):
        return values.chained(
            node, x, lambda e: ("dequantize", ("quantize", e, step.scale, step.zero), step.scale, step.zero)
        )
    layer = values.pending(x, Conv) or values.pending(x, Linear)
    if layer is not None and layer.step is None:
        return replace(layer, step=step)
    known = values.by_name.get(x.name)
    if isinstance(known, Stored) and known.step == step:
        return known
    return write_bytes(values, node.name, values.chain(x), step)


def step_of_reader(values: Values, name: str) -> Step | None:
    """Return the step of the bytes that a value is rounded to, if all that reads it is that rounding."""
    if values.uses[name] != 1 or not values.layout.dot:
        return None
    reader = next(node for node in values.nodes if name in node.refs())
    return step_of(reader) if operator_name(reader) in QUANTIZING else None


def step_of(node: Node) -> Step | None:
    """Return what the bytes of a `fake_quantize` stand for; None where they are not 0 to 255."""
    _, scale, zero, low, high = node.args
    return Step(float(scale), int(zero)) if (low, high) == (LOWEST, HIGHEST) else None


QUANTIZING: dict[str, Lowering] = {"fake_quantize_per_tensor_affine": _fake_quantize}
"""The lowerings of this file, by the operators' names without the overload."""
