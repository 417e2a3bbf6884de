"""Pools, and means over the plane."""

from __future__ import annotations

from dataclasses import replace

from cprune.compiling.kinds import Value
from cprune.compiling.lowered import Step
from cprune.compiling.operators.arguments import filled, pair
from cprune.compiling.values import Lowering, Values
from cprune.network.node import Node, Ref
from cprune.tuner.programs.workload import Mean, Pool2d, QuantizedPool2d, padded


def _max_pool2d(values: Values, node: Node) -> Value | None:
    x, kernel, stride, pad, dilation, _ = filled(node, (None, (0, 0), (1, 1), False), 2)
    if pair(dilation) != (1, 1):
        return None
    return _pooled(values, node, "max", x, pair(kernel), pair(stride or kernel), pair(pad), True)


def _avg_pool2d(values: Values, node: Node) -> Value | None:
    x, kernel, stride, pad, ceil, count_pad, divisor = filled(node, (None, (0, 0), False, True, None), 2)
    kernel, stride, pad = pair(kernel), pair(stride or kernel), pair(pad)
    if divisor is not None or (ceil and _pads(values, node, x, kernel, stride, pad)[2:] != pad):
        return None
    return _pooled(values, node, "avg", x, kernel, stride, pad, bool(count_pad))


def _adaptive_avg_pool2d(values: Values, node: Node) -> Value | None:
    x, size = node.args[:2]
    _, _, h, w = values.shape(x.name)
    rows, columns = pair(size)
    if (rows, columns) == (1, 1):
        return _plane_mean(values, node, x)
    if h % rows or w % columns:
        return None
    kernel = (h // rows, w // columns)
    return _pooled(values, node, "avg", x, kernel, kernel, (0, 0), True)


def _mean(values: Values, node: Node) -> Value | None:
    x, axes = filled(node, (None, False, None), 1)[:2]
    rank = len(values.shape(x.name))
    if rank != 4 or axes is None or sorted(axis % rank for axis in axes) != [2, 3]:
        return None
    return _plane_mean(values, node, x)


def _pooled(
    values: Values,
    node: Node,
    op: str,
    x: Ref,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int],
    count_pad: bool,
) -> Value:
    n, c, h, w = values.shape(x.name)
    pads = _pads(values, node, x, kernel, stride, pad)
    source = values.quantized(x) if op == "max" else None
    if source is not None and isinstance(source.step, Step):
        of_bytes = QuantizedPool2d(op, n, padded(c, source.block), h, w, kernel, stride, pads, True, source.block)
        shape = values.shape(node.name)
        return values.emit(node.name, of_bytes, (source,), shape, source.block, step=source.step)
    source = values.blocked(x)
    workload = Pool2d(op, n, padded(c, source.block), h, w, kernel, stride, pads, count_pad, source.block)
    return values.emit(node.name, workload, (source,), values.shape(node.name), source.block)


def _pads(
    values: Values, node: Node, x: Ref, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the rows and columns before, and those behind that the windows reach: fewer or more than `pad` says."""
    _, _, h, w = values.shape(x.name)
    _, _, rows, columns = values.shape(node.name)
    below = (rows - 1) * stride[0] + kernel[0] - h - pad[0]
    right = (columns - 1) * stride[1] + kernel[1] - w - pad[1]
    return (*pad, max(below, 0), max(right, 0))


def _plane_mean(values: Values, node: Node, x: Ref) -> Value:
    n, c, h, w = values.shape(x.name)
    source = values.blocked(x)
    mean = values.emit(node.name, Mean(n, c, h, w, source.block), (source,), (n, c), 0)
    return replace(mean, shape=values.shape(node.name))


POOLS: dict[str, Lowering] = {
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
}
"""The lowerings of this file, by the operators' names without the overload."""
