"""What a task computes: one anchor operator with everything that is fused into it, as plain data.

A workload is the key of a task: two layers with equal workloads share their programs and their records.

Layouts: a value is *plain* (N C H W, block 0) or *blocked* (N, C / block, H, W, block).  The channels of a blocked
value are padded with zeros to a multiple of the block, and the numbers of channels in here are the padded ones, so
that 30 and 32 channels are one and the same task where the block is 16.  Every kernel writes zeros into the padding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

Shape = tuple[int, ...]
FMLA = "fmla16"
"""What multiplies float16: a multiply-add of vectors, which LLVM knows by itself."""


def padded(channels: int, block: int) -> int:
    """Return `channels` rounded up to a multiple of `block`; plain values (block 0) are not padded."""
    return -(-channels // block) * block if block else channels


def stored_shape(shape: Shape, block: int) -> Shape:
    """Return the shape in memory of a logical [N, C, ...] value."""
    if not block:
        return shape
    n, c, *plane = shape
    return (n, padded(c, block) // block, *plane, block)


@dataclass(frozen=True)
class Conv2d:
    """`activation(conv(x, w) + bias [+ residual])`; x is plain where `in_block` is 0, the output always blocked.

    `activation` is one of `cprune.tuner.programs.reference.ACTIVATIONS`.
    `groups` is 1, or the number of channels (depthwise).  `pad` is (top, left, bottom, right).
    """

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    residual: bool
    activation: str
    in_block: int
    out_block: int

    @property
    def depthwise(self) -> bool:
        """Tell whether every channel has a filter of its own."""
        return self.groups > 1

    @property
    def out_height(self) -> int:
        """Return the rows of the output."""
        reach = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + self.pad[0] + self.pad[2] - reach) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Return the columns of the output."""
        reach = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + self.pad[1] + self.pad[3] - reach) // self.stride[1] + 1

    @property
    def macs(self) -> int:
        """Return the multiplications, padding channels included: what the machine really does."""
        per_output = self.kernel[0] * self.kernel[1] * (1 if self.depthwise else self.in_channels)
        return self.batch * self.out_channels * self.out_height * self.out_width * per_output

    def arguments(self) -> tuple[Shape, ...]:
        """Return the shapes in memory: x, [residual], weight, bias, output."""
        x = stored_shape((self.batch, self.in_channels, self.height, self.width), self.in_block)
        out = stored_shape((self.batch, self.out_channels, self.out_height, self.out_width), self.out_block)
        b = self.out_block
        weight: Shape
        if self.depthwise:
            weight = (self.out_channels // b, *self.kernel, b)
        elif self.in_block:
            blocks = self.in_channels // self.in_block
            weight = (self.out_channels // b, blocks, *self.kernel, self.in_block, b)
        else:
            weight = (self.out_channels // b, self.in_channels, *self.kernel, b)
        residual = (out,) if self.residual else ()
        return (x, *residual, weight, (self.out_channels // b, b), out)


@dataclass(frozen=True)
class QuantizedConv2d(Conv2d):
    """A convolution of bytes: `quantized(activation(sums * scale + bias [+ residual * numbers[0]]))`.

    x and residual are uint8, the weight int8, the sums int32 and exact; `scale` and `bias` are float32, one number a
    channel.  Padding is filled with `zero`, the byte that stands for 0.

    `output` is "uint8" or "float32".  Bytes are the value rounded half to even and cut to 0 … 255, so that without an
    activation (ReLU needs none where the byte 0 stands for 0) scale and bias are in units of the output's step and
    hold its zero point; after another activation the value is multiplied by numbers[1] and moved by numbers[2].
    What quantizes residual and input is folded into scale and bias the same way.

    `dot` names the instruction that multiplies (`cprune.tuner.programs.dots`).  Channels come in blocks of
    `in_block`, a multiple of 4; depthwise weights are [C / block, KH, KW, block], all others
    [OC / out_block, IC / in_block, KH, KW, in_block / 4, out_block, 4].
    """

    output: str
    dot: str

    def arguments(self) -> tuple[Shape, ...]:
        """Return the shapes in memory: x, [residual], weight, scale, bias, numbers, zero, output."""
        *before, weight, bias, out = super().arguments()
        if not self.depthwise:
            blocks, channels, rows, columns, depth, lanes = weight
            weight = (blocks, channels, rows, columns, depth // 4, lanes, 4)
        return (*before, weight, bias, bias, (3,), (1,), out)


@dataclass(frozen=True)
class HalfConv2d(Conv2d):
    """A convolution of numbers of 16 bits: `activation(sums + bias [+ residual])`, bias and activation in float32.

    `dot` names the instruction that multiplies.  FMLA multiplies float16, and adds in it: x, residual and weight are
    "float16", the weight as `Conv2d` has it.  All others take pairs of bfloat16 and add in float32: x, residual and
    weight are the 16 bits of each number as "uint16" (NumPy has no such type), channels come in blocks of `in_block`,
    an even number, and weights are [OC / out_block, IC / in_block, KH, KW, in_block / 2, out_block, 2]; the weight of
    a depthwise one is float32.  `output` is the type of x, rounded half to even, or "float32".
    """

    output: str
    dot: str

    @property
    def paired(self) -> bool:
        """Tell whether its numbers are bfloat16, multiplied in pairs; else they are float16."""
        return self.dot != FMLA

    @property
    def kind(self) -> str:
        """Return the type of x and residual."""
        return "uint16" if self.paired else "float16"

    def arguments(self) -> tuple[Shape, ...]:
        """Return the shapes in memory: x, [residual], weight, bias, output."""
        *before, weight, bias, out = super().arguments()
        if self.paired and not self.depthwise:
            blocks, channels, rows, columns, depth, lanes = weight
            weight = (blocks, channels, rows, columns, depth // 2, lanes, 2)
        return (*before, weight, bias, out)


@dataclass(frozen=True)
class Dense:
    """`activation(x @ w.T + bias)`, x [batch, in_features] and the output [batch, out_features] plain.

    The weight is stored as [ceil(out / block), in, block].
    """

    batch: int
    in_features: int
    out_features: int
    activation: str
    block: int

    @property
    def macs(self) -> int:
        """Return the multiplications."""
        return self.batch * self.in_features * padded(self.out_features, self.block)

    def arguments(self) -> tuple[Shape, ...]:
        """Return the shapes in memory: x, weight, bias, output."""
        blocks = padded(self.out_features, self.block) // self.block
        return (
            (self.batch, self.in_features),
            (blocks, self.in_features, self.block),
            (blocks, self.block),
            (self.batch, self.out_features),
        )


@dataclass(frozen=True)
class Pool2d:
    """Maximum or average over windows of a blocked value.  Padding counts in an average if `count_pad`."""

    op: str
    batch: int
    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int, int, int]
    count_pad: bool
    block: int

    @property
    def out_height(self) -> int:
        """Return the rows of the output."""
        return (self.height + self.pad[0] + self.pad[2] - self.kernel[0]) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Return the columns of the output."""
        return (self.width + self.pad[1] + self.pad[3] - self.kernel[1]) // self.stride[1] + 1

    @property
    def macs(self) -> int:
        """Return 0: a pool multiplies nothing."""
        return 0

    def arguments(self) -> tuple[Shape, ...]:
        """Return the shapes in memory: x, output."""
        return (
            stored_shape((self.batch, self.channels, self.height, self.width), self.block),
            stored_shape((self.batch, self.channels, self.out_height, self.out_width), self.block),
        )


@dataclass(frozen=True)
class QuantizedPool2d(Pool2d):
    """The maximum over windows of bytes: that of the numbers that they stand for, with the same scale."""


@dataclass(frozen=True)
class Mean:
    """The mean over the plane of a blocked value; the output [batch, channels] is plain and unpadded."""

    batch: int
    channels: int
    height: int
    width: int
    block: int

    @property
    def macs(self) -> int:
        """Return 0: a mean multiplies nothing worth counting."""
        return 0

    def arguments(self) -> tuple[Shape, ...]:
        """Return the shapes in memory: x, output."""
        return (
            stored_shape((self.batch, self.channels, self.height, self.width), self.block),
            (self.batch, self.channels),
        )


@dataclass(frozen=True)
class QuantizedMean(Mean):
    """The mean over the plane as bytes: `sum * numbers[0] + numbers[1]`, rounded and cut.

    `source` is the type of what is read, "uint8" or "float32".  Channels are padded, and the output stays in their
    blocks: [batch, channels / block, block].
    """

    source: str

    def arguments(self) -> tuple[Shape, ...]:
        """Return the shapes in memory: x, numbers, output."""
        x, _ = super().arguments()
        return (x, (2,), (self.batch, self.channels // self.block, self.block))


@dataclass(frozen=True)
class Elementwise:
    """A chain of operators that compute every output element from few input elements.

    `expression` is a nested tuple over logical values: ("in", i) · (an activation, a) · ("clip", a, low, high) ·
    ("add", a, b) · ("mul", a, b) · ("sub", a, b) · ("scale", a, factor) · ("shift", a, amount) · ("sigmoid", a) ·
    ("tanh", a) · ("erf", a) ·
    ("slice", a, ((start, step), …), shape) · ("pad", a, (before, …), shape of a, shape) ·
    ("cat", axis, ((a, extent), …)) · ("broadcast", a, shape with ones in front, rank of a) ·
    ("reshape", a, shape of a, shape) · ("dequantize", ("in", i), scale, zero) · ("quantize", a, scale, zero) ·
    ("widen", ("in", i)) · ("halve", a) · ("from_float16", ("in", i)) · ("to_float16", a).
    The last six make float32 of bytes, (byte - zero) * scale, of bfloat16 and of float16, and the other way round,
    rounded half to even; "quantize", "halve" and "to_float16" stand outermost, or right within their opposite.
    Inputs are given as (logical shape, block); so is the output.
    """

    expression: tuple[Any, ...]
    inputs: tuple[tuple[Shape, int], ...]
    shape: Shape
    block: int

    @property
    def macs(self) -> int:
        """Return 0: bytes are what costs here."""
        return 0

    def arguments(self) -> tuple[Shape, ...]:
        """Return the shapes in memory: inputs, output."""
        return (*(stored_shape(s, b) for s, b in self.inputs), stored_shape(self.shape, self.block))


@dataclass(frozen=True)
class Tir:
    """Any other operator: a PrimFunc of TVM's own importer as JSON text, all values plain; the last is the output."""

    name: str
    module: str
    shapes: tuple[Shape, ...]
    macs: int = 0

    def arguments(self) -> tuple[Shape, ...]:
        """Return the shapes in memory."""
        return self.shapes


Workload = Conv2d | Dense | Pool2d | Mean | Elementwise | Tir
KINDS: Mapping[str, type[Workload]] = {
    "conv2d": Conv2d,
    "qconv2d": QuantizedConv2d,
    "hconv2d": HalfConv2d,
    "dense": Dense,
    "pool2d": Pool2d,
    "qpool2d": QuantizedPool2d,
    "mean": Mean,
    "qmean": QuantizedMean,
    "elementwise": Elementwise,
    "tir": Tir,
}


def dtypes(workload: Workload) -> tuple[str, ...]:
    """Return the types of the arguments, the output's last; nothing where all are float32."""
    if isinstance(workload, QuantizedConv2d):
        values = ("uint8",) * (2 if workload.residual else 1)
        return (*values, "int8", "float32", "float32", "float32", "uint8", workload.output)
    if isinstance(workload, HalfConv2d):
        values = (workload.kind,) * (2 if workload.residual else 1)
        weight = "float32" if workload.depthwise and workload.paired else workload.kind
        return (*values, weight, "float32", workload.output)
    if isinstance(workload, QuantizedPool2d):
        return ("uint8", "uint8")
    if isinstance(workload, QuantizedMean):
        return (workload.source, "float32", "uint8")
    if isinstance(workload, Elementwise):
        read = dict(_read(workload.expression))
        kinds = [read.get(i, "float32") for i in range(len(workload.inputs))]
        kinds.append(WRITTEN.get(workload.expression[0], "float32"))
        return tuple(kinds) if set(kinds) != {"float32"} else ()
    return ()


READ = {"dequantize": "uint8", "widen": "uint16", "from_float16": "float16"}
WRITTEN = {"quantize": "uint8", "halve": "uint16", "to_float16": "float16"}
"""The types that operators of an expression make float32 of, and that they make of float32."""


def _read(expression: object) -> Iterator[tuple[int, str]]:
    """Yield every ("in", i) that is not read as float32: i and its type."""
    if isinstance(expression, tuple) and expression:
        op = expression[0]
        if isinstance(op, str) and op in READ and expression[1][0] == "in":
            yield expression[1][1], READ[op]
        else:
            for part in expression:
                yield from _read(part)


def key(workload: Workload) -> str:
    """Return the canonical JSON text under which the store keeps the records of this workload."""
    kind = next(name for name, cls in KINDS.items() if cls is type(workload))
    return json.dumps([kind, asdict(workload)], sort_keys=True, separators=(",", ":"))


def from_key(text: str) -> Workload:
    """Return the workload of a `key`."""
    kind, values = json.loads(text)
    workload: Workload = KINDS[kind](**{name: _tuples(value) for name, value in values.items()})
    return workload


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
