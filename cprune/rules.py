"""How channels travel through each operator: one rule an operator, applied to labels instead of numbers.

Shape operators (view, permute, cat, slice, …) are run on the labels themselves, so their rule is the
operator. Element-wise operators unite the labels they meet.  Convolutions and linear layers start new labels.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from cprune.flow import Flow, Layer, NoRule, Rule, argument, called, operator_name
from cprune.labels import Spread
from cprune.nodes import Node, Ref, find_refs, lookup, map_refs, tensors_of

# ----------------------------------------------------------------------------------------------------
# Layers


def _convolution(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, weight, bias = flow.spread(node.args[0]), node.args[1], argument(node, 2, "bias")
    transposed = "transpose" in node.op
    groups = argument(node, 6, "groups", 1)
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    channel_axis = len(x.shape) - (flow.sample[weight.name].dim() - 1)
    into = flow.along(x, channel_axis)
    outof = flow.axis_labels(weight, out_axis)
    flow.tie(outof, bias)
    if transposed and groups > 1:
        raise NoRule(f"{called(node)} is a transposed convolution in groups")
    depthwise = is_depthwise(groups, len(into))
    if depthwise:
        flow.labels.unite(outof.reshape(groups, -1), into.reshape(groups, 1))
    elif groups > 1:
        # The groups must stay of one size: channel j goes in all of them.
        flow.labels.unite(into.reshape(groups, -1), flow.axis_labels(weight, in_axis)[None])
        flow.labels.unite(outof.reshape(groups, -1), outof.reshape(groups, -1)[:1])
    else:
        flow.labels.unite(into, flow.axis_labels(weight, in_axis))
    _add_layer(flow, node, "conv", out_axis, None if depthwise else in_axis)
    return (Spread(flow.shape(node), channel_axis, outof),)


def is_depthwise(groups: int, channels: int) -> bool:
    """Tell whether a convolution has one input channel to a group (one group of one channel is not meant)."""
    return groups == channels and groups > 1


def _linear(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, weight = flow.spread(node.args[0]), node.args[1]
    flow.labels.unite(flow.along(x, len(x.shape) - 1), flow.axis_labels(weight, 1))
    outof = flow.axis_labels(weight, 0)
    flow.tie(outof, argument(node, 2, "bias"))
    _add_layer(flow, node, "linear", 0, 1)
    return (Spread(flow.shape(node), len(x.shape) - 1, outof),)


def _add_layer(flow: Flow, node: Node, kind: str, out_axis: int, in_axis: int | None) -> None:
    weight = str(flow.nodes[node.args[1].name].args[0])
    owner, _, leaf = weight.rpartition(".")
    name = owner if owner and leaf == "weight" else weight
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
        raise TypeError("an operand was expected")
    return (Spread(shape, result.axis, result.labels),)


def _lifted(spread: Spread, shape: tuple[int, ...]) -> Spread:
    """Return a value's labels with the leading axes of length one that broadcasting gives it."""
    more = len(shape) - len(spread.shape)
    if more < 0:
        raise ValueError("an operand has more axes than the result")
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


def _created(flow: Flow, node: Node) -> tuple[Spread, ...]:
    shape = flow.shape(node)
    axis = min(1, len(shape) - 1)  # where channels lie by convention; what it meets decides
    return (Spread(shape, max(axis, 0), flow.labels.fresh(shape[axis] if shape else 1)),)


# ----------------------------------------------------------------------------------------------------
# Shapes


_BY_RESHAPE = {"aten.view.default", "aten._unsafe_view.default", "aten.reshape.default"}
SIZES_AT = {
    **dict.fromkeys(("zeros", "ones", "full"), 0),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "expand", "broadcast_to"), 1),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full"), 1),
    "unflatten": 2,
}
"""Where an operator takes the sizes of its result."""


def _shape_operator(flow: Flow, node: Node) -> tuple[Spread, ...]:
    def value(ref: Ref) -> Any:
        return flow.spread(ref).tensor() if tensors_of(flow.sample[ref.name]) else flow.sample[ref.name]

    args = map_refs(node.args, value)
    kwargs = {key: map_refs(item, value) for key, item in node.kwargs}
    function = torch.reshape if node.op in _BY_RESHAPE else lookup(node.op)
    found = function(*args, **kwargs)
    if isinstance(found, (tuple, list)):
        return tuple(flow.labels.spread(tensor, flow.open_axes(node, i)) for i, tensor in enumerate(found))
    return (flow.labels.spread(found, [*flow.open_axes(node), *_computed_axes(node)]),)


def _computed_axes(node: Node) -> list[int]:
    """Return the axes whose length the model computes at run time: surgery could not correct it."""
    name = operator_name(node)
    if name not in SIZES_AT or name == "unflatten":
        return []
    sizes = argument(node, SIZES_AT[name], "size", ())
    return [d for d, size in enumerate(sizes) if isinstance(size, Ref)]


def _slice(flow: Flow, node: Node) -> tuple[Spread, ...]:
    axis = argument(node, 1, "dim", 0) % len(flow.spread(node.args[0]).shape)
    plain = argument(node, 4, "step", 1) == 1 and not list(find_refs(node.args[2:]))
    if flow.spread(node.args[0]).varies(axis) and not plain:
        raise NoRule(f"{called(node)} takes every so many channels")
    return _shape_operator(flow, node)


def _pad(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, amounts = flow.spread(node.args[0]), tuple(node.args[1])
    zeros = argument(node, 2, "mode", "constant") == "constant" or "constant_pad_nd" in node.op
    if list(find_refs(amounts)):
        raise NoRule(f"{called(node)} pads by an amount known at run time only")
    shape = flow.shape(node)
    for i in range(len(amounts) // 2):
        axis, (before, after) = len(shape) - 1 - i, amounts[2 * i : 2 * i + 2]
        if not (before or after) or not (x.constant or x.varies(axis)):
            continue
        if not zeros or before < 0 or after < 0:
            raise NoRule(f"{called(node)} pads or cuts channels")
        # Channels that exist only here: they go with whatever they meet.
        labels = [flow.labels.fresh(before), flow.along(x, axis), flow.labels.fresh(after)]
        x = Spread((*x.shape[:axis], sum(map(len, labels)), *x.shape[axis + 1 :]), axis, np.concatenate(labels))
    return (Spread(shape, x.axis, x.labels),)


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


def _reduction(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """Mean, sum, softmax, … over some axes, which must not hold the channels."""
    x = flow.spread(node.args[0])
    shape = flow.shape(node)
    rank = len(x.shape)
    dims = argument(node, 1, "dim")
    named = range(rank) if dims is None or dims == () else (dims,) if isinstance(dims, int) else dims
    over = {d % rank for d in named} if rank else set()
    if not x.constant and x.axis in over:
        raise NoRule(f"{called(node)} works across channels")
    axis = x.axis if len(shape) == rank else x.axis - sum(d < x.axis for d in over)
    return (Spread(shape, 0 if x.constant else axis, x.labels),)


def _getitem(flow: Flow, node: Node) -> tuple[Spread, ...]:
    return (flow.spreads(node.args[0])[node.args[1]],)


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    "getitem": _getitem,
    **_named(_convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_named(_linear, "linear"),
    **_named(_normalisation, "batch_norm instance_norm"),
    **_named(_prelu, "prelu _prelu_kernel"),
    **_named(_created, "zeros ones full new_zeros new_ones new_full"),
    **_named(
        _elementwise,
        """
        relu relu6 hardtanh sigmoid tanh hardswish hardsigmoid silu gelu leaky_relu elu celu selu mish
        softplus hardshrink softshrink threshold log_sigmoid clamp clamp_min clamp_max clip abs exp expm1
        log log1p log2 neg sqrt rsqrt square reciprocal erf sin cos floor ceil round sign trunc dropout
        feature_dropout alpha_dropout feature_alpha_dropout clone contiguous detach alias to _to_copy
        lift_fresh_copy zeros_like ones_like full_like nan_to_num logical_not add sub rsub mul div
        true_divide maximum minimum fmax fmin pow where lerp addcmul addcdiv eq ne lt le gt ge logical_and
        logical_or logical_xor masked_fill remainder fmod
        """,
    ),
    **_named(
        _shape_operator,
        """
        view reshape _unsafe_view view_as reshape_as flatten unflatten permute transpose t numpy_T movedim
        moveaxis swapaxes swapdims squeeze unsqueeze expand expand_as broadcast_to repeat tile cat concat
        concatenate stack split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk
        unbind select narrow flip pixel_shuffle pixel_unshuffle
        """,
    ),
    **_named(_slice, "slice"),
    **_named(_pad, "pad constant_pad_nd"),
    **_named(
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
    **_named(_reduction, "mean sum amax amin var std prod logsumexp softmax log_softmax cumsum"),
}
"""The rule of every operator that has one, by its name without the overload."""
