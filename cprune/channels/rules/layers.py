"""Layers with weights: convolutions and linear layers start new labels, normalisations tie theirs to what they read.

The repair of a convolution is its number of groups.
"""

from __future__ import annotations

import math

import numpy as np

from cprune.channels.cut import Cut, Repair, with_argument
from cprune.channels.flow import Flow, NoRule, Rule, argument, called, named
from cprune.channels.graph import Layer, layer_name
from cprune.channels.labels import Array, Spread
from cprune.network.node import Node, Ref

_CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"


def _convolution(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, weight, bias = flow.spread(node.args[0]), node.args[1], argument(node, 2, "bias")
    transposed = "transpose" in node.op
    groups = argument(node, 6, "groups", 1)
    out_axis = 1 if transposed else 0
    in_axis: int | None = 0 if transposed else 1
    channel_axis = len(x.shape) - (len(flow.shape(weight)) - 1)
    if x.axis != channel_axis and flow.varied(x):
        raise NoRule(f"{called(node)} slides along the channels")
    into, outof = flow.along(x, channel_axis), flow.axis_labels(weight, out_axis)
    if _has_whole_groups(groups, len(into), flow.shape(node)[channel_axis]):
        outof = _whole_groups(flow, weight, into, groups, transposed)
        out_axis, in_axis = 0, None
    elif transposed:
        flow.labels.unite(into, flow.axis_labels(weight, 0))
        flow.labels.unite(into.reshape(groups, -1), into.reshape(groups, -1)[:1])
        outof = np.tile(outof, groups)
    else:
        # The groups must stay of one size: channel j goes in all of them.
        flow.labels.unite(into.reshape(groups, -1), flow.axis_labels(weight, 1)[None])
        flow.labels.unite(outof.reshape(groups, -1), outof.reshape(groups, -1)[:1])
    flow.tie(outof, bias)
    _add_layer(flow, node, out_axis, in_axis)
    return (Spread(flow.shape(node), channel_axis, outof),)


def _has_whole_groups(groups: int, inputs: int, outputs: int) -> bool:
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
    return np.repeat(group[:, 0], flow.shape(weight)[1]) if transposed else rows


def _repair_groups(cut: Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    axis, groups = out[0].axis, argument(node, 6, "groups", 1)
    if x is None or not _has_whole_groups(groups, x.shape[axis], out[0].shape[axis]):
        return node
    return with_argument(node, 6, groups * cut.length(out[0], axis) // out[0].shape[axis])


def _linear(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, weight, bias = flow.spread(node.args[0]), node.args[1], argument(node, 2, "bias")
    last = len(x.shape) - 1
    into, outof = flow.axis_labels(weight, 1), flow.axis_labels(weight, 0)
    _add_layer(flow, node, 0, 1)
    if x.axis != last and flow.varied(x):  # it mixes positions, and every channel has them all
        for labels in (into, outof):
            flow.labels.freeze(labels, f"{called(node)} runs along another axis than the channels'")
        return (Spread(flow.shape(node), x.axis, x.labels),)
    flow.labels.unite(flow.along(x, last), into)
    flow.tie(outof, bias)
    return (Spread(flow.shape(node), last, outof),)


def _add_layer(flow: Flow, node: Node, out_axis: int, in_axis: int | None) -> None:
    weight = str(flow.nodes[node.args[1].name].args[0])
    name = layer_name(weight)
    calls = flow.layers[name].calls if name in flow.layers else ()
    flow.layers[name] = Layer(name, flow.one_name[weight], out_axis, in_axis, (*calls, node.name))


def _normalisation(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x = flow.spread(node.args[0])
    labels = flow.along(x, 1)
    for ref in node.args[1:5]:
        flow.tie(labels, ref)
    return (Spread(x.shape, 1, labels),)


def _prelu(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, weight = flow.spread(node.args[0]), node.args[1]
    if math.prod(flow.shape(weight)) > 1:
        flow.tie(flow.along(x, 1), weight)
    return (x,)


LAYER_RULES: dict[str, Rule] = {
    **named(_convolution, _CONVOLUTIONS),
    **named(_linear, "linear"),
    **named(_normalisation, "batch_norm instance_norm"),
    **named(_prelu, "prelu _prelu_kernel"),
}

LAYER_REPAIRS: dict[str, Repair] = named(_repair_groups, _CONVOLUTIONS)
