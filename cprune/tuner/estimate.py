"""What a task takes that was not measured, from what the same operator takes at other widths.

The time of a program is a launch and the work of its busiest thread, in blocks: `T(w) = launch + (T(m) - launch) *
work(w) / work(m)`.  Seen from a wider entry that is too little (part of the time does not shrink), seen from a narrower
one too much; the estimate is the geometric mean of the smallest of the former and the largest of the latter.  It never
falls when either axis becomes wider, and lies between the measured entries on both sides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod, sqrt

from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Dense, Elementwise, Mean, Pool2d, Workload, padded

LAUNCH_S = 3e-6
"""What waking the threads and returning from a kernel takes at most."""


@dataclass(frozen=True)
class Entry:
    """A measured task: its fastest program and the seconds of it."""

    workload: Workload
    candidate: Candidate
    seconds: float


def family(workload: Workload) -> str:
    """Return what a workload is but for its channels: entries of one family tell of each other."""
    if isinstance(workload, Conv2d):
        groups = min(workload.groups, 2)
        return _text(replace(workload, in_channels=0, out_channels=0, in_block=0, out_block=0, groups=groups))
    if isinstance(workload, Dense):
        return _text(replace(workload, in_features=0, out_features=0))
    if isinstance(workload, (Pool2d, Mean)):
        return _text(replace(workload, channels=0, block=0))
    if isinstance(workload, Elementwise):
        planes = [(*shape[:1], *shape[2:]) for shape, _ in workload.inputs]
        return json.dumps(["elementwise", planes, [*workload.shape[:1], *workload.shape[2:]], _words(workload)])
    return _text(workload)


def _text(workload: Workload) -> str:
    return json.dumps([type(workload).__name__, asdict(workload)], sort_keys=True)


def _words(workload: Elementwise) -> str:
    def words(e: object) -> list[str]:
        if isinstance(e, tuple):
            return [word for part in e for word in words(part)]
        return [e] if isinstance(e, str) else []

    return " ".join(words(workload.expression))


def size(workload: Workload) -> tuple[int, int]:
    """Return the stored input and output channels, of other operators the elements: what narrowing shrinks."""
    if isinstance(workload, Conv2d):
        return workload.in_channels, workload.out_channels
    if isinstance(workload, Dense):
        return workload.in_features, padded(workload.out_features, workload.block)
    if isinstance(workload, (Pool2d, Mean)):
        stored = padded(workload.channels, workload.block)
        return stored, stored
    *read, written = map(prod, workload.arguments())
    return sum(read), written


def work(workload: Workload, candidate: Candidate, threads: int, vector: int) -> float:
    """Return the vector operations of the busiest thread times `threads`, relative to others of the family.

    A program that runs parallel over output channels has ceil(blocks / threads) of them in its busiest thread.
    """
    inputs, outputs = size(workload)
    knobs = dict(candidate.knobs)
    if isinstance(workload, Conv2d):
        out, lanes = outputs // workload.out_block, max(1, workload.out_block // vector)
        over_channels = knobs.get("parallel") == "channels"
        each, groups = (workload.batch, threads) if over_channels else (1, candidate.number("oc_groups", 1))
        return -(-out * each // groups) * groups / each * lanes * (1 if workload.depthwise else inputs)
    if isinstance(workload, Dense):
        groups = threads if knobs.get("parallel") == "outer" and workload.batch == 1 else 1
        return float(inputs * -(-(outputs // workload.block) // groups) * groups)
    return float(inputs + outputs)


def estimate(workload: Workload, entries: Sequence[Entry], threads: int, vector: int) -> float:
    """Return the seconds that a task takes by what others of its family took, `entries`, one at least.

    Where none is as wide (a width that fills no block is stored as one that does: 20 channels as 32, of a layer that
    has 24) it is the one whose size is nearest that tells.
    """
    mine = size(workload)
    wider = [e for e in entries if covers(size(e.workload), mine)]
    narrower = [e for e in entries if covers(mine, size(e.workload))]
    if not wider:
        nearest = min(entries, key=lambda e: abs(math.log(prod(size(e.workload)) / prod(mine))))
        return bounded(_scaled(nearest, workload, threads, vector), workload, entries)
    above = min(_scaled(e, workload, threads, vector) for e in wider)
    below = max([above, *(_scaled(e, workload, threads, vector) for e in narrower)])
    return bounded(sqrt(above * below), workload, entries)


def bounded(seconds: float, workload: Workload, entries: Sequence[Entry]) -> float:
    """Return `seconds`, at least those of every narrower entry and at most those of every wider one."""
    mine = size(workload)
    least = max((e.seconds for e in entries if covers(mine, size(e.workload))), default=0.0)
    most = min((e.seconds for e in entries if covers(size(e.workload), mine)), default=math.inf)
    return min(max(seconds, least), most)


def covers(wide: tuple[int, int], narrow: tuple[int, int]) -> bool:
    """Tell whether a task of size `wide` has at least the channels of one of size `narrow`, on both sides."""
    return wide[0] >= narrow[0] and wide[1] >= narrow[1]


def _scaled(entry: Entry, workload: Workload, threads: int, vector: int) -> float:
    launch_s = min(LAUNCH_S, entry.seconds / 2)
    ratio = work(workload, entry.candidate, threads, vector) / work(entry.workload, entry.candidate, threads, vector)
    return launch_s + (entry.seconds - launch_s) * ratio
