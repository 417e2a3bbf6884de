"""Operators that only move values about: most rules run the operator on the labels themselves.

Their repairs are sizes and positions: those of reshapes, of parts along an axis, of padding.
"""

from __future__ import annotations

import numpy as np
import torch

from cprune.channels.cut import Cut, Repair, with_argument
from cprune.channels.flow import Flow, NoRule, Rule, argument, called, named
from cprune.channels.labels import Spread
from cprune.network.node import Node, Ref, find_refs, map_refs, operator_name
from cprune.network.operators import RESHAPES, lookup

_SIZES_AT = {
    **dict.fromkeys(("zeros", "ones", "full"), 0),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "expand", "broadcast_to"), 1),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full"), 1),
    "unflatten": 2,
}
"""Where an operator takes the sizes of its result."""


def _moved(flow: Flow, node: Node) -> tuple[Spread, ...]:
    def value(ref: Ref) -> object:
        return _operand(flow, ref).tensor() if flow.shapes(ref) else flow.sample[ref.name]

    args = map_refs(node.args, value)
    kwargs = {key: map_refs(item, value) for key, item in node.kwargs}
    moved = lookup(node.op)(*args, **kwargs)
    if isinstance(moved, (tuple, list)):
        return tuple(flow.labels.spread(tensor, flow.open_axes(node, i)) for i, tensor in enumerate(moved))
    fixed = [*flow.open_axes(node), *_computed_axes(node)]
    return (flow.labels.spread(moved, fixed, _heads(flow, node)),)


def _heads(flow: Flow, node: Node) -> int | None:
    """Return the axis along which channels lie where features at the end are split into heads: their width, or they.

    It is the same before and after pruning.  The longest part would be another one as soon as the width is pruned below
    the number of heads.
    """
    if node.op not in RESHAPES and node.op != "aten.unflatten.int":
        return None
    x, shape = _operand(flow, node.args[0]), flow.shape(node)
    last = len(x.shape) - 1
    if not x.varies(last) or shape[-1] == x.shape[last]:
        return None
    whole = flow.whole_heads and not (shape[-2] * shape[-1] == x.shape[last] and _taken_apart(flow, node))
    return len(shape) - (2 if whole else 1)


def _taken_apart(flow: Flow, node: Node) -> bool:
    """Tell whether a split in two is one into q, k and v, as nn.MultiheadAttention has it: heads are not selected."""
    moved = {node.name}
    for reader in flow.network.nodes:
        if moved.isdisjoint(reader.refs()):
            continue
        if operator_name(reader) in ("select", "unbind", "split", "chunk"):
            return True
        if operator_name(reader) in ("unsqueeze", "squeeze", "transpose", "permute", "movedim", "contiguous", "clone"):
            moved.add(reader.name)
    return False


def _operand(flow: Flow, ref: Ref) -> Spread:
    """Return a value's labels; of a parameter such as position embeddings those along what is its channel axis."""
    shape = flow.shape(ref)
    several = sum(size > 1 for size in shape) > 1
    if flow.nodes[ref.name].op == "param" and len(shape) in (3, 4) and shape[0] == 1 and several:
        return flow.along_param(ref, 2 if len(shape) == 3 else 1)
    return flow.spread(ref)


def _computed_axes(node: Node) -> list[int]:
    """Return the axes whose length the model computes at run time: surgery could not correct it."""
    name = operator_name(node)
    if name not in _SIZES_AT or name == "unflatten":
        return []
    sizes = argument(node, _SIZES_AT[name], "size", ())
    return [d for d, size in enumerate(sizes) if isinstance(size, Ref)]


def _repair_sizes(cut: Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    at = _SIZES_AT[operator_name(node)]
    sizes = node.args[at]
    first = node.args[1] % (len(out[0].shape) - len(sizes) + 1) if at == 2 else 0  # unflatten: the axis it opens
    left = tuple(
        size if isinstance(size, Ref) or size == -1 else cut.length(out[0], first + d) for d, size in enumerate(sizes)
    )
    return with_argument(node, at, left)


def _repair_parts(cut: Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    axis = argument(node, 2, "dim", 0) % len(out[0].shape)
    if x is None or not x.varies(axis):
        return node
    sizes = tuple(cut.length(spread, axis) for spread in out)
    return Node(node.name, "aten.split_with_sizes.default", (node.args[0], sizes, axis), (), node.source)


def _repair_narrow(cut: Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    axis, start, length = node.args[1] % len(out[0].shape), node.args[2], node.args[3]
    if x is None or not x.varies(axis):
        return node
    start %= x.shape[axis]
    bounds = cut.before(x, axis, start), cut.before(x, axis, start + length)
    return Node(node.name, "aten.slice.Tensor", (node.args[0], axis, *bounds), (), node.source)


def _repair_select(cut: Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    if x is None:
        return node
    axis = node.args[1] % len(x.shape)
    return with_argument(node, 2, cut.before(x, axis, node.args[2] % x.shape[axis])) if x.varies(axis) else node


def _repair_squeeze(cut: Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    """Name the axes if one shrinks to a single channel, so that it does not vanish with the others."""
    if x is None or cut.length(x, x.axis) > 1:
        return node
    dim = argument(node, 1, "dim")
    dims = range(len(x.shape)) if dim is None else (dim,) if isinstance(dim, int) else dim
    gone = tuple(d % len(x.shape) for d in dims if x.shape[d] == 1)
    return Node(node.name, "aten.squeeze.dims", (node.args[0], gone), (), node.source)


def _expand(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """One channel spread over many: what they meet decides which are removed."""
    x, shape = flow.spread(node.args[0]), flow.shape(node)
    more = len(shape) - len(x.shape)
    fixed = {*flow.open_axes(node), *_computed_axes(node)}
    grown = [d for d, size in enumerate(shape) if size > 1 and (d < more or x.shape[d - more] == 1) and d not in fixed]
    if not x.constant or not grown:
        return _moved(flow, node)
    reason = f"{called(node)} spreads it over other channels"
    if operator_name(node) == "expand_as":
        like = flow.spread(node.args[1])
        if like.constant or like.axis not in grown:
            return _moved(flow, node)
        flow.labels.freeze(x.labels, reason)
        return (Spread(shape, like.axis, like.labels),)
    usual = 1 if len(shape) != 3 else 2
    axis = grown[0] if len(grown) == 1 else usual
    if axis not in grown:
        return _moved(flow, node)
    flow.labels.freeze(x.labels, reason)
    return (Spread(shape, axis, flow.labels.fresh(shape[axis])),)


def _slice(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x = _operand(flow, node.args[0])
    axis = argument(node, 1, "dim", 0) % len(x.shape)
    plain = argument(node, 4, "step", 1) == 1 and not list(find_refs(node.args[2:]))
    if x.varies(axis) and not plain:
        raise NoRule(f"{called(node)} takes every so many channels")
    return _moved(flow, node)


def _repair_slice(cut: Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    axis = argument(node, 1, "dim", 0) % len(out[0].shape)
    if x is None or not x.varies(axis):
        return node
    ends = argument(node, 2, "start"), argument(node, 3, "end")
    start, end, _ = slice(*ends).indices(x.shape[axis])
    bounds = cut.before(x, axis, start), cut.before(x, axis, max(start, end))
    return Node(node.name, "aten.slice.Tensor", (node.args[0], axis, *bounds), (), node.source)


def _pad(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, amounts = flow.spread(node.args[0]), tuple(node.args[1])
    zeros = argument(node, 2, "mode", "constant") == "constant" or "constant_pad_nd" in node.op
    if list(find_refs(amounts)):
        raise NoRule(f"{called(node)} pads by an amount known at run time only")
    shape = flow.shape(node)
    for i in range(len(amounts) // 2):
        axis, (before, after) = len(shape) - 1 - i, amounts[2 * i : 2 * i + 2]
        if not (before or after) or not (x.constant or x.varies(axis)):
            continue
        if not zeros or before < 0 or after < 0:
            raise NoRule(f"{called(node)} pads or cuts channels")
        # Channels that exist only here: they go with whatever they meet.
        labels = [flow.labels.fresh(before), flow.along(x, axis), flow.labels.fresh(after)]
        x = Spread((*x.shape[:axis], sum(map(len, labels)), *x.shape[axis + 1 :]), axis, np.concatenate(labels))
    return (Spread(shape, x.axis, x.labels),)


def _repair_pad(cut: Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    amounts = list(node.args[1])
    axis = out[0].axis
    i = 2 * (len(out[0].shape) - 1 - axis)
    if not out[0].constant and i < len(amounts) and any(amounts[i : i + 2]):
        before, after = amounts[i : i + 2]
        total = out[0].shape[axis]
        amounts[i] = cut.before(out[0], axis, before)
        amounts[i + 1] = cut.length(out[0], axis) - cut.before(out[0], axis, total - after)
    return with_argument(node, 1, tuple(amounts))


def _roll(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x, dims = flow.spread(node.args[0]), argument(node, 2, "dims", ())
    dims = (dims,) if isinstance(dims, int) else dims
    if not x.constant and (not dims or x.axis in {d % len(x.shape) for d in dims}):
        raise NoRule(f"{called(node)} rolls channels")
    return (x,)


def _index(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """x[:, table] and the like, where the table picks along other axes than the channels'."""
    tables = tuple(node.args[1])
    source = flow.nodes[node.args[0].name]
    if flow.whole_heads and source.op == "param" and len(flow.shape(source)) == 2 and len(tables) == 1:  # their biases
        x = flow.along_param(node.args[0], 1)
    else:
        x = flow.spread(node.args[0])
    if not x.constant and x.axis < len(tables) and tables[x.axis] is not None:
        raise NoRule(f"{called(node)} picks channels by a table")
    picks = [None if ref is None else torch.zeros(flow.shape(ref), dtype=torch.long) for ref in tables]
    picked = torch.ops.aten.index.Tensor(x.tensor(), picks)
    return (flow.labels.spread(picked, flow.open_axes(node)),)


def _index_select(flow: Flow, node: Node) -> tuple[Spread, ...]:
    x = flow.spread(node.args[0])
    if x.varies(node.args[1] % len(x.shape)):
        raise NoRule(f"{called(node)} picks channels by a table")
    return (Spread(flow.shape(node), x.axis, x.labels),)


def _windows(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """tensor.unfold: windows along an axis that holds no channels."""
    x = flow.spread(node.args[0])
    if x.varies(node.args[1] % len(x.shape)):
        raise NoRule(f"{called(node)} takes windows of channels")
    return _moved(flow, node)


def _patches(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """F.unfold: every channel becomes as many as the window has pixels."""
    x = flow.spread(node.args[0])
    shape = flow.shape(node)
    labels = flow.along(x, len(x.shape) - 3)
    return (Spread(shape, len(shape) - 2, np.repeat(labels, shape[-2] // len(labels))),)


def _from_patches(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """F.fold: the channels of one window's pixels become one again."""
    x = flow.spread(node.args[0])
    shape = flow.shape(node)
    labels = flow.along(x, len(x.shape) - 2).reshape(shape[-3], -1)
    flow.labels.unite(labels, labels[:, :1])
    return (Spread(shape, len(shape) - 3, labels[:, 0].copy()),)


def _pixel_shuffle(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """The channels that become the pixels of one go together: others would leave a number that cannot be shuffled."""
    x, factor = flow.spread(node.args[0]), node.args[1]
    axis = len(x.shape) - 3
    if not x.constant and x.axis != axis:
        raise NoRule(f"{called(node)} mixes channels with pixels")
    labels = flow.along(x, axis).reshape(-1, factor**2)
    flow.labels.unite(labels, labels[:, :1])
    return (Spread(flow.shape(node), axis, labels[:, 0].copy()),)


def _pixel_unshuffle(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """Every channel becomes as many as a square has pixels."""
    x, factor = flow.spread(node.args[0]), node.args[1]
    axis = len(x.shape) - 3
    if not x.constant and x.axis != axis:
        raise NoRule(f"{called(node)} mixes channels with pixels")
    return (Spread(flow.shape(node), axis, np.repeat(flow.along(x, axis), factor**2)),)


def _channel_shuffle(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """The groups must stay of one size: channel j goes in all of them."""
    x, groups = flow.spread(node.args[0]), node.args[1]
    labels = flow.along(x, 1).reshape(groups, -1)
    flow.labels.unite(labels, labels[:1])
    return (Spread(x.shape, 1, labels.T.reshape(-1).copy()),)


def _halves(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """GLU: the second half gates the first."""
    x = flow.spread(node.args[0])
    axis = argument(node, 1, "dim", -1) % len(x.shape)
    if not x.varies(axis):
        return (Spread(flow.shape(node), x.axis, x.labels),)
    first, second = x.labels.reshape(2, -1)
    flow.labels.unite(first, second)
    return (Spread(flow.shape(node), axis, first.copy()),)


def _put_back(flow: Flow, node: Node) -> tuple[Spread, ...]:
    """A slice or an entry along an axis without channels is written anew."""
    x, part = flow.spread(node.args[0]), flow.spread(node.args[1])
    dim = argument(node, 2, "dim", 0) % len(x.shape)
    one = operator_name(node) == "select_scatter"
    axis = part.axis + (one and part.axis >= dim)
    if x.varies(dim) or (not one and part.varies(dim)):
        raise NoRule(f"{called(node)} writes into some channels")
    if not part.constant and not x.constant and axis != x.axis:
        raise NoRule(f"{called(node)} writes channels along another axis")
    if x.constant and not part.constant:
        flow.labels.unite(part.labels, x.labels)
        return (x,)
    flow.labels.unite(x.labels, part.labels)
    return (x,)


def _created(flow: Flow, node: Node) -> tuple[Spread, ...]:
    shape = flow.shape(node)
    axis = min(1, len(shape) - 1)  # where channels lie by convention; what it meets decides
    return (Spread(shape, max(axis, 0), flow.labels.fresh(shape[axis] if shape else 1)),)


def _getitem(flow: Flow, node: Node) -> tuple[Spread, ...]:
    return (flow.spreads(node.args[0])[node.args[1]],)


MOVE_RULES: dict[str, Rule] = {
    **named(
        _moved,
        """
        view reshape _unsafe_view view_as reshape_as flatten unflatten permute transpose t mT numpy_T movedim
        moveaxis swapaxes swapdims squeeze unsqueeze repeat tile cat concat concatenate stack split
        split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk unbind select narrow flip
        repeat_interleave
        """,
    ),
    **named(_expand, "expand expand_as broadcast_to"),
    **named(_created, "zeros ones full new_zeros new_ones new_full"),
    **named(_pad, "pad constant_pad_nd"),
    "getitem": _getitem,
    "slice": _slice,
    "slice_scatter": _put_back,
    "select_scatter": _put_back,
    "roll": _roll,
    "index": _index,
    "index_select": _index_select,
    "unfold": _windows,
    "im2col": _patches,
    "col2im": _from_patches,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "glu": _halves,
}

MOVE_REPAIRS: dict[str, Repair] = {
    **dict.fromkeys(_SIZES_AT, _repair_sizes),
    **named(_repair_parts, "chunk unsafe_chunk split unsafe_split split_with_sizes unsafe_split_with_sizes"),
    **named(_repair_pad, "pad constant_pad_nd"),
    "slice": _repair_slice,
    "narrow": _repair_narrow,
    "select": _repair_select,
    "squeeze": _repair_squeeze,
}
