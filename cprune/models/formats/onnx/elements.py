"""ONNX operators that work number by number, and those that reduce axes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cprune.models.formats.onnx.common import Call, Function, Unsupported, as_tensor, is_float, unary
from cprune.models.formats.onnx.sizes import DTYPES, Number, Operand, Sizes, number


def _scalar_or_tensor(value: Operand) -> Tensor | float:
    """Return a tensor, or a Python number where there is but one: it fits every shape."""
    if isinstance(value, Sizes) and value.scalar and isinstance(value.values[0], (bool, int, float)):
        return value.values[0]
    return as_tensor(value)


def _two(function: Callable[[Any, Any], Tensor]) -> Function:
    def apply(call: Call) -> Tensor:
        a, b = call.operand(0), call.operand(1)
        if isinstance(a, Tensor) and a.dim():
            return function(a, _scalar_or_tensor(b))
        if isinstance(b, Tensor) and b.dim():
            return function(_scalar_or_tensor(a), b)
        return function(as_tensor(a), as_tensor(b))

    return apply


def _tensors(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda call: function(call.tensor(0), call.tensor(1))


def _div(a: Any, b: Any) -> Tensor:
    if is_float(a) or is_float(b):
        return operator.truediv(a, b)  # type: ignore[no-any-return]
    return torch.div(a, b, rounding_mode="trunc")


def _pow(call: Call) -> Tensor:
    base, power = call.tensor(0), _scalar_or_tensor(call.operand(1))
    if isinstance(power, Tensor) and base.is_floating_point():
        power = power.to(base.dtype)
    return torch.pow(base, power).to(base.dtype)


def _mod(call: Call) -> Tensor:
    return (torch.fmod if call.integer("fmod", 0) else torch.remainder)(call.tensor(0), call.tensor(1))


def _many(function: Callable[[Tensor, Tensor], Tensor], mean: bool = False) -> Function:
    def apply(call: Call) -> Tensor:
        total = call.tensor(0)
        for index in range(1, len(call.inputs)):
            total = function(total, call.tensor(index))
        return total / len(call.inputs) if mean else total

    return apply


def _clip(call: Call) -> Tensor:
    def bound(index: int, name: str) -> Tensor | Number | None:
        value = call.at(index)
        if value is None:
            limit = call.attributes.get(name)
            return None if limit is None or abs(limit) > 3e38 else limit
        return number(value) if isinstance(value, Sizes) else value

    x, low, high = call.tensor(), bound(1, "min"), bound(2, "max")
    if low is None and high is None:
        return x
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype))
        return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype))
    if (low, high) == (0, 6) and x.is_floating_point():
        return F.relu6(x)
    return torch.clamp(x, low, high)


def _prelu(call: Call) -> Tensor:
    x, slope = call.tensor(0), call.tensor(1)
    count = slope.numel()
    by_channel = x.dim() > 1 and count == x.shape[1] and slope.dim() == x.dim() - 1 and slope.shape[0] == count
    if is_float(x) and (count == 1 or by_channel):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def _hard_sigmoid(call: Call) -> Tensor:
    alpha, beta = call.number("alpha", 0.2), call.number("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(call.tensor())
    return torch.clamp(call.tensor() * alpha + beta, 0, 1)


def _swish(call: Call) -> Tensor:
    x, alpha = call.tensor(), call.number("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


def _selu(call: Call) -> Tensor:
    alpha, gamma = call.number("alpha", 1.67326319), call.number("gamma", 1.05070102)
    if abs(alpha - 1.67326319) < 1e-6 and abs(gamma - 1.05070102) < 1e-6:
        return F.selu(call.tensor())
    return F.elu(call.tensor(), alpha) * gamma


def _shrink(call: Call) -> Tensor:
    x, bias, limit = call.tensor(), call.number("bias", 0.0), call.number("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero)).to(x.dtype)


def _thresholded(call: Call) -> Tensor:
    return F.threshold(call.tensor(), call.number("alpha", 1.0), 0.0)


def _is_inf(call: Call) -> Tensor:
    x = call.tensor()
    none = torch.zeros_like(x, dtype=torch.bool)
    above = torch.isposinf(x) if call.integer("detect_positive", 1) else none
    return above | (torch.isneginf(x) if call.integer("detect_negative", 1) else none)


def _bit_shift(call: Call) -> Tensor:
    left = call.text("direction", "") == "LEFT"
    wide, count = call.tensor(0), call.tensor(1)
    shift = torch.bitwise_left_shift if left else torch.bitwise_right_shift
    return shift(wide.to(torch.int64), count.to(torch.int64)).to(wide.dtype)


def _cast(call: Call) -> Tensor:
    to = call.integer("to")
    if to not in DTYPES:
        raise Unsupported(f"casts to the type {to}")
    x = call.tensor()
    return x if x.dtype == DTYPES[to] else x.to(DTYPES[to])


def _where(call: Call) -> Tensor:
    a, b = _scalar_or_tensor(call.operand(1)), _scalar_or_tensor(call.operand(2))
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = call.tensor(1)
    return torch.where(call.tensor(0), a, b)


def _dropout(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    share, training = call.at(1), call.at(2)
    if training is not None and number(training):
        raise Unsupported("is in training mode")
    ratio = call.number("ratio", 0.5) if share is None else float(number(share))
    x = call.tensor()
    y = F.dropout(x, ratio, False)
    return (y, torch.ones_like(x, dtype=torch.bool)) if call.outputs > 1 else y


# ----------------------------------------------------------------------------------------------------
# Over axes


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Function:
    def apply(call: Call) -> Tensor:
        x, axes = call.tensor(), call.axes()
        if not axes and call.integer("noop_with_empty_axes", 0):
            return function(x.unsqueeze(-1), [x.dim()], False)  # what it does to one number
        dims = [axis % x.dim() for axis in axes] if axes else list(range(x.dim()))
        if not dims:
            return function(x.unsqueeze(0), [0], False)
        y = function(x, dims, bool(call.integer("keepdims", 1)))
        return y if y.dtype == x.dtype else y.to(x.dtype)

    return apply


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keep)
    return x


def _extreme(function: Callable[..., Tensor]) -> Callable[[Tensor, list[int], bool], Tensor]:
    empty = {torch.amax: -float("inf"), torch.amin: float("inf")}[function]

    def apply(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        if x.numel():
            return function(x, dims, keep)
        return torch.full_like(x.sum(dims, keep), empty)

    return apply


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return x.sum(dims, keep)


def _softmax(function: Callable[..., Tensor]) -> Function:
    def apply(call: Call) -> Tensor:
        x = call.tensor()
        if call.opset >= 13:
            return function(x, call.integer("axis", -1))
        axis = call.integer("axis", 1) % x.dim()
        if axis == x.dim() - 1:
            return function(x, axis)
        return function(torch.flatten(x, axis), axis).reshape(x.shape)  # older opsets: over all axes from there on

    return apply


def _arg(largest: bool) -> Function:
    def apply(call: Call) -> Tensor:
        x, axis, keep = call.tensor(), call.integer("axis", 0), bool(call.integer("keepdims", 1))
        function = torch.argmax if largest else torch.argmin
        if not call.integer("select_last_index", 0):
            return function(x, axis, keep)
        return x.shape[axis] - 1 - function(x.flip(axis), axis, keep)

    return apply


def _cumsum(call: Call) -> Tensor:
    x, axis = call.tensor(0), int(number(call.at(1)))
    backwards = call.integer("reverse", 0)
    x = x.flip(axis) if backwards else x
    y = x.cumsum(axis).to(x.dtype)
    y = y - x if call.integer("exclusive", 0) else y
    return y.flip(axis) if backwards else y


def _lp_norm(call: Call) -> Tensor:
    x, axis = call.tensor(), call.integer("axis", -1)
    norm = x.norm(call.integer("p", 2), axis, True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def _hardmax(call: Call) -> Tensor:
    if call.opset < 13:
        raise Unsupported("is of an opset before 13")
    x, axis = call.tensor(), call.integer("axis", -1)
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, True), 1.0)


def _top_k(call: Call) -> tuple[Tensor, Tensor]:
    x = call.tensor(0)
    k = call.integer("k") if call.at(1) is None else int(number(call.at(1)))
    axis = call.integer("axis", -1)
    # Not topk: of equal numbers ONNX wants the first.
    ordered = torch.sort(x, stable=True, dim=axis, descending=bool(call.integer("largest", 1)))
    return ordered.values.narrow(axis, 0, k), ordered.indices.narrow(axis, 0, k)


ELEMENTS: dict[str, Function] = {
    "Relu": lambda call: F.relu(call.tensor()),
    "LeakyRelu": lambda call: F.leaky_relu(call.tensor(), call.number("alpha", 0.01)),
    "PRelu": _prelu,
    "Elu": lambda call: F.elu(call.tensor(), call.number("alpha", 1.0)),
    "Selu": _selu,
    "Celu": lambda call: F.celu(call.tensor(), call.number("alpha", 1.0)),
    "Gelu": lambda call: F.gelu(call.tensor(), approximate=call.text("approximate", "none")),
    "Mish": unary(F.mish),
    "Swish": _swish,
    "Clip": _clip,
    "Sigmoid": unary(torch.sigmoid),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": unary(F.hardswish),
    "Tanh": unary(torch.tanh),
    "Softplus": unary(F.softplus),
    "Softsign": unary(lambda x: x / (1 + x.abs())),
    "ThresholdedRelu": _thresholded,
    "Shrink": _shrink,
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Hardmax": _hardmax,
    "Add": _two(operator.add),
    "Sub": _two(operator.sub),
    "Mul": _two(operator.mul),
    "Div": _two(_div),
    "Pow": _pow,
    "Mod": _mod,
    "Max": _many(torch.maximum),
    "Min": _many(torch.minimum),
    "Sum": _many(torch.add),
    "Mean": _many(torch.add, mean=True),
    "Equal": _two(operator.eq),
    "Greater": _two(operator.gt),
    "GreaterOrEqual": _two(operator.ge),
    "Less": _two(operator.lt),
    "LessOrEqual": _two(operator.le),
    "And": _tensors(torch.logical_and),
    "Or": _tensors(torch.logical_or),
    "Xor": _tensors(torch.logical_xor),
    "Not": unary(torch.logical_not),
    "BitwiseAnd": _tensors(torch.bitwise_and),
    "BitwiseOr": _tensors(torch.bitwise_or),
    "BitwiseXor": _tensors(torch.bitwise_xor),
    "BitwiseNot": unary(torch.bitwise_not),
    "BitShift": _bit_shift,
    "Where": _where,
    **{
        kind: unary(getattr(torch, kind.lower()))
        for kind in (
            *(
                "Abs",
                "Ceil",
                "Erf",
                "Exp",
                "Floor",
                "Log",
                "Neg",
                "Reciprocal",
                "Round",
                "Sign",
                "Sqrt",
                "IsNaN",
                "Det",
            ),
            *("Cos", "Sin", "Tan", "Acos", "Asin", "Atan", "Cosh", "Sinh", "Acosh", "Asinh", "Atanh"),
        )
    },
    "IsInf": _is_inf,
    "Cast": _cast,
    "CastLike": lambda call: call.tensor(0).to(call.tensor(1).dtype),
    "Dropout": _dropout,
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(_sum),
    "ReduceMax": _reduced(_extreme(torch.amax)),
    "ReduceMin": _reduced(_extreme(torch.amin)),
    "ReduceProd": _reduced(_product),
    "ReduceL1": _reduced(lambda x, dims, keep: x.abs().sum(dims, keep)),
    "ReduceL2": _reduced(lambda x, dims, keep: x.square().sum(dims, keep).sqrt()),
    "ReduceSumSquare": _reduced(lambda x, dims, keep: x.square().sum(dims, keep)),
    "ReduceLogSum": _reduced(lambda x, dims, keep: x.sum(dims, keep).log()),
    "ReduceLogSumExp": _reduced(torch.logsumexp),
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "CumSum": _cumsum,
    "LpNormalization": _lp_norm,
    "TopK": _top_k,
}
