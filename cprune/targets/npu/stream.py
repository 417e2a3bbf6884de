"""A program of the accelerator: its instructions as rows of numbers.

Every row begins with what is done and the tokens.  The queues pass tokens to their neighbours, load - compute - store:
POP_… waits for one before the instruction begins, PUSH_… gives one when it has ended.

Addresses on the chip count vectors (blocks of weights), those outside vectors (blocks) of the argument that is moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Code = NDArray[np.int64]

LOAD_INPUT, LOAD_WEIGHT, LOAD_RESIDUAL, RESET, GEMM, ALU, STORE = range(7)
NAMES = ("load input", "load weight", "load residual", "reset", "gemm", "alu", "store")

POP_PREVIOUS, POP_NEXT, PUSH_PREVIOUS, PUSH_NEXT = 1, 2, 4, 8

OP, TOKENS = 0, 1
# of an instruction that moves data
CHIP, OUTSIDE, ROWS, COLUMNS, STRIDE, TOP, BOTTOM, LEFT, RIGHT = range(2, 11)
# of one that computes, for i < OUTER and j < INNER: sums[SUMS + i * S0 + j * S1 + uop] += input[INPUT + …] x weight[…]
SUMS, INPUT, WEIGHT, FIRST, UOPS, OUTER, INNER, S0, S1, I0, I1, W0, W1 = range(2, 15)
WIDTH = 15


@dataclass(frozen=True, eq=False)
class Stream:
    """The instructions of a program in the order in which they are fetched, and the micro-operations they share.

    `uops` are [3, n]: offsets of sums, input and weight.  `threads` is how many virtual threads there are; each has
    a token for a free input and one for a free result before the first instruction.  `facts` are what is known of the
    program that its author did not write: the hidden features of A.
    """

    code: Code
    uops: Code
    threads: int
    facts: dict[str, float]

    def __len__(self) -> int:
        return int(self.code.shape[0])


def told(stream: Stream, first: int = 0, count: int = 20) -> str:
    """Return some instructions as text, one a line."""
    lines = []
    for row in stream.code[first : first + count].tolist():
        lines.append(f"{NAMES[row[OP]]:14} tokens {row[TOKENS]:2}  {_numbers(row)}")
    return "\n".join(lines)


def _numbers(row: list[Any]) -> str:
    return " ".join(map(str, row[TOKENS + 1 :]))
