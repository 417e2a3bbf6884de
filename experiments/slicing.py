"""TSO (arXiv 2304.03013): how to slice a layer for several cores that share one memory, with and without its bursts.

    python -m experiments.slicing
    python -m experiments.slicing --cores 2 4 8 16 32 --layers

A layer is cut into slices that fit the scratchpads of a core, and one of inputs, weights and outputs stays there while
the others come and go.  Every way to do it is costed; the cheapest is chosen once with the time that bursts take in
mind and once by bytes alone, and both are costed with bursts: what that is apart is what a model of bursts is worth.
The constants are those of the port of TSO that was published (4 x 8 cores of 16 multiply-adds a cycle at 1 GHz, three
scratchpads of 8 KiB, bursts of 128 bytes, 8,533 MB/s, 14 ns a burst, 120 cycles of software a slice); like it, the cost
adds up loading, computing and storing.  What the cores do at the same time is simulated beside it: each has slices of
its own, waits for the one memory, and loads its next slice while it computes (`simulated`).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

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
    k, s = layer.kernel, layer.stride
    high, wide = min(layer.size, (one.rows - 1) * s + k), min(layer.size, (one.columns - 1) * s + k)
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
        simulated(plain[1], machine),
        simulated(aware[1], machine),
    )


def simulated(one: Slices, machine: Machine) -> float:
    """Return when the last core is done: cores load their next slice while they compute, one memory serves all.

    Copies are spread evenly over the slices.  The memory serves who asked first.
    """
    load = machine.memory_ns(sum(n * t for n, t in zip(one.bursts[:2], one.times[:2], strict=True)) / one.count)
    store = machine.memory_ns(one.bursts[2] * one.times[2] / one.count)
    compute = one.macs / machine.macs + machine.slice_ns
    cores = min(machine.cores, one.count)
    left = [one.count // cores + (core < one.count % cores) for core in range(cores)]
    memory, busy = 0.0, [0.0] * cores  # when the memory, and every core, is free
    ready = [0.0] * cores  # when the slice that a core loaded ahead is there
    waiting = list(range(cores))
    for core in waiting:
        memory += load
        ready[core] = memory
    end = 0.0
    while any(left):
        core = min((c for c in range(cores) if left[c]), key=lambda c: max(ready[c], busy[c]))
        start = max(ready[core], busy[core])
        left[core] -= 1
        if left[core]:
            memory = max(memory, start) + load
            ready[core] = memory
        busy[core] = start + compute
        memory = max(memory, busy[core] - compute) + store
        end = max(end, busy[core], memory)
    return end


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
