"""How many cycles a program takes: three queues, the tokens between them, and one port to the memory outside.

An instruction begins when the one before it in its queue has ended and the tokens that it waits for are there.  What
moves data waits for the port as well, and holds it for its beats and bursts; instructions come through the same port.
The memory answers after a constant time (the RTL that this was fitted to ran with such a one); results go out on a
channel of their own.  Several accelerators may share both, each with a program of its own: who asks first is served
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from cprune.targets.npu.compiled import compiled
from cprune.targets.npu.machine import NpuMachine
from cprune.targets.npu.stream import (
    ALU,
    BOTTOM,
    COLUMNS,
    INNER,
    LEFT,
    LOAD_INPUT,
    LOAD_RESIDUAL,
    LOAD_WEIGHT,
    OP,
    OUTER,
    OUTSIDE,
    POP_NEXT,
    POP_PREVIOUS,
    PUSH_NEXT,
    PUSH_PREVIOUS,
    RIGHT,
    ROWS,
    STORE,
    STRIDE,
    TOKENS,
    TOP,
    UOPS,
    Code,
    Stream,
)

LOAD, COMPUTE, STORES = 0, 1, 2  # the queues
DONE, DEADLOCK, LIMIT, FAULT = 0, 1, 2, 3


@dataclass(frozen=True)
class Cycles:
    """What became of a program: `end` is DONE, DEADLOCK, LIMIT or FAULT (queues are left out of step), `cycles` when.

    `busy` are the cycles that each queue worked (those of all accelerators, added up); `read_…` and `write_…` what went
    through the port, instructions included.
    """

    end: int
    cycles: float
    busy: tuple[float, float, float]
    read_beats: int
    read_bursts: int
    write_beats: int
    write_bursts: int


def cycles_of(stream: Stream, machine: NpuMachine) -> Cycles:
    """Return how long a program takes on a machine."""
    return cycles_together([stream], machine)


def cycles_together(streams: Sequence[Stream], machine: NpuMachine) -> Cycles:
    """Return how long programs take until the last has ended, each on a machine of its own behind one port."""
    costs = machine.costs
    lanes = machine.lanes
    sizes = np.array([lanes, lanes * lanes, lanes, lanes], np.int64)  # bytes of a vector or block, by op; results last
    numbers = np.array(astuple(costs))
    limits = np.array([machine.port_bytes, machine.burst_bytes, machine.instruction_bytes, machine.limit_cycles])
    out = np.zeros(9)
    uops = sum(4 * (stream.uops.shape[1] + 1) // 2 * 2 for stream in streams)
    code = np.concatenate([stream.code for stream in streams])
    ends = np.cumsum([len(stream) for stream in streams])
    threads = np.array([stream.threads for stream in streams])
    _simulate(code, ends, threads, sizes, numbers, limits.astype(np.int64), uops, out)
    return Cycles(int(out[0]), float(out[1]), (out[2], out[3], out[4]), *(int(value) for value in out[5:9]))


@compiled
def _bursts(row: Code, size: int, burst: int) -> int:
    """Return in how many bursts an instruction moves its rows: one ends at every multiple of `burst` bytes."""
    total = 0
    length = row[COLUMNS] * size
    if length == 0:
        return 0
    for r in range(row[ROWS]):
        start = (row[OUTSIDE] + r * row[STRIDE]) * size
        total += (start + length - 1) // burst - start // burst + 1
    return total


@compiled
def _simulate(
    code: Any, ends: Any, threads: Any, sizes: Any, costs: Any, limits: Any, uop_bytes: int, out: Any
) -> None:
    burst_cost, pad, gemm, alu, alu_vector, store_row, token = costs
    port_bytes, burst, instruction_bytes, limit = limits[0], limits[1], limits[2], limits[3]
    n, cores = code.shape[0], ends.shape[0]
    after = np.empty(n, np.int64)  # the next instruction of the same queue
    heads = np.full(3 * cores, n, np.int64)
    last = np.full(3 * cores, -1, np.int64)
    core = 0
    for i in range(n):
        while i >= ends[core]:
            core += 1
        op = code[i, OP]
        queue = 3 * core + (LOAD if op in (LOAD_INPUT, LOAD_WEIGHT) else STORES if op == STORE else COMPUTE)
        after[i] = n
        if last[queue] < 0:
            heads[queue] = i
        else:
            after[last[queue]] = i
        last[queue] = i
    # Tokens by edge: load to compute, compute to load, compute to store, store to compute; times at which they come.
    longest = ends[0]
    for core in range(1, cores):
        longest = max(longest, ends[core] - ends[core - 1])
    times = np.zeros((4 * cores, longest + np.max(threads) + 1))
    given = np.zeros(4 * cores, np.int64)
    taken = np.zeros(4 * cores, np.int64)
    fetched = np.zeros(cores, np.int64)
    for core in range(cores):
        given[4 * core + 1] = threads[core]
        given[4 * core + 3] = threads[core]
        fetched[core] = 0 if core == 0 else ends[core - 1]
    free = np.zeros(3 * cores)  # when a queue has ended its last instruction
    busy = np.zeros(3)
    port, results = 0.0, 0.0  # when the two channels of the memory are free
    chunk = burst // instruction_bytes
    arrived = np.zeros(n)  # when an instruction is there
    now = 0.0
    read_beats = uop_bytes // port_bytes
    read_bursts, write_beats, write_bursts = np.sum(threads), 0, 0
    done = 0
    while done < n:
        best, begin = -1, np.inf
        for place in range(3 * cores):
            i = heads[place]
            if i >= n:
                continue
            core, queue = place // 3, place % 3
            tokens = code[i, TOKENS]
            start = free[place]
            missing = False
            for bit in range(2):
                if tokens & (POP_PREVIOUS if bit == 0 else POP_NEXT):
                    edge = 4 * core + ((0 if queue == COMPUTE else 2) if bit == 0 else (1 if queue == LOAD else 3))
                    if taken[edge] >= given[edge]:
                        missing = True
                    else:
                        start = max(start, times[edge, taken[edge]] + token)
            if not missing and start < begin:
                best, begin = place, start
        if best < 0:
            out[0], out[1] = DEADLOCK, now
            return
        core, queue = best // 3, best % 3
        i = heads[best]
        row = code[i]
        while fetched[core] <= i:  # a chunk of instructions comes through the port
            count = min(chunk, ends[core] - fetched[core])
            beats = count * instruction_bytes // port_bytes
            port += burst_cost + beats
            arrived[fetched[core] : fetched[core] + count] = port
            read_beats += beats
            read_bursts += 1
            fetched[core] += count
        begin = max(begin, arrived[i])
        op = row[OP]
        if op in (LOAD_INPUT, LOAD_WEIGHT, LOAD_RESIDUAL):
            size = sizes[op]
            bursts = _bursts(row, size, burst)
            beats = row[ROWS] * row[COLUMNS] * size // port_bytes
            width = row[LEFT] + row[COLUMNS] + row[RIGHT]
            padding = width * (row[TOP] + row[BOTTOM] + row[ROWS]) - row[ROWS] * row[COLUMNS]
            begin = max(begin, port) if bursts > 0 else begin
            moved = bursts * burst_cost + beats
            end = begin + moved + pad * padding
            if bursts > 0:
                port = begin + moved
            read_beats += beats
            read_bursts += bursts
        elif op == STORE:
            size = sizes[3]
            bursts = _bursts(row, size, burst)
            beats = row[ROWS] * row[COLUMNS] * size // port_bytes
            begin = max(begin, results)
            end = results = begin + beats + bursts * burst_cost + row[ROWS] * store_row
            write_beats += beats
            write_bursts += bursts
        elif op == ALU:
            end = begin + alu + alu_vector * row[UOPS] * row[OUTER] * row[INNER]
        else:  # GEMM, RESET
            end = begin + gemm + row[UOPS] * row[OUTER] * row[INNER]
        busy[queue] += end - begin
        free[best] = end
        tokens = row[TOKENS]
        for bit in range(2):
            if tokens & (POP_PREVIOUS if bit == 0 else POP_NEXT):
                edge = 4 * core + ((0 if queue == COMPUTE else 2) if bit == 0 else (1 if queue == LOAD else 3))
                taken[edge] += 1
            if tokens & (PUSH_PREVIOUS if bit == 0 else PUSH_NEXT):
                edge = 4 * core + ((1 if queue == COMPUTE else 3) if bit == 0 else (0 if queue == LOAD else 2))
                times[edge, given[edge]] = end
                given[edge] += 1
        heads[best] = after[i]
        done += 1
        now = max(now, end)
        if now > limit:
            out[0], out[1] = LIMIT, limit
            return
    out[0], out[1] = DONE, now
    for edge in range(4 * cores):
        if n > 0 and given[edge] - taken[edge] != (threads[edge // 4] if edge % 2 == 1 else 0):
            out[0] = FAULT
    for queue in range(3):
        out[2 + queue] = busy[queue]
    out[5], out[6], out[7], out[8] = read_beats, read_bursts, write_beats, write_bursts
