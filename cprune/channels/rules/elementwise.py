"""Element by element: operators that unite the labels of what they meet; and those over planes, without channels."""

from __future__ import annotations

import re

import numpy as np

from cprune.channels.flow import Flow, NoRule, Rule, called, named
from cprune.channels.labels import Spread
from cprune.network.node import Node, Ref, find_refs


def _elementwise(flow: Flow, node: Node) -> tuple[Spread, ...]:
    shape = flow.shape(node)
    values: list[Ref] = []
    params: list[Ref] = []
    for ref in find_refs((node.args, tuple(value for _, value in node.kwargs))):
        (params if flow.nodes[ref.name].op == "param" else values).append(ref)
    result: Spread | None = None
    for ref in values:
        if flow.shapes(ref):
            spread = _lifted(flow.spread(ref), shape)
            result = spread if result is None else _meet(flow, node, result, spread)
    for ref in params:
        # Of a parameter's axes, the one that lies along the other operand's channels.
        own = flow.shape(ref)
        axis = result.axis - (len(shape) - len(own)) if result is not None and not result.constant else -1
        spread = flow.along_param(ref, axis) if axis >= 0 and own[axis] > 1 else flow.spread(ref)
        spread = _lifted(spread, shape)
        result = spread if result is None else _meet(flow, node, result, spread)
    if result is None:
        raise NoRule  # an operand was expected
    return (Spread(shape, result.axis, result.labels),)


def _lifted(spread: Spread, shape: tuple[int, ...]) -> Spread:
    """Return a value's labels with the leading axes of length one that broadcasting gives it."""
    more = len(shape) - len(spread.shape)
    if more < 0:
        raise NoRule  # an operand has more axes than the result
    return Spread((1,) * more + spread.shape, spread.axis + more, spread.labels)


def _meet(flow: Flow, node: Node, a: Spread, b: Spread) -> Spread:
    """Unite two operands' labels where they meet; a length of one meets everything and binds nothing."""
    shape = tuple(max(pair) for pair in zip(a.shape, b.shape, strict=True))
    if a.constant:
        a, b = b, a
    a_alone = not a.constant and b.shape[a.axis] == 1  # b is broadcast along a's channels
    b_alone = not b.constant and a.shape[b.axis] == 1
    reason = f"{called(node)} spreads it over other channels"
    if a_alone or b_alone:
        if a_alone:
            flow.labels.freeze(b.labels, reason)
        if b_alone:
            flow.labels.freeze(a.labels, reason)
        if a_alone and b_alone:
            return flow.frozen(shape, reason)
        return Spread(shape, a.axis, a.labels) if a_alone else Spread(shape, b.axis, b.labels)
    if a.axis == b.axis or b.constant:
        flow.labels.unite(a.labels, b.labels)
    else:
        flow.labels.unite_all(np.concatenate([a.labels, b.labels]))
    return Spread(shape, a.axis, a.labels)


def _planes(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """Pooling, resizing, mirrored padding: the last one, two or three axes, whatever happens to them."""
    x = flow.spread(node.args[0])
    dimensions = re.search(r"(\d)d", node.op)
    count = int(dimensions.group(1)) if dimensions else len(x.shape) - 2
    if x.axis >= len(x.shape) - count and not x.constant:
        raise NoRule(f"{called(node)} works across channels")
    return tuple(Spread(shape, x.axis, x.labels) for shape in flow.shapes(node))


ELEMENTWISE_RULES: dict[str, Rule] = {
    **named(
        _elementwise,
        """
        relu relu6 hardtanh sigmoid tanh hardswish hardsigmoid silu gelu leaky_relu elu celu selu mish
        softplus hardshrink softshrink threshold log_sigmoid clamp clamp_min clamp_max clip abs exp expm1
        log log1p log2 neg sqrt rsqrt square reciprocal erf sin cos floor ceil round sign trunc dropout
        feature_dropout alpha_dropout feature_alpha_dropout clone contiguous detach alias to _to_copy
        lift_fresh_copy zeros_like ones_like full_like nan_to_num logical_not add sub rsub mul div
        true_divide maximum minimum fmax fmin pow where lerp addcmul addcdiv eq ne lt le gt ge logical_and
        logical_or logical_xor masked_fill remainder fmod tan asin acos atan sinh cosh asinh acosh atanh erfc sgn
        logit atan2 hypot copysign isnan isinf isfinite bitwise_not bitwise_and bitwise_or positive floor_divide
        fill copy type_as fake_quantize_per_tensor_affine
        """,
    ),
    **named(
        _planes,
        """
        max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        max_pool2d_with_indices reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
        replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
        upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact1d
        _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        """,
    ),
}
