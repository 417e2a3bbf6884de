"""Second moments of what layers read, from a few hundred images: what closed-form repairs are worked out from.

Only layers that mix channels of a group count: convolutions and linear layers, not in groups.  A layer after `flatten`
reads every channel at many positions of its axis; the moments are pooled over those, so that what is found for a
channel holds at each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cprune.channels.flow import argument
from cprune.channels.graph import Graph, Layer
from cprune.channels.labels import Array
from cprune.channels.least_squares import Matrix
from cprune.network.network import Network
from cprune.network.node import Ref

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
    sums = {key: _Sums(axis, along) for key, (axis, along) in _read(network, graph).items()}
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
        for part in images.split(batch) if isinstance(images, Tensor) else images:
            chosen.clear()
            network.run_edited((part,), look)
    found: dict[str, list[_Sums]] = {}
    for layer in graph.layers.values():
        for key in _keys(network, layer):
            if key in sums and sums[key].count:
                found.setdefault(layer.weight, []).append(sums[key])
    return Statistics({weight: _moments(several) for weight, several in found.items()})


class _Sums:
    """Sums over what one value held so far, along one axis."""

    def __init__(self, axis: int, along: Array) -> None:
        self.axis = axis
        self.columns = _columns(along)
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


def _read(network: Network, graph: Graph) -> dict[tuple[str, str], tuple[int, Array]]:
    """Return, by value and weight, the axis (from the end) along which a mixing layer reads channels of groups."""
    grouped = np.concatenate([*graph.classes.values(), np.zeros(0, dtype=np.int64)])
    tensors = network.tensors()
    found: dict[tuple[str, str], tuple[int, Array]] = {}
    for layer in graph.layers.values():
        if layer.in_axis is None or not _mixes(network, layer):
            continue
        along = graph.axes[layer.weight, layer.in_axis]
        if not np.isin(along, grouped).any() or len(_columns(along)) > MOST_COLUMNS:
            continue
        spatial = tensors[layer.weight].dim() - 2
        for key in _keys(network, layer):
            found[key] = (-1 - spatial, along)
    return found


def _mixes(network: Network, layer: Layer) -> bool:
    """Tell whether every output channel of a layer reads every input channel."""
    calls = [node for node in network.nodes if node.name in layer.calls]
    return all("linear" in node.op or argument(node, 6, "groups", 1) == 1 for node in calls)


def _keys(network: Network, layer: Layer) -> list[tuple[str, str]]:
    """Return the values that a layer reads, each with the layer's weight."""
    calls = (node for node in network.nodes if node.name in layer.calls)
    return [(node.args[0].name, layer.weight) for node in calls if isinstance(node.args[0], Ref)]
