"""Damage tables: what a network loses when one group goes to a width, all others whole.

The damage is the mean Kullback-Leibler divergence from the parent's predictions, in nats an image: smoother than an
accuracy, so that a few hundred images tell widths apart.  What lies before the cut is computed once for all widths,
and keeps its statistics of BatchNorm.

Estimating these again on a few hundred images as they are moves even the whole network, which learnt its own from
varied ones: a ResNet-20 by 0.08 nats, where a halved layer costs 0.03.  So a cut network is compared with the whole
one treated alike, and no cut does no damage.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cprune.channels.compensation import compensated
from cprune.channels.elimination import Orders
from cprune.channels.graph import Graph
from cprune.channels.statistics import Statistics
from cprune.channels.surgery import Removed
from cprune.network.network import Network
from cprune.network.waist import piece, waists
from cprune.targets.errors import UserError
from cprune.training.accuracy import kl
from cprune.training.data import Split
from cprune.training.train import logits, recalibrate

Damage = dict[tuple[str, int], float]
"""Damage in nats by (group id, channels that are left); infinite where the predictions are no numbers."""

MOST_KEPT = 2**28
"""No more numbers than this (1 GiB) are kept of what lies before a cut."""


def damage_table(
    network: Network,
    graph: Graph,
    options: Mapping[str, Sequence[int]],
    orders: Orders,
    statistics: Statistics,
    images: Tensor,
    calibration: Tensor | None = None,
    on_entry: Callable[[str, int, float], None] = lambda group, width, damage: None,
    seed: int = 0,
) -> Damage:
    """Return the damage of every group in `options` at each of its widths; of what is narrower never less.

    A group is cut to a width by its order in `orders` and compensated (`statistics`), the statistics of BatchNorm
    behind it are estimated again on `calibration`, in the whole network as well, and the predictions of both for
    `images` are compared.  Without `calibration` they stay, which takes less than half of the time.  Both are [N, …] as
    the model takes them.  `on_entry` hears of every entry as it was measured.  UserError for a width that a group has
    not.
    """
    table: Damage = {}
    before = _Before(network, graph, images, images[:0] if calibration is None else calibration, seed)
    place = {group.id: i for i, group in enumerate(graph.groups)}
    for group_id in sorted(options, key=lambda one: place.get(one, -1)):
        measured: dict[int, float] = {}
        for width in sorted(set(options[group_id]), reverse=True):
            removed = cut_to(graph, orders, {group_id: width})
            damage = 0.0
            if removed:
                smaller = compensated(network, graph, removed, statistics)
                seen = before.seen_by(smaller)
                damage = divergence(seen.wanted, _behind(smaller, seen.waist, seen.images, seen.calibration, seed))
            measured[width] = damage
            on_entry(group_id, width, damage)
        rising = never_falling(list(measured.values()))
        table.update({(group_id, width): damage for width, damage in zip(measured, rising, strict=True)})
    return table


@dataclass(frozen=True, eq=False)
class _Seen:
    """A waist of the network, its value for the two sets of images, and what the whole network predicts from there."""

    waist: tuple[int, str]
    images: Tensor
    calibration: Tensor
    wanted: Tensor


class _Before:
    """What the whole network computes up to the cut, kept from one entry to the next."""

    def __init__(self, network: Network, graph: Graph, images: Tensor, calibration: Tensor, seed: int) -> None:
        self.network = network
        self.seed = seed
        self.tensors = network.tensors()
        most = MOST_KEPT // (len(images) + len(calibration))
        found = waists(network)
        sizes = {name: math.prod(spreads[0].shape[1:]) for name, spreads in graph.values.items() if len(spreads) == 1}
        self.waists = [waist for waist in found if sizes.get(waist[1], most + 1) <= most]
        self.start, self.images = found[0], (images, calibration)
        self.last = self._from(found[0], images, calibration)

    def seen_by(self, smaller: Network) -> _Seen:
        """Return the values at the last waist up to which `smaller` is the same network."""
        changed = self._first_changed(smaller)
        waist = max((one for one in self.waists if one[0] <= changed), default=self.start)
        if waist != self.last.waist:
            ahead = self.last.waist[0] < waist[0]
            start, parts = (
                (self.last.waist, (self.last.images, self.last.calibration)) if ahead else (self.start, self.images)
            )
            if waist != start:
                middle = piece(self.network, start, waist[1])
                parts = (predictions(middle, parts[0]), predictions(middle, parts[1]) if len(parts[1]) else parts[1])
            self.last = self._from(waist, *parts)
        return self.last

    def _from(self, waist: tuple[int, str], images: Tensor, calibration: Tensor) -> _Seen:
        network = copy.deepcopy(self.network) if len(calibration) else self.network
        return _Seen(waist, images, calibration, _behind(network, waist, images, calibration, self.seed))

    def _first_changed(self, smaller: Network) -> int:
        """Return the number of the first node that computes something else."""
        others = smaller.tensors()
        changed: set[str] = set()
        for i, (node, other) in enumerate(zip(self.network.nodes, smaller.nodes, strict=True)):
            if node.op == "param":
                name = str(node.args[0])
                if not torch.equal(self.tensors[name], others[name]):
                    changed.add(node.name)
            elif node != other or not changed.isdisjoint(node.refs()):
                return i
        return len(smaller.nodes)


def _behind(network: Network, waist: tuple[int, str], images: Tensor, calibration: Tensor, seed: int) -> Tensor:
    """Return what a network predicts from a waist on, BatchNorm behind it estimated again if there are images to."""
    rest = piece(network, waist)
    if len(calibration):
        recalibrate(rest, _split(calibration), seed, images=len(calibration))
    return predictions(rest, images)


def cut_to(graph: Graph, orders: Orders, widths: Mapping[str, int]) -> Removed:
    """Return the channels to remove so that groups have these widths; UserError for a width that a group has not."""
    removed: dict[str, tuple[int, ...]] = {}
    for group_id, width in widths.items():
        channels = graph.group(group_id).channels
        if not 1 <= width <= channels:
            raise UserError(f"group {group_id!r} has {channels} channels and cannot have {width}")
        if width < channels:
            removed[group_id] = tuple(orders[group_id][: channels - width])
    return removed


def predictions(network: Network, images: Tensor) -> Tensor:
    """Return float32 [N, …], what the network returns for images [N, …] as it takes them, in evaluation mode."""
    return logits(network, _split(images))


def _split(images: Tensor) -> Split:
    return Split(images, torch.zeros(len(images), dtype=torch.int64))


def divergence(parent: Tensor, other: Tensor) -> float:
    """Return the mean of KL(parent || other) in nats over two sets of logits [N, classes]; infinite for no number."""
    found = kl(parent, other)
    return max(found, 0.0) if math.isfinite(found) else math.inf


def never_falling(values: Sequence[float]) -> list[float]:
    """Return the nearest sequence that never falls, by least squares: what falls is averaged with what is before it.

    [0, 3, 1, 5] becomes [0, 2, 2, 5].
    """
    blocks: list[tuple[float, int]] = []
    for value in values:
        count = 1
        while blocks and blocks[-1][0] > value:
            before, many = blocks.pop()
            value, count = (before * many + value * count) / (many + count), many + count
        blocks.append((value, count))
    return [value for value, count in blocks for _ in range(count)]
