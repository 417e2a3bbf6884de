"""The second sketch of a 3x3 convolution: Winograd's minimal filtering F(m x m, 3 x 3), m 2 or 4.

A tile of (m + 2)^2 inputs gives m^2 outputs by (m + 2)^2 multiplications a channel instead of 9 m^2: 2.25 times fewer
for m = 2, 4 times fewer for m = 4.  The weights are transformed once, when the model is compiled.  Lavin and Gray,
"Fast algorithms for convolutional neural networks" (2015), sections 4.1 to 4.3; the matrices are theirs.

Unlike `sketch.py` this program is written out loop by loop: a parallel piece pads and transforms the tiles of its rows,
multiplies them with the weights in register tiles, and transforms back while bias, residual and activation are
applied.  There is one parallel launch and no barrier.

Knobs: winograd (m) · oc_tile x p_tile (channel blocks and tiles held in registers together) · rows (tile rows of one
piece) · oc_groups (pieces that share the output channels of one band; each transforms the inputs for itself).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from cprune.targets.session import Array
from cprune.tuner.programs import smooth
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Shape, padded

ZERO = tirx.const(0.0, "float32")
Matrix = tuple[tuple[float, ...], ...]

INPUT: dict[int, Matrix] = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
"""B transposed, by m."""
WEIGHT: dict[int, Matrix] = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
"""G, by m."""
OUTPUT: dict[int, Matrix] = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}
"""A transposed, by m."""


def weight_shape(w: Conv2d, m: int) -> Shape:
    """Return the shape in memory of the transformed weights: channel blocks, (m + 2)^2, input channels, block."""
    return (w.out_channels // w.out_block, (m + 2) ** 2, padded(w.in_channels, w.in_block), w.out_block)


def transformed(weight: Array, w: Conv2d, m: int) -> Array:
    """Return the weights as the program reads them (`weight_shape`) for plain ones [O, I, 3, 3].

    O and I may be smaller than the padded channels of `w`; what is missing is zero.  Computed in float64.
    """
    blocks, points, inputs, block = weight_shape(w, m)
    g = np.array(WEIGHT[m], np.float64)
    full = np.zeros((blocks * block, inputs, 3, 3))
    full[: weight.shape[0], : weight.shape[1]] = weight
    spread = np.einsum("ak,oikl,bl->oiab", g, full, g).reshape(blocks, block, inputs, points)
    return np.ascontiguousarray(spread.transpose(0, 3, 2, 1), np.float32)


def module(w: Conv2d, knobs: Candidate) -> Any:
    """Return the IRModule with one PrimFunc "main" of the arguments x, [residual], weight, bias, output.

    Raises ValueError for an m that has no matrices here.
    """
    if knobs["winograd"] not in INPUT:
        raise ValueError(f"no Winograd program for m = {knobs['winograd']}")
    return tvm.IRModule({"main": _Kernel(w, knobs).func()})


class _Kernel:
    """One program while it is written."""

    def __init__(self, w: Conv2d, knobs: Candidate) -> None:
        self.w, self.m = w, knobs.number("winograd")
        self.side = self.m + 2
        self.oc_tile, self.p_tile = knobs.number("oc_tile"), knobs.number("p_tile")
        self.rows, self.groups = knobs.number("rows"), knobs.number("oc_groups")
        self.bands = -(-w.out_height // self.m) // self.rows
        self.columns = -(-w.out_width // self.m)
        self.tiles = self.rows * self.columns
        self.in_chunks = padded(w.in_channels, w.in_block) // w.in_block
        self.out_chunks = w.out_channels // w.out_block

    def func(self) -> Any:
        w = self.w
        x_shape, *_, bias_shape, out_shape = w.arguments()
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})

            def argument(name: str, shape: Shape) -> Any:
                return T.arg(name, T.buffer(shape, "float32", layout=None))

            self.x = argument("x", x_shape)
            self.residual = argument("residual", out_shape) if w.residual else None
            self.weight = argument("weight", weight_shape(w, self.m))
            self.bias = argument("bias", bias_shape)
            self.out = argument("out", out_shape)
            pieces = w.batch * self.bands * self.groups
            with (T.parallel if pieces > 1 else T.serial)(0, pieces) as piece:
                self._piece(piece)
        return builder.get()

    def _alloc(self, shape: Shape, scope: str = "global") -> Any:
        return T.sblock_alloc_buffer(shape, "float32", scope=scope)

    def _piece(self, piece: Any) -> None:
        n = piece // (self.bands * self.groups)
        band = piece // self.groups % self.bands
        group = piece % self.groups
        points = self.side * self.side
        spread = self._alloc((points, self.in_chunks, self.tiles, self.w.in_block))
        with T.serial(0, self.rows) as row:
            self._spread_row(n, band * self.rows + row, row, spread)
        products = self._alloc((points, self.oc_tile, self.p_tile, self.w.out_block))
        each = self.out_chunks // self.oc_tile // self.groups
        with T.serial(0, each) as o:
            chunk = (group * each + o) * self.oc_tile
            with T.serial(0, self.tiles // self.p_tile) as p:
                first = p * self.p_tile
                with T.serial(0, points) as e:
                    self._multiply(e, chunk, first, spread, products)
                with T.serial(0, self.p_tile) as i:
                    tile = first + i
                    y = (band * self.rows + tile // self.columns) * self.m
                    for o_in in range(self.oc_tile):
                        self._collect(n, chunk + o_in, o_in, i, y, tile % self.columns * self.m, products)

    def _spread_row(self, n: Any, tile_row: Any, row: Any, spread: Any) -> None:
        """Pad the inputs of one row of tiles, and transform them."""
        w, side, lanes = self.w, self.side, self.w.in_block
        top, left, _, _ = w.pad
        width = self.columns * self.m + 2
        inside = min(w.width, width - left)
        matrix = INPUT[self.m]
        plane = self._alloc((side, width, lanes))
        with T.serial(0, self.in_chunks) as c:
            with T.serial(0, side) as dy:
                y = tile_row * self.m + dy - top
                for z in (*range(left), *range(left + w.width, width)):
                    self._vector(lanes, plane, (dy, z), lambda b: ZERO)
                with T.If(tirx.all(y >= 0, y < w.height)):
                    with T.Then(), T.serial(0, inside) as z:
                        self._vector(lanes, plane, (dy, z + left), lambda b: self.x[n, c, y, z, b])
                    with T.Else(), T.serial(0, inside) as z:
                        self._vector(lanes, plane, (dy, z + left), lambda b: ZERO)
            with T.serial(0, self.columns) as t:
                half = self._alloc((side, side, lanes), "local")
                with T.serial(0, side) as j:
                    for i in range(side):
                        column = t * self.m + j
                        self._vector(lanes, half, (i, j), lambda b: _sum(matrix[i], lambda k: plane[k, column, b]))
                with T.serial(0, side) as i:
                    for j in range(side):
                        place = (i * side + j, c, row * self.columns + t)
                        self._vector(lanes, spread, place, lambda b: _sum(matrix[j], lambda k: half[i, k, b]))

    def _multiply(self, e: Any, chunk: Any, first: Any, spread: Any, products: Any) -> None:
        """Write one point's products of a register tile: all input channels summed."""
        w, block = self.w, self.w.out_block
        sums = self._alloc((self.oc_tile, self.p_tile, block), "local")
        tile = [(o, p) for o in range(self.oc_tile) for p in range(self.p_tile)]
        for place in tile:
            self._vector(block, sums, place, lambda b: ZERO)
        with T.serial(0, self.in_chunks) as c, T.serial(0, w.in_block) as k:
            channel = c * w.in_block + k
            for o, p in tile:
                self._vector(
                    block,
                    sums,
                    (o, p),
                    lambda b: sums[o, p, b] + spread[e, c, first + p, k] * self.weight[chunk + o, e, channel, b],
                )
        for o, p in tile:
            self._vector(block, products, (e, o, p), lambda b: sums[o, p, b])

    def _collect(self, n: Any, chunk: Any, o: int, p: Any, y: Any, z: Any, products: Any) -> None:
        """Transform one tile's products back, and write its outputs."""
        w, m, side = self.w, self.m, self.side
        matrix = OUTPUT[m]
        half = self._alloc((m, side, w.out_block), "local")
        with T.serial(0, side) as j:
            for i in range(m):
                self._vector(
                    w.out_block, half, (i, j), lambda b: _sum(matrix[i], lambda k: products[k * side + j, o, p, b])
                )
        with T.serial(0, m) as i:
            for j in range(m):
                checks = [y + i < w.out_height] if w.out_height % m else []
                checks += [z + j < w.out_width] if j and w.out_width % m else []
                if not checks:
                    self._write(n, chunk, y + i, z + j, half, i, j)
                    continue
                with T.If(tirx.all(*checks)), T.Then():
                    self._write(n, chunk, y + i, z + j, half, i, j)

    def _write(self, n: Any, chunk: Any, y: Any, z: Any, half: Any, i: int, j: int) -> None:
        def value(b: Any) -> Any:
            total = _sum(OUTPUT[self.m][j], lambda k: half[i, k, b]) + self.bias[chunk, b]
            if self.residual is not None:
                total = total + self.residual[n, chunk, y, z, b]
            return smooth.ACTIVATIONS[self.w.activation](total)

        self._vector(self.w.out_block, self.out, (n, chunk, y, z), value)

    def _vector(self, lanes: int, buffer: Any, place: tuple[Any, ...], value: Callable[[Any], Any]) -> None:
        """Write one vector: `buffer[*place, b] = value(b)` for every lane b."""
        with T.vectorized(0, lanes) as b:
            T.buffer_store(buffer, value(b), [*place, b])


def _sum(row: Sequence[float], term: Callable[[int], Any]) -> Any:
    """Return the sum of coefficient x term without multiplications by one and additions of zero."""
    total: Any = None
    for k, coefficient in enumerate(row):
        if not coefficient:
            continue
        value = term(k)
        if abs(coefficient) != 1:
            value = value * tirx.const(abs(coefficient), "float32")
        if total is None:
            total = value if coefficient > 0 else ZERO - value
        else:
            total = total + value if coefficient > 0 else total - value
    return total
