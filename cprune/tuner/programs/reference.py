"""What a program must compute, said by PyTorch: no winner counts before it was compared with this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cprune.targets.difference import apart
from cprune.targets.session import Array, arguments, forms
from cprune.tuner.programs.dots import moved_by
from cprune.tuner.programs.workload import (
    Conv2d,
    Dense,
    Elementwise,
    HalfConv2d,
    Mean,
    Pool2d,
    QuantizedConv2d,
    QuantizedMean,
    Workload,
    dtypes,
    stored_shape,
)

PROGRAM_TOLERANCE = 1e-4
"""What a program may differ from PyTorch, as a share of the largest magnitude (see `apart`)."""
HALF_TOLERANCE = 2.0**-7
"""The same where the output is of bfloat16: as far as two neighbours of the largest magnitude are apart."""
FLOAT16_TOLERANCE = 2.0**-6
"""The same where sums are of float16: of ten thousand products, each of which may move them by half a step."""
STEPS_TOLERANCE = 1e-3
"""The share of bytes that may differ from PyTorch's, by one step: a value that float32 cannot tell from a tie.

Few bytes may be unlucky: as many as four deviations of such a count more, and one.  Of 1,280 bytes two differed once,
in every program of the task, and a run ended there.
"""


def unpack(value: Array, block: int, channels: int | None = None) -> Tensor:
    """Return the plain [N, C, …] tensor of a value in memory, cut to `channels`."""
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    if not block:
        return tensor
    n, c, *plane, b = tensor.shape
    plain = tensor.movedim(-1, 2).reshape(n, c * b, *plane)
    return plain if channels is None else plain[:, :channels]


def pack(value: Tensor, block: int) -> Array:
    """Return the value in memory of a plain [N, C, …] tensor; the padding channels are zero."""
    if not block:
        return np.ascontiguousarray(value.detach().numpy())
    n, c, *plane = value.shape
    stored = stored_shape(tuple(value.shape), block)
    full = torch.zeros(n, stored[1] * block, *plane, dtype=value.dtype)
    full[:, :c] = value.detach()
    return np.ascontiguousarray(full.reshape(n, stored[1], block, *plane).movedim(2, -1).numpy())


def pack_conv_weight(weight: Tensor, w: Conv2d) -> Array:
    """Return the stored weight of `w` for a plain [O, I / groups, KH, KW] one; missing channels are zero."""
    o, i, kh, kw = weight.shape
    b = w.out_block
    inputs = 1 if w.depthwise else w.in_channels
    full = torch.zeros(w.out_channels, inputs, kh, kw)
    full[:o, :i] = weight.detach()
    blocks = full.reshape(w.out_channels // b, b, inputs, kh, kw)
    if w.depthwise:
        stored = blocks[:, :, 0].permute(0, 2, 3, 1)
    elif w.in_block:
        stored = blocks.reshape(-1, b, inputs // w.in_block, w.in_block, kh, kw).permute(0, 2, 4, 5, 3, 1)
    else:
        stored = blocks.permute(0, 2, 3, 4, 1)
    return np.ascontiguousarray(stored.numpy())


def unpack_conv_weight(stored: Array, w: Conv2d) -> Tensor:
    """Return the plain [O, I / groups, KH, KW] weight of a stored one: the inverse of `pack_conv_weight`."""
    tensor = torch.from_numpy(np.ascontiguousarray(stored))
    if w.depthwise:
        return tensor.permute(0, 3, 1, 2).reshape(w.out_channels, 1, *w.kernel)
    if w.in_block:
        return tensor.permute(0, 5, 1, 4, 2, 3).reshape(w.out_channels, w.in_channels, *w.kernel)
    return tensor.permute(0, 4, 1, 2, 3).reshape(w.out_channels, w.in_channels, *w.kernel)


def pack_rows(value: Tensor, block: int) -> Array:
    """Return [ceil(O / block), …, block] for [O, …]: biases and dense weights."""
    o, *rest = value.shape
    blocks = -(-o // block)
    full = torch.zeros(blocks * block, *rest)
    full[:o] = value.detach()
    return np.ascontiguousarray(full.reshape(blocks, block, *rest).movedim(1, -1).numpy())


def expected(workload: Workload, arguments: Sequence[Array]) -> Array:
    """Return the output in memory that `workload` must give for these arguments; not for a `Tir`."""
    with torch.no_grad():
        if isinstance(workload, QuantizedConv2d):
            return _quantized_conv(workload, arguments)
        if isinstance(workload, HalfConv2d):
            return _half_conv(workload, arguments)
        if isinstance(workload, Conv2d):
            return _conv(workload, arguments)
        if isinstance(workload, Dense):
            x, weight, bias = (torch.from_numpy(a) for a in arguments)
            rows = weight.movedim(-1, 1).reshape(-1, workload.in_features)[: workload.out_features]
            out = F.linear(x, rows, bias.reshape(-1)[: workload.out_features])
            return pack(ACTIVATIONS[workload.activation](out), 0)
        if isinstance(workload, QuantizedMean):
            x, (factor, shift) = torch.from_numpy(arguments[0]).double(), arguments[1].astype(np.float64)
            whole: Array = (x.sum((2, 3)) * factor + shift).round().clamp(0, 255).to(torch.uint8).numpy()
            return whole
        if isinstance(workload, Mean):
            return pack(unpack(arguments[0], workload.block, workload.channels).mean((2, 3)), 0)
        if isinstance(workload, Pool2d):
            return _pool(workload, arguments[0])
        if isinstance(workload, Elementwise):
            inputs = [unpack(a, b, s[1] if b else None) for a, (s, b) in zip(arguments, workload.inputs, strict=True)]
            return pack(evaluate(workload.expression, inputs), workload.block)
    raise ValueError(f"PyTorch has no word for {type(workload).__name__}")


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
"""What may join a convolution or a dense layer, or stand in an element-wise chain."""


def _conv(w: Conv2d, arguments: Sequence[Array]) -> Array:
    x = unpack(arguments[0], w.in_block)
    top, left, bottom, right = w.pad
    weight = unpack_conv_weight(arguments[-2], w)
    bias = torch.from_numpy(arguments[-1]).reshape(-1)
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, w.stride, 0, w.dilation, w.groups)
    if w.residual:
        y = y + unpack(arguments[1], w.out_block)
    return pack(ACTIVATIONS[w.activation](y), w.out_block)


def _quantized_conv(w: QuantizedConv2d, arguments: Sequence[Array]) -> Array:
    *values, weight, scale, bias, numbers, zero = arguments
    x = unpack(values[0], w.in_block).double()
    top, left, bottom, right = w.pad
    x = F.pad(x, (left, right, top, bottom), value=float(zero[0]))
    x = x - moved_by(w)
    sums = F.conv2d(x, unpack_bytes(weight, w).double(), None, w.stride, 0, w.dilation, w.groups)
    y = sums * per_channel(scale) + per_channel(bias)
    if w.residual:
        y = y + unpack(values[1], w.out_block).double() * float(numbers[0])
    y = ACTIVATIONS[w.activation](y)
    if w.output == "float32":
        return pack(y.float(), w.out_block)
    if w.activation != "none":
        y = y * float(numbers[1]) + float(numbers[2])
    return pack(y.round().clamp(0, 255).to(torch.uint8), w.out_block)


def _half_conv(w: HalfConv2d, arguments: Sequence[Array]) -> Array:
    *values, weight, bias = arguments
    x = unpack(numbers(values[0]), w.in_block).double()
    top, left, bottom, right = w.pad
    factor = unpack_halves(weight, w).double()
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), factor, None, w.stride, 0, w.dilation, w.groups)
    y = y + per_channel(bias)
    if w.residual:
        y = y + unpack(numbers(values[1]), w.out_block).double()
    y = ACTIVATIONS[w.activation](y).float()
    return pack(y if w.output == "float32" else halves(y) if w.paired else y.half(), w.out_block)


def numbers(stored: Array) -> Array:
    """Return the float32 numbers of a value in bfloat16 or float16, of the same shape."""
    if stored.dtype == np.float16:
        return stored.astype(np.float32)
    return (stored.astype(np.uint32) << 16).view(np.float32)


def halves(value: Tensor) -> Tensor:
    """Return a float32 tensor as bfloat16: the 16 bits of every number, uint16."""
    return value.to(torch.bfloat16).view(torch.uint16)


def unpack_halves(stored: Array, w: HalfConv2d) -> Tensor:
    """Return the plain [O, I / groups, KH, KW] weight in float32: the inverse of `pack_halves`."""
    if not w.paired or w.depthwise:
        return unpack_conv_weight(stored, w).float()
    tensor = torch.from_numpy(numbers(stored))
    return tensor.permute(0, 5, 1, 4, 6, 2, 3).reshape(w.out_channels, w.in_channels, *w.kernel)


def pack_halves(weight: Tensor, w: HalfConv2d) -> Array:
    """Return the stored weight of `w` for a plain [O, I / groups, KH, KW] one in float32, of numbers of 16 bits."""
    stored = pack_conv_weight(weight.float(), w)
    if not w.paired:
        return stored.astype(np.float16)
    if w.depthwise:
        return stored
    *outer, depth, lanes = stored.shape
    pairs = stored.reshape(*outer, depth // 2, 2, lanes).swapaxes(-1, -2)
    return halves(torch.from_numpy(np.ascontiguousarray(pairs))).numpy()


def per_channel(stored: Array) -> Tensor:
    """Return stored numbers of channels as a float64 tensor [channels, 1, 1]."""
    return torch.from_numpy(stored).double().reshape(-1, 1, 1)


def unpack_bytes(stored: Array, w: QuantizedConv2d) -> Tensor:
    """Return the plain [O, I / groups, KH, KW] weight of bytes: the inverse of `pack_bytes`."""
    tensor = torch.from_numpy(np.ascontiguousarray(stored))
    if w.depthwise:
        return tensor.permute(0, 3, 1, 2).reshape(w.out_channels, 1, *w.kernel)
    return tensor.permute(0, 5, 1, 4, 6, 2, 3).reshape(w.out_channels, w.in_channels, *w.kernel)


def pack_bytes(weight: Tensor, w: QuantizedConv2d) -> Array:
    """Return the stored weight of `w` for plain int8 numbers [O, I / groups, KH, KW]; missing channels are zero."""
    stored = pack_conv_weight(weight.float(), w).astype(np.int8)
    if w.depthwise:
        return stored
    *outer, depth, lanes = stored.shape
    return np.ascontiguousarray(stored.reshape(*outer, depth // 4, 4, lanes).swapaxes(-1, -2))


def sample(workload: Workload, seed: int) -> list[Array]:
    """Return random arguments (without the output) that show an error: bytes come out all over their range."""
    given = arguments(forms(workload.arguments(), dtypes(workload)), seed)
    if isinstance(workload, QuantizedConv2d):
        *_, scale, bias, numbers, zero = given
        per_output = workload.macs / prod(workload.arguments()[-1])
        scale *= 50 / (147 * 73 * per_output**0.5)  # the deviations of random bytes, of both kinds
        if workload.activation == "none" and workload.output == "uint8":
            bias[:] = 128 + 20 * bias
        numbers[:] = (0.1, 40.0, 30.0)
        zero[:] = 7
    if isinstance(workload, QuantizedMean):
        area, middle = workload.height * workload.width, 127.5 if workload.source == "uint8" else 0.0
        spread = (0.8 if middle else 50.0) / area**0.5  # the more numbers, the nearer is their mean to the middle
        given[1][:] = (spread, 127.5 - spread * area * middle)
    return given


def _pool(w: Pool2d, stored: Array) -> Array:
    x = unpack(stored, w.block)
    if x.dtype == torch.uint8:  # PyTorch has no pool of bytes; padding is no smaller than the smallest
        top, left, bottom, right = w.pad
        windows = F.max_pool2d(F.pad(x.float(), (left, right, top, bottom)), w.kernel, w.stride)
        return pack(windows.to(torch.uint8), w.block)
    top, left, bottom, right = w.pad
    if w.op == "max":
        y = F.max_pool2d(F.pad(x, (left, right, top, bottom), value=float("-inf")), w.kernel, w.stride)
    else:
        sums = F.avg_pool2d(F.pad(x, (left, right, top, bottom)), w.kernel, w.stride)
        ones = F.pad(torch.ones_like(x), (left, right, top, bottom), value=float(w.count_pad))
        y = sums / F.avg_pool2d(ones, w.kernel, w.stride)
    return pack(y, w.block)


def evaluate(e: tuple[Any, ...], inputs: Sequence[Tensor]) -> Tensor:
    """Return the value of an Elementwise expression over plain tensors."""
    op, *rest = e
    if op == "in":
        tensor: Tensor = inputs[rest[0]]
        return tensor
    if op == "cat":
        axis, parts = rest
        return torch.cat([evaluate(part, inputs) for part, _ in parts], axis)
    a = evaluate(rest[0], inputs)
    if op in ("add", "mul", "sub"):
        b = evaluate(rest[1], inputs)
        return a + b if op == "add" else a * b if op == "mul" else a - b
    if op in ACTIVATIONS:
        return ACTIVATIONS[op](a)
    if op == "dequantize":
        return (a.float() - float(rest[2])) * float(rest[1])
    if op == "quantize":
        return (a * (1.0 / float(rest[1])) + float(rest[2])).round().clamp(0, 255).to(torch.uint8)
    if op == "widen":
        return a.contiguous().view(torch.bfloat16).float()
    if op == "halve":
        return halves(a)
    if op in ("from_float16", "to_float16"):
        return a.float() if op == "from_float16" else a.half()
    if op == "clip":
        return a.clamp(float(rest[1]), float(rest[2]))
    if op == "scale":
        return a * float(rest[1])
    if op == "shift":
        return a + float(rest[1])
    if op in ("sigmoid", "tanh", "erf"):
        smooth: Tensor = getattr(torch, op)(a)
        return smooth
    if op == "slice":
        starts, shape = rest[1], rest[2]
        for axis, ((start, step), size) in enumerate(zip(starts, shape, strict=True)):
            a = a.index_select(axis, start + step * torch.arange(size))
        return a
    if op == "broadcast":
        return a.reshape(rest[1])
    if op == "reshape":
        return a.reshape(rest[2])
    if op == "pad":
        before, extent, whole = rest[1:]
        out = torch.zeros(whole)
        out[tuple(slice(b, b + n) for b, n in zip(before, extent, strict=True))] = a
        return out
    raise ValueError(f"no element-wise operator {op!r}")


def tolerance(workload: Workload) -> float:
    """Return what a program of the workload may differ from PyTorch, as a share of the largest magnitude."""
    if isinstance(workload, HalfConv2d) and not workload.paired:
        return FLOAT16_TOLERANCE
    kinds = dtypes(workload)[-1:]
    return HALF_TOLERANCE if kinds == ("uint16",) else FLOAT16_TOLERANCE if kinds == ("float16",) else PROGRAM_TOLERANCE


def agrees(output: Array, wanted: Array, share: float = PROGRAM_TOLERANCE) -> str:
    """Return "" where the two agree to `share` of the largest magnitude (see `tolerance`), else what is wrong.

    Bytes agree where STEPS_TOLERANCE of them at most differ, a few more where there are few, and by one.
    """
    if wanted.dtype == np.uint8:
        steps = np.abs(output.astype(np.int16) - wanted.astype(np.int16))
        usual = STEPS_TOLERANCE * steps.size
        right = steps.max(initial=0) <= 1 and (steps > 0).sum() <= usual + 4 * usual**0.5 + 1
        return (
            ""
            if right
            else f"{(steps > 0).mean():.1%} of the bytes differ from PyTorch's, by up to {steps.max()} steps"
        )
    half = wanted.dtype in (np.uint16, np.float16)
    found = apart(numbers(output), numbers(wanted)) if half else apart(output, wanted)
    if found <= share:
        return ""
    if found == float("inf"):
        return "the output has NaN or infinite values, or lacks them, in other places than it should"
    return f"differs from PyTorch by {found:.3g} of its magnitude"
