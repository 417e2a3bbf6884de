"""What a value is while a network is lowered: in memory, or waiting for what may still join it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from cprune.compiling.lowered import Half, Step
from cprune.network.node import Node, Ref
from cprune.tuner.programs.workload import Conv2d, Shape, padded

PLAIN_INPUT_CHANNELS = 4  # a convolution of so few channels (an image) reads the plain layout itself

Expression = tuple[object, ...]
"""What a chain computes, in the words of `cprune.tuner.programs.workload.Elementwise`."""


@dataclass(frozen=True)
class Stored:
    """A value in memory: a buffer in blocks of `block` channels (0: plain).  `shape` is how the model sees it.

    It holds bytes where it has a `step`, or numbers of 16 bits where that says so, else float32 numbers.
    """

    name: str
    shape: Shape
    block: int
    step: Step | Half | None = None


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution that is not emitted yet; `x` and `residual` are names of values."""

    x: str
    weight: Tensor
    bias: Tensor
    shape: Shape
    layers: tuple[str, ...]
    stride: tuple[int, int]
    pad: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    residual: str | None = None
    activation: str = "none"
    step: Step | Half | None = None

    def workload(
        self, source: Shape, in_block: int, out_block: int, residual: bool, activation: str | None = None
    ) -> Conv2d:
        """Return what it computes of a value of shape `source`, in these blocks; in float32."""
        n, c, h, w = source
        outputs = padded(self.shape[1], out_block)
        return Conv2d(
            n,
            padded(c, in_block),
            h,
            w,
            outputs,
            (int(self.weight.shape[2]), int(self.weight.shape[3])),
            self.stride,
            self.pad,
            self.dilation,
            outputs if self.groups > 1 else 1,
            residual,
            self.activation if activation is None else activation,
            in_block,
            out_block,
        )

    @property
    def is_open(self) -> bool:
        """Tell whether a BatchNorm or a sum can still join: neither may come after a sum or an activation."""
        return self.activates and self.residual is None

    @property
    def activates(self) -> bool:
        """Tell whether an activation can still join."""
        return self.activation == "none" and self.step is None


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer that is not emitted yet; `x` is the name of a value."""

    x: str
    weight: Tensor
    bias: Tensor
    shape: Shape
    layers: tuple[str, ...]
    activation: str = "none"
    step: Step | Half | None = None

    @property
    def activates(self) -> bool:
        """Tell whether an activation can still join."""
        return self.activation == "none" and self.step is None


@dataclass(frozen=True)
class Chain:
    """An element-wise expression over values in memory, not emitted yet."""

    expression: Expression
    inputs: tuple[Stored, ...]
    shape: Shape


@dataclass(frozen=True)
class Parts:
    """The list that chunk and split return: pieces of `x` one behind the other along an axis."""

    x: Ref
    shapes: tuple[Shape, ...]
    axis: int


@dataclass(frozen=True)
class ForeignList:
    """A list of tensors that TVM's own operators compute, imported together with the item that is taken from it."""

    node: Node


Value = Stored | Conv | Linear | Chain | Parts | ForeignList
Waiting = TypeVar("Waiting", Conv, Linear, Chain)


def read(value: Stored) -> Expression:
    """Return the expression of a chain's only input: a float32 number, whatever lies in memory."""
    if isinstance(value.step, Half):
        return (value.step.read, ("in", 0))
    return ("in", 0) if value.step is None else ("dequantize", ("in", 0), value.step.scale, value.step.zero)


def merged(chains: Sequence[Chain]) -> tuple[list[Expression], tuple[Stored, ...]]:
    """Return the expressions of several chains over one list of inputs, and that list."""
    inputs = tuple(dict.fromkeys(stored for chain in chains for stored in chain.inputs))
    return [_renumbered(c.expression, [inputs.index(i) for i in c.inputs]) for c in chains], inputs


def _renumbered(expression: Expression, order: Sequence[int]) -> Expression:
    match expression:
        case ("in", int(number)):
            return ("in", order[number])
    return tuple(_renumbered(part, order) if isinstance(part, tuple) else part for part in expression)
