"""Layers whose input is of bytes: integer weights, and every scale and zero point folded into two numbers a channel.

With input bytes x, integer weights w of one scale a channel, a residual r and the output's step the kernel computes
`rint((sums * input scale * weight scale + bias [+ (r - zero) * scale]) / output scale) + zero`, so that

    scale = input scale * weight scale / output scale
    bias  = (bias - input zero * input scale * weight scale * sum of w - residual zero * residual scale)
            / output scale + output zero

where no activation lies between.  ReLU lies there only where the output has bytes below its zero point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from cprune.compiling.lowered import Call, Half, Step
from cprune.network.quantizing import quantized_weight
from cprune.targets.session import Array
from cprune.tuner.programs.dots import moved_by
from cprune.tuner.programs.reference import pack_bytes, pack_rows
from cprune.tuner.programs.workload import Elementwise, Mean, QuantizedConv2d, QuantizedMean, padded

if TYPE_CHECKING:
    from cprune.compiling.kinds import Conv, Linear, Stored
    from cprune.compiling.values import Values


def write_conv(values: Values, name: str, conv: Conv, x: Stored, residual: Stored | None) -> Stored:
    """Emit a convolution of the bytes `x`; `residual` is of bytes in whole blocks as well."""
    values.channels[name] = conv.shape[1]
    block, activation = values.layout.block, _activation(conv.activation, conv.step)
    plain = conv.workload(values.shape(conv.x), x.block, block, residual is not None, activation)
    workload = QuantizedConv2d(**vars(plain), output=_output(conv.step), dot=values.layout.dot)
    weights = _weights(values, name, conv, workload, conv.weight, x, residual)
    reads = (x, *([residual] if residual is not None else []))
    return values.emit(name, workload, reads, conv.shape, block, weights, conv.layers, conv.step)


def write_linear(values: Values, name: str, linear: Linear, x: Stored) -> Stored:
    """Emit a linear layer of the bytes `x` as a convolution of one pixel."""
    *rows, k = values.shape(linear.x)
    block = values.layout.block
    workload = QuantizedConv2d(
        prod(rows), padded(k, block), 1, 1, padded(linear.shape[-1], block), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1,
        False, _activation(linear.activation, linear.step), block, block,
        _output(linear.step), values.layout.dot,
    )  # fmt: skip
    weights = _weights(values, name, linear, workload, linear.weight[:, :, None, None], x, None)
    return values.emit(name, workload, (x,), linear.shape, block, weights, linear.layers, linear.step)


def _output(step: Step | Half | None) -> str:
    return "float32" if step is None else "uint8"


def _activation(name: str, step: Step | Half | None) -> str:
    """Return the activation that is left to compute where bytes end at the values of this step."""
    cut = (
        isinstance(step, Step) and step.zero == 0 and (name == "relu" or (name == "relu6" and 255 * step.scale < 6.001))
    )
    return "none" if cut else name


def _weights(
    values: Values,
    name: str,
    layer: Conv | Linear,
    workload: QuantizedConv2d,
    weight: Tensor,
    x: Stored,
    residual: Stored | None,
) -> tuple[str, ...]:
    assert isinstance(x.step, Step)
    whole, weight_scale = quantized_weight(weight)
    scale = x.step.scale * weight_scale
    bias = layer.bias.detach().double() + scale * (moved_by(workload) - x.step.zero) * whole.flatten(1).sum(1)
    added = 0.0
    if residual is not None:
        assert isinstance(residual.step, Step)
        added = residual.step.scale
        bias = bias - residual.step.zero * added
    step = layer.step if isinstance(layer.step, Step) else Step(1.0, 0)
    if workload.output == "uint8" and workload.activation == "none":
        scale, bias, added = scale / step.scale, bias / step.scale + step.zero, added / step.scale
    block = workload.out_block
    arrays: Mapping[str, Array] = {
        "weight": pack_bytes(whole, workload),
        "scale": pack_rows(scale.float(), block),
        "bias": pack_rows(bias.float(), block),
        "numbers": np.array([added, 1.0 / step.scale, step.zero], np.float32),
        "zero": np.array([x.step.zero], np.uint8),
    }
    names = tuple(f"{layer.layers[0]}.{part}@{name}" for part in arrays)
    values.weights.update(zip(names, arrays.values(), strict=True))
    return names


def joined_means(values: Values, outputs: Collection[str]) -> tuple[Call, ...]:
    """Return the calls, a mean whose result becomes bytes as one call that reads bytes itself where there are some."""
    calls = values.calls
    uses = Counter(name for call in calls for name in call.inputs) + Counter(outputs)
    makers = {call.output: call for call in calls}
    instead: dict[str, Call] = {}
    gone: set[str] = set()
    for last in calls:
        before = makers.get(last.inputs[0]) if last.inputs else None
        written, mean = last.workload, None if before is None else before.workload
        if before is None or type(mean) is not Mean or uses[before.output] != 1 or not isinstance(written, Elementwise):
            continue
        match written.expression:
            case ("quantize", ("in", 0), scale, zero) if written.block == mean.block:
                factor, reads, source = 1 / scale, before.inputs, "float32"
                first = makers.get(reads[0])
                of_bytes = None if first is None else _from_bytes(first, mean.block)
                if first is not None and of_bytes is not None:
                    factor, zero = of_bytes.scale / scale, zero - of_bytes.zero * of_bytes.scale / scale
                    reads, source = first.inputs, "uint8"
                    gone.update([first.output] if uses[first.output] == 1 else [])
                name = f"{last.output}.numbers"
                values.weights[name] = np.array([factor / (mean.height * mean.width), zero], np.float32)
                fields = {**vars(mean), "channels": padded(mean.channels, mean.block), "source": source}
                instead[last.output] = Call(last.output, QuantizedMean(**fields), reads, (name,), before.layers)
                gone.add(before.output)
    return tuple(instead.get(call.output, call) for call in calls if call.output not in gone)


def _from_bytes(call: Call, block: int) -> Step | None:
    """Return what the bytes stand for of which a call makes numbers, and nothing else; None for any other call."""
    workload = call.workload
    if isinstance(workload, Elementwise) and workload.inputs[0][1] == block:
        match workload.expression:
            case ("dequantize", ("in", 0), scale, zero):
                return Step(scale, zero)
    return None
