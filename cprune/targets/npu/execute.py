"""What a program computes: its instructions, one after the other, on memories of the machine's sizes.

An address beyond a memory is taken modulo its size, as hardware does that has no more wires: a program that needs more
than there is ends in time, with a wrong output.  The queues are not simulated here: a program whose tokens are right
computes what its instructions do in order, and one whose tokens are not stops (`cycles.py`).

The memory for results carries sums of 32 bits: the last stage, which makes bytes of them, is applied to what was
stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cprune.targets.npu.compiled import compiled
from cprune.targets.npu.machine import NpuMachine
from cprune.targets.npu.stream import (
    ALU,
    BOTTOM,
    CHIP,
    COLUMNS,
    FIRST,
    GEMM,
    I0,
    I1,
    INNER,
    INPUT,
    LEFT,
    LOAD_INPUT,
    LOAD_WEIGHT,
    OP,
    OUTER,
    OUTSIDE,
    RESET,
    RIGHT,
    ROWS,
    S0,
    S1,
    STORE,
    STRIDE,
    SUMS,
    TOP,
    UOPS,
    W0,
    W1,
    WEIGHT,
    Stream,
)

Bytes = NDArray[np.uint8]
Words = NDArray[np.int32]


def sums_of(stream: Stream, machine: NpuMachine, x: Bytes, weight: Words, zero: int, vectors: int) -> Words:
    """Return [vectors, lanes] sums as the program stores them.

    `x` are [n, lanes] bytes, `weight` [blocks, lanes in, lanes out] numbers of 8 bits as words; padding is `zero`.
    """
    lanes = machine.lanes
    out = np.zeros((vectors, lanes), np.int32)
    _execute(
        stream.code,
        stream.uops,
        machine.uops,
        x,
        weight,
        zero,
        np.zeros((machine.input_vectors, lanes), np.int32),
        np.zeros((machine.weight_blocks, lanes, lanes), np.int32),
        np.zeros((machine.sums_vectors, lanes), np.int32),
        np.zeros((machine.sums_vectors, lanes), np.int32),
        out,
    )
    return out


@compiled
def _execute(
    code: Any,
    uops: Any,
    most: int,
    x: Any,
    weight: Any,
    zero: int,
    inputs: Any,
    weights: Any,
    sums: Any,
    results: Any,
    out: Any,
) -> None:
    lanes = x.shape[1]
    for i in range(code.shape[0]):
        row = code[i]
        op = row[OP]
        if op == LOAD_INPUT:
            size = inputs.shape[0]
            width = row[LEFT] + row[COLUMNS] + row[RIGHT]
            for r in range(row[TOP] + row[ROWS] + row[BOTTOM]):
                inside = row[TOP] <= r < row[TOP] + row[ROWS]
                for c in range(width):
                    at = (row[CHIP] + r * width + c) % size
                    if inside and row[LEFT] <= c < row[LEFT] + row[COLUMNS]:
                        source = row[OUTSIDE] + (r - row[TOP]) * row[STRIDE] + c - row[LEFT]
                        for k in range(lanes):
                            inputs[at, k] = x[source, k]
                    else:
                        for k in range(lanes):
                            inputs[at, k] = zero
        elif op == LOAD_WEIGHT:
            size = weights.shape[0]
            for r in range(row[ROWS]):
                for c in range(row[COLUMNS]):
                    weights[(row[CHIP] + r * row[COLUMNS] + c) % size] = weight[row[OUTSIDE] + r * row[STRIDE] + c]
        elif op in (RESET, GEMM):
            for outer in range(row[OUTER]):
                for inner in range(row[INNER]):
                    for u in range(row[UOPS]):
                        uop = row[FIRST] + u % most
                        to = (row[SUMS] + outer * row[S0] + inner * row[S1] + uops[0, uop]) % sums.shape[0]
                        if op == RESET:
                            sums[to, :] = 0
                            continue
                        a = (row[INPUT] + outer * row[I0] + inner * row[I1] + uops[1, uop]) % inputs.shape[0]
                        w = (row[WEIGHT] + outer * row[W0] + inner * row[W1] + uops[2, uop]) % weights.shape[0]
                        for k in range(lanes):
                            value = inputs[a, k]
                            for o in range(lanes):
                                sums[to, o] += value * weights[w, k, o]
        elif op == ALU:
            for outer in range(row[OUTER]):
                for inner in range(row[INNER]):
                    for u in range(row[UOPS]):
                        uop = row[FIRST] + u % most
                        source = (row[INPUT] + outer * row[I0] + inner * row[I1] + uops[1, uop]) % sums.shape[0]
                        to = (row[SUMS] + outer * row[S0] + inner * row[S1] + uops[0, uop]) % results.shape[0]
                        results[to] = sums[source]
        elif op == STORE:
            for r in range(row[ROWS]):
                for c in range(row[COLUMNS]):
                    at = (row[CHIP] + r * row[COLUMNS] + c) % results.shape[0]
                    out[row[OUTSIDE] + r * row[STRIDE] + c] = results[at]
