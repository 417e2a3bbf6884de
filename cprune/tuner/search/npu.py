"""What the knobs of the simulated accelerator's programs say of their fit and speed, without lowering anything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cprune.tuner.programs.workload import QuantizedConv2d

Column = NDArray[np.float64]


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
