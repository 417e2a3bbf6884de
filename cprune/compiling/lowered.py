"""A lowered network: the calls that its compiled model makes, its tasks, and how its values lie in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cprune.targets.session import Array
from cprune.tuner.programs.workload import Shape, Workload, key, padded


@dataclass(frozen=True)
class Layout:
    """How values lie in memory: channels in blocks of `block`, or of half of that.

    Half blocks waste less padding but half of every vector; whether that pays is measured width by width
    (`cprune.compiling.layout`).  `narrow` lists the numbers of channels that are stored in half blocks; what fits into
    one half block always is.  `dot` names the instruction that multiplies bytes, bfloat16 or float16
    (`cprune.tuner.programs.dots`): with it rounded values are of these in memory, always in whole blocks; without it
    they are float32 numbers like others.
    """

    block: int
    narrow: tuple[int, ...] = ()
    dot: str = ""

    def of(self, channels: int) -> int:
        """Return the block of a value of so many channels."""
        half = self.block // 2
        if half < 4 or self.dot:
            return self.block
        return half if channels <= half or channels in self.narrow else self.block

    def again(self, block: int, channels: int) -> int:
        """Return the block of a value that has `block` now when it has so many channels: plain stays plain.

        With a `dot` they stay: whole ones for all channels, four for an image's.
        """
        return self.of(channels) if block and not self.dot else block

    def open(self, channels: int) -> bool:
        """Tell whether both blocks make sense for so many channels: half ones would save padding."""
        half = self.block // 2
        return not self.dot and half >= 4 and channels > half and padded(channels, half) < padded(channels, self.block)

    def toggled(self, channels: int) -> Layout:
        """Return this layout with the other block for values of so many channels."""
        return replace(self, narrow=tuple(sorted({channels} ^ set(self.narrow))))


@dataclass(frozen=True)
class Step:
    """What the bytes of a quantized value stand for: (byte - zero) * scale."""

    scale: float
    zero: int


@dataclass(frozen=True)
class Half:
    """Of a value: its numbers have 16 bits, in the precision bf16 or fp16.

    `kind` is their type in memory, uint16 for bfloat16; `write` and `read` are the operators of
    `cprune.tuner.programs.workload.Elementwise` that make them of float32 and the other way round.
    """

    precision: str
    kind: str
    write: str
    read: str


HALVES = {
    "bf16": Half("bf16", "uint16", "halve", "widen"),
    "fp16": Half("fp16", "float16", "to_float16", "from_float16"),
}
"""Numbers of 16 bits by their precision."""


@dataclass(frozen=True)
class Call:
    """One kernel call: reads `inputs` (values) and `weights`, writes the value `output`."""

    output: str
    workload: Workload
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A unique workload with the layers that it stands for.  `uses` is the number of calls."""

    key: str
    workload: Workload
    layers: tuple[str, ...]
    uses: int


@dataclass(frozen=True)
class Lowered:
    """The whole model as calls in order.  `weights` are packed arrays by name, `channels` the width of every
    value that a convolution writes; both are not part of equality.
    """

    inputs: tuple[tuple[str, Shape], ...]
    calls: tuple[Call, ...]
    outputs: tuple[tuple[str, Shape], ...]
    layout: Layout
    channels: dict[str, int] = field(compare=False, repr=False)
    weights: dict[str, Array] = field(compare=False, repr=False)

    def tasks(self) -> tuple[Task, ...]:
        """Return the unique workloads in the order of their first call."""
        by_key: dict[str, list[Call]] = {}
        for call in self.calls:
            by_key.setdefault(key(call.workload), []).append(call)
        return tuple(
            Task(k, calls[0].workload, tuple(dict.fromkeys(n for c in calls for n in c.layers)), len(calls))
            for k, calls in by_key.items()
        )

    @property
    def widths(self) -> set[int]:
        """Return the channels of all values that convolutions write, without padding."""
        return set(self.channels.values())

    @property
    def macs(self) -> int:
        """Return the multiplications of one inference as compiled, padding included."""
        return sum(call.workload.macs for call in self.calls)
