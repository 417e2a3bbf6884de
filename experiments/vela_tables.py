"""Record which block configurations Arm's Ethos-U takes, and what they cost, by Arm's own compiler.

    pip install --no-deps --target DIR ethos-u-vela
    python -m experiments.vela_tables --library DIR --out vela
    python -m experiments.multilevel --tables vela --strategies random "failed=0" P P+V P+A P+V+A ours

Vela decides for every block of outputs (height, width, depth, and the order in which a kernel is walked) whether inputs
and sums fit the memory that they share (SHRAM), and what the block costs: both are asked of its own functions, nothing
here is ours.  A refusal comes when the block is laid out, so it is a failure of the stage "build" for Vela; it is given
to the searches as one of the measurement ("run"), as on a device that would have to find it out.  Hidden features are
what the layout shows: the block of inputs and the banks that each part takes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import QuantizedConv2d
from experiments.npu_against_rtl import workload
from experiments.npu_tables import MACHINE, TEN
from experiments.tables import Entry, Recorded

CLOCK_HZ = 500e6
BUILD_S, MEASURE_S = 0.03, 0.1
"""What a trial is charged: there is no device here that would say."""


class Vela:
    """Vela's functions for one accelerator and one convolution of bytes."""

    def __init__(self, accelerator: str, w: QuantizedConv2d) -> None:
        from ethosu.vela import architecture_allocator, architecture_features, npu_performance
        from ethosu.vela.ethos_u55_regs.ethos_u55_regs import resampling_mode
        from ethosu.vela.operation import Kernel, NpuBlockType, Op
        from ethosu.vela.shape4d import Shape4D
        from ethosu.vela.tensor import MemArea

        self.allocator, self.features, self.performance = (
            architecture_allocator,
            architecture_features,
            npu_performance,
        )
        self.arch = architecture_features.create_default_arch(architecture_features.Accelerator(accelerator))
        self.kind, self.op, self.areas = NpuBlockType.ConvolutionMxN, Op.Conv2DBias, MemArea
        self.kernel = Kernel(w.kernel[1], w.kernel[0], w.stride[1], w.stride[0])
        self.inputs = Shape4D(1, w.height, w.width, w.in_channels)
        self.outputs = Shape4D(1, w.out_height, w.out_width, w.out_channels)
        self.sampling, self.shape = resampling_mode.NONE, Shape4D

    def points(self) -> Iterator[tuple[Candidate, Any]]:
        """Yield every block of the architecture that the output is not smaller than, as a candidate and as Vela's."""
        unit, most = self.arch.ofm_ublock, self.arch.ofm_block_max
        for h in range(unit.height, min(most.height, _up(self.outputs.height, unit.height)) + 1, unit.height):
            for w in range(unit.width, min(most.width, _up(self.outputs.width, unit.width)) + 1, unit.width):
                for d in range(unit.depth, min(most.depth, _up(self.outputs.depth, unit.depth)) + 1, unit.depth):
                    if d > 16 and d % 16:  # the depth of an output is split at multiples of 16
                        continue
                    for part in (0, 1):
                        yield Candidate.of(block_h=h, block_w=w, block_d=d, part=part), self.features.Block(w, h, d)

    def layout(self, block: Any, part: int) -> Any:
        """Return where a block lies in the shared memory; None where it does not fit."""
        found = self.allocator.try_block_config(
            block, self.arch, self.kind, self.outputs, self.inputs, None, False, 8, bool(part), self.kernel, 0, True,
            self.sampling,
        )  # fmt: skip
        if found is not None:
            found.ofm_block = self.shape(1, block.height, block.width, block.depth)
        return found

    def cycles(self, config: Any) -> float:
        """Return what Vela thinks that the convolution costs: the slower of computing and each memory."""
        query = self.performance.PerformanceQuery(self.kind)
        query.ifm_shape, query.ofm_shape, query.kernel, query.config = self.inputs, self.outputs, self.kernel, config
        query.ifm_bits = query.ofm_bits = 8
        query.ifm_memory_area = query.ofm_memory_area = self.areas.Sram
        query.const_memory_area, query.const_shape = self.areas.OffChipFlash, self.outputs
        access, cost = self.performance.measure_performance_cost(self.arch, self.op, self.op, query, None, None)
        rates = self.arch.memory_bandwidths_per_cycle
        chip = (access.ifm_read[0] + access.ofm_write) / rates[self.areas.Sram]
        weights = sum(access.const_read) / rates[self.areas.OffChipFlash]
        return float(max(cost.op_cycles, chip, weights))


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def hidden(config: Any) -> dict[str, float]:
    """Return what a layout shows."""
    ifm, where = config.ifm_block, config.layout
    return {
        "ifm_height": float(ifm.height),
        "ifm_width": float(ifm.width),
        "ifm_depth": float(ifm.depth),
        "input_banks": float(where.ib_end - where.ib_start),
        "free_banks": float(where.ab_start - where.ib_end),
        "sums_banks": float(where.lut_start - where.ab_start),
    }


def recorded(accelerator: str, layer: str) -> Recorded:
    """Return the table of a layer on an accelerator."""
    w = workload(layer)
    vela, entries = Vela(accelerator, w), []
    for candidate, block in vela.points():
        config = vela.layout(block, candidate.number("part"))
        runs = () if config is None else (vela.cycles(config) / CLOCK_HZ,)
        features = None if config is None else hidden(config)
        entries.append(Entry(candidate, runs, "" if runs else "run", True, BUILD_S, MEASURE_S, features))
    return Recorded(layer, f"{accelerator}, by Vela", w, MACHINE, tuple(entries))


def main() -> int:
    """Record all layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="the folder that ethos-u-vela was installed into")
    parser.add_argument("--out", type=Path, default=Path("vela"))
    parser.add_argument("--accelerator", default="ethos-u55-128")
    args = parser.parse_args()
    if args.library is not None:
        sys.path.append(str(args.library))
    args.out.mkdir(parents=True, exist_ok=True)
    for layer in TEN:
        table = recorded(args.accelerator, layer)
        table.save(args.out / f"{layer}.json.xz")
        failed = sum(bool(entry.failure) for entry in table.entries) / len(table.entries)
        print(
            f"{layer}: {len(table.entries)} blocks, {failed:.0%} refused, best {table.best_s * 1e6:.0f} us", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
