"""Parameters and multiply-adds of any allocation, counted without cutting: both are products of widths.

The number of a tensor's elements is the product of its axes, and an axis is so many channels of some groups.  A layer
multiplies as often as its weight has elements, times the positions of its output (of a transposed convolution, whose
weight begins with its input, that is an estimate).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cprune.channels.branches import Branch, without
from cprune.channels.graph import Graph
from cprune.method.allocation import Part
from cprune.method.terms import Axis, axes_of
from cprune.network.facts import Size
from cprune.network.network import Network


@dataclass(frozen=True)
class _Tensor:
    """A parameter: its axes, the branches without which it is gone, and how often an element of it multiplies."""

    axes: tuple[Axis, ...]
    groups: tuple[str, ...]
    branches: frozenset[str]
    macs_each: float

    def elements(self, widths: Mapping[str, int]) -> int:
        return math.prod(axis.at(widths) for axis in self.axes)


class Sizes:
    """The sizes of a network's allocations; `graph` is `analyse` of it and `branches` those that can go."""

    def __init__(self, network: Network, example: tuple[Any, ...], graph: Graph, branches: Sequence[Branch]) -> None:
        self.full = {group.id: group.channels for group in graph.groups}
        axes, each = axes_of(graph), _macs_each(network, example)
        lacking = {branch.id: _lacking(network, branch) for branch in branches}
        self.tensors = []
        for name, tensor in network.named_parameters():
            own = [axes.get((name, number), Axis(size)) for number, size in enumerate(tensor.shape)]
            groups = dict.fromkeys(group for axis in own for group, _ in axis.groups)
            within = frozenset(branch for branch, names in lacking.items() if name in names)
            self.tensors.append(_Tensor(tuple(own), tuple(groups), within, each.get(name, 0.0)))

    def of(self, widths: Mapping[str, int], gone: Collection[str]) -> Size:
        """Return the size at these widths (a group that is left out has its full one) without these branches."""
        whole, out = {**self.full, **widths}, set(gone)
        left = [(one, one.elements(whole)) for one in self.tensors if out.isdisjoint(one.branches)]
        return Size(round(sum(one.macs_each * count for one, count in left)), sum(count for _, count in left))

    def parts(self, of_param_s: float, of_mac_s: float) -> Iterator[Part]:
        """Yield parts of an allocation problem in which every parameter and multiply-add takes so many seconds."""
        for one in self.tensors:
            price = of_param_s + of_mac_s * one.macs_each
            yield Part(one.groups, one.branches, _priced(one, price))


def _priced(tensor: _Tensor, price: float) -> Callable[[tuple[int, ...]], float]:
    return lambda widths: price * tensor.elements(dict(zip(tensor.groups, widths, strict=True)))


def _macs_each(network: Network, example: tuple[Any, ...]) -> dict[str, float]:
    """Return how often an element of every weight multiplies, by the weight's name."""
    values = network.values(*example)
    tensors, first = network.tensors(), {id(tensor): name for name, tensor in network.named_parameters()}
    read = {node.name: str(node.args[0]) for node in network.nodes if node.op == "param"}
    names = {node: first[id(tensors[name])] for node, name in read.items() if id(tensors[name]) in first}
    each: dict[str, float] = {}
    for node in network.nodes:
        if node.op.startswith(("aten.conv", "aten.linear")) and node.args[1].name in names:
            weight, out = values[node.args[1].name], values[node.name]
            name = names[node.args[1].name]
            each[name] = each.get(name, 0.0) + out.numel() / len(weight)
    return each


def _lacking(network: Network, branch: Branch) -> set[str]:
    """Return the tensors that a network has no more without a branch."""
    return set(network.tensors()) - set(without(network, [branch]).tensors())
