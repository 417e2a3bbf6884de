"""Removing channels with a repair in closed form: those that stay take over what the removed ones did.

Every layer that mixes a removed channel into its output reads a ridge regression of it on the channels that stay
instead, at each tap of a convolution alike (LBYL, ICML 2022; GRAIL, arXiv 2602.23795).  Theirs regress every input, so
that the ridge shrinks those that stay too; here they keep their weights, and removing nothing changes nothing.
The padding of a convolution is right by itself, as the repair acts on channels only.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cprune.channels.cut import Cut
from cprune.channels.flow import argument
from cprune.channels.graph import Graph, Layer
from cprune.channels.least_squares import RIDGE, replacement
from cprune.channels.statistics import Moments, Statistics, readers
from cprune.channels.surgery import Removed, classes_of, prune
from cprune.network.network import Network
from cprune.network.node import Ref


def compensated(
    network: Network, graph: Graph, removed: Removed, statistics: Statistics, ridge: float = RIDGE
) -> Network:
    """Return `prune(network, graph, removed)` with the weights of its consumers repaired; `network` stays as it is.

    A layer's bias, where it has one, takes what the repair misses on average.  Layers without statistics stay as
    `prune` leaves them.  `statistics` must be those of `network`; statistics of BatchNorm are not looked at.
    UserError as from `prune`.
    """
    cut = Cut(graph, classes_of(graph, removed))
    tensors = network.tensors()
    layers = {layer.weight: layer for layer in graph.layers.values()}
    repaired: dict[int, Tensor] = {}
    for weight, moments in statistics.moments.items():
        stays = cut.kept(moments.classes)
        if stays.all() or not stays.any():
            continue
        new, shift = _repaired(tensors[weight], layers[weight], moments, stays, ridge)
        if not bool(new.isfinite().all()):
            continue
        repaired[id(tensors[weight])] = _like(tensors[weight], new)
        bias = _bias(network, graph, weight)
        if bias is not None:
            repaired[id(bias)] = _like(bias, bias.detach() + shift.to(bias))
    changed = {name: repaired.get(id(tensor), tensor) for name, tensor in tensors.items()}
    return prune(Network(network.nodes, changed, network.constants()).train(network.training), graph, removed)


def _repaired(
    weight: Tensor, layer: Layer, moments: Moments, stays: np.ndarray[tuple[int], np.dtype[np.bool_]], ridge: float
) -> tuple[Tensor, Tensor]:
    """Return the weight with what goes added to what stays, and [outputs] what its output then lacks on average."""
    assert layer.in_axis is not None
    instead = replacement(moments.gram, stays, ridge)
    gone, kept = moments.columns[~stays], moments.columns[stays]
    missed = moments.mean[gone] - instead @ moments.mean[kept]  # [inputs that go, positions each]
    new = weight.detach().to("cpu", torch.float64, copy=True)
    rows = new.movedim(layer.in_axis, 0)  # a view: [positions of the axis, outputs, taps …]
    lost = rows[torch.from_numpy(gone)]
    moved = torch.einsum("gk,gp...->kp...", torch.from_numpy(instead), lost)
    rows[torch.from_numpy(kept)] += moved
    shift = torch.einsum("gp,gpo->o", torch.from_numpy(missed), lost.flatten(3).sum(3) if lost.dim() > 3 else lost)
    return new.to(weight), shift


def _bias(network: Network, graph: Graph, weight: str) -> Tensor | None:
    """Return the bias that all calls of a weight add and nothing else reads, if there is one."""
    calls = {call for layer in graph.layers.values() if layer.weight == weight for call in layer.calls}
    nodes = {node.name: node for node in network.nodes}
    biases = {argument(nodes[call], 2, "bias") for call in calls}
    ref = biases.pop() if len(biases) == 1 else None
    if not isinstance(ref, Ref) or nodes[ref.name].op != "param":
        return None
    name = str(nodes[ref.name].args[0])
    return network.tensors()[name] if readers(network, name) <= calls else None


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
