"""Features of candidates as named columns: visible ones before compiling, hidden ones out of the compilation.

ML^2Tuner (arXiv 2411.10764): P sees the knobs and the shape of the layer, A sees the compilation as well.  Ours adds
to the visible ones what follows from knobs and shape without lowering anything and means the same on every shape
(registers used of those there are, work of the slowest thread, bytes against the sizes of caches): knobs alone do not
carry from one layer to another.  The functions know no space: a knob they have never seen becomes a column as it is.

A cell is NaN where the workload's kind or the candidate has no such thing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cprune.tuner.programs.dots import on_multiplier
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import (
    KINDS,
    Conv2d,
    Dense,
    HalfConv2d,
    Mean,
    Pool2d,
    QuantizedConv2d,
    QuantizedMean,
    Workload,
    padded,
)
from cprune.tuner.search import npu
from cprune.tuner.search.assembly import HIDDEN

Hidden = Mapping[str, float]
"""Hidden features of one program by the names of HIDDEN."""
Floats = NDArray[np.float32]
Column = NDArray[np.float64]

L1_BYTES = 32 * 1024
L2_BYTES = 512 * 1024
"""Typical caches of one core.  Only ratios to them are features, so another machine's sizes shift a split, no more."""

_WORD = 24  # a longer text is no word but a program (a trace of MetaSchedule)


class Machine(NamedTuple):
    """What of a target the features need: float32 lanes of a vector, vector registers, threads."""

    vector: int
    registers: int
    threads: int


@dataclass(frozen=True)
class Table:
    """A float32 matrix with named columns, one row a candidate."""

    names: tuple[str, ...]
    values: Floats

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def rows(self, indices: Sequence[int]) -> Table:
        """Return these rows, in this order."""
        return Table(self.names, self.values[np.asarray(indices, dtype=np.intp)])

    def beside(self, other: Table) -> Table:
        """Return the columns of both, for tables of the same rows."""
        return Table(self.names + other.names, np.hstack([self.values, other.values]))


def visible(
    workload: Workload, candidates: Sequence[Candidate], vector: int, registers: int, threads: int
) -> tuple[tuple[str, ...], Floats]:
    """Return the names and the [candidates, names] matrix of the visible features.

    Columns: `knob.…` as `knobs` gives them; `shape.…`, log2(1 + n) of the numbers of the workload and one-hot words;
    and what is derived from both for convolutions and dense layers (`_conv`, `_dense`) and, where only the number of
    parallel pieces is known, for pools and means.
    """
    table = knobs(candidates)
    machine = Machine(vector, registers, threads)
    derive = _DERIVE.get(type(workload))
    derived = derive(workload, _Knobs(candidates), machine) if derive else {}
    n = len(candidates)
    columns = {**{name: np.full(n, value) for name, value in _shape(workload).items()}, **derived}
    more = np.column_stack(list(columns.values())) if columns else np.empty((n, 0))
    joined = table.beside(Table(tuple(columns), more.astype(np.float32)))
    return joined.names, joined.values


def knobs(candidates: Sequence[Candidate]) -> Table:
    """Return the knobs alone: numbers as they are, `knob.name=word` columns of 0 and 1 for words, NaN where absent.

    Of a long text, a trace of MetaSchedule, the decisions are taken (`_decisions`).
    """
    rows = [dict(candidate.knobs) for candidate in candidates]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns: dict[str, list[float]] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        words = sorted({v for v in values if isinstance(v, str) and len(v) <= _WORD})
        for word in words:
            columns[f"knob.{name}={word}"] = [np.nan if v is None else float(v == word) for v in values]
        decided = [_decisions(v) if isinstance(v, str) and len(v) > _WORD else {} for v in values]
        for part in sorted({part for one in decided for part in one}):
            columns[f"knob.{name}.{part}"] = [one.get(part, np.nan) for one in decided]
        if any(isinstance(v, (int, float)) for v in values):
            columns[f"knob.{name}"] = [float(v) if isinstance(v, (int, float)) else np.nan for v in values]
    matrix = np.array(list(columns.values()), dtype=np.float32).T if columns else np.empty((len(rows), 0), np.float32)
    return Table(tuple(columns), np.ascontiguousarray(matrix))


def _decisions(text: str) -> dict[str, float]:
    """Return the length of a program given as text and, if it is a trace of MetaSchedule, the numbers it decided.

    A trace is [instructions, [[number of the instruction, decision], …]]; a decision is a number or a list of them.
    """
    numbers = {"length": float(len(text))}
    try:
        _, decisions = json.loads(text)
        for index, decision in decisions:
            for i, value in enumerate(decision if isinstance(decision, list) else [decision]):
                numbers[f"{int(index):03}.{i}"] = float(value)
    except (TypeError, ValueError):
        pass
    return numbers


def hidden_table(features: Sequence[Hidden | None]) -> Table:
    """Return `asm.…` columns of what `assembly.hidden` said of each row; NaN rows where the assembly is not known."""
    names = tuple(dict.fromkeys(name for one in features if one for name in one)) or HIDDEN
    rows = [[(one or {}).get(name, np.nan) for name in names] for one in features]
    matrix = np.array(rows, dtype=np.float32).reshape(len(rows), len(names))
    return Table(tuple(f"asm.{name}" for name in names), matrix)


def aligned(table: Table, names: Sequence[str]) -> Floats:
    """Return the columns `names` of the table.

    A column that it lacks is NaN; a word's column is 0 if the table knows the knob by other words.
    """
    column_of = {name: i for i, name in enumerate(table.names)}
    known = {name.partition("=")[0] for name in table.names if "=" in name}
    out = np.full((len(table), len(names)), np.nan, dtype=np.float32)
    for j, name in enumerate(names):
        if name in column_of:
            out[:, j] = table.values[:, column_of[name]]
        elif "=" in name and name.partition("=")[0] in known:
            out[:, j] = 0.0
    return out


def work(workload: Workload) -> float:
    """Return what a latency is divided into: the multiply-adds, or the bytes of all arguments where there are none."""
    return float(workload.macs or max(1, sum(_bytes(shape) for shape in workload.arguments())))


def unlike(a: Workload, b: Workload) -> float:
    """Return how much the shapes of two workloads differ: a doubling of one number, or another word, counts 1."""
    left, right = _shape(a), _shape(b)
    return sum(abs(left.get(name, 0.0) - right.get(name, 0.0)) for name in left.keys() | right.keys())


def _bytes(shape: Sequence[int]) -> int:
    return 4 * int(np.prod(shape, dtype=np.int64))


def _shape(w: Workload) -> dict[str, float]:
    columns = {f"shape.kind={name}": float(type(w) is kind) for name, kind in KINDS.items()}
    for field in fields(w):
        for name, value in _numbers(f"shape.{field.name}", getattr(w, field.name)):
            columns[name] = value
    size = sum(_bytes(shape) for shape in w.arguments())
    columns["shape.macs"] = float(np.log2(1 + w.macs))
    columns["shape.bytes"] = float(np.log2(1 + size))
    columns["shape.macs_per_byte"] = w.macs / max(1, size)
    return columns


def _numbers(name: str, value: object) -> list[tuple[str, float]]:
    """Return the columns of one field: numbers, words and short tuples of numbers; programs and trees have none."""
    if isinstance(value, (int, float)):
        return [(name, float(np.log2(1 + max(0.0, float(value)))))]
    if isinstance(value, str):
        return [(f"{name}={value}", 1.0)] if len(value) <= _WORD else []
    if isinstance(value, tuple) and len(value) <= 4 and all(isinstance(v, (int, float)) for v in value):
        return [column for i, v in enumerate(value) for column in _numbers(f"{name}.{i}", v)]
    return []


class _Knobs:
    """The knobs of many candidates as arrays."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.rows = [dict(candidate.knobs) for candidate in candidates]

    def number(self, name: str, default: float = 1.0) -> Column:
        values = (row.get(name) for row in self.rows)
        return np.array([float(v) if isinstance(v, (int, float)) else default for v in values])

    def has(self, *names: str) -> NDArray[np.bool_]:
        return np.array([all(name in row for name in names) for row in self.rows], dtype=np.bool_)

    def word(self, name: str) -> NDArray[np.str_]:
        return np.array([str(row.get(name, "")) for row in self.rows], dtype=np.str_)


def _parallel(pieces: Column, threads: int, macs: Column | float) -> dict[str, Column]:
    """Return how evenly `pieces` fall on the threads: the slowest thread sets the time."""
    turns = np.ceil(pieces / threads)
    slowest = turns / pieces
    return {
        "pieces": np.log2(pieces),
        "turns": np.log2(turns),
        "slowest_share": slowest,
        "idle_share": 1 - pieces / (turns * threads),
        "slowest_work": np.log2(1 + macs * slowest),
    }


def _conv(w: Conv2d, k: _Knobs, machine: Machine) -> dict[str, Column]:
    """Derive what tells the speed of a convolution's sketch on any shape.

    accumulators       vector registers of the output tile, as a share of all
    spilled            how many do not fit beside two for weights and inputs
    fma_per_load       multiply-adds per vector or broadcast read in the innermost body
    body, trips        log2 of multiply-adds in the unrolled body, and of how often it runs per tile
    lanes              the share of a vector that a block fills
    tiles              log2 of the tiles in one piece
    l1, l2             log2 of the bytes that a tile (a piece) walks over, relative to the cache
    weights_l1         the same for the weights of one channel tile, which every tile of a row reads again
    pad_share          bytes written into padded copies by all pieces, relative to one padded input
    pad_per_mac        those bytes for each multiply-add
    launches           parallel regions
    multiplied         log2 of the multiply-adds really done, relative to the direct convolution's

    Winograd's candidates (those with a knob `winograd`) have the same columns, as far as they mean something there;
    candidates of a family that is not known here have none.
    """
    columns = _direct(w, k, machine)
    other = ~k.has("oc_tile", "oh_tile", "ow_tile")
    if other.any():
        winograd = _winograd(w, k, machine)
        fast = k.has("winograd", "oc_tile", "p_tile")
        for name, column in columns.items():
            column[other] = np.where(fast, winograd.get(name, np.nan), np.nan)[other]
    return columns


def _direct(w: Conv2d, k: _Knobs, machine: Machine) -> dict[str, Column]:
    oc, th, tw = k.number("oc_tile"), k.number("oh_tile"), k.number("ow_tile")
    rows, way = np.maximum(1.0, k.number("rows")), k.word("parallel")
    pad, unroll = k.word("pad"), k.number("unroll", 0.0)
    each = max(1, w.out_block // machine.vector)
    accumulators = oc * th * tw * each
    kh, kw = w.kernel
    channels = 1 if w.depthwise else w.in_channels
    taps = kh * kw * channels
    blocks = np.maximum(1.0, w.out_channels / w.out_block / oc)
    bands = np.maximum(1.0, w.out_height / th)
    by_rows, by_both, by_channels = way == "rows", way == "both", way == "channels"
    pieces = np.full(len(oc), float(w.batch))
    pieces[by_rows] *= (bands / rows)[by_rows]
    pieces[by_both] *= (bands / rows * blocks)[by_both]
    pieces[by_channels] *= blocks[by_channels]
    pieces = np.maximum(1.0, pieces)

    top, left, bottom, right = w.pad
    height, width = w.height + top + bottom, w.width + left + right
    banded = by_rows | by_both
    piece_rows = np.where(banded, np.minimum(height, _reach(rows * th, w.stride[0], kh, w.dilation[0])), height)
    split = by_both | by_channels  # a piece computes one channel tile; the others walk all of them
    depth = w.out_block * oc if w.depthwise else np.full(len(oc), float(w.in_channels))
    piece_depth = np.where(split | (not w.depthwise), depth, float(w.in_channels))
    piece_in = 4 * piece_rows * width * piece_depth
    tile_weights = 4 * oc * w.out_block * taps
    piece_weights = tile_weights * np.where(split, 1.0, blocks)
    tile_in = 4 * _reach(th, w.stride[0], kh, w.dilation[0]) * _reach(tw, w.stride[1], kw, w.dilation[1]) * depth
    loads = oc * each + th * tw * (oc * each if w.depthwise else 1)
    unrolled = np.where(unroll >= 1, kw, 1) * np.where(unroll >= 2, kh, 1)
    whole = 4.0 * w.batch * height * width * w.in_channels
    copied = np.where(pad == "inside", pieces * piece_in, np.where(pad == "separate", whole, 0.0))
    return {
        **_parallel(pieces, machine.threads, float(w.macs)),
        "accumulators": accumulators / machine.registers,
        "spilled": np.maximum(0.0, accumulators + 2 - machine.registers),
        "fma_per_load": accumulators / loads,
        "body": np.log2(accumulators * unrolled),
        "trips": np.log2(taps / unrolled),
        "lanes": np.full(len(oc), min(1.0, w.out_block / machine.vector)),
        "tiles": np.log2(np.maximum(1.0, w.out_width / tw * bands * blocks * w.batch / pieces)),
        "tile_columns": w.out_width / tw,
        "row_share": rows * th / w.out_height,
        "l1": np.log2((tile_weights + tile_in) / L1_BYTES),
        "weights_l1": np.log2(tile_weights / L1_BYTES),
        "l2": np.log2((piece_weights + piece_in) / L2_BYTES),
        "pad_share": copied / whole,
        "pad_per_mac": copied / w.macs,
        "launches": (way != "none").astype(np.float64) + (pad == "separate"),
        "multiplied": np.zeros(len(oc)),
    }


def _winograd(w: Conv2d, k: _Knobs, machine: Machine) -> dict[str, Column]:
    m, oc, tiles, rows = k.number("winograd", 2.0), k.number("oc_tile"), k.number("p_tile"), k.number("rows")
    groups = k.number("oc_groups")
    each = max(1, w.out_block // machine.vector)
    points = (m + 2) ** 2
    tile_rows, columns = np.ceil(w.out_height / m), np.ceil(w.out_width / m)
    bands = np.maximum(1.0, tile_rows / np.maximum(1.0, rows))
    pieces = np.maximum(1.0, w.batch * bands * groups)
    macs = w.batch * tile_rows * columns * points * w.in_channels * w.out_channels
    tile_weights = 4 * oc * w.out_block * w.in_channels  # of one point: what a register tile walks over
    spread = 4 * points * rows * columns * w.in_channels
    return {
        **_parallel(pieces, machine.threads, macs),
        "accumulators": oc * tiles * each / machine.registers,
        "spilled": np.maximum(0.0, oc * tiles * each + 2 - machine.registers),
        "fma_per_load": oc * tiles * each / (oc * each + tiles),
        "body": np.log2(oc * tiles * each),
        "trips": np.full(len(oc), np.log2(w.in_channels)),
        "lanes": np.full(len(oc), min(1.0, w.out_block / machine.vector)),
        "tiles": np.log2(np.maximum(1.0, tile_rows * columns / tiles * w.out_channels / w.out_block / oc / pieces)),
        "row_share": rows / tile_rows,
        "l1": np.log2((tile_weights + 4 * tiles * w.in_channels) / L1_BYTES),
        "weights_l1": np.log2(tile_weights / L1_BYTES),
        "l2": np.log2((tile_weights * points + spread) / L2_BYTES),
        "pad_share": groups * points / m**2,
        "pad_per_mac": groups * bands * spread / w.macs,
        "launches": (pieces > 1).astype(np.float64),
        "multiplied": np.log2(macs / w.macs),
    }


def _bytes_conv(w: QuantizedConv2d, k: _Knobs, machine: Machine) -> dict[str, Column]:
    return npu.derived(w, k.number) if on_multiplier(w) else _conv(w, k, machine)


def _reach(outputs: Column, stride: int, kernel: int, dilation: int) -> Column:
    """Return the inputs along one axis that so many outputs read."""
    return (outputs - 1) * stride + dilation * (kernel - 1) + 1


def _dense(w: Dense, k: _Knobs, machine: Machine) -> dict[str, Column]:
    """Derive the same for a dense layer; `waste` is the share of the computed outputs that are padding."""
    oc, rows, unrolled = k.number("oc_tile"), k.number("n_tile"), k.number("k_tile")
    each = max(1, w.block // machine.vector)
    accumulators = oc * rows * each
    outputs = padded(w.out_features, w.block)
    pieces = np.maximum(1.0, outputs / w.block / oc * w.batch / rows)
    pieces = np.where(k.word("parallel") == "none", 1.0, pieces)
    weights = 4 * oc * w.block * w.in_features
    return {
        **_parallel(pieces, machine.threads, float(w.macs)),
        "accumulators": accumulators / machine.registers,
        "spilled": np.maximum(0.0, accumulators + 2 - machine.registers),
        "fma_per_load": accumulators / (oc * each + rows),
        "body": np.log2(accumulators * unrolled),
        "trips": np.log2(w.in_features / unrolled),
        "lanes": np.full(len(oc), min(1.0, w.block / machine.vector)),
        "l1": np.log2((weights + 4 * rows * w.in_features) / L1_BYTES),
        "l2": np.log2(4 * outputs * w.in_features / pieces / L2_BYTES),
        "waste": np.full(len(oc), 1 - w.out_features / outputs),
    }


def _plane(w: Pool2d | Mean, k: _Knobs, machine: Machine) -> dict[str, Column]:
    rows = w.out_height if isinstance(w, Pool2d) else 1
    pieces = max(1.0, w.batch * padded(w.channels, w.block) / max(1, w.block) * rows)
    pieces_of = np.where(k.word("parallel") == "none", 1.0, pieces)
    return _parallel(pieces_of, machine.threads, work(w))


_DERIVE: dict[type[Any], Callable[[Any, _Knobs, Machine], dict[str, Column]]] = {
    Conv2d: _conv,
    QuantizedConv2d: _bytes_conv,
    HalfConv2d: _conv,
    Dense: _dense,
    Pool2d: _plane,
    Mean: _plane,
    QuantizedMean: _plane,
}
