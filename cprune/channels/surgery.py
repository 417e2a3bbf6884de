"""Removing channels from a network: `prune` returns a smaller one, `masked` says what it has to compute.

The law that the tests hold this file to: the pruned network's output equals the output of the whole network
with the removed channels held at zero wherever they appear.  Means and variances over channels (LayerNorm, GroupNorm)
would see the zeros: in the law they are those of the channels that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cprune.channels.cut import Cut
from cprune.channels.graph import Graph
from cprune.channels.labels import Array, Spread
from cprune.channels.rules import repaired
from cprune.channels.rules.products import is_statistic
from cprune.network.network import Network
from cprune.network.node import Node, Ref
from cprune.network.operators import lookup
from cprune.targets.errors import UserError

Removed = Mapping[str, Sequence[int]]
"""Group id to the numbers of the channels to remove, 0 ≤ number < `Group.channels`."""


def prune(network: Network, graph: Graph, removed: Removed) -> Network:
    """Return a new network without these channels; `network` and `graph` stay as they are.

    `graph` must be `analyse(network, …)`; it says nothing about the result, whose channels are numbered anew.
    UserError if a group or channel does not exist, or if a group would lose all of its channels.
    """
    cut = Cut(graph, classes_of(graph, removed))
    tensors: dict[str, Tensor] = {}
    by_identity: dict[int, Tensor] = {}
    along: dict[str, list[tuple[int, Array]]] = {}
    for (name, axis), classes in graph.axes.items():
        along.setdefault(name, []).append((axis, classes))
    for name, tensor in network.tensors().items():
        if id(tensor) not in by_identity:  # a tied tensor is met under its first name first, as in the graph
            by_identity[id(tensor)] = _sliced(tensor, along.get(name, ()), cut)
        tensors[name] = by_identity[id(tensor)]
    nodes = [repaired(cut, node) for node in network.nodes]
    return Network(nodes, tensors, network.constants()).train(network.training)


def masked(network: Network, graph: Graph, removed: Removed, *inputs: Tensor) -> Any:
    """Return the whole network's output in evaluation mode with these channels zero wherever they appear.

    Statistics over channels are taken over those that stay.
    """
    cut = Cut(graph, classes_of(graph, removed))
    statistics = {node.name: _of_the_kept(network, cut, node) for node in network.nodes if is_statistic(cut, node)}

    def zeroed(value: Tensor, spread: Spread) -> Tensor:
        gone = ~cut.kept(spread.labels)
        if not gone.any():
            return value
        shape = [1] * value.dim()
        shape[spread.axis - len(spread.shape)] = -1  # from the end: a squeeze may have taken a batch of one
        # Not a product: 0 * inf would be nan.
        return value.masked_fill(torch.from_numpy(gone).view(shape).to(value.device), 0)

    def edit(name: str, value: object) -> object:
        spreads = graph.values.get(name, ())
        if isinstance(value, Tensor):
            return zeroed(value, spreads[0])
        if isinstance(value, (tuple, list)):
            return [zeroed(one, spread) for one, spread in zip(value, spreads, strict=True)]
        return value

    with torch.no_grad():
        return network.run_edited(inputs, edit, statistics)


def _of_the_kept(network: Network, cut: Cut, node: Node) -> Callable[..., Tensor | list[Tensor]]:
    """Return a function in place of a node's operator: its value over the channels that stay, zero elsewhere."""
    operator, smaller = lookup(node.op), repaired(cut, node)
    spreads = cut.graph.values[node.name]

    def kept(ref: Ref, value: Tensor) -> Tensor:
        for axis, classes in _channel_axes(network, cut.graph, ref):
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

    def call(*args: Any, **kwargs: Any) -> Tensor | list[Tensor]:
        # Constants are those that came, in which torch's are decoded, but for what the repair changed.
        cut_args = [
            kept(was, now) if isinstance(was, Ref) else now if fixed == was else fixed
            for was, now, fixed in zip(node.args, args, smaller.args, strict=True)
        ]
        cut_kwargs = {key: kept(was, kwargs[key]) if isinstance(was, Ref) else kwargs[key] for key, was in node.kwargs}
        result = operator(*cut_args, **cut_kwargs)
        if isinstance(result, Tensor):
            return whole(result, spreads[0])
        return [whole(one, spread) for one, spread in zip(result, spreads, strict=True)]

    return call


def _channel_axes(network: Network, graph: Graph, ref: Ref) -> list[tuple[int, Array]]:
    """Return the axes of a value, or of a tensor of the model, that channels lie along, with their classes."""
    for spread in graph.values.get(ref.name, ()):
        return [(spread.axis - len(spread.shape), spread.labels)]  # from the end, as in `masked`
    tensors = network.tensors()
    name = next((str(node.args[0]) for node in network.nodes if node.name == ref.name and node.op == "param"), "")
    tensor = tensors.get(name)
    return [(axis, classes) for (other, axis), classes in graph.axes.items() if tensors[other] is tensor]


def classes_of(graph: Graph, removed: Removed) -> Array:
    """Return the classes of these channels; UserError if there is no such channel, or if a group would lose all."""
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


def _sliced(tensor: Tensor, along: Sequence[tuple[int, Array]], cut: Cut) -> Tensor:
    with torch.no_grad():
        data = tensor.detach()
        for axis, classes in along:
            keep = cut.kept(classes)
            if not keep.all():
                data = data.index_select(axis, torch.from_numpy(np.flatnonzero(keep)).to(data.device))
        data = data.clone()
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
