"""Workloads as short texts for people."""

from __future__ import annotations

from cprune.tuner.programs.workload import (
    Conv2d,
    Dense,
    Elementwise,
    HalfConv2d,
    Mean,
    Pool2d,
    QuantizedConv2d,
    Workload,
)


def describe(workload: Workload) -> str:
    """Return a short text for people, such as "conv 3x3/1 32→64 @14x14"."""
    if isinstance(workload, Conv2d):
        kind = "depthwise" if workload.depthwise else "conv"
        size = f"{workload.kernel[0]}x{workload.kernel[1]}/{workload.stride[0]}"
        plane = f"{workload.out_height}x{workload.out_width}"
        tail = " + residual" if workload.residual else ""
        if isinstance(workload, QuantizedConv2d):
            tail += " int8"
        if isinstance(workload, HalfConv2d):
            tail += " bf16" if workload.paired else " fp16"
        return f"{kind} {size} {workload.in_channels}→{workload.out_channels} @{plane}{tail}"
    if isinstance(workload, Dense):
        rows = f" @{workload.batch}" if workload.batch > 1 else ""
        return f"dense {workload.in_features}→{workload.out_features}{rows}"
    if isinstance(workload, Pool2d):
        return f"{workload.op} pool {workload.kernel[0]}x{workload.kernel[1]} {workload.channels} ch"
    if isinstance(workload, Mean):
        return f"mean {workload.channels} ch {workload.height}x{workload.width}"
    if isinstance(workload, Elementwise):
        names = sorted(set(_operators(workload.expression)) - {"in"})
        return "elementwise " + ("+".join(names) or "layout")
    return workload.name


def _operators(expression: object) -> list[str]:
    if not isinstance(expression, tuple) or not expression:
        return []
    here = [expression[0]] if isinstance(expression[0], str) else []
    return here + [op for part in expression for op in _operators(part)]
