"""Damage tables: what a network loses when one group goes to a width, all others whole.

The damage is the mean Kullback-Leibler divergence from the parent's predictions, in nats an image: smoother than an
accuracy, so that a few hundred images tell widths apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cprune.channels.compensation import compensated
from cprune.channels.elimination import Orders
from cprune.channels.graph import Graph
from cprune.channels.statistics import Statistics
from cprune.channels.surgery import Removed
from cprune.network.network import Network
from cprune.targets.errors import UserError

Damage = dict[tuple[str, int], float]
"""Damage in nats by (group id, channels that are left); infinite where the predictions are no numbers."""

BATCH = 128


def damage_table(
    network: Network,
    graph: Graph,
    options: Mapping[str, Sequence[int]],
    orders: Orders,
    statistics: Statistics,
    images: Tensor,
    parent_logits: Tensor,
    recalibrate: Callable[[Network], None],
    on_entry: Callable[[str, int, float], None] = lambda group, width, damage: None,
) -> Damage:
    """Return the damage of every group in `options` at each of its widths; of what is narrower never less.

    A group is cut to a width by its order in `orders`, compensated (`statistics`), and `recalibrate` puts the
    statistics of BatchNorm right in place.  `parent_logits` [N, classes] are the whole network's for `images`
    [N, …], which are what the model takes.  `on_entry` hears of every entry as it was measured.  UserError for a
    width that a group has not.
    """
    table: Damage = {}
    for group_id, widths in options.items():
        measured: dict[int, float] = {}
        for width in sorted(set(widths), reverse=True):
            removed = cut_to(graph, orders, {group_id: width})
            damage = 0.0
            if removed:
                smaller = compensated(network, graph, removed, statistics)
                recalibrate(smaller)
                damage = divergence(parent_logits, predictions(smaller, images))
            measured[width] = damage
            on_entry(group_id, width, damage)
        rising = never_falling(list(measured.values()))
        table.update({(group_id, width): damage for width, damage in zip(measured, rising, strict=True)})
    return table


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


def predictions(network: Network, images: Tensor, batch: int = BATCH) -> Tensor:
    """Return float32 logits [N, classes] in evaluation mode, the mode that the network is left in."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(part) for part in torch.split(images, batch)]).float()


def divergence(parent: Tensor, other: Tensor) -> float:
    """Return the mean of KL(parent || other) in nats over two sets of logits [N, classes]; infinite for no number."""
    found = F.kl_div(F.log_softmax(other, 1), F.log_softmax(parent, 1), reduction="batchmean", log_target=True).item()
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
