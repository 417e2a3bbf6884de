"""Which channels of a group matter least: one score a channel, low ones go first.

The methods differ in what they score a filter by; what they share is the way from filters to a channel of a
group: the scores of each producing layer are divided by that layer's mean, then averaged over the layers, so
that no layer outvotes the others by the scale of its weights alone.  (The released code of CPrune, and the L1
pruner it calls, adds the plain norms.)  Only the output side of convolutions and linear layers is looked at.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cprune.channels.graph import Graph
from cprune.network.network import Network
from cprune.targets.errors import UserError, unknown

METHODS = ("l1", "l2", "fpgm", "taylor", "random")


def importance(
    network: Network,
    graph: Graph,
    group_id: str,
    method: str,
    *,
    seed: int = 0,
    gradients: Mapping[str, Tensor] | None = None,
) -> NDArray[np.float64]:
    """Return one score for every channel of a group, float64 [channels]; the least important has the lowest.

    "l1", "l2": the norm of a filter (Li et al. 2017, arXiv 1608.08710).  "fpgm": the sum of its Euclidean
    distances to the layer's other filters, low near their geometric median (He et al. 2019, arXiv
    1811.00250).  "taylor": the size of the loss's first-order change without it, |Σ weight · gradient|
    (Molchanov et al. 2019, arXiv 1906.10771, theirs squared); `gradients` holds the gradient of every weight
    by its state-dict name.  "random": uniform noise from `seed` and the group's id.  A channel with several
    filters in one layer has their sum.

    UserError for an unknown method or group, or a gradient that is missing or of another shape.
    """
    if method not in METHODS:
        raise unknown("importance method", method, METHODS)
    group = graph.group(group_id)
    if method == "random":
        return np.random.default_rng([seed, zlib.crc32(group_id.encode())]).random(group.channels)
    tensors = network.tensors()
    scores = np.zeros(group.channels)
    counted: set[str] = set()
    for name in group.layers:
        layer = graph.layers[name]
        if layer.weight in counted:  # two layers with one tensor have one vote
            continue
        counted.add(layer.weight)
        filters = _filters(tensors[layer.weight], layer.out_axis)
        if method == "taylor":
            of_filters = _taylor(filters, _gradient(gradients, layer.weight, tensors, layer.out_axis))
        else:
            of_filters = _SCORES[method](filters)
        mean = of_filters.mean()
        if mean > 0:
            positions = graph.positions(group_id, name)
            scores += np.array([of_filters[at].sum() for at in positions]) / mean
    return scores / len(counted)


def _filters(weight: Tensor, out_axis: int) -> Tensor:
    """Return a weight as a matrix of doubles with one row a filter."""
    moved = weight.detach().movedim(out_axis, 0)
    return moved.reshape(moved.shape[0], -1).to("cpu", torch.float64)


def _gradient(
    gradients: Mapping[str, Tensor] | None, name: str, tensors: Mapping[str, Tensor], out_axis: int
) -> Tensor:
    gradient = None if gradients is None else gradients.get(name)
    if gradient is None:
        raise UserError(f"importance 'taylor' needs the gradient of {name!r}", "Known without gradients: l1, l2, fpgm")
    if gradient.shape != tensors[name].shape:
        raise UserError(
            f"the gradient of {name!r} has shape {list(gradient.shape)}, the tensor {list(tensors[name].shape)}",
            "Gradients must come from the same network as the graph.",
        )
    return _filters(gradient, out_axis)


def _l1(filters: Tensor) -> NDArray[np.float64]:
    return np.asarray(filters.abs().sum(1).numpy())


def _l2(filters: Tensor) -> NDArray[np.float64]:
    return np.asarray(filters.norm(dim=1).numpy())


def _fpgm(filters: Tensor) -> NDArray[np.float64]:
    return np.asarray(torch.cdist(filters, filters).sum(1).numpy())


def _taylor(filters: Tensor, gradients: Tensor) -> NDArray[np.float64]:
    return np.asarray((filters * gradients).sum(1).abs().numpy())


_SCORES: dict[str, Callable[[Tensor], NDArray[np.float64]]] = {"l1": _l1, "l2": _l2, "fpgm": _fpgm}
