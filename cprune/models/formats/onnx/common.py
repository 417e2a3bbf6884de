"""What the functions of all operators share: how they are called, and how they take their inputs apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cprune.models.formats.onnx.sizes import Attributes, Operand, Sizes, ints


class Unsupported(Exception):
    """A use of an operator that is not done here; the text goes on after the operator's name."""


@dataclass(frozen=True, eq=False)
class Call:
    """One use of an operator: its inputs (tensors, `Sizes`, None where an optional one is missing) and attributes.

    `outputs` is how many outputs are wanted.
    """

    inputs: Sequence[Operand | None]
    attributes: Attributes
    opset: int
    outputs: int = 1

    def at(self, index: int) -> Operand | None:
        """Return an input as it is, None where it is missing."""
        return self.inputs[index] if index < len(self.inputs) else None

    def operand(self, index: int = 0) -> Operand:
        """Return an input as it is.  ValueError if it is missing."""
        value = self.at(index)
        if value is None:
            raise ValueError(f"lacks its input number {index}")
        return value

    def tensor(self, index: int = 0) -> Tensor:
        """Return an input as a tensor.  ValueError if it is missing."""
        return as_tensor(self.operand(index))

    def maybe(self, index: int) -> Tensor | None:
        """Return an input as a tensor, None where it is missing."""
        return None if self.at(index) is None else self.tensor(index)

    def integer(self, name: str, default: int | None = None) -> int:
        """Return an attribute.  ValueError if it is missing and has no default."""
        return int(self._attribute(name, default))

    def number(self, name: str, default: float | None = None) -> float:
        """Return an attribute.  ValueError if it is missing and has no default."""
        return float(self._attribute(name, default))

    def text(self, name: str, default: str) -> str:
        """Return an attribute."""
        return str(self.attributes.get(name, default))

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """Return an attribute.  ValueError if it is missing and has no default."""
        return [int(value) for value in self._attribute(name, default)]

    def axes(self, index: int = 1) -> list[int] | None:
        """Return the axes: an attribute in old opsets, an input in new ones."""
        axes = self.at(index)
        if axes is not None:
            return [int(axis) for axis in ints(axes)]
        return self.integers("axes") if "axes" in self.attributes else None

    def refuse(self, *names: str) -> None:
        """Raise Unsupported if one of these attributes is given and is not nothing."""
        for name in names:
            if self.attributes.get(name):
                raise Unsupported(f"has {name}={self.attributes[name]!r}")

    def _attribute(self, name: str, default: object) -> Any:
        value = self.attributes.get(name, default)
        if value is None:
            raise ValueError(f"lacks the attribute {name}")
        return value


Result = Operand | tuple[Operand | None, ...]
"""What an operator makes: one, or several in the order of its outputs."""
Function = Callable[[Call], Result]
"""Computes an operator."""


def as_tensor(value: Operand) -> Tensor:
    """Return a value as a tensor."""
    return value.tensor() if isinstance(value, Sizes) else value


def padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Return `x` with (before, after) more numbers along its last axes."""
    if not any(before or after for before, after in pads):
        return x
    return F.pad(x, [amount for pair in reversed(pads) for amount in pair], value=value)


def unary(function: Callable[[Tensor], Tensor]) -> Function:
    """Return the operator that applies a function to its only input."""
    return lambda call: function(call.tensor())


def plane_axes(x: Tensor) -> list[int]:
    """Return the axes behind batch and channels."""
    return list(range(2, x.dim()))


def is_float(x: object) -> bool:
    """Tell whether a value is a tensor of floating-point numbers."""
    return isinstance(x, torch.Tensor) and x.is_floating_point()
