"""Layers and bytes written to memory: from a value that waits to a call with its weights."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from cprune.compiling import halves, quantized
from cprune.compiling.kinds import PLAIN_INPUT_CHANNELS, Chain, Conv, Expression, Linear, Stored
from cprune.compiling.lowered import Half, Step
from cprune.network.node import Ref
from cprune.targets.session import Array
from cprune.tuner.programs.dots import NPU
from cprune.tuner.programs.reference import pack_conv_weight, pack_rows
from cprune.tuner.programs.workload import Dense, Elementwise

if TYPE_CHECKING:
    from cprune.compiling.values import Values


def write_conv(values: Values, name: str, conv: Conv) -> Stored:
    """Emit a convolution: in integers or 16 bits where what it reads and adds is of these, else in float32."""
    c = values.shape(conv.x)[1]
    x = _rounded_input(values, conv, whole=conv.groups > 1)
    added = values.quantized(Ref(conv.residual)) if conv.residual else None
    if x is not None and (added is not None or not conv.residual):
        write = halves.write_conv if isinstance(x.step, Half) else quantized.write_conv
        return write(values, name, conv, x, added)
    if conv.step is not None:
        return _rounded(values, name, replace(conv, step=None), conv.step)
    source = values.by_name.get(conv.x)
    plain = isinstance(source, Stored) and source.block == 0 and c <= PLAIN_INPUT_CHANNELS and conv.groups == 1
    x = values.stored(Ref(conv.x), 0) if plain else values.blocked(Ref(conv.x))
    out = values.layout.of(conv.shape[1])
    values.channels[name] = conv.shape[1]
    residual = (values.stored(Ref(conv.residual), out),) if conv.residual else ()
    workload = conv.workload(values.shape(conv.x), x.block, out, bool(residual))
    weights = _packed(values, name, conv.layers[0], pack_conv_weight(conv.weight, workload), pack_rows(conv.bias, out))
    return values.emit(name, workload, (x, *residual), conv.shape, out, weights, conv.layers)


def _rounded_input(values: Values, layer: Conv | Linear, whole: bool) -> Stored | None:
    """Return what a layer reads if it is rounded in memory, and the layer is not one that stays in float32.

    Such a layer may read what a neighbour has rounded to 16 bits.
    """
    x = values.quantized(Ref(layer.x), whole=whole)
    return None if x is not None and isinstance(x.step, Half) and not halves.fits(layer, x.step) else x


def _rounded(values: Values, name: str, layer: Conv | Linear, step: Step | Half) -> Stored:
    """Emit a layer in float32 and round its result."""
    ref = Ref(f"{name}.float")
    values.by_name[ref.name] = layer
    return write_rounded(values, name, values.chain(ref), step)


def write_linear(values: Values, name: str, linear: Linear) -> Stored:
    """Emit a linear layer, likewise."""
    x = _rounded_input(values, linear, whole=True)
    if x is not None:
        write = halves.write_linear if isinstance(x.step, Half) else quantized.write_linear
        return write(values, name, linear, x)
    if linear.step is not None:
        return _rounded(values, name, replace(linear, step=None), linear.step)
    x = values.stored(Ref(linear.x), 0)
    *rows, k = values.shape(linear.x)  # a plain value is the same in memory with its leading axes flattened
    o = linear.shape[-1]
    workload = Dense(prod(rows), k, o, linear.activation, values.layout.block)
    weight, bias = (pack_rows(tensor, values.layout.block) for tensor in (linear.weight, linear.bias))
    weights = _packed(values, name, linear.layers[0], weight, bias)
    return values.emit(name, workload, (x,), linear.shape, 0, weights, linear.layers)


def _packed(values: Values, name: str, layer: str, weight: Array, bias: Array) -> tuple[str, str]:
    # A layer that is used twice may be folded with two BatchNorms: the value's name keeps the two apart.
    names = (f"{layer}.weight@{name}", f"{layer}.bias@{name}")
    values.weights[names[0]], values.weights[names[1]] = weight, bias
    return names


def write_rounded(values: Values, name: str, chain: Chain, step: Step | Half) -> Stored:
    """Emit a chain whose value is rounded to bytes or 16 bits; an image's few channels come in a block of four.

    The simulated accelerator's multiplier takes whole blocks only, so there an image is padded as everything else is.
    """
    block = values.layout.block
    if len(chain.shape) == 4 and chain.shape[1] <= PLAIN_INPUT_CHANNELS and values.layout.dot != NPU:
        block = PLAIN_INPUT_CHANNELS
    expression: Expression
    if isinstance(step, Step):
        expression = ("quantize", chain.expression, step.scale, step.zero)
    else:
        expression = (step.write, chain.expression)
    workload = Elementwise(expression, tuple((i.shape, i.block) for i in chain.inputs), chain.shape, block)
    return values.emit(name, workload, chain.inputs, chain.shape, block, step=step)
