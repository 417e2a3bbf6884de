"""What may be tried for a task: named knobs, the whole compact space of them, neighbours, and refitting.

Plain data only; `sketch.py` turns a workload and a candidate into a program.

The knobs of a convolution's sketch:

=========  ==============================================================================================
oc_tile    output-channel blocks that are held in registers together
oh_tile    output rows held in registers together
ow_tile    output columns held in registers together: the tile is oc_tile x oh_tile x ow_tile vectors
rows       output rows (in units of oh_tile) of one parallel piece
parallel   "rows": pieces are bands of rows · "channels": pieces are channel tiles · "both" · "none": one thread
pad        "inside": every piece pads what it reads · "separate": a parallel stage of its own · "none"
unroll     0: nothing, 1: the kernel's columns, 2: the whole kernel
=========  ==============================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from cprune.targets.target import Target
from cprune.tuner.programs.dots import on_multiplier
from cprune.tuner.programs.workload import (
    Conv2d,
    Dense,
    Elementwise,
    HalfConv2d,
    Mean,
    Pool2d,
    QuantizedConv2d,
    Workload,
    padded,
)

WINOGRAD_BYTES = 4 << 20
"""No piece of a Winograd program holds more transformed input than this."""

Knobs = tuple[tuple[str, int | str], ...]


@dataclass(frozen=True)
class Candidate:
    """One point of a space: knobs by name, in a fixed order."""

    knobs: Knobs

    def __getitem__(self, name: str) -> int | str:
        return dict(self.knobs)[name]

    def number(self, name: str, default: int | None = None) -> int:
        """Return the knob `name`, a number; `default` for a candidate that has no such knob."""
        value = dict(self.knobs).get(name, default)
        assert isinstance(value, int)
        return value

    def text(self) -> str:
        """Return the canonical JSON text for the store."""
        return json.dumps(dict(self.knobs), sort_keys=True, separators=(",", ":"))

    @classmethod
    def of(cls, **knobs: int | str) -> Candidate:
        """Return the candidate with these knobs."""
        return cls(tuple(sorted(knobs.items())))

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Return the candidate of a `text`."""
        return cls.of(**json.loads(text))


@lru_cache(maxsize=4096)
def candidates(workload: Workload, vector: int, registers: int, threads: int) -> tuple[Candidate, ...]:
    """Return every point of the workload's sketch for a machine with these vectors and threads."""
    if on_multiplier(workload):
        return tuple(_npu(workload))
    if isinstance(workload, QuantizedConv2d):
        return tuple(_conv(workload, vector, registers, threads))
    if isinstance(workload, HalfConv2d):
        return tuple(_conv(workload, vector if workload.paired else 2 * vector, registers, threads))
    if isinstance(workload, Conv2d):
        return (*_conv(workload, vector, registers, threads), *_winograd(workload, vector, registers, threads))
    if isinstance(workload, Dense):
        return tuple(_dense(workload, threads))
    if isinstance(workload, (Pool2d, Mean, Elementwise)):
        ways = ("none", "outer") if threads > 1 else ("none",)
        return tuple(Candidate.of(parallel=way) for way in ways)
    return (Candidate.of(parallel="outer" if threads > 1 else "none"),)


def of_target(workload: Workload, target: Target) -> tuple[Candidate, ...]:
    """Return `candidates` for the vectors, registers and threads of `target`.

    One is enough of what the simulated accelerator leaves to a processor, as its time does not depend on the program.
    """
    points = candidates(workload, target.vector, target.vector_registers, target.threads)
    return points if not target.simulated or on_multiplier(workload) else points[:1]


def _conv(w: Conv2d, vector: int, registers: int, threads: int) -> Iterator[Candidate]:
    """Yield the points of the sketch; `vector` sums fit into a register."""
    blocks = w.out_channels // w.out_block
    registers_each = max(1, w.out_block // vector)
    limit = (registers - max(2, registers // 8)) // registers_each  # some are left for weights and inputs
    dotted = isinstance(w, QuantizedConv2d) or (isinstance(w, HalfConv2d) and w.paired)
    oh, ow = w.out_height, w.out_width
    pads = ("inside", "separate") if any(w.pad) else ("none",)
    tiles = [
        (oc, th, tw)
        for oc in ((1, 2, 4, 8) if dotted else (1, 2, 4))
        if blocks % oc == 0 and not (w.depthwise and oc > 1)
        for tw in divisors(ow)
        for th in divisors(oh)
        if oc * th * tw <= limit
        and (th == 1 or tw == ow or tw >= 4)
        and (not dotted or _held(oc, th * tw, registers_each) <= registers - 2 or w.depthwise)
    ]
    most = max(oc * th * tw for oc, th, tw in tiles)
    tiles = [t for t in tiles if t[0] * t[1] * t[2] >= min(6, most)]  # fewer accumulators cannot hide an FMA's latency
    for oc, th, tw in tiles:
        bands = oh // th
        ways: list[tuple[str, int]] = [("none", bands)]
        if threads > 1:
            ways = [("rows", r) for r in divisors(bands) if bands // r * w.batch > 1]
            if blocks // oc * w.batch > 1:
                ways += [("channels", bands)]
                ways += [("both", r) for r in divisors(bands) if r < bands]
            ways = ways or [("none", bands)]
        for parallel, rows in ways:
            for pad in pads:
                if pad == "separate" and parallel == "none":
                    continue
                for unroll in (0, 1) if w.kernel[1] > 1 and not dotted else (0,):
                    yield Candidate.of(
                        oc_tile=oc, oh_tile=th, ow_tile=tw, rows=rows, parallel=parallel, pad=pad, unroll=unroll
                    )


def _held(oc: int, outputs: int, each: int) -> int:
    """Return the registers of a tile: sums, weights, and every broadcast input, which LLVM loads ahead of their use.

    A block of channels fills `each` registers.
    """
    return each * (oc * outputs + oc) + (outputs if oc * each > 1 else 1)


def _npu(w: QuantizedConv2d) -> Iterator[Candidate]:
    """Yield all programs of the simulated accelerator (`sketch_npu.py`): what does not fit is among them."""
    for h in divisors(w.out_height):
        for width in divisors(w.out_width):
            for ci in divisors(w.in_channels // w.in_block):
                for co in divisors(w.out_channels // w.out_block):
                    for threads_co, threads_h in ((1, 1), (2, 1), (1, 2), (2, 2)):
                        yield Candidate.of(
                            tile_h=h, tile_w=width, tile_ci=ci, tile_co=co, threads_co=threads_co, threads_h=threads_h
                        )


def _winograd(w: Conv2d, vector: int, registers: int, threads: int) -> Iterator[Candidate]:
    """Yield the points of `winograd.py`'s sketch where it may pay: 3x3, stride 1, enough channels and outputs."""
    plain = (w.kernel, w.stride, w.dilation, w.groups) == ((3, 3), (1, 1), (1, 1), 1)
    half = max(4, vector // 2)  # half vectors are worth it where the layout has half blocks
    if not plain or min(w.in_block, w.out_block, w.in_channels, w.out_channels) < half:
        return
    chunks = w.out_channels // w.out_block
    limit = (registers - max(2, registers // 8)) // max(1, w.out_block // vector)
    for m in (2, 4):
        if min(w.out_height, w.out_width) < m:
            continue
        rows, columns = -(-w.out_height // m), -(-w.out_width // m)
        for band in divisors(rows):
            tiles = band * columns
            if (m + 2) ** 2 * padded(w.in_channels, w.in_block) * tiles * 4 > WINOGRAD_BYTES:
                continue
            for groups in (1, threads) if threads > 1 else (1,):
                pieces = w.batch * rows // band * groups
                if pieces % threads and pieces < 4 * threads:
                    continue  # a thread would wait for the others
                for oc in (d for d in (1, 2, 4) if chunks % (d * groups) == 0):
                    p_tiles = [p for p in divisors(tiles) if oc * p <= limit]
                    for p in p_tiles:
                        if oc * p >= min(8, oc * p_tiles[-1]):
                            yield Candidate.of(winograd=m, oc_tile=oc, p_tile=p, rows=band, oc_groups=groups)


def _dense(w: Dense, threads: int) -> Iterator[Candidate]:
    blocks = padded(w.out_features, w.block) // w.block
    for oc in (d for d in (1, 2, 4, 8) if blocks % d == 0):
        for n in (d for d in divisors(w.batch) if d * oc <= 16):
            for k in (d for d in (1, 4, 8) if w.in_features % d == 0):
                yield Candidate.of(oc_tile=oc, n_tile=n, k_tile=k, parallel="none")
                if threads > 1 and blocks // oc * (w.batch // n) > 1:
                    yield Candidate.of(oc_tile=oc, n_tile=n, k_tile=k, parallel="outer")


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def distance(a: Candidate, b: Candidate) -> float:
    """Return how far two candidates of one kind are apart: 1 for another word, the ratio of numbers less one."""
    total = 0.0
    other = dict(b.knobs)
    for name, value in a.knobs:
        if name not in other:
            total += 2.0
        elif isinstance(value, str) or isinstance(other[name], str):
            total += float(value != other[name])
        else:
            low, high = sorted((float(value) + 1, float(other[name]) + 1))
            total += high / low - 1
    return total


def nearest(candidate: Candidate, space: tuple[Candidate, ...]) -> list[Candidate]:
    """Return `space` ordered by distance: the first one is `candidate` refitted, the next are its neighbours."""
    return sorted(space, key=lambda other: distance(candidate, other))


def channel_pieces(workload: Workload, candidate: Candidate) -> int:
    """Return into how many parallel pieces a program cuts one iteration of its outermost output-channel loop.

    0 where that loop runs within a thread.  (A Winograd program deals its iterations out to groups of threads, and
    `channel_splits` counts one of every group as one iteration.)
    """
    way = dict(candidate.knobs).get("parallel", "")
    if isinstance(workload, Conv2d) and way in ("channels", "both"):
        bands = workload.out_height // (candidate.number("oh_tile") * candidate.number("rows"))
        return workload.batch * (bands if way == "both" else 1)
    if isinstance(workload, Dense) and way == "outer":
        return workload.batch // candidate.number("n_tile")
    return 0


def channel_splits(workload: Workload, candidate: Candidate) -> tuple[tuple[int, ...], ...]:
    """Return, for each stage of the program, the loop extents into which the output-channel axis is split.

    The first is the stage that computes, the second the stage that writes the output (CPrune, section on the step;
    see `cprune.method.channel_step`).  Other workloads than convolutions and dense layers have none.
    """
    if on_multiplier(workload):
        tile = candidate.number("tile_co") * candidate.number("threads_co")
        split = (workload.out_channels // workload.out_block // tile, tile, workload.out_block)
        return (split, split)
    if isinstance(workload, Conv2d):
        tile = candidate.number("oc_tile") * candidate.number("oc_groups", 1)
        split = (workload.out_channels // workload.out_block // tile, tile, workload.out_block)
        return (split, split)
    if isinstance(workload, Dense):
        tile = candidate.number("oc_tile")
        blocks = padded(workload.out_features, workload.block) // workload.block
        return ((blocks // tile, tile, workload.block),)
    return ()
