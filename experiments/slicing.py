"""TSO (arXiv 2304.03013): how to slice a layer for several cores that share one memory, with and without its bursts.

    python -m experiments.slicing
    python -m experiments.slicing --cores 2 4 8 16 32 --layers

A layer is cut into slices that fit the scratchpads of a core, and one of inputs, weights and outputs stays there while
the others come and go.  Every way to do it is costed; the cheapest is chosen once with the time that bursts take in
mind and once by bytes alone, and both are costed with bursts: what that is apart is what a model of bursts is worth.
The constants are those of the port of TSO that was published (4 x 8 cores of 16 multiply-adds a cycle at 1 GHz, three
scratchpads of 8 KiB, bursts of 128 bytes, 8,533 MB/s, 14 ns a burst, 120 cycles of software a slice); like it, the cost
adds up loading, computing and storing.

Beside it every choice runs on the simulated accelerator of `--target npu-sim`, as many of them as there are cores
behind one port (`cprune.targets.npu.cycles`): each slice is a program's copies, one product and its way out, row by row
as it lies in memory, and every core fetches its instructions through the port as well.

What a stride steps over is copied with the rest, by whole steps: otherwise slices of single pixels, which skip it, win
wherever bytes alone count.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from cprune.targets.npu import stream as at
from cprune.targets.npu.cycles import DONE, cycles_together
from cprune.targets.npu.machine import Costs, NpuMachine
from cprune.targets.npu.stream import Stream

STATIONARY = ("weight", "input", "output")


@dataclass(frozen=True)
class Machine:
    """Cores that share one memory.  Sizes are in bytes, rates by the nanosecond (1 GHz: a cycle)."""

    cores: int = 32
    scratchpad: int = 8 * 1024
    macs: int = 16
    burst: int = 128
    rate: float = 8.533
    burst_ns: float = 14.0
    slice_ns: float = 120.0

    def memory_ns(self, bursts: float) -> float:
        """Return how long the memory takes for so many bursts."""
        return bursts * (self.burst / self.rate + self.burst_ns)

    @property
    def simulated(self) -> NpuMachine:
        """Return the accelerator that a core is in the simulation: 8 bytes a cycle, the software's cycles a product."""
        costs = Costs(
            burst=self.burst_ns, pad=0.0, gemm=self.slice_ns, alu=0.0, alu_vector=0.0, store_row=0.0, token=0.0
        )
        return NpuMachine(
            "tso",
            lanes=1,
            port_bytes=int(self.rate),
            burst_bytes=self.burst,
            limit_cycles=10**12,
            clock_hz=1e9,
            costs=costs,
        )


@dataclass(frozen=True)
class Layer:
    """A convolution of bytes; `groups` is 1, or the number of channels."""

    name: str
    size: int
    channels: int
    outputs: int
    kernel: int
    stride: int
    groups: int = 1

    @property
    def out(self) -> int:
        """Return the rows of the output."""
        return -(-self.size // self.stride)

    @property
    def depth(self) -> int:
        """Return the input channels of one output."""
        return 1 if self.groups > 1 else self.channels

    def reads(self, outputs: int) -> int:
        """Return how many rows (or columns) of the input so many of the output need."""
        return min(self.size, outputs * self.stride + max(0, self.kernel - self.stride))


@dataclass(frozen=True)
class Slicing:
    """Rows, columns, output and input channels of a slice, and what stays on the chip."""

    stationary: str
    rows: int
    columns: int
    outputs: int
    inputs: int


def bursts(width: int, height: int, channels: int, plane: tuple[int, int], size: int) -> int:
    """Return in how many bursts of `size` bytes a part of [channels, height, width] bytes is read (TSO, section 4)."""
    if width < plane[1]:
        return -(-width // size) * height * channels
    if height < plane[0]:
        return -(-width * height // size) * channels
    return -(-width * height * channels // size)


@dataclass(frozen=True)
class Slices:
    """What a slicing comes to: how many slices, the bytes and bursts of each kind of copy, and how often it is made."""

    count: int
    macs: float
    bytes: tuple[int, int, int]
    bursts: tuple[int, int, int]
    times: tuple[int, int, int]

    def cost_ns(self, machine: Machine, with_bursts: bool = True) -> float:
        """Return the time of the layer: memory, computing on all cores, and software, one after the other."""
        if with_bursts:
            memory = machine.memory_ns(sum(n * t for n, t in zip(self.bursts, self.times, strict=True)))
        else:
            memory = sum(n * t for n, t in zip(self.bytes, self.times, strict=True)) / machine.rate
        return memory + -(-self.count // machine.cores) * (self.macs / machine.macs + machine.slice_ns)


def slices(layer: Layer, one: Slicing, machine: Machine) -> Slices | None:
    """Return what a slicing comes to; None where a slice does not fit."""
    k = layer.kernel
    high, wide = layer.reads(one.rows), layer.reads(one.columns)
    inputs = one.outputs if layer.groups > 1 else one.inputs
    sizes = (
        high * wide * inputs,
        k * k * one.outputs * (1 if layer.groups > 1 else one.inputs),
        one.rows * one.columns * one.outputs,
    )
    if max(sizes) > machine.scratchpad:
        return None
    across = -(-layer.out // one.rows) * -(-layer.out // one.columns)
    deep = 1 if layer.groups > 1 else -(-layer.channels // one.inputs)
    out = -(-layer.outputs // one.outputs)
    count = across * deep * out
    taps = k * k * (1 if layer.groups > 1 else one.inputs)
    whole = one.inputs >= layer.depth
    weights = -(-taps * one.outputs // machine.burst) if whole else -(-taps // machine.burst) * one.outputs
    each = (
        bursts(wide, high, inputs, (layer.size, layer.size), machine.burst),
        weights,
        bursts(one.columns, one.rows, one.outputs, (layer.out, layer.out), machine.burst),
    )
    # What stays is copied once by every core that works on it; sums of a part of the channels go out and come back.
    stays = {"weight": deep * out, "input": across * deep, "output": across * out}[one.stationary]
    runs = max(stays, min(count, machine.cores))
    times = {
        "weight": (count, runs, count + across * out * (deep - 1)),
        "input": (runs, count, count + across * out * (deep - 1)),
        "output": (count, count, max(across * out, min(count, machine.cores) if deep > 1 else 0)),
    }[one.stationary]
    return Slices(count, one.rows * one.columns * one.outputs * taps, sizes, each, times)


def parts(number: int) -> list[int]:
    """Return the sizes that cut an axis into different numbers of pieces."""
    return sorted({-(-number // pieces) for pieces in range(1, number + 1)})


def slicings(layer: Layer, machine: Machine) -> Iterator[tuple[Slicing, Slices]]:
    """Yield every slicing that fits."""
    deep = [1] if layer.groups > 1 else parts(layer.channels)
    for rows, columns in itertools.product(parts(layer.out), repeat=2):
        if rows * columns > machine.scratchpad:
            continue
        for outputs, inputs in itertools.product(parts(layer.outputs), deep):
            if rows * columns * outputs > machine.scratchpad:
                break
            for stationary in STATIONARY:
                one = Slicing(stationary, rows, columns, outputs, inputs)
                found = slices(layer, one, machine)
                if found is not None:
                    yield one, found


@dataclass(frozen=True)
class Choice:
    """A layer's slicing by bytes and by bursts, with what each costs with bursts, and simulated."""

    layer: Layer
    by_bytes: Slicing
    by_bursts: Slicing
    bytes_ns: float
    bursts_ns: float
    bytes_simulated_ns: float
    bursts_simulated_ns: float

    @property
    def gain(self) -> float:
        """Return how much faster the layer is, by the cost."""
        return self.bytes_ns / self.bursts_ns - 1

    @property
    def simulated_gain(self) -> float:
        """Return how much faster it is in the simulation."""
        return self.bytes_simulated_ns / self.bursts_simulated_ns - 1


@cache
def chosen(layer: Layer, machine: Machine) -> Choice:
    """Choose with and without bursts in mind."""
    every = list(slicings(layer, machine))
    plain = min(every, key=lambda each: (round(each[1].cost_ns(machine, with_bursts=False), 3), each[1].count))
    aware = min(every, key=lambda each: each[1].cost_ns(machine))
    return Choice(
        layer,
        plain[0],
        aware[0],
        plain[1].cost_ns(machine),
        aware[1].cost_ns(machine),
        simulated(layer, plain[0], machine),
        simulated(layer, aware[0], machine),
    )


def simulated(layer: Layer, one: Slicing, machine: Machine) -> float:
    """Return when the last core is done, in ns, on as many simulated accelerators behind one port."""
    work = ordered(layer, one)
    share = -(-len(work) // machine.cores)
    streams = [stream_of(layer, one, work[first : first + share], machine) for first in range(0, len(work), share)]
    found = cycles_together(streams, machine.simulated)
    assert found.end == DONE, found
    return found.cycles


@dataclass(frozen=True)
class Piece:
    """A slice: where it begins in rows, columns, outputs and inputs."""

    row: int
    column: int
    output: int
    input: int


def ordered(layer: Layer, one: Slicing) -> list[Piece]:
    """Return the slices in the order in which what is stationary stays."""
    deep = [0] if layer.groups > 1 else list(range(0, layer.channels, one.inputs))
    places = list(itertools.product(range(0, layer.out, one.rows), range(0, layer.out, one.columns)))
    outputs = list(range(0, layer.outputs, one.outputs))
    if one.stationary == "weight":
        return [Piece(*place, o, i) for o in outputs for i in deep for place in places]
    if one.stationary == "input":
        return [Piece(*place, o, i) for place in places for i in deep for o in outputs]
    return [Piece(*place, o, i) for place in places for o in outputs for i in deep]


def stream_of(layer: Layer, one: Slicing, pieces: Sequence[Piece], machine: Machine) -> Stream:
    """Return the instructions of one core: what stays is loaded once, sums of a part of the channels go out and return.

    One thread: a slice fills the scratchpad, so the next is not loaded before it is used up.
    """
    loads = [loads_of(layer, one, before, piece) for before, piece in zip([None, *pieces], pieces, strict=False)]
    rows: list[list[int]] = []
    for place, piece in enumerate(pieces):
        before = pieces[place - 1] if place else None
        behind = pieces[place + 1] if place + 1 < len(pieces) else None
        high, wide, outputs, inputs = extents(layer, one, piece)
        begins = before is None or _output(before) != _output(piece)
        ends = behind is None or _output(behind) != _output(piece)
        if loads[place]:
            loads[place][0][at.TOKENS] |= at.POP_NEXT
            loads[place][-1][at.TOKENS] |= at.PUSH_NEXT
        product = [0] * at.WIDTH
        product[at.OP] = at.GEMM
        macs = high * wide * outputs * layer.kernel**2 * (inputs if layer.groups == 1 else 1)
        product[at.UOPS], product[at.OUTER], product[at.INNER] = -(-macs // machine.macs), 1, 1
        product[at.TOKENS] = at.POP_PREVIOUS if loads[place] else 0
        if behind is None or loads[place + 1]:
            product[at.TOKENS] |= at.PUSH_PREVIOUS
        if begins:
            product[at.TOKENS] |= at.POP_NEXT
        out: list[list[int]] = []
        if ends:
            product[at.TOKENS] |= at.PUSH_NEXT
            out = copies(at.STORE, (piece.output, piece.row, piece.column), (outputs, high, wide), layer.out)
            out[0][at.TOKENS] |= at.POP_PREVIOUS
            out[-1][at.TOKENS] |= at.PUSH_PREVIOUS
        rows += [*loads[place], product, *out]
    return Stream(np.array(rows, np.int64), np.zeros((3, 0), np.int64), 1, {})


def extents(layer: Layer, one: Slicing, piece: Piece) -> tuple[int, int, int, int]:
    """Return the rows, columns, outputs and inputs of a slice: fewer at the ends of the layer."""
    high, wide = min(one.rows, layer.out - piece.row), min(one.columns, layer.out - piece.column)
    outputs = min(one.outputs, layer.outputs - piece.output)
    return high, wide, outputs, min(one.inputs, layer.channels - piece.input) if layer.groups == 1 else outputs


def loads_of(layer: Layer, one: Slicing, before: Piece | None, piece: Piece) -> list[list[int]]:
    """Return what is loaded for a slice after the one before it: inputs, weights, and the sums so far."""
    k, whole = layer.kernel, layer.groups == 1
    high, wide, outputs, inputs = extents(layer, one, piece)
    loads: list[list[int]] = []
    if before is None or _input(piece, whole) != _input(before, whole):
        begin = (piece.input if whole else piece.output, piece.row * layer.stride, piece.column * layer.stride)
        loads += copies(at.LOAD_INPUT, begin, (inputs, layer.reads(high), layer.reads(wide)), layer.size)
    if before is None or (piece.output, piece.input) != (before.output, before.input):
        depth = layer.depth
        start = (piece.output * depth + (piece.input if whole else 0)) * k * k
        loads.append(instruction(at.LOAD_WEIGHT, start, outputs, k * k * (inputs if whole else 1), depth * k * k))
    if piece.input > 0 and (before is None or _output(before) != _output(piece)):
        loads += copies(at.LOAD_INPUT, (piece.output, piece.row, piece.column), (outputs, high, wide), layer.out)
    return loads


def _input(piece: Piece, whole: bool) -> tuple[int, ...]:
    return (piece.row, piece.column, piece.input if whole else piece.output)


def _output(piece: Piece) -> tuple[int, ...]:
    return (piece.row, piece.column, piece.output)


def copies(op: int, begin: tuple[int, int, int], sizes: tuple[int, int, int], side: int) -> list[list[int]]:
    """Return the instructions that move a part of [channels, side, side] bytes: as few as its rows allow."""
    channel, row, column = begin
    channels, high, wide = sizes
    high, wide = min(high, side - row), min(wide, side - column)
    start = (channel * side + row) * side + column
    if wide == side and high == side:
        return [instruction(op, start, 1, channels * side * side, 0)]
    if wide == side:
        return [instruction(op, start, channels, high * side, side * side)]
    if high == side:
        return [instruction(op, start, channels * side, wide, side)]
    return [instruction(op, start + c * side * side, high, wide, side) for c in range(channels)]


def instruction(op: int, outside: int, rows: int, columns: int, stride: int) -> list[int]:
    """Return a copy of `rows` rows of `columns` bytes each, `stride` bytes apart."""
    row = [0] * at.WIDTH
    row[at.OP], row[at.OUTSIDE], row[at.ROWS], row[at.COLUMNS], row[at.STRIDE] = op, outside, rows, columns, stride
    return row


def resnet(blocks: Sequence[int], bottleneck: bool) -> list[Layer]:
    """Return the convolutions of a ResNet at 224."""
    layers, size, channels = [Layer("stem", 224, 3, 64, 7, 2)], 56, 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            name = f"layer{stage + 1}.{block}"
            out = 4 * width if bottleneck else width
            if bottleneck:
                layers.append(Layer(f"{name}.conv1", size, channels, width, 1, 1))
                layers.append(Layer(f"{name}.conv2", size, width, width, 3, stride))
                layers.append(Layer(f"{name}.conv3", size // stride, width, out, 1, 1))
            else:
                layers.append(Layer(f"{name}.conv1", size, channels, width, 3, stride))
                layers.append(Layer(f"{name}.conv2", size // stride, width, width, 3, 1))
            if channels != out or stride > 1:
                layers.append(Layer(f"{name}.shortcut", size, channels, out, 1, stride))
            size, channels = size // stride, out
    return layers


def mobilenet() -> list[Layer]:
    """Return the convolutions of MobileNetV2 at 224."""
    layers, size, channels = [Layer("stem", 224, 3, 32, 3, 2)], 112, 32
    settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    number = 0
    for expansion, out, count, first in settings:
        for i in range(count):
            stride, wide, name = (first if i == 0 else 1), channels * expansion, f"block{number}"
            if expansion > 1:
                layers.append(Layer(f"{name}.expand", size, channels, wide, 1, 1))
            layers.append(Layer(f"{name}.depthwise", size, wide, wide, 3, stride, wide))
            size //= stride
            layers.append(Layer(f"{name}.project", size, wide, out, 1, 1))
            channels, number = out, number + 1
    return [*layers, Layer("head", size, channels, 1280, 1, 1)]


NETWORKS = {
    "ResNet-18": resnet((2, 2, 2, 2), bottleneck=False),
    "ResNet-50": resnet((3, 4, 6, 3), bottleneck=True),
    "MobileNetV2": mobilenet(),
}


def main() -> int:
    """Choose for every layer and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, nargs="*", default=[2, 4, 8, 16, 32])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--layers", action="store_true", help="print every layer of the last number of cores")
    args = parser.parse_args()
    print(
        f"{'network':14}{'cores':>6}{'best':>9}{'mean':>8}{'network':>9}{'simulated best':>16}{'mean':>8}{'network':>9}"
    )
    for name in args.networks:
        for cores in args.cores:
            machine = Machine(cores=cores)
            different = {layer_key(layer): chosen(layer_key(layer), machine) for layer in NETWORKS[name]}
            found = [different[layer_key(layer)] for layer in NETWORKS[name]]
            gains, simulations = [one.gain for one in found], [one.simulated_gain for one in found]
            whole = sum(one.bytes_ns for one in found) / sum(one.bursts_ns for one in found) - 1
            seen = sum(one.bytes_simulated_ns for one in found) / sum(one.bursts_simulated_ns for one in found) - 1
            print(
                f"{name:14}{cores:6}{max(gains):9.1%}{statistics.mean(gains):8.1%}{whole:9.1%}"
                f"{max(simulations):16.1%}{statistics.mean(simulations):8.1%}{seen:9.1%}",
                flush=True,
            )
        if args.layers:
            for layer, one in zip(NETWORKS[name], found, strict=True):
                ways = f"{said(one.by_bytes)} -> {said(one.by_bursts)}"
                print(
                    f"  {layer.name:18}{one.bursts_ns / 1e3:9.1f} us {one.gain:7.1%} {one.simulated_gain:7.1%}  {ways}"
                )
    return 0


def layer_key(layer: Layer) -> Layer:
    """Return the layer without its name: equal ones are sliced once."""
    return Layer("", layer.size, layer.channels, layer.outputs, layer.kernel, layer.stride, layer.groups)


def said(one: Slicing) -> str:
    """Return a slicing in a few characters."""
    return f"{one.stationary[0]}s {one.rows}x{one.columns}x{one.outputs} of {one.inputs}"


if __name__ == "__main__":
    sys.exit(main())
