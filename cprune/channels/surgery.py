"""Removing channels from a network: `prune` returns a smaller one, `masked` says what it has to compute.

The law that the tests hold this file to: the pruned network's output equals the output of the whole network
with the removed channels held at zero wherever they appear.  Means and variances over channels (LayerNorm, GroupNorm)
would see the zeros: in the law they are those of the channels that stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cprune.channels.flow import argument
from cprune.channels.groups import Graph
from cprune.channels.labels import Array, Spread
from cprune.channels.rules import has_whole_groups
from cprune.channels.rules.moves import SIZES_AT
from cprune.channels.rules.products import STATISTICS
from cprune.network.network import Network
from cprune.network.node import Node, Ref, operator_name
from cprune.network.operators import lookup
from cprune.targets.errors import UserError

Removed = Mapping[str, Sequence[int]]
"""Group id to the numbers of the channels to remove, 0 ≤ number < `Group.channels`."""


def prune(network: Network, graph: Graph, removed: Removed) -> Network:
    """Return a new network without these channels; `network` and `graph` stay as they are.

    `graph` must be `analyse(network, …)`; it says nothing about the result, whose channels are numbered anew.
    UserError if a group or channel does not exist, or if a group would lose all of its channels.
    """
    cut = _Cut(graph, _classes(graph, removed))
    tensors: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}
    along: dict[str, list[tuple[int, Array]]] = {}
    for (name, axis), classes in graph.axes.items():
        along.setdefault(name, []).append((axis, classes))
    for name, tensor in network.tensors().items():
        if id(tensor) not in made:  # a tied tensor is met under its first name first, as in the graph
            made[id(tensor)] = _sliced(tensor, along.get(name, ()), cut)
        tensors[name] = made[id(tensor)]
    nodes = [cut.repair(node) for node in network.nodes]
    return Network(nodes, tensors, network.constants()).train(network.training)


def masked(network: Network, graph: Graph, removed: Removed, *inputs: Tensor) -> Any:
    """Return the whole network's output in evaluation mode with these channels zero wherever they appear.

    Statistics over channels are taken over those that stay.
    """
    cut = _Cut(graph, _classes(graph, removed))
    statistics = {node.name: _of_the_kept(network, cut, node) for node in network.nodes if cut.is_statistic(node)}

    def zeroed(value: Any, spread: Spread) -> Any:
        gone = ~cut.kept(spread.labels)
        if not gone.any():
            return value
        shape = [1] * value.dim()
        shape[spread.axis - len(spread.shape)] = -1  # from the end: a squeeze may have taken a batch of one
        # Not a product: 0 * inf would be nan.
        return value.masked_fill(torch.from_numpy(gone).view(shape).to(value.device), 0)

    def edit(name: str, value: Any) -> Any:
        spreads = graph.values.get(name, ())
        if isinstance(value, Tensor):
            return zeroed(value, spreads[0])
        if isinstance(value, (tuple, list)):
            return [zeroed(one, spread) for one, spread in zip(value, spreads, strict=True)]
        return value

    with torch.no_grad():
        return network.run_edited(inputs, edit, statistics)


def _of_the_kept(network: Network, cut: _Cut, node: Node) -> Callable[..., Any]:
    """Return a function in place of a node's operator: its value over the channels that stay, zero elsewhere."""
    operator, repaired = lookup(node.op), cut.repair(node)
    spreads = cut.graph.values[node.name]

    def kept(ref: Ref, value: Tensor) -> Tensor:
        for axis, classes in cut.axes_of(network, ref):
            keep = cut.kept(classes)
            if len(keep) > 1:
                value = value.index_select(axis, torch.from_numpy(np.flatnonzero(keep)).to(value.device))
        return value

    def whole(value: Tensor, spread: Spread) -> Tensor:
        keep = cut.kept(spread.labels)
        if keep.all() or len(keep) == 1:
            return value
        axis = spread.axis - len(spread.shape)
        shape = list(value.shape)
        shape[axis] = len(keep)
        return value.new_zeros(shape).index_copy(axis, torch.from_numpy(np.flatnonzero(keep)).to(value.device), value)

    def call(*args: Any, **kwargs: Any) -> Any:
        mine = [
            kept(was, now) if isinstance(was, Ref) else now if fixed == was else fixed
            for was, now, fixed in zip(node.args, args, repaired.args, strict=True)
        ]
        named = {key: kept(was, kwargs[key]) if isinstance(was, Ref) else kwargs[key] for key, was in node.kwargs}
        found = operator(*mine, **named)
        if isinstance(found, Tensor):
            return whole(found, spreads[0])
        return [whole(one, spread) for one, spread in zip(found, spreads, strict=True)]

    return call


def _classes(graph: Graph, removed: Removed) -> Array:
    """Return the classes of these channels."""
    chosen: list[int] = []
    for group_id, channels in removed.items():
        group = graph.group(group_id)
        numbers = {int(channel) for channel in channels}
        wrong = [number for number in numbers if not 0 <= number < group.channels]
        if wrong:
            raise UserError(f"group {group_id!r} has channels 0 to {group.channels - 1}; {wrong[0]} is not one of them")
        if len(numbers) == group.channels:
            raise UserError(f"all {group.channels} channels of group {group_id!r} would go; leave at least one")
        chosen.extend(graph.classes[group_id][sorted(numbers)].tolist())
    return np.array(chosen, dtype=np.int64)


def _sliced(tensor: Tensor, along: Sequence[tuple[int, Array]], cut: _Cut) -> Tensor:
    with torch.no_grad():
        data = tensor.detach()
        for axis, classes in along:
            keep = cut.kept(classes)
            if not keep.all():
                data = data.index_select(axis, torch.from_numpy(np.flatnonzero(keep)).to(data.device))
        data = data.clone()
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


class _Cut:
    """What is left of every value, and the constants of nodes that follow from it."""

    def __init__(self, graph: Graph, classes: Array) -> None:
        self.graph = graph
        self.stays = np.ones(classes.max(initial=-1) + 2, dtype=np.bool_)  # by class; the last one for all above it
        self.stays[classes] = False

    def kept(self, classes: Array) -> NDArray[np.bool_]:
        """Return which of these positions stay."""
        return self.stays[np.minimum(classes, len(self.stays) - 1)]

    def length(self, spread: Spread, axis: int) -> int:
        """Return the length of a value along an axis after the cut."""
        return int(self.kept(spread.labels).sum()) if spread.varies(axis) else spread.shape[axis]

    def before(self, spread: Spread, axis: int, position: int) -> int:
        """Return how many of the first `position` entries along an axis stay."""
        return int(self.kept(spread.labels[:position]).sum()) if spread.varies(axis) else position

    def is_statistic(self, node: Node) -> bool:
        """Tell whether a node averages over channels some of which go."""
        if operator_name(node) not in STATISTICS or not isinstance(node.args[0], Ref):
            return False
        spreads = self.graph.values.get(node.args[0].name, ())
        return len(spreads) == 1 and not self.kept(spreads[0].labels).all()

    def axes_of(self, network: Network, ref: Ref) -> list[tuple[int, Array]]:
        """Return the axes of a value, or of a tensor of the model, that channels lie along, with their classes."""
        for spread in self.graph.values.get(ref.name, ()):
            return [(spread.axis - len(spread.shape), spread.labels)]  # from the end, as in `masked`
        tensors = network.tensors()
        name = next((str(node.args[0]) for node in network.nodes if node.name == ref.name and node.op == "param"), "")
        mine = tensors.get(name)
        return [(axis, classes) for (one, axis), classes in self.graph.axes.items() if tensors[one] is mine]

    def repair(self, node: Node) -> Node:
        """Return the node with the constants that depend on widths made right."""
        out = self.graph.values.get(node.name, ())
        name = operator_name(node)
        fix = _REPAIRS.get(name, _sizes if name in SIZES_AT else None)
        if fix is None or not out:
            return node
        first = node.args[0] if node.args else None
        x = self.graph.values.get(first.name, ()) if isinstance(first, Ref) else ()
        if all(self.kept(spread.labels).all() for spread in (*x, *out)):
            return node  # also where a rule did not know this use and froze it
        return fix(self, node, x[0] if len(x) == 1 else None, out)


Repair = Callable[[_Cut, Node, "Spread | None", "tuple[Spread, ...]"], Node]


def _with(node: Node, index: int, value: Any) -> Node:
    """Return the node with one of its positional arguments replaced."""
    return dataclasses.replace(node, args=(*node.args[:index], value, *node.args[index + 1 :]))


def _sizes(cut: _Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    at = SIZES_AT[operator_name(node)]
    sizes = node.args[at]
    first = node.args[1] % (len(out[0].shape) - len(sizes) + 1) if at == 2 else 0  # unflatten: the axis it opens
    now = tuple(
        size if isinstance(size, Ref) or size == -1 else cut.length(out[0], first + d) for d, size in enumerate(sizes)
    )
    return _with(node, at, now)


def _groups(cut: _Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    axis, groups = out[0].axis, argument(node, 6, "groups", 1)
    if x is None or not has_whole_groups(groups, x.shape[axis], out[0].shape[axis]):
        return node
    return _with(node, 6, groups * cut.length(out[0], axis) // out[0].shape[axis])


def _parts(cut: _Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    axis = argument(node, 2, "dim", 0) % len(out[0].shape)
    if x is None or not x.varies(axis):
        return node
    sizes = tuple(cut.length(spread, axis) for spread in out)
    return Node(node.name, "aten.split_with_sizes.default", (node.args[0], sizes, axis), (), node.source)


def _bounds(cut: _Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    axis = argument(node, 1, "dim", 0) % len(out[0].shape)
    if x is None or not x.varies(axis):
        return node
    ends = argument(node, 2, "start"), argument(node, 3, "end")
    start, end, _ = slice(*ends).indices(x.shape[axis])
    now = cut.before(x, axis, start), cut.before(x, axis, max(start, end))
    return Node(node.name, "aten.slice.Tensor", (node.args[0], axis, *now), (), node.source)


def _narrow(cut: _Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    axis, start, length = node.args[1] % len(out[0].shape), node.args[2], node.args[3]
    if x is None or not x.varies(axis):
        return node
    start %= x.shape[axis]
    now = cut.before(x, axis, start), cut.before(x, axis, start + length)
    return Node(node.name, "aten.slice.Tensor", (node.args[0], axis, *now), (), node.source)


def _index(cut: _Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    if x is None:
        return node
    axis = node.args[1] % len(x.shape)
    return _with(node, 2, cut.before(x, axis, node.args[2] % x.shape[axis])) if x.varies(axis) else node


def _squeezed(cut: _Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    """Name the axes if one shrinks to a single channel, so that it does not vanish with the others."""
    if x is None or cut.length(x, x.axis) > 1:
        return node
    named = argument(node, 1, "dim")
    dims = range(len(x.shape)) if named is None else (named,) if isinstance(named, int) else named
    gone = tuple(d % len(x.shape) for d in dims if x.shape[d] == 1)
    return Node(node.name, "aten.squeeze.dims", (node.args[0], gone), (), node.source)


def _amounts(cut: _Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    amounts = list(node.args[1])
    axis = out[0].axis
    i = 2 * (len(out[0].shape) - 1 - axis)
    if not out[0].constant and i < len(amounts) and any(amounts[i : i + 2]):
        before, after = amounts[i : i + 2]
        total = out[0].shape[axis]
        amounts[i] = cut.before(out[0], axis, before)
        amounts[i + 1] = cut.length(out[0], axis) - cut.before(out[0], axis, total - after)
    return _with(node, 1, tuple(amounts))


def _normalised(cut: _Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    if x is None:
        return node
    first = len(x.shape) - len(node.args[1])
    return _with(node, 1, tuple(cut.length(x, first + d) for d in range(len(node.args[1]))))


def _norm_groups(cut: _Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    if x is None or node.args[1] != x.shape[1]:
        return node
    return _with(node, 1, cut.length(x, 1))


def _scale(cut: _Cut, node: Node, x: Spread | None, out: tuple[Spread, ...]) -> Node:
    """Name the scale, which would follow the width of the heads."""
    if x is None or argument(node, 6, "scale") is not None:
        return node
    more = tuple(item for item in node.kwargs if item[0] != "scale")
    return dataclasses.replace(node, args=node.args[:6], kwargs=(*more, ("scale", x.shape[-1] ** -0.5)))


_REPAIRS: dict[str, Repair] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _groups),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _groups),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normalised),
    "group_norm": _norm_groups,
    "scaled_dot_product_attention": _scale,
    **dict.fromkeys(
        ("chunk", "unsafe_chunk", "split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes"),
        _parts,
    ),
    "slice": _bounds,
    "narrow": _narrow,
    "select": _index,
    "squeeze": _squeezed,
    "pad": _amounts,
    "constant_pad_nd": _amounts,
}
