"""What the knobs of the simulated accelerator's programs say of their fit and speed, without lowering anything.

Two things follow from them: features for the models, and where the machine's sizes are known an estimate, `expected_s`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cprune.targets.npu.machine import NpuMachine
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import QuantizedConv2d

Column = NDArray[np.float64]
PASSES = 4  # of the ALU over every tile: scale, bias and the two ends of a byte
HIDDEN_PART = 0.1  # of the shorter of copying and computing is seen beside the longer one, where threads take turns


def derived(w: QuantizedConv2d, number: Callable[[str], Column]) -> dict[str, Column]:
    """Derive what tells whether a program of the simulated accelerator fits, and how fast it is.

    inputs, weights, sums   log2 of the vectors (blocks of weights) that a program holds on the chip, all threads
    moved                   log2 of the bytes that come through the port, relative to the multiplier's cycles
    row                     log2 of the bytes of a row of inputs
    steps, tiles            log2 of the steps of a tile, and of the tiles
    uops                    log2 of a product's micro-operations
    uneven                  how many of the axes that threads share out are no multiple of what they take
    """
    h, width, ci, co = (number(name) for name in ("tile_h", "tile_w", "tile_ci", "tile_co"))
    threads_co, threads_h = number("threads_co"), number("threads_h")
    threads, (kh, kw) = threads_co * threads_h, w.kernel
    rows, columns = ((n - 1) * s + kernel for n, s, kernel in zip((h, width), w.stride, w.kernel, strict=True))
    blocks_in, blocks_out = w.in_channels / w.in_block, w.out_channels / w.out_block
    inputs, weights = ci * rows * columns, ci * co * kh * kw
    steps = blocks_in / ci
    tiles_h, tiles_co = (
        np.ceil(w.out_height / h / threads_h) * threads_h,
        np.ceil(blocks_out / co / threads_co) * threads_co,
    )
    tiles = tiles_h * tiles_co * np.ceil(w.out_width / width)
    moved = tiles * steps * (inputs * w.in_block + weights * w.in_block * w.out_block)
    products = w.macs / (w.in_block * w.out_block)
    uneven = (w.out_height / h % threads_h > 0).astype(np.float64) + (blocks_out / co % threads_co > 0)
    return {
        "inputs": np.log2(inputs * threads),
        "weights": np.log2(weights * threads),
        "sums": np.log2(h * width * co * threads),
        "moved": np.log2(moved / products),
        "row": np.log2(columns * w.in_block),
        "steps": np.log2(steps),
        "tiles": np.log2(tiles),
        "uops": np.log2(h * co * kh * kw),
        "uneven": uneven,
    }


def expected_s(w: QuantizedConv2d, candidates: Sequence[Candidate], machine: NpuMachine) -> Column:
    """Return about how long programs take, in seconds; infinite for what cannot work by the sizes of the machine.

    The longer of what the port and what the multiplier has to do, or their sum where one thread does both.  What the
    formula leaves out, rows of copies for one, is for the models to learn.
    """
    number = {
        name: np.array([float(c.number(name)) for c in candidates])
        for name in ("tile_h", "tile_w", "tile_ci", "tile_co", "threads_co", "threads_h")
    }
    table = derived(w, number.__getitem__)
    h, width, ci, co = (number[name] for name in ("tile_h", "tile_w", "tile_ci", "tile_co"))
    threads = number["threads_co"] * number["threads_h"]
    limits = (machine.input_vectors, machine.weight_blocks, machine.sums_vectors, machine.uops)
    fits = table["uneven"] == 0
    for name, limit in zip(("inputs", "weights", "sums", "uops"), limits, strict=True):
        fits &= table[name] <= np.log2(limit) + 1e-9
    costs, (kh, kw), blocks = machine.costs, w.kernel, w.out_channels / w.out_block
    rows, columns = ((n - 1) * s + kernel for n, s, kernel in zip((h, width), w.stride, w.kernel, strict=True))
    tiles = np.ceil(w.out_height / h) * np.ceil(w.out_width / width) * np.ceil(blocks / co)
    steps = tiles * w.in_channels / w.in_block / ci
    beats = machine.lanes / machine.port_bytes
    copied = steps * (ci * rows * (columns * beats + costs.burst))
    copied += steps * co * (ci * kh * kw * machine.lanes * beats + costs.burst)
    outputs = w.out_height * w.out_width * blocks
    computed = w.macs / machine.lanes**2 + outputs * (1 + PASSES * costs.alu_vector)
    computed = computed + tiles * PASSES * costs.alu + steps * costs.gemm
    longer, shorter = np.maximum(copied, computed), np.minimum(copied, computed)
    cycles = np.where(threads > 1, longer + HIDDEN_PART * shorter, copied + computed)
    return np.where(fits & (cycles <= machine.limit_cycles), cycles / machine.clock_hz, np.inf)
