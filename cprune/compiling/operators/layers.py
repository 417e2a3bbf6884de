"""Layers with weights: convolutions, BatchNorm folded into them, linear layers."""

from __future__ import annotations

from dataclasses import replace

import torch

from cprune.compiling.kinds import Conv, Linear, Value
from cprune.compiling.operators.arguments import filled, pair
from cprune.compiling.values import Lowering, Values
from cprune.network.node import Node, Ref


def _conv2d(values: Values, node: Node) -> Value | None:
    x, weight_ref, bias_ref, stride, pad, dilation, groups = filled(node, (None, (1, 1), (0, 0), (1, 1), 1), 2)
    weight = values.tensor(weight_ref)
    if weight is None or (groups != 1 and not (groups == weight.shape[0] and weight.shape[1] == 1)):
        return None
    stride, dilation = pair(stride), pair(dilation)
    if isinstance(pad, str):
        total = [d * (k - 1) if pad == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        sides = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        sides = pair(pad) * 2
    above, left, below, right = values.sides.get(node.name, (0, 0, 0, 0))
    sides = (sides[0] + above, sides[1] + left, sides[2] + below, sides[3] + right)
    bias = values.tensor(bias_ref) if isinstance(bias_ref, Ref) else torch.zeros(weight.shape[0])
    if bias is None:
        return None
    layers = (values.layer(weight_ref),)
    return Conv(x.name, weight, bias, values.shape(node.name), layers, stride, sides, dilation, groups)


def _batch_norm(values: Values, node: Node) -> Value | None:
    x, weight, bias, mean, var, _, _, eps, *_ = node.args
    gamma, beta, average, variance = (values.tensor(ref) for ref in (weight, bias, mean, var))
    if average is None or variance is None or len(values.shape(node.name)) != 4:
        return None
    gamma = gamma if gamma is not None else torch.ones_like(average)
    beta = beta if beta is not None else torch.zeros_like(average)
    scale = gamma.double() / torch.sqrt(variance.double() + eps)
    shift = beta.double() - average.double() * scale
    conv = values.pending(x, Conv)
    if conv is not None and conv.is_open:
        folded = (conv.weight.double() * scale[:, None, None, None]).float()
        layers = (*conv.layers, *((values.layer(weight),) if isinstance(weight, Ref) else ()))
        return replace(conv, weight=folded, bias=(conv.bias.double() * scale + shift).float(), layers=layers)
    layer = values.layer(weight if isinstance(weight, Ref) else mean)
    depthwise = scale.float()[:, None, None, None]
    shape = values.shape(node.name)
    return Conv(x.name, depthwise, shift.float(), shape, (layer,), (1, 1), (0, 0, 0, 0), (1, 1), len(depthwise))


def _linear(values: Values, node: Node) -> Value | None:
    x, weight_ref, bias_ref = filled(node, (None,), 2)
    weight = values.tensor(weight_ref)
    if weight is None:
        return None
    bias = values.tensor(bias_ref) if isinstance(bias_ref, Ref) else torch.zeros(weight.shape[0])
    if bias is None:
        return None
    return Linear(x.name, weight, bias, values.shape(node.name), (values.layer(weight_ref),))


LAYERS: dict[str, Lowering] = {"conv2d": _conv2d, "batch_norm": _batch_norm, "linear": _linear}
"""The lowerings of this file, by the operators' names without the overload."""
