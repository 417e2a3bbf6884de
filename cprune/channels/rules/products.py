"""Operators that sum over channels: products of two values, attention, means and normalisations.

A sum over channels does not see one that is zero, so products and sums need nothing but the same channels on both
sides.  A mean or a variance does see it: there the law of surgery means the statistics of the channels that stay
(`is_statistic`; `cprune.channels.surgery.masked` takes them so).
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence

import numpy as np

from cprune.channels.cut import Cut, Repair, with_argument
from cprune.channels.flow import Flow, NoRule, Rule, argument, called, named
from cprune.channels.labels import Array, Spread
from cprune.network.node import Node, Ref, operator_name

_STATISTICS = frozenset({"layer_norm", "group_norm", "rms_norm", "mean", "var", "std", "var_mean", "std_mean"})
_SUMS = frozenset({"sum", "linalg_vector_norm", "norm", "frobenius_norm"})


def is_statistic(cut: Cut, node: Node) -> bool:
    """Tell whether a node averages over channels some of which go."""
    if operator_name(node) not in _STATISTICS or not isinstance(node.args[0], Ref):
        return False
    spreads = cut.graph.values.get(node.args[0].name, ())
    return len(spreads) == 1 and not cut.spares(spreads[0])


def _contraction(flow: Flow, node: Node, operands: Sequence[tuple[Spread, str]], out: str) -> Spread:
    """Return the labels of a product in Einstein's notation: every operand with the letters of its axes."""
    met: dict[str, Array] = {}
    for letter in dict.fromkeys(letters[x.axis] for x, letters in operands if not x.constant):
        for x, letters in operands:
            axis = letters.find(letter)
            if axis < 0 or x.shape[axis] == 1:  # a length of one meets everything and binds nothing
                continue
            labels = flow.along(x, axis)
            if letter in met:
                flow.labels.unite(met[letter], labels)
            else:
                met[letter] = labels
    left = [letter for letter, labels in met.items() if letter in out and len(np.unique(flow.labels.roots(labels))) > 1]
    for letter in left[:-1]:
        flow.labels.freeze(met[letter], f"{called(node)} multiplies it with other channels, each with each")
    shape = flow.shape(node)
    if not left:
        return Spread(shape, 0, flow.labels.fresh(1))
    return Spread(shape, out.index(left[-1]), met[left[-1]])


def _batched(x: Spread, last: str, batch: str) -> tuple[Spread, str]:
    """Return a matrix or a stack of them with the letters of its axes, those of the stack from the end of `batch`."""
    rank = len(x.shape) - len(last)
    if rank < 0 or rank > len(batch):
        raise NoRule("a matrix was expected")
    return x, batch[len(batch) - rank :] + last


def _matmul(flow: Flow, node: Node) -> tuple[Spread, ...]:
    a, b = flow.spread(node.args[0]), flow.spread(node.args[1])
    if min(len(a.shape), len(b.shape)) < 2:
        raise NoRule(f"{called(node)} multiplies by a vector")
    batch = string.ascii_uppercase[: max(len(a.shape), len(b.shape)) - 2]
    return (_contraction(flow, node, [_batched(a, "mk", batch), _batched(b, "kn", batch)], batch + "mn"),)


def _einsum(flow: Flow, node: Node) -> tuple[Spread, ...]:
    equation = node.args[0].replace(" ", "")
    before, arrow, out = equation.partition("->")
    terms = before.split(",")
    if not arrow or "." in equation or any(len(set(term)) < len(term) for term in terms):
        raise NoRule(f"{called(node)} has no pruning rule for {equation}")
    operands = [(flow.spread(ref), term) for ref, term in zip(node.args[1], terms, strict=True)]
    return (_contraction(flow, node, operands, out),)


def _attention(flow: Flow, node: Node) -> tuple[Spread, ...]:
    q, k, v = (flow.spread(ref) for ref in node.args[:3])
    mask = argument(node, 3, "attn_mask")
    batch = string.ascii_uppercase[: len(flow.shape(node)) - 2]
    operands = [_batched(q, "le", batch), _batched(k, "se", batch), _batched(v, "sv", batch)]
    if mask is not None:
        operands.append(_batched(flow.spread(mask), "ls", batch))
    for x, letters in operands:
        if letters[x.axis] == "s" and flow.varied(x):
            raise NoRule(f"{called(node)} takes a softmax across channels")
        if not x.constant and argument(node, 7, "enable_gqa", False) and letters[x.axis] in batch:
            raise NoRule(f"{called(node)} shares heads")
    return (_contraction(flow, node, operands, batch + "lv"),)


def _repair_scale(cut: Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    """Name the scale, which would follow the width of the heads."""
    if x is None or argument(node, 6, "scale") is not None:
        return node
    more = tuple(item for item in node.kwargs if item[0] != "scale")
    return dataclasses.replace(node, args=node.args[:6], kwargs=(*more, ("scale", x.shape[-1] ** -0.5)))


def _reduction(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """Mean, sum, softmax, … over some axes; where those hold the channels, only some can do with fewer."""
    x, name = flow.spread(node.args[0]), operator_name(node)
    shapes = flow.shapes(node)
    rank = len(x.shape)
    at = 2 if "norm" in name else 1
    dims = argument(node, at, "dim")
    listed = range(rank) if dims is None or dims == () else (dims,) if isinstance(dims, int) else dims
    over = {d % rank for d in listed} if rank else set()
    if x.constant or x.axis not in over:
        axis = x.axis if len(shapes[0]) == rank else x.axis - sum(d < x.axis for d in over)
        return tuple(Spread(shape, 0 if x.constant else axis, x.labels) for shape in shapes)
    order = argument(node, 1, "ord", 2) if at == 2 else 1
    if name not in _STATISTICS | _SUMS or order not in (1, 2, float("inf")):
        raise NoRule(f"{called(node)} works across channels")
    return tuple(Spread(shape, 0, flow.labels.fresh(1)) for shape in shapes)


def _layer_norm(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, over = flow.spread(node.args[0]), len(node.args[1])
    axis = x.axis - (len(x.shape) - over)
    if not x.constant and axis >= 0:
        for ref in (argument(node, 2, "weight"), argument(node, 3, "bias")):
            if isinstance(ref, Ref):
                flow.labels.unite(x.labels, flow.axis_labels(ref, axis))
    return (x,)


def _repair_shape(cut: Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    if x is None:
        return node
    first = len(x.shape) - len(node.args[1])
    return with_argument(node, 1, tuple(cut.length(x, first + d) for d in range(len(node.args[1]))))


def _group_norm(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, groups = flow.spread(node.args[0]), node.args[1]
    labels = flow.along(x, 1)
    for ref in (argument(node, 2, "weight"), argument(node, 3, "bias")):
        flow.tie(labels, ref)
    if groups < len(labels):  # the groups must stay of one size: channel j goes in all of them
        flow.labels.unite(labels.reshape(groups, -1), labels.reshape(groups, -1)[:1])
    return (Spread(x.shape, 1, labels),)


def _repair_group_norm(cut: Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    if x is None or node.args[1] != x.shape[1]:
        return node
    return with_argument(node, 1, cut.length(x, 1))


PRODUCT_RULES: dict[str, Rule] = {
    **named(_matmul, "matmul bmm mm"),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **named(
        _reduction,
        """
        mean sum amax amin var std var_mean std_mean prod logsumexp softmax log_softmax cumsum linalg_vector_norm norm
        """,
    ),
    **named(_layer_norm, "layer_norm rms_norm"),
    "group_norm": _group_norm,
}

PRODUCT_REPAIRS: dict[str, Repair] = {
    "scaled_dot_product_attention": _repair_scale,
    **named(_repair_shape, "layer_norm rms_norm"),
    "group_norm": _repair_group_norm,
}
