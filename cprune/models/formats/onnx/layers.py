"""ONNX operators with weights, and pooling: convolutions, normalisation, linear and recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cprune.models.formats.onnx.common import Call, Function, Unsupported, padded, plane_axes

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MAX_WITH_INDICES: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {
    1: F.max_pool1d_with_indices, 2: F.max_pool2d_with_indices, 3: F.max_pool3d_with_indices,
}  # fmt: skip


def _plane(call: Call, count: int) -> tuple[list[int], list[int]]:
    """Return strides and dilations."""
    if count not in _CONV:
        raise Unsupported(f"works on {count} axes")
    return call.integers("strides", [1] * count), call.integers("dilations", [1] * count)


def _pads(call: Call, x: Tensor, kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Return (before, after) of every axis of the plane."""
    strides, dilations = _plane(call, len(kernel))
    auto = call.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        sides = []
        for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            sides.append(_shared(max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size), auto == "SAME_UPPER"))
        return sides
    if auto == "VALID":
        return [(0, 0)] * len(kernel)
    pads = call.integers("pads", [0] * 2 * len(kernel))
    return list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))


def _shared(total: int, more_after: bool) -> tuple[int, int]:
    less, more = total // 2, total - total // 2
    return (less, more) if more_after else (more, less)


def _even(pads: Sequence[tuple[int, int]]) -> bool:
    return all(before == after for before, after in pads)


def _conv(call: Call) -> Tensor:
    x, weight = call.tensor(0), call.tensor(1)
    strides, dilations = _plane(call, weight.dim() - 2)
    pads = _pads(call, x, weight.shape[2:])
    if not _even(pads):
        x, pads = padded(x, pads), [(0, 0)] * len(pads)
    before = [amount for amount, _ in pads]
    convolution: Callable[..., Tensor] = _CONV[len(pads)]
    return convolution(x, weight, call.maybe(2), strides, before, dilations, call.integer("group", 1))


def _conv_transpose(call: Call) -> Tensor:
    x, weight, bias = call.tensor(0), call.tensor(1), call.maybe(2)
    count = weight.dim() - 2
    strides, dilations = _plane(call, count)
    more, groups = call.integers("output_padding", [0] * count), call.integer("group", 1)
    function: Callable[..., Tensor] = _CONV_TRANSPOSE[count]
    auto = call.text("auto_pad", "NOTSET")
    pads = call.integers("pads", [0] * 2 * count)
    sides = list(zip(pads[:count], pads[count:], strict=True))
    full = [
        s * (n - 1) + (k - 1) * d + 1 + m
        for s, n, k, d, m in zip(strides, x.shape[2:], weight.shape[2:], dilations, more, strict=True)
    ]
    plane = call.integers("output_shape", [])[-count:]
    if auto in ("SAME_UPPER", "SAME_LOWER") and not plane:
        plane = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if plane:
        sides = [_shared(f - p, auto == "SAME_UPPER") for f, p in zip(full, plane, strict=True)]
    if (
        _even(sides)
        and all(before >= 0 for before, _ in sides)
        and all(m < s for m, s in zip(more, strides, strict=True))
    ):
        before = [amount for amount, _ in sides]
        return function(x, weight, bias, strides, before, more, groups, dilations)
    y = function(x, weight, None, strides, 0, 0, groups, dilations)
    y = padded(y, [(-before, m - after) for (before, after), m in zip(sides, more, strict=True)])
    return y if bias is None else y + bias.reshape(-1, *[1] * count)


# ----------------------------------------------------------------------------------------------------
# Normalisation


def _epsilon(call: Call) -> float:
    return call.number("epsilon", 1e-5)


def _batch_norm(call: Call) -> Tensor:
    call.refuse("training_mode")
    if call.outputs > 1 or call.integer("spatial", 1) == 0:
        raise Unsupported("is in training mode")
    x, weight, bias, mean, var = (call.tensor(i) for i in range(5))
    return F.batch_norm(x, mean, var, weight, bias, False, 0.1, _epsilon(call))


def _instance_norm(call: Call) -> Tensor:
    return F.instance_norm(call.tensor(0), None, None, call.tensor(1), call.tensor(2), eps=_epsilon(call))


def _group_norm(call: Call) -> Tensor:
    x, weight, bias = (call.tensor(i) for i in range(3))
    groups = call.integer("num_groups")
    if call.opset < 21:  # one number a group
        weight, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (weight, bias))
    return F.group_norm(x, groups, weight, bias, _epsilon(call))


def _layer_norm(call: Call) -> Tensor:
    if call.outputs > 1:
        raise Unsupported("returns mean and deviation too")
    x, weight, bias = call.tensor(0), call.tensor(1), call.maybe(2)
    shape = list(x.shape[call.integer("axis", -1) % x.dim() :])
    if list(weight.shape) == shape and (bias is None or list(bias.shape) == shape):
        return F.layer_norm(x, shape, weight, bias, _epsilon(call))
    y = F.layer_norm(x, shape, None, None, _epsilon(call)) * weight
    return y if bias is None else y + bias


def _rms_norm(call: Call) -> Tensor:
    x = call.tensor(0)
    over = list(range(call.integer("axis", -1) % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(over, True) + _epsilon(call)) * call.tensor(1)


def _mean_variance(call: Call) -> Tensor:
    x, axes = call.tensor(), call.integers("axes", [0, 2, 3])
    mean = x.mean(axes, True)
    return (x - mean) / ((x * x).mean(axes, True) - mean * mean).sqrt()


def _local_response(call: Call) -> Tensor:
    # PyTorch pads before and after alike, ONNX has the odd one after.
    x, size = call.tensor(), call.integer("size")
    square = padded((x * x).unsqueeze(1), [((size - 1) // 2, size // 2), *[(0, 0)] * (x.dim() - 2)])
    total = sum((square.narrow(2, i, x.shape[1]) for i in range(1, size)), square.narrow(2, 0, x.shape[1]))
    scale = call.number("bias", 1.0) + call.number("alpha", 1e-4) / size * total.squeeze(1)
    return x / scale.pow(call.number("beta", 0.75))


# ----------------------------------------------------------------------------------------------------
# Linear layers


def _linear(call: Call) -> Tensor:
    """A matrix product with weights [out, in], which the reader made of MatMul or Gemm."""
    return F.linear(call.tensor(0), call.tensor(1), call.maybe(2))


def _gemm(call: Call) -> Tensor:
    a, b, c = call.tensor(0), call.tensor(1), call.maybe(2)
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    y = torch.matmul(a.t() if call.integer("transA", 0) else a, b.t() if call.integer("transB", 0) else b)
    if alpha != 1:
        y = y * alpha
    return y if c is None else y + (c if beta == 1 else c * beta)


def _matmul(call: Call) -> Tensor:
    return torch.matmul(call.tensor(0), call.tensor(1))


def _einsum(call: Call) -> Tensor:
    return torch.einsum(call.text("equation", ""), *(call.tensor(i) for i in range(len(call.inputs))))


# ----------------------------------------------------------------------------------------------------
# Pooling


def _average_pool(call: Call) -> Tensor:
    x, kernel = call.tensor(), call.integers("kernel_shape")
    strides, dilations = _plane(call, len(kernel))
    if any(d > 1 for d in dilations):
        raise Unsupported("averages with gaps (dilations)")
    pads, ceil = _pads(call, x, kernel), bool(call.integer("ceil_mode", 0))
    inside, function = bool(call.integer("count_include_pad", 0)), _AVERAGE[len(kernel)]
    if _fit(pads, kernel):
        return function(x, kernel, strides, [before for before, _ in pads], ceil, inside)
    if inside:
        return function(padded(x, pads), kernel, strides, 0, ceil)
    ones = padded(torch.ones_like(x), pads)
    return function(padded(x, pads), kernel, strides, 0, ceil) / function(ones, kernel, strides, 0, ceil)


def _fit(pads: Sequence[tuple[int, int]], kernel: Sequence[int]) -> bool:
    """Tell whether PyTorch's pooling pads so: both sides alike and by half a kernel at most."""
    return _even(pads) and all(before <= k // 2 for (before, _), k in zip(pads, kernel, strict=True))


def _max_pool(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    x, kernel = call.tensor(), call.integers("kernel_shape")
    strides, dilations = _plane(call, len(kernel))
    pads, ceil = _pads(call, x, kernel), bool(call.integer("ceil_mode", 0))
    function, fits, integers = _MAX[len(kernel)], _fit(pads, kernel), not x.is_floating_point()
    if call.outputs > 1:
        call.refuse("storage_order")
        if not fits:
            raise Unsupported("returns indices of a padded plane")
        before = [amount for amount, _ in pads]
        y, index = _MAX_WITH_INDICES[len(kernel)](x, kernel, strides, before, dilations, ceil)
        planes = torch.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * len(kernel))
        return y, index + planes * math.prod(x.shape[2:])
    if integers:
        return function(padded(x.double(), pads, -math.inf), kernel, strides, 0, dilations, ceil).to(x.dtype)
    if fits:
        return function(x, kernel, strides, [before for before, _ in pads], dilations, ceil)
    return function(padded(x, pads, -math.inf), kernel, strides, 0, dilations, ceil)


def _lp_pool(call: Call) -> Tensor:
    p, kernel = call.integer("p", 2), call.integers("kernel_shape")
    attributes = {**call.attributes, "count_include_pad": 1}
    mean = _average_pool(Call([call.tensor().abs() ** p], attributes, call.opset))
    return (mean * math.prod(kernel)) ** (1 / p)


def _global_average(call: Call) -> Tensor:
    x = call.tensor()
    return F.adaptive_avg_pool2d(x, 1) if x.dim() == 4 else x.mean(plane_axes(x), True)


def _global_max(call: Call) -> Tensor:
    x = call.tensor()
    return x.amax(plane_axes(x), True)


def _global_lp(call: Call) -> Tensor:
    x, p = call.tensor(), call.integer("p", 2)
    return (x.abs() ** p).sum(plane_axes(x), True) ** (1 / p)


# ----------------------------------------------------------------------------------------------------
# Recurrent layers


_PLAIN = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # where PyTorch's gates are among ONNX's


def _recurrent(kind: str) -> Function:
    def apply(call: Call) -> tuple[Tensor, ...]:
        direction = call.text("direction", "forward")
        both = 2 if direction == "bidirectional" else 1
        activations = call.attributes.get("activations") or _PLAIN[kind] * both
        rectified = kind == "RNN" and activations == ["Relu"] * both
        if (activations != _PLAIN[kind] * both and not rectified) or call.at(4) is not None or call.at(7) is not None:
            raise Unsupported("has activations, lengths of sequences or peepholes that PyTorch's layer has not")
        call.refuse("clip", "input_forget")
        if kind == "GRU" and not call.integer("linear_before_reset", 0):
            raise Unsupported("resets before its linear layer (linear_before_reset=0), which PyTorch's layer does not")
        x, weight, hidden = call.tensor(0), call.tensor(1), call.tensor(2)
        first, rows, gates = bool(call.integer("layout", 0)), hidden.shape[-1], len(_ORDER[kind])
        x = x.transpose(0, 1) if first else x
        # PyTorch's own function looks at no shape and writes where it should not.
        _check(x, (x.shape[0], x.shape[1], weight.shape[-1]), "input")
        _check(weight, (both, gates * rows, x.shape[-1]), "weight")
        _check(hidden, (both, gates * rows, rows), "recurrent weight")
        x = x.flip(0) if direction == "reverse" else x

        def sorted_gates(stacked: Tensor) -> Tensor:
            parts = torch.split(stacked, rows)
            return torch.cat([parts[i] for i in _ORDER[kind]]) if len(parts) > 1 else stacked

        bias = call.maybe(3)
        if bias is not None:
            _check(bias, (both, 2 * gates * rows), "bias")
        params: list[Tensor] = []
        for side in range(both):
            params += [sorted_gates(weight[side]), sorted_gates(hidden[side])]
            if bias is not None:
                params += [sorted_gates(half) for half in bias[side].chunk(2)]
        states = []
        for index in (5, 6) if kind == "LSTM" else (5,):
            state = call.maybe(index)
            state = state.transpose(0, 1) if state is not None and first else state
            states.append(x.new_zeros(both, x.shape[1], rows) if state is None else state)
            _check(states[-1], (both, x.shape[1], rows), "state")
        more = (params, bias is not None, 1, 0.0, False, both == 2, False)
        if kind == "LSTM":
            y, *last = torch.lstm(x, states, *more)
        else:
            function = torch.gru if kind == "GRU" else torch.rnn_relu if rectified else torch.rnn_tanh
            y, *last = function(x, states[0], *more)
        y = y.flip(0) if direction == "reverse" else y
        y = y.reshape(y.shape[0], y.shape[1], both, rows)  # steps, batch, directions, numbers
        y = y.transpose(0, 1) if first else y.transpose(1, 2)
        return (y, *(state.transpose(0, 1) if first else state for state in last))

    return apply


def _check(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(f"has a {what} of {' x '.join(map(str, x.shape))}, not {' x '.join(map(str, shape))}")


LAYERS: dict[str, Function] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "MeanVarianceNormalization": _mean_variance,
    "LRN": _local_response,
    "Linear": _linear,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "GlobalLpPool": _global_lp,
    **{kind: _recurrent(kind) for kind in _PLAIN},
}
