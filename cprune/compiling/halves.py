"""Layers whose input is of bfloat16 or float16 numbers: weights of the same, the bias in float32."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cprune.compiling.lowered import Half
from cprune.network.halving import HALVES
from cprune.tuner.programs.reference import pack_halves, pack_rows
from cprune.tuner.programs.workload import HalfConv2d, padded

if TYPE_CHECKING:
    from cprune.compiling.kinds import Conv, Linear, Stored
    from cprune.compiling.values import Values


def fits(layer: Conv | Linear, half: Half) -> bool:
    """Tell whether a layer's weight is of numbers of 16 bits; a depthwise one beside bfloat16 is of float32 anyway."""
    depthwise = layer.weight.dim() == 4 and layer.weight.shape[1] == 1
    if half.precision == "bf16" and depthwise:
        return True
    return torch.equal(layer.weight, layer.weight.to(HALVES[half.precision]).float())


def write_conv(values: Values, name: str, conv: Conv, x: Stored, residual: Stored | None) -> Stored:
    """Emit a convolution of the numbers `x` of 16 bits; `residual` is of these in whole blocks as well."""
    values.channels[name] = conv.shape[1]
    block = values.layout.block
    plain = conv.workload(values.shape(conv.x), x.block, block, residual is not None)
    workload = HalfConv2d(**vars(plain), output=_output(conv.step), dot=values.layout.dot)
    weights = _weights(values, name, conv, workload, conv.weight)
    reads = (x, *([residual] if residual is not None else []))
    return values.emit(name, workload, reads, conv.shape, block, weights, conv.layers, conv.step)


def write_linear(values: Values, name: str, linear: Linear, x: Stored) -> Stored:
    """Emit a linear layer of the numbers `x` of 16 bits as a convolution of one pixel."""
    *rows, k = values.shape(linear.x)
    block = values.layout.block
    workload = HalfConv2d(
        prod(rows), padded(k, block), 1, 1, padded(linear.shape[-1], block), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1,
        False, linear.activation, block, block, _output(linear.step), values.layout.dot,
    )  # fmt: skip
    weights = _weights(values, name, linear, workload, linear.weight[:, :, None, None])
    return values.emit(name, workload, (x,), linear.shape, block, weights, linear.layers, linear.step)


def _output(step: object) -> str:
    return step.kind if isinstance(step, Half) else "float32"


def _weights(values: Values, name: str, layer: Conv | Linear, workload: HalfConv2d, weight: Tensor) -> tuple[str, str]:
    names = (f"{layer.layers[0]}.weight@{name}", f"{layer.layers[0]}.bias@{name}")
    values.weights[names[0]] = pack_halves(weight.detach(), workload)
    values.weights[names[1]] = pack_rows(layer.bias, workload.out_block)
    return names
