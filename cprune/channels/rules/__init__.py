"""How channels travel through each operator: one rule an operator, applied to labels instead of numbers.

Convolutions and linear layers start new labels; element-wise operators unite the labels they meet.  Operators that
move values about are in `cprune.channels.rules.moves`, those that sum over channels in
`cprune.channels.rules.products`.
"""

from __future__ import annotations

import re

import numpy as np

from cprune.channels.flow import Flow, Layer, NoRule, Rule, argument, called, named
from cprune.channels.labels import Array, Spread
from cprune.channels.rules.moves import SHAPE_RULES
from cprune.channels.rules.products import PRODUCT_RULES
from cprune.network.node import Node, Ref, find_refs, tensors_of

# ----------------------------------------------------------------------------------------------------
# Layers


def _convolution(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, weight, bias = flow.spread(node.args[0]), node.args[1], argument(node, 2, "bias")
    transposed = "transpose" in node.op
    groups = argument(node, 6, "groups", 1)
    out_axis = 1 if transposed else 0
    reads: int | None = 0 if transposed else 1
    channel_axis = len(x.shape) - (flow.sample[weight.name].dim() - 1)
    if x.axis != channel_axis and flow.varied(x):
        raise NoRule(f"{called(node)} slides along the channels")
    into, outof = flow.along(x, channel_axis), flow.axis_labels(weight, out_axis)
    if has_whole_groups(groups, len(into), flow.shape(node)[channel_axis]):
        outof = _whole_groups(flow, weight, into, groups, transposed)
        out_axis, reads = 0, None
    elif transposed:
        flow.labels.unite(into, flow.axis_labels(weight, 0))
        flow.labels.unite(into.reshape(groups, -1), into.reshape(groups, -1)[:1])
        outof = np.tile(outof, groups)
    else:
        # The groups must stay of one size: channel j goes in all of them.
        flow.labels.unite(into.reshape(groups, -1), flow.axis_labels(weight, 1)[None])
        flow.labels.unite(outof.reshape(groups, -1), outof.reshape(groups, -1)[:1])
    flow.tie(outof, bias)
    _add_layer(flow, node, "conv", out_axis, reads)
    return (Spread(flow.shape(node), channel_axis, outof),)


def has_whole_groups(groups: int, inputs: int, outputs: int) -> bool:
    """Tell whether a convolution's groups have one input or one output channel each, as in a depthwise one.

    Such groups are removed as wholes.  (One group of one channel is not meant.)
    """
    return groups > 1 and groups in (inputs, outputs)


def _whole_groups(flow: Flow, weight: Ref, into: Array, groups: int, transposed: bool) -> Array:
    """Unite the channels of each group and return the labels of the output's channels."""
    group = into.reshape(groups, -1)
    flow.labels.unite(group, group[:, :1])
    rows = flow.axis_labels(weight, 0)
    flow.labels.unite(rows.reshape(groups, -1), group[:, :1])
    return np.repeat(group[:, 0], flow.sample[weight.name].shape[1]) if transposed else rows


def _linear(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, weight, bias = flow.spread(node.args[0]), node.args[1], argument(node, 2, "bias")
    last = len(x.shape) - 1
    into, outof = flow.axis_labels(weight, 1), flow.axis_labels(weight, 0)
    _add_layer(flow, node, "linear", 0, 1)
    if x.axis != last and flow.varied(x):  # it mixes positions, and every channel has them all
        for labels in (into, outof):
            flow.labels.freeze(labels, f"{called(node)} runs along another axis than the channels'")
        return (Spread(flow.shape(node), x.axis, x.labels),)
    flow.labels.unite(flow.along(x, last), into)
    flow.tie(outof, bias)
    return (Spread(flow.shape(node), last, outof),)


def _add_layer(flow: Flow, node: Node, kind: str, out_axis: int, in_axis: int | None) -> None:
    weight = str(flow.nodes[node.args[1].name].args[0])
    owner, _, leaf = weight.rpartition(".")
    name = owner if owner and leaf in ("weight", "computed_weight") else weight
    calls = flow.layers[name].calls if name in flow.layers else ()
    flow.layers[name] = Layer(name, kind, flow.one_name[weight], out_axis, in_axis, (*calls, node.name))


def _normalisation(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x = flow.spread(node.args[0])
    labels = flow.along(x, 1)
    for ref in node.args[1:5]:
        flow.tie(labels, ref)
    return (Spread(x.shape, 1, labels),)


def _prelu(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, weight = flow.spread(node.args[0]), node.args[1]
    if flow.sample[weight.name].numel() > 1:
        flow.tie(flow.along(x, 1), weight)
    return (x,)


# ----------------------------------------------------------------------------------------------------
# Element by element


def _elementwise(flow: Flow, node: Node) -> tuple[Spread, ...]:
    shape = flow.shape(node)
    values: list[Ref] = []
    params: list[Ref] = []
    for ref in find_refs((node.args, tuple(value for _, value in node.kwargs))):
        (params if flow.nodes[ref.name].op == "param" else values).append(ref)
    result: Spread | None = None
    for ref in values:
        if tensors_of(flow.sample[ref.name]):
            spread = _lifted(flow.spread(ref), shape)
            result = spread if result is None else _meet(flow, node, result, spread)
    for ref in params:
        # Of a parameter's axes, the one that lies along the other operand's channels.
        own = flow.sample[ref.name].shape
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


# ----------------------------------------------------------------------------------------------------
# Over planes and other axes without channels


def _planes(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """Pooling, resizing, mirrored padding: the last one, two or three axes, whatever happens to them."""
    x = flow.spread(node.args[0])
    found = re.search(r"(\d)d", node.op)
    count = int(found.group(1)) if found else len(x.shape) - 2
    if x.axis >= len(x.shape) - count and not x.constant:
        raise NoRule(f"{called(node)} works across channels")
    shapes = [tuple(t.shape) for t in tensors_of(flow.sample[node.name])]
    return tuple(Spread(shape, x.axis, x.labels) for shape in shapes)


def _getitem(flow: Flow, node: Node) -> tuple[Spread, ...]:
    return (flow.spreads(node.args[0])[node.args[1]],)


RULES: dict[str, Rule] = {
    **SHAPE_RULES,
    **PRODUCT_RULES,
    "getitem": _getitem,
    **named(_convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    **named(_linear, "linear"),
    **named(_normalisation, "batch_norm instance_norm"),
    **named(_prelu, "prelu _prelu_kernel"),
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
        fill copy type_as
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
"""The rule of every operator that has one, by its name without the overload."""
