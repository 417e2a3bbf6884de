"""Numbers that a graph computes about shapes: kept as Python numbers, so that shapes stay known.

ONNX does arithmetic on shapes with tensors (Shape, Gather, Mul, Concat, Reshape).  As tensors they would hide from
`torch.export` what a size is made of; as numbers (or its symbols, for an open batch) it stays visible.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST = 64
Attributes = Mapping[str, Any]
"""The attributes of an operator, see `cprune.models.formats.onnx.read.Operator`."""
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float32, 11: torch.float64, 12: torch.uint32, 13: torch.uint64, 16: torch.float32,
}  # fmt: skip
"""ONNX's numbers of types.  Half precision is computed in float32."""

Number = Any
"""An int, float or bool, or one of the symbols below, whose arithmetic torch does not type."""
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class Sizes:
    """A vector of numbers, or (`scalar`) one: what a tensor of rank 1 or 0 holds."""

    values: tuple[Number, ...]
    scalar: bool = False
    dtype: torch.dtype = torch.int64

    @classmethod
    def of(cls, tensor: Tensor) -> Sizes | None:
        """Return the numbers of a small tensor of rank 1 or 0, else None."""
        if tensor.dim() > 1 or tensor.numel() > MOST:
            return None
        return cls(tuple(tensor.reshape(-1).tolist()), tensor.dim() == 0, tensor.dtype)

    def tensor(self) -> Tensor:
        """Return the numbers as a tensor."""
        if any(isinstance(v, _SYMBOLS) for v in self.values):
            parts = [torch.scalar_tensor(v, dtype=self.dtype) for v in self.values]
            return parts[0] if self.scalar else torch.stack(parts)
        return torch.tensor(self.values[0] if self.scalar else list(self.values), dtype=self.dtype)


Operand = Tensor | Sizes
"""What an operator takes and makes."""
_MISSING = Sizes(())
"""In the place of an optional input that is left out."""


def ints(value: object) -> list[Number]:
    """Return the numbers of a value that must be known: axes, shapes, pads.  ValueError for a tensor that is not."""
    if isinstance(value, Sizes):
        return list(value.values)
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (int, float)):
        return [value]
    raise ValueError("computes a shape or an axis from the numbers in a tensor")


def number(value: object) -> Number:
    """Return the one number of a value that must be known.  ValueError for a tensor that is not."""
    numbers = ints(value)
    if len(numbers) != 1:
        raise ValueError(f"takes one number, not {len(numbers)}")
    return numbers[0]


def computed(kind: str, inputs: Sequence[Operand | None], attributes: Attributes) -> Sizes | None:
    """Return what an operator makes of numbers alone; None if it is none of those done here."""
    numbers = [_MISSING if x is None else x for x in inputs if x is None or isinstance(x, Sizes)]
    if not inputs or len(numbers) < len(inputs):
        return None
    first = numbers[0]
    if kind in _TWO and len(numbers) == 2 and not attributes.get("fmod"):
        return _broadcast(_TWO[kind], first, numbers[1], torch.bool if kind in _TELL else first.dtype)
    if kind in _ONE:
        return Sizes(tuple(map(_ONE[kind], first.values)), first.scalar, first.dtype)
    if kind in _ALL and not first.scalar and first.values:
        return Sizes((_ALL[kind](first.values),), not attributes.get("keepdims", 1), first.dtype)
    move = _MOVES.get(kind)
    return move(numbers, attributes) if move else None


# ----------------------------------------------------------------------------------------------------
# Arithmetic


def _divided(a: Number, b: Number) -> Number:
    """ONNX divides integers towards zero."""
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b) if (a < 0) != (b < 0) else a // b
    return a // b  # of sizes, which are not negative


def _larger(a: Number, b: Number) -> Number:
    return torch.sym_max(a, b)  # type: ignore[no-untyped-call]


def _smaller(a: Number, b: Number) -> Number:
    return torch.sym_min(a, b)  # type: ignore[no-untyped-call]


_TELL = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
_TWO: dict[str, Callable[[Number, Number], Number]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _divided,
    "Mod": operator.mod,
    "Max": _larger,
    "Min": _smaller,
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "And": lambda a, b: a and b,
    "Or": lambda a, b: a or b,
}
_ONE: dict[str, Callable[[Number], Number]] = {
    "Neg": operator.neg,
    "Abs": abs,
    "Floor": lambda a: a if isinstance(a, int) else math.floor(a),
    "Ceil": lambda a: a if isinstance(a, int) else math.ceil(a),
    "Not": operator.not_,
    "Identity": lambda a: a,
}
_ALL: dict[str, Callable[[Sequence[Number]], Number]] = {"ReduceProd": math.prod, "ReduceSum": sum}


def _broadcast(function: Callable[[Number, Number], Number], a: Sizes, b: Sizes, dtype: torch.dtype) -> Sizes:
    left, right = _as_long((a, b))
    return Sizes(tuple(function(x, y) for x, y in zip(left, right, strict=True)), a.scalar and b.scalar, dtype)


def _as_long(inputs: Sequence[Sizes]) -> list[tuple[Number, ...]]:
    """Return the numbers of each, one number as often as the others have some."""
    counts = {len(x.values) for x in inputs if len(x.values) != 1}
    if len(counts) > 1:
        raise ValueError("takes vectors of different length")
    count = counts.pop() if counts else 1
    return [x.values * count if len(x.values) == 1 else x.values for x in inputs]


# ----------------------------------------------------------------------------------------------------
# Moving numbers


def _gather(inputs: Sequence[Sizes], _: Attributes) -> Sizes:
    data, index = inputs[:2]
    return Sizes(tuple(data.values[int(i)] for i in index.values), index.scalar, data.dtype)


def _concat(inputs: Sequence[Sizes], _: Attributes) -> Sizes:
    return Sizes(tuple(v for x in inputs for v in x.values), dtype=inputs[0].dtype)


def _slice(inputs: Sequence[Sizes], attributes: Attributes) -> Sizes | None:
    data = inputs[0]
    if len(inputs) > 1:
        start, end = int(number(inputs[1])), int(number(inputs[2]))
        step = int(number(inputs[4])) if len(inputs) > 4 and inputs[4].values else 1
    else:
        start, end, step = attributes["starts"][0], attributes["ends"][0], 1
    if step < 0 and end < -len(data.values):
        return Sizes(data.values[start::step], dtype=data.dtype)
    return Sizes(data.values[start:end:step], dtype=data.dtype)


def _cast(inputs: Sequence[Sizes], attributes: Attributes) -> Sizes | None:
    to = DTYPES.get(int(attributes["to"]))
    if to is None:
        return None
    if to.is_floating_point:
        change: Callable[[Number], Number] = lambda v: float(v) if isinstance(v, int) else v  # noqa: E731
    elif to == torch.bool:
        change = bool
    elif any(isinstance(v, float) and not math.isfinite(v) for v in inputs[0].values):
        return None
    else:
        change = lambda v: int(v) if isinstance(v, (bool, float)) else v  # noqa: E731
    return Sizes(tuple(map(change, inputs[0].values)), inputs[0].scalar, to)


def _reshape(inputs: Sequence[Sizes], _: Attributes) -> Sizes | None:
    data, shape = inputs[0], inputs[1].values
    if len(shape) > 1 or (not shape and len(data.values) != 1):
        return None
    if shape and shape[0] not in (-1, 0, len(data.values)):
        raise ValueError(f"makes {shape[0]} numbers of {len(data.values)}")
    return Sizes(data.values, not shape, data.dtype)


def _where(inputs: Sequence[Sizes], _: Attributes) -> Sizes:
    chosen = tuple(y if c else n for c, y, n in zip(*_as_long(inputs), strict=True))
    return Sizes(chosen, all(x.scalar for x in inputs), inputs[1].dtype)


def _range(inputs: Sequence[Sizes], _: Attributes) -> Sizes | None:
    start, end, step = (number(x) for x in inputs)
    if not all(isinstance(v, int) for v in (start, end, step)) or not step or len(range(start, end, step)) > MOST:
        return None
    return Sizes(tuple(range(start, end, step)), dtype=inputs[0].dtype)


def _filled(inputs: Sequence[Sizes], attributes: Attributes) -> Sizes | None:
    if len(inputs[0].values) > 1 or any(not isinstance(v, int) or v > MOST for v in inputs[0].values):
        return None
    value = attributes.get("value")
    like = torch.zeros(1) if value is None else torch.from_numpy(value.reshape(-1))
    count = inputs[0].values[0] if inputs[0].values else 1
    return Sizes((like[0].item(),) * count, not inputs[0].values, like.dtype)


def _expanded(inputs: Sequence[Sizes], _: Attributes) -> Sizes | None:
    data, shape = inputs[0], inputs[1].values
    if len(shape) != 1 or not isinstance(shape[0], int) or shape[0] > MOST:
        return None
    return Sizes(data.values * shape[0] if len(data.values) == 1 else data.values, dtype=data.dtype)


def _squeezed(inputs: Sequence[Sizes], _: Attributes) -> Sizes | None:
    return Sizes(inputs[0].values, True, inputs[0].dtype) if len(inputs[0].values) == 1 else inputs[0]


_MOVES: dict[str, Callable[[Sequence[Sizes], Attributes], Sizes | None]] = {
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Cast": _cast,
    "Reshape": _reshape,
    "Where": _where,
    "Range": _range,
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Squeeze": _squeezed,
    "Unsqueeze": lambda inputs, attributes: (
        Sizes(inputs[0].values, dtype=inputs[0].dtype)
        if inputs[0].scalar and len(inputs[1].values if len(inputs) > 1 else attributes["axes"]) == 1
        else None
    ),
}
