"""Operators that move values about and compute nothing: slices, pads, concatenations, other shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from cprune.compiling.kinds import Chain, Conv, Expression, ForeignList, Linear, Parts, Stored, Value, merged
from cprune.compiling.operators.arguments import filled
from cprune.compiling.operators.quantizing import step_of_reader
from cprune.compiling.values import Lowering, Values
from cprune.network.node import Node, Ref
from cprune.tuner.programs.workload import Shape

MOST_PARTS = 64  # that a row of chosen places may be made of; every value asks for each of them which it lies in


def _slice(values: Values, node: Node) -> Value | None:
    x, axis, start, end, step = filled(node, (0, None, None, 1), 1)
    if any(isinstance(bound, Ref) for bound in (start, end)):
        return None
    before, after = values.shape(x.name), values.shape(node.name)
    start = 0 if start is None else start
    start = max(0, start + before[axis] if start < 0 else start)
    moves = tuple((start, step) if i == axis % len(before) else (0, 1) for i in range(len(before)))
    if before == after:
        return values.same(x)
    return values.chained(node, x, lambda e: ("slice", e, moves, after))


def _select(values: Values, node: Node) -> Value | None:
    x, axis, index = node.args
    if isinstance(index, Ref):
        return None
    before, after = values.shape(x.name), values.shape(node.name)
    axis %= len(before)
    index %= before[axis]
    one = (*before[:axis], 1, *before[axis + 1 :])
    return values.chained(node, x, lambda e: ("reshape", _cut(e, before, axis, index, 1)[0], one, after))


def _index_select(values: Values, node: Node) -> Value | None:
    x, axis, index = node.args
    return _gathered(values, node, x, int(axis), index)


def _index(values: Values, node: Node) -> Value | None:
    x, indices = node.args
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    return _gathered(values, node, x, axes[0], indices[axes[0]]) if len(axes) == 1 else None


def _gathered(values: Values, node: Node, x: Ref, axis: int, index: Ref) -> Value | None:
    """Return the places of an axis that a constant names, as parts that are evenly spaced."""
    if index.name not in values.params and index.name not in values.constants:
        return None
    places, shape = values.examples[index.name], values.shape(x.name)
    axis %= len(shape)
    if places.dtype != torch.int64 or places.numel() == 0:
        return None
    runs = evenly_spaced([int(place) % shape[axis] for place in places.flatten()])
    if len(runs) > MOST_PARTS:
        return None
    flat = (*shape[:axis], places.numel(), *shape[axis + 1 :])

    def chosen(e: Expression) -> Expression:
        parts = tuple(_cut(e, shape, axis, start, count, step) for start, step, count in runs)
        whole = parts[0][0] if len(parts) == 1 else ("cat", axis, parts)
        return whole if places.dim() == 1 else ("reshape", whole, flat, values.shape(node.name))

    return values.chained(node, x, chosen)


def _flip(values: Values, node: Node) -> Value | None:
    x, axes = node.args
    shape = values.shape(x.name)
    turned = {axis % len(shape) for axis in axes}
    moves = tuple((extent - 1, -1) if i in turned else (0, 1) for i, extent in enumerate(shape))
    return values.chained(node, x, lambda e: ("slice", e, moves, shape))


def _roll(values: Values, node: Node) -> Value | None:
    x, shifts, axes = filled(node, ((),), 2)
    shape = values.shape(x.name)
    if not axes or any(isinstance(shift, Ref) for shift in shifts):
        return None

    def rolled(e: Expression) -> Expression:
        for shift, axis in zip(shifts, axes, strict=True):
            axis %= len(shape)
            start = -shift % shape[axis]
            if start:
                parts = (_cut(e, shape, axis, start, shape[axis] - start), _cut(e, shape, axis, 0, start))
                e = ("cat", axis, parts)
        return e

    return values.chained(node, x, rolled)


def _pad(values: Values, node: Node) -> Value | None:
    x, pads, mode, number = filled(node, ("constant", None), 2)
    return _padded(values, node, x, pads, number) if mode == "constant" else None


def _constant_pad(values: Values, node: Node) -> Value | None:
    x, pads, number = filled(node, (0,), 2)
    return _padded(values, node, x, pads, number)


def _padded(values: Values, node: Node, x: Ref, pads: Sequence[object], number: object) -> Value | None:
    """Return `x` with zeros around it; None for another number, and for pads that cut or are computed."""
    amounts = [pad for pad in pads if isinstance(pad, int) and pad >= 0]
    if number not in (None, 0, 0.0) or len(amounts) < len(pads):
        return None
    before, after = values.shape(x.name), values.shape(node.name)
    lows = [0] * len(before)
    for i in range(len(amounts) // 2):
        lows[len(before) - 1 - i] = amounts[2 * i]
    return values.chained(node, x, lambda e: ("pad", e, tuple(lows), before, after))


def _cat(values: Values, node: Node) -> Value | None:
    refs, axis = filled(node, (0,), 1)
    step = step_of_reader(values, node.name)
    for ref in refs:
        conv = values.pending(ref, Conv)
        if step is not None and conv is not None and conv.step is None:  # rounding before is rounding after
            values.by_name[ref.name] = replace(conv, step=step)
    chains = [values.chain(ref) for ref in refs]
    shape = values.shape(node.name)
    axis %= len(shape)
    expressions, inputs = merged(chains)
    parts = tuple((e, chain.shape[axis]) for e, chain in zip(expressions, chains, strict=True))
    return Chain(("cat", axis, parts), inputs, shape)


def _split(values: Values, node: Node) -> Value | None:
    axis = int(node.args[2]) if len(node.args) > 2 else int(dict(node.kwargs).get("dim", 0))
    return Parts(node.args[0], tuple(tuple(part.shape) for part in values.examples[node.name]), axis)


def _getitem(values: Values, node: Node) -> Value | None:
    ref, index = node.args
    several = values.by_name[ref.name]
    if not isinstance(several, Parts):
        return values.foreign(several.node, node) if isinstance(several, ForeignList) else None
    axis = several.axis % len(several.shapes[0])
    start = sum(shape[axis] for shape in several.shapes[:index])
    shape = several.shapes[index]
    return values.chained(node, several.x, lambda e: _cut(e, shape, axis, start, shape[axis])[0])


def _view(values: Values, node: Node) -> Value | None:
    x = node.args[0]
    before, after = values.shape(x.name), values.shape(node.name)
    if before == after:
        return values.same(x)
    value = values.by_name.get(x.name)
    if isinstance(value, Linear):
        value = values.stored(x, 0)
    if isinstance(value, Stored) and value.block == 0:
        return replace(value, shape=after)
    return values.chained(node, x, lambda e: ("reshape", e, before, after))


def _same(values: Values, node: Node) -> Value | None:
    return values.same(node.args[0])


def _cut(e: Expression, shape: Shape, axis: int, start: int, count: int, step: int = 1) -> tuple[Expression, int]:
    """Return `count` places of `e` along an axis, and `count`, as a concatenation wants them; other axes are whole."""
    moves = tuple((start, step) if i == axis else (0, 1) for i in range(len(shape)))
    return ("slice", e, moves, (*shape[:axis], count, *shape[axis + 1 :])), count


def evenly_spaced(places: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the start, the step and the length of the evenly spaced runs that a row of places is made of."""
    runs: list[tuple[int, int, int]] = []
    for place in places:
        if runs:
            start, step, count = runs[-1]
            if count == 1 or place == start + step * count:
                runs[-1] = (start, place - start if count == 1 else step, count + 1)
                continue
        runs.append((place, 1, 1))
    return runs


MOVES: dict[str, Lowering] = {
    "slice": _slice,
    "select": _select,
    "index_select": _index_select,
    "index": _index,
    "flip": _flip,
    "roll": _roll,
    "pad": _pad,
    "constant_pad_nd": _constant_pad,
    "cat": _cat,
    "getitem": _getitem,
    **dict.fromkeys(("chunk", "split", "split_with_sizes"), _split),
    **dict.fromkeys(("view", "reshape", "flatten", "_unsafe_view", "squeeze", "unsqueeze"), _view),
    **dict.fromkeys(("dropout", "feature_dropout", "contiguous", "clone", "alias", "detach"), _same),
}
"""The lowerings of this file, by the operators' names without the overload."""
