"""The workload of a call when its layers have fewer channels: what lowering the narrower network would give.

Padding and blocks follow the layout, fusion stays as it was.  Two things cannot be told from widths alone: which of two
convolutions takes a sum along (the one with more weights, see `cprune.compiling.operators.elementwise`), and how many
of the zeros that widen a stream lie in front of its channels (taken to shrink like the rest).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from cprune.compiling.lowered import Layout
from cprune.tuner.programs.workload import (
    Conv2d,
    Dense,
    Elementwise,
    Mean,
    Pool2d,
    QuantizedMean,
    Shape,
    Tir,
    Workload,
    padded,
)

Expression = tuple[Any, ...]


def narrowed(workload: Workload, in_channels: int, out_channels: int, layout: Layout) -> Workload | None:
    """Return the workload with so many input and output channels, without padding; None where widths do not tell.

    A depthwise convolution, a pool, a mean have one number of channels: `out_channels`.
    """
    if isinstance(workload, Conv2d):
        return _conv(workload, in_channels, out_channels, layout)
    if isinstance(workload, Dense):
        return replace(workload, in_features=in_channels, out_features=out_channels)
    if isinstance(workload, (Pool2d, QuantizedMean)):
        block = layout.of(out_channels)
        return replace(workload, channels=padded(out_channels, block), block=block)
    if isinstance(workload, Mean):
        return replace(workload, channels=out_channels, block=layout.of(out_channels))
    return None if isinstance(workload, Tir) else _elementwise(workload, in_channels, out_channels, layout)


def _conv(w: Conv2d, in_channels: int, out_channels: int, layout: Layout) -> Conv2d:
    out = layout.of(out_channels)
    stored = padded(out_channels, out)
    if w.depthwise:
        return replace(w, in_channels=stored, out_channels=stored, groups=stored, in_block=out, out_block=out)
    block = layout.again(w.in_block, in_channels)
    return replace(w, in_channels=padded(in_channels, block), out_channels=stored, in_block=block, out_block=out)


def _elementwise(w: Elementwise, in_channels: int, out_channels: int, layout: Layout) -> Elementwise | None:
    """Return a chain whose inputs all have one number of channels with another; None for others."""
    before = {shape[1] for shape, _ in w.inputs if len(shape) > 1}
    if len(before) != 1 or any(len(shape) < 2 for shape in (w.shape, *(s for s, _ in w.inputs))):
        return None
    change = _Change(before.pop(), in_channels, w.shape[1], out_channels)
    expression = change.expression(w.expression)
    if expression is None:
        return None
    return Elementwise(
        expression,
        tuple((change.read(s), _block(s, b, in_channels, layout)) for s, b in w.inputs),
        change.written(w.shape),
        _block(w.shape, w.block, out_channels, layout),
    )


def _block(shape: Shape, block: int, channels: int, layout: Layout) -> int:
    return layout.again(block, channels) if len(shape) == 4 else block


class _Change:
    """Other channels in an expression: `old_in` become `new_in` where it reads, `old_out` `new_out` where it writes."""

    def __init__(self, old_in: int, new_in: int, old_out: int, new_out: int) -> None:
        self.old_in, self.new_in, self.old_out, self.new_out = old_in, new_in, old_out, new_out

    def read(self, shape: Shape) -> Shape:
        return (shape[0], self.new_in, *shape[2:])

    def written(self, shape: Shape) -> Shape:
        return (shape[0], self.new_out, *shape[2:])

    def expression(self, e: Expression) -> Expression | None:
        """Return the expression with other channels, None where widths do not tell."""
        rules: Mapping[str, Callable[[Expression], Expression | None]] = {
            "slice": self._slice,
            "pad": self._pad,
            "broadcast": self._broadcast,
            "reshape": self._reshape,
        }
        if e[0] == "in":
            return e
        changed = rules[e[0]](e) if e[0] in rules else None if e[0] == "cat" else e
        if changed is None:
            return None
        parts = [self.expression(part) if _is_expression(part) else part for part in changed]
        return None if _any_none(parts, changed) else tuple(parts)

    def _slice(self, e: Expression) -> Expression | None:
        _, a, bounds, shape = e
        if len(shape) < 2 or bounds[1] != (0, 1) or shape[1] != self.old_in:
            return None
        return ("slice", a, bounds, self.read(shape))

    def _pad(self, e: Expression) -> Expression | None:
        _, a, before, shape, after = e
        if len(shape) < 2 or shape[1] != self.old_in or after[1] != self.old_out:
            return None
        added = self.old_out - self.old_in
        front = round(before[1] * (self.new_out - self.new_in) / added) if added else before[1]
        if self.new_out < self.new_in:
            return None  # more channels were taken from behind the sum than from before it
        return ("pad", a, (before[0], front, *before[2:]), self.read(shape), self.written(after))

    def _broadcast(self, e: Expression) -> Expression | None:
        _, a, shape, rank = e
        if len(shape) < 2 or shape[1] not in (1, self.old_in):
            return None
        return ("broadcast", a, self.read(shape) if shape[1] == self.old_in else shape, rank)

    def _reshape(self, e: Expression) -> Expression | None:
        _, a, shape, after = e
        flat = len(shape) > 1 and len(after) > 1 and shape[1] == self.old_in and after[1] == self.old_out
        if not flat or self.old_in * self.new_out != self.old_out * self.new_in:
            return None
        return ("reshape", a, self.read(shape), self.written(after))


def _is_expression(part: object) -> bool:
    return isinstance(part, tuple) and bool(part) and isinstance(part[0], str)


def _any_none(parts: Iterable[object], before: Iterable[object]) -> bool:
    return any(part is None and was is not None for part, was in zip(parts, before, strict=True))
