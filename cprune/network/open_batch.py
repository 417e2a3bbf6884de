"""Models that were saved for a batch of one, opened for any number of images.

A file often holds a graph that was traced with one image, with that one in its shapes.  Training needs more.  The
first size of inputs and of reshapes is opened, and kept so only if the result computes for several images what it
computes for each alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from cprune.network.difference import OPENED_TOLERANCE, difference
from cprune.network.network import Network
from cprune.network.node import Node, Ref, tensors_of
from cprune.network.operators import RESHAPES
from cprune.network.shapes import sample
from cprune.targets.errors import UserError

IMAGES = 3


def opened(network: Network, inputs: tuple[Tensor, ...]) -> Network:
    """Return the network with an open batch; `network` itself where it is open already or cannot be opened."""
    fixed = [n.name for n in network.nodes if n.op == "input" and n.args and n.args[0] and n.args[0][0] == 1]
    if not fixed:
        return network
    shapes = {name: tuple(v.shape) for name, v in sample(network, inputs).items() if isinstance(v, Tensor)}
    nodes = [_opened(node, shapes) for node in network.nodes]
    try:
        batched = Network(nodes, network.tensors(), network.constants()).train(network.training)
        return batched if _as_each_alone(batched, network, inputs) else network
    except (UserError, RuntimeError, IndexError, ValueError, TypeError):
        return network


def _opened(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> Node:
    if node.op == "input" and node.args and node.args[0] and node.args[0][0] == 1:
        return dataclasses.replace(node, args=((None, *node.args[0][1:]),))
    if node.op not in RESHAPES or len(node.args) < 2 or not isinstance(node.args[0], Ref):
        return node
    before, after, sizes = shapes.get(node.args[0].name, ()), shapes.get(node.name, ()), node.args[1]
    if before[:1] != (1,) or after[:1] != (1,) or len(sizes) != len(after):
        return node
    return dataclasses.replace(node, args=(node.args[0], (-1, *after[1:]), *node.args[2:]))


def _as_each_alone(batched: Network, network: Network, inputs: tuple[Tensor, ...]) -> bool:
    """Compare a batch of noise with its images one by one."""
    noise = torch.Generator().manual_seed(0)

    def several(x: Tensor) -> Tensor:
        if x.dim() == 0 or x.shape[0] != 1 or not x.is_floating_point():
            return x
        return torch.randn((IMAGES, *x.shape[1:]), generator=noise).to(x)

    batch = tuple(map(several, inputs))

    def alone(i: int) -> tuple[Tensor, ...]:
        return tuple(b[i : i + 1] if b.shape != x.shape else x for b, x in zip(batch, inputs, strict=True))

    with torch.no_grad():
        together = tensors_of(batched(*batch))
        each = [tensors_of(network(*alone(i))) for i in range(IMAGES)]
        joined = [torch.cat(outputs) for outputs in zip(*each, strict=True)]
    return bool(together) and difference(together, joined) <= OPENED_TOLERANCE
