"""Operators that work element by element: they join a layer that waits, or become part of a chain."""

from __future__ import annotations

from dataclasses import replace

from cprune.compiling.kinds import Chain, Conv, Expression, Linear, Value, merged
from cprune.compiling.operators.arguments import filled
from cprune.compiling.values import Lowering, Values
from cprune.network.node import Node, Ref

LOWEST, HIGHEST = -3.4e38, 3.4e38  # a clamp without a bound, in float32


def _activation(name: str) -> Lowering:
    """Return the lowering of an activation that a layer can take along."""
    return lambda values, node: _activated(values, node, name)


def _activated(values: Values, node: Node, activation: str) -> Value:
    ref = node.args[0]
    layer = values.pending(ref, Conv) or values.pending(ref, Linear)
    if layer is not None and layer.activates:
        return replace(layer, activation=activation)
    return values.chained(node, ref, lambda e: (activation, e))


def _function(name: str) -> Lowering:
    """Return the lowering of a function that only chains compute."""
    return lambda values, node: values.chained(node, node.args[0], lambda e: (name, e))


def _gelu(values: Values, node: Node) -> Value:
    exact = dict(node.kwargs).get("approximate", "none") == "none"
    return _activated(values, node, "gelu" if exact else "gelu_tanh")


def _hardsigmoid(values: Values, node: Node) -> Value:
    return values.chained(node, node.args[0], lambda e: ("scale", ("clip", ("shift", e, 3.0), 0.0, 6.0), 1.0 / 6.0))


def _hardtanh(values: Values, node: Node) -> Value:
    _, low, high = filled(node, (-1.0, 1.0), 1)
    return _clipped(values, node, float(low), float(high))


def _clamp(values: Values, node: Node) -> Value | None:
    _, low, high = filled(node, (None, None), 1)
    if isinstance(low, Ref) or isinstance(high, Ref):
        return None
    return _clipped(values, node, LOWEST if low is None else float(low), HIGHEST if high is None else float(high))


def _clipped(values: Values, node: Node, low: float, high: float) -> Value:
    if (low, high) == (0, 6):
        return _activated(values, node, "relu6")
    return values.chained(node, node.args[0], lambda e: ("clip", e, low, high))


def _add(values: Values, node: Node) -> Value | None:
    if dict(node.kwargs).get("alpha", 1) != 1:
        return None
    a, b = node.args[:2]
    if values.is_tensor(a) and values.is_tensor(b) and values.shape(a.name) == values.shape(b.name) != ():
        convs = [(conv, other) for ref, other in ((a, b), (b, a)) if (conv := values.pending(ref, Conv))]
        joinable = [(conv, other) for conv, other in convs if conv.is_open]
        if joinable:
            # The larger of two convolutions takes the sum along; the other one is written first.
            conv, other = max(joinable, key=lambda pair: pair[0].weight.numel())
            return replace(conv, residual=other.name)
    return _binary(values, node, "add", "shift")


def _mul(values: Values, node: Node) -> Value | None:
    return _binary(values, node, "mul", "scale")


def _sub(values: Values, node: Node) -> Value | None:
    if dict(node.kwargs).get("alpha", 1) != 1:
        return None
    if not isinstance(node.args[1], Ref):
        return values.chained(node, node.args[0], lambda e: ("shift", e, -float(node.args[1])))
    return _binary(values, node, "sub", "")


def _div(values: Values, node: Node) -> Value | None:
    if isinstance(node.args[1], Ref) or node.kwargs:
        return None
    return values.chained(node, node.args[0], lambda e: ("scale", e, 1.0 / float(node.args[1])))


def _binary(values: Values, node: Node, op: str, scalar_op: str) -> Value | None:
    a, b = node.args[:2]
    if not isinstance(a, Ref):
        a, b = b, a
    if not isinstance(b, Ref):
        return values.chained(node, a, lambda e: (scalar_op, e, float(b)))
    if not values.is_tensor(a) or not values.is_tensor(b):
        return None
    shape = values.shape(node.name)
    chains = [values.chain(ref) for ref in (a, b)]
    expressions, inputs = merged(chains)
    sides = [_broadcast(e, chain.shape, shape) for e, chain in zip(expressions, chains, strict=True)]
    return Chain((op, *sides), inputs, shape)


def _broadcast(expression: Expression, before: tuple[int, ...], after: tuple[int, ...]) -> Expression:
    if before == after:
        return expression
    return ("broadcast", expression, (1,) * (len(after) - len(before)) + before, len(before))


ELEMENTWISE: dict[str, Lowering] = {
    **{name: _activation(name) for name in ("relu", "relu6", "silu", "hardswish")},
    **{name: _function(name) for name in ("sigmoid", "tanh", "erf")},
    "gelu": _gelu,
    "hardsigmoid": _hardsigmoid,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "add": _add,
    "mul": _mul,
    "sub": _sub,
    "div": _div,
}
"""The lowerings of this file, by the operators' names without the overload."""
