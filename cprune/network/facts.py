"""How large a network is: the counts that other pruners optimise, for the report alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cprune.network.network import Network


@dataclass(frozen=True)
class Size:
    """Multiply-accumulates of one inference of the example, and trained parameters."""

    macs: int
    params: int


def size_of(network: Network, example_inputs: Sequence[Tensor]) -> Size:
    """Return the size of `network`.  Convolutions and linear layers count, nothing else multiplies enough."""
    values = network.values(*example_inputs)
    macs = 0
    for node in network.nodes:
        if node.op.startswith(("aten.conv", "aten.linear")):
            weight, out = values[node.args[1].name], values[node.name]
            macs += out.numel() * weight[0].numel()
    return Size(macs, sum(p.numel() for p in network.parameters()))
