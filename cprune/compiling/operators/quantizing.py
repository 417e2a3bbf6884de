"""Values that are rounded, to the 256 steps of a byte (`fake_quantize`) or to 16 bits (to them and back, `_to_copy`).

They are bytes, bfloat16 or float16 where the target multiplies these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cprune.compiling.kinds import Conv, Expression, Linear, Stored, Value
from cprune.compiling.lowered import HALVES, Half, Step
from cprune.compiling.values import Lowering, Values
from cprune.compiling.written import write_rounded
from cprune.network.halving import half_of, is_to_single
from cprune.network.node import Node, operator_name
from cprune.network.precision import ROUNDING
from cprune.network.quantizing import HIGHEST, LOWEST


def _fake_quantize(values: Values, node: Node) -> Value | None:
    step = step_of(node)
    if step is None:
        return None
    return _rounded(
        values, node, step, lambda e: ("dequantize", ("quantize", e, step.scale, step.zero), step.scale, step.zero)
    )


def _copied(values: Values, node: Node) -> Value | None:
    """Return a value in 16 bits, or such a value for those who read it in float32; None for any other copy."""
    half = HALVES.get(half_of(node))
    if half is not None:
        return _rounded(values, node, half, lambda e: (half.read, (half.write, e)))
    return values.same(node.args[0]) if is_to_single(node) else None


def _rounded(
    values: Values, node: Node, step: Step | Half, otherwise: Callable[[Expression], Expression]
) -> Value | None:
    """Return a value that is rounded in memory where the layout and its axes allow that, else as a chain."""
    x, shape = node.args[0], values.shape(node.name)
    if not values.layout.dot or len(shape) not in (2, 4):
        return values.chained(node, x, otherwise)
    layer = values.pending(x, Conv) or values.pending(x, Linear)
    if layer is not None and layer.step is None:
        return replace(layer, step=step)
    known = values.by_name.get(x.name)
    if isinstance(known, Stored) and known.step == step:
        return known
    return write_rounded(values, node.name, values.chain(x), step)


def step_of_reader(values: Values, name: str) -> Step | Half | None:
    """Return what a value is rounded to, if all that reads it is that rounding."""
    if values.uses[name] != 1 or not values.layout.dot:
        return None
    reader = next(node for node in values.nodes if name in node.refs())
    if half_of(reader):
        return HALVES[half_of(reader)]
    return step_of(reader) if operator_name(reader) in QUANTIZING else None


def step_of(node: Node) -> Step | None:
    """Return what the bytes of a `fake_quantize` stand for; None where they are not 0 to 255."""
    _, scale, zero, low, high = node.args
    return Step(float(scale), int(zero)) if (low, high) == (LOWEST, HIGHEST) else None


QUANTIZING: dict[str, Lowering] = {ROUNDING: _fake_quantize}
"""The lowerings of what is rounded to bytes, by the operators' names without the overload."""
COPIES: dict[str, Lowering] = {"_to_copy": _copied}
"""The same of what is rounded to 16 bits."""
