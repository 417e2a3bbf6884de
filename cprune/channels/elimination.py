"""In which order the channels of a group go: nested sets, so that a group has one set of channels for every width.

With statistics a channel is worth what its consumers lose without it, once the channels that stay have made up for it
as well as they can (`cprune.channels.least_squares`).  The scores of `cprune.channels.importance` give an order too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cprune.channels import least_squares
from cprune.channels.graph import Graph, Group, Layer
from cprune.channels.importance import METHODS, importance
from cprune.channels.least_squares import RIDGE, Reader
from cprune.channels.statistics import Moments, Statistics
from cprune.network.network import Network
from cprune.targets.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import Tensor

ELIMINATION = "elimination"
ORDERS = (ELIMINATION, *METHODS)
"""The ways to choose channels, by the names that users type."""

Orders = Mapping[str, tuple[int, ...]]
"""All channels of every group by its id, the first to go first."""


def orders(
    network: Network,
    graph: Graph,
    method: str,
    *,
    statistics: Statistics | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, tuple[int, ...]]:
    """Return the order of every group by its id.

    `method` is one of ORDERS: "elimination" needs `statistics`, "taylor" `gradients`, "random" goes by `seed`.
    UserError for an unknown one, or one without what it needs.
    """
    if method not in ORDERS:
        raise unknown("importance method", method, ORDERS)
    if method == ELIMINATION:
        if statistics is None:
            raise UserError("importance 'elimination' needs images to look at", "Known without images: l1, l2, fpgm")
        return {group.id: order(network, graph, group.id, statistics) for group in graph.groups}
    scores = {
        group.id: importance(network, graph, group.id, method, seed=seed, gradients=gradients) for group in graph.groups
    }
    return {group_id: _ascending(score) for group_id, score in scores.items()}


def order(
    network: Network, graph: Graph, group_id: str, statistics: Statistics, ridge: float = RIDGE
) -> tuple[int, ...]:
    """Return all channels of a group, the first to go first, by backward elimination.

    Removed first is the channel without which the consumers lose the smallest share of their output's energy, summed
    over them; then the next, given that the first is gone.  A group that no layer with statistics mixes goes by the
    mean L2 norm of each channel's slices in producers and consumers.  `network` and `graph` are those of `statistics`;
    UserError if there is no such group.
    """
    group = graph.group(group_id)
    layers = {graph.layers[name].weight: graph.layers[name] for name in group.consumers}
    readers = [_reader(network, graph, group, layer, statistics.of(layer)) for layer in layers.values()]
    found = least_squares.order([one for one in readers if one is not None], ridge)
    return _ascending(_norms(network, graph, group)) if found is None else found


def _reader(network: Network, graph: Graph, group: Group, layer: Layer, moments: Moments | None) -> Reader | None:
    """Return a consumer as a linear map of what it reads; None if it is not known as one."""
    if moments is None or layer.in_axis is None:
        return None
    where = [np.flatnonzero(moments.classes == one) for one in graph.classes[group.id]]
    if not len(where[0]) or any(len(at) != len(where[0]) for at in where):
        return None
    slices = _slices(network, layer.weight, layer.in_axis)[moments.columns].reshape(len(moments.columns), -1)
    return Reader(moments.gram, slices @ slices.T, np.stack(where))


def _norms(network: Network, graph: Graph, group: Group) -> NDArray[np.float64]:
    """Return the L2 norm of every channel's slices relative to the layer's mean, averaged over both sides' layers."""
    sides = [(graph.layers[name].weight, graph.layers[name].out_axis) for name in group.layers]
    consumers = [graph.layers[name] for name in group.consumers]
    sides += [(layer.weight, layer.in_axis) for layer in consumers if layer.in_axis is not None]
    scores = np.zeros(group.channels)
    for weight, axis in dict.fromkeys(sides):
        squares = np.square(_slices(network, weight, axis)).sum(1)
        along = graph.axes[weight, axis]
        norms = np.sqrt([squares[along == one].sum() for one in graph.classes[group.id]])
        if norms.mean() > 0:
            scores += norms / norms.mean()
    return scores / len(dict.fromkeys(sides))


def _slices(network: Network, weight: str, axis: int) -> NDArray[np.float64]:
    """Return a weight as a matrix with one row for every position of an axis."""
    moved = network.tensors()[weight].detach().movedim(axis, 0)
    rows: NDArray[np.float64] = moved.reshape(moved.shape[0], -1).cpu().double().numpy()
    return rows


def _ascending(scores: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(np.argsort(scores, kind="stable").tolist())
