"""TVM's own lowering of a scheduled program, as far as the accelerator's instructions begin."""

from __future__ import annotations

from functools import cache
from typing import Any

FACTS = "; facts of a simulated program: "
"""What stands before the hidden features of a program, as JSON, in the place of its assembly."""
FINISH = "finish"
"""The function of a module that makes the output of stored sums; where there is one, "main" is for the multiplier."""


def lowered(module: Any) -> Any:
    """Return the PrimFunc "main" of a scheduled IRModule with flat buffers and plain loops.

    Virtual threads are left to the walk: TVM would let them share what does not depend on them, and each thread of the
    accelerator has memory of its own.
    """
    return _passes()(module)["main"]


@cache
def _passes() -> Any:
    from tvm import s_tir, tirx
    from tvm.ir.transform import Sequential

    return Sequential(
        [
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.CompactBufferAllocation(),
            s_tir.transform.UnifyThreadBinding(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.StmtSimplify(),
        ]
    )
