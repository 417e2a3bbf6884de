"""Second moments of what layers read, from a few hundred images: what closed-form repairs are worked out from.

Only layers that mix channels of a group count: convolutions and linear layers, not in groups.  A layer after `flatten`
reads every channel at many positions of its axis; the moments are pooled over those, so that what is found for a
channel holds at each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cprune.channels.flow import argument
from cprune.channels.graph import Graph, Layer
from cprune.channels.labels import Array
from cprune.channels.least_squares import Matrix
from cprune.network.network import Network
from cprune.network.node import Node, operator_name

SAMPLES = 4096
"""How many positions of a batch enter the moments of one value; a linear layer after `flatten` has one an image."""
MOST_COLUMNS = 4096
"""A layer with more inputs than this, once pooled, has no statistics: their algebra would take minutes."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What a layer reads, on average over images and positions.

    `gram` float64 [c, c] holds E[x_i x_j], not centred; `mean` float64 has one entry for every position of the
    layer's input axis.  `columns` [c, p] says at which positions of that axis each of the c inputs lies (p = 1 but
    after `flatten`), `classes` [c] what class of the graph it is.
    """

    gram: Matrix
    mean: Matrix
    columns: Array
    classes: Array


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments by the state-dict name of the layer's weight; layers with tied weights share them."""

    moments: Mapping[str, Moments] = field(repr=False)

    def of(self, layer: Layer) -> Moments | None:
        """Return the moments of what a layer reads; None where it mixes no channels of any group."""
        return self.moments.get(layer.weight)


def statistics(
    network: Network, graph: Graph, images: Tensor | Iterable[Tensor], batch: int = 128, seed: int = 0
) -> Statistics:
    """Return the moments of what every mixing layer reads, over `images` as the model takes them.

    `images` is one tensor, cut into batches, or batches.  Of every value and batch at most SAMPLES positions are
    looked at, drawn by `seed`.  A layer that read nothing but NaN or infinity is left out.  `graph` must be
    `analyse(network, …)`.
    """
    reads = _reads(network, graph)
    sums = {
        (value, axis): _Sums(axis, graph.axes[layer.weight, layer.in_axis])
        for layer, values, axis in reads
        if layer.in_axis is not None
        for value in values
    }
    by_value: dict[str, list[_Sums]] = {}
    for (value, _), one in sums.items():
        by_value.setdefault(value, []).append(one)
    random = torch.Generator().manual_seed(seed)
    chosen: dict[int, Tensor] = {}

    def some(count: int) -> Tensor:
        if count not in chosen:
            chosen[count] = torch.randperm(count, generator=random)[:SAMPLES]
        return chosen[count]

    def look(name: str, value: object) -> object:
        for one in by_value.get(name, ()):
            if isinstance(value, Tensor):
                one.add(_rows(value, one.axis, some))
        return value

    with torch.no_grad():
        layout: torch.memory_format | None = None
        for part in torch.split(images, batch) if isinstance(images, Tensor) else images:
            layout = layout or _layout(network, part)
            chosen.clear()
            network.run_edited((part.contiguous(memory_format=layout),), look)
    found: dict[str, Moments] = {}
    for layer, values, axis in reads:
        seen = [sums[value, axis] for value in values if sums[value, axis].count]
        if seen:
            found[layer.weight] = _moments(seen)
    return Statistics(found)


def _layout(network: Network, images: Tensor) -> torch.memory_format:
    """Return the layout of images that is fastest on a CPU and that the network can take."""
    if images.dim() == 4:
        try:
            network.run_edited((images[:2].contiguous(memory_format=torch.channels_last),), lambda name, value: value)
            return torch.channels_last
        except RuntimeError:  # a view of the plane
            pass
    return torch.contiguous_format


def _rows(value: Tensor, axis: int, some: Callable[[int], Tensor]) -> Tensor:
    """Return a value as rows [positions, channels]; of many positions only those that `some(count)` names."""
    moved = value.movedim(axis, -1)
    shape = moved.shape[:-1]
    count = math.prod(shape)
    if count <= SAMPLES:
        rows = moved.reshape(count, moved.shape[-1])
    else:
        rows = moved[torch.unravel_index(some(count).to(value.device), shape)]
    return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()


class _Sums:
    """Sums over what one value held so far, along one axis."""

    def __init__(self, axis: int, along: Array) -> None:
        self.axis = axis
        self.columns = columns(along)
        self.classes = along[self.columns[:, 0]]
        self.count = 0
        self.gram = np.zeros((len(self.columns), len(self.columns)))
        self.total = np.zeros(len(along))

    def add(self, rows: Tensor) -> None:
        """Take rows [n, positions of the axis]; those that are not finite do not count."""
        gram = self._gram(rows)
        if not bool(gram.isfinite().all()):
            rows = rows[rows.isfinite().all(1)].double()
            gram = self._gram(rows)
            if not bool(gram.isfinite().all()):
                return
        self.count += len(rows)
        self.gram += gram.double().cpu().numpy()
        self.total += rows.sum(0, dtype=torch.float64).cpu().numpy()

    def _gram(self, rows: Tensor) -> Tensor:
        inputs, each = self.columns.shape
        if each > 1:
            index = torch.from_numpy(self.columns.T.reshape(-1)).to(rows.device)
            rows = rows.index_select(1, index).view(-1, inputs)
        elif inputs < 2 or not np.array_equal(self.columns[:, 0], np.arange(inputs)):
            rows = rows.index_select(1, torch.from_numpy(self.columns[:, 0]).to(rows.device))
        return rows.T @ rows


def _moments(several: list[_Sums]) -> Moments:
    first = several[0]
    count = sum(one.count for one in several)
    gram = sum((one.gram for one in several), np.zeros_like(first.gram)) / (count * first.columns.shape[1])
    mean = sum((one.total for one in several), np.zeros_like(first.total)) / count
    return Moments((gram + gram.T) / 2, mean, first.columns, first.classes)


def columns(along: Array) -> Array:
    """Return the positions of an axis as inputs [c, p]: p divides how often each class lies along it.

    After `flatten` of a plane of 4 x 4, p is 16: input i has channel i's position t in column t.
    """
    _, counts = np.unique(along, return_counts=True)
    each = int(np.gcd.reduce(counts))
    found = np.argsort(along, kind="stable").reshape(-1, each)
    return np.ascontiguousarray(found[np.argsort(found[:, 0])])


def _reads(network: Network, graph: Graph) -> list[tuple[Layer, tuple[str, ...], int]]:
    """Return a layer for every weight that mixes channels of groups, the values it reads, and the axis from the end.

    Left out are weights that something else reads too, or that layers read in different ways.
    """
    grouped = np.concatenate([*graph.classes.values(), np.zeros(0, dtype=np.int64)])
    nodes = {node.name: node for node in network.nodes}
    tensors = network.tensors()
    by_weight: dict[str, list[Layer]] = {}
    for layer in graph.layers.values():
        by_weight.setdefault(layer.weight, []).append(layer)
    found = []
    for weight, layers in by_weight.items():
        first, calls = layers[0], [nodes[call] for layer in layers for call in layer.calls]
        if first.in_axis is None or any(layer.in_axis != first.in_axis for layer in layers):
            continue
        along = graph.axes[weight, first.in_axis]
        if not np.isin(along, grouped).any() or len(columns(along)) > MOST_COLUMNS:
            continue
        if all(map(_mixes, calls)) and readers(network, weight) <= {node.name for node in calls}:
            values = tuple(dict.fromkeys(node.args[0].name for node in calls))
            found.append((first, values, 1 - tensors[weight].dim()))
    return found


def _mixes(node: Node) -> bool:
    """Tell whether every output channel of a layer's call reads every input channel."""
    return operator_name(node) == "linear" or argument(node, 6, "groups", 1) == 1


def readers(network: Network, tensor: str) -> set[str]:
    """Return the names of the nodes that read a tensor of the model, under any of its names."""
    tensors = network.tensors()
    params = {n.name for n in network.nodes if n.op == "param" and tensors[str(n.args[0])] is tensors[tensor]}
    return {node.name for node in network.nodes if not params.isdisjoint(node.refs())}
