"""What a look before training does not show: a layer that is cut to a sliver stays one, however little it did before.

Damage before training ranks what can go without training.  Long training brings most of it back, and then what counts
is how much is left of each layer: of five weightings tried on the built-in network, at equal latency and with 30 epochs
of training, damage alone (a quarter left of the cheap layers, three quarters of others) and balance alone both lost
more than the two together, which were as good as half of every width.  So every width has a price beside its damage,
the same for all layers: the share that it lacks over the share that is left, 1 for a half, 3 for a quarter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cprune.channels.graph import Graph

BALANCE = 1.0  # times the damage of all groups at half of their widths: so much do the prices of these make
BRANCH = 1.5
"""Price of a residual branch, the first of many.  Of a 15-block ResNet the five cheapest ones cost as much after two
epochs of training as six groups of inner channels at half.  Those that come after cost more (`Problem.of_depth`): of 6
blocks two cost as much as narrower layers at the same latency, and the third twice as much (0.042 against 0.029 nats
after six epochs); of 9 blocks four cost less than three or five (0.23, 0.26, 0.31 nats at 0.465 of the latency)."""


def balanced(
    graph: Graph,
    options: Mapping[str, Sequence[int]],
    damage: Mapping[tuple[str, int], float],
) -> tuple[dict[tuple[str, int], float], float]:
    """Return the damage of the widths with their prices added, and the price of a residual branch in the same unit.

    `options` are the widths of every group, the whole one first.  A group that several layers write, as those of a
    residual stream, has the price of as many layers.
    """
    halves = {group: _nearest_half(widths) for group, widths in options.items() if len(widths) > 1}
    known = {group: damage.get((group, width), math.inf) for group, width in halves.items()}
    known = {group: one for group, one in known.items() if math.isfinite(one)}
    prices = sum(_price(graph, group, options[group][0], halves[group]) for group in known)
    unit = BALANCE * sum(known.values()) / prices if prices else 0.0
    groups = {
        (group, width): one + unit * _price(graph, group, options[group][0], width)
        for (group, width), one in damage.items()
    }
    return groups, unit * BRANCH


def _nearest_half(widths: Sequence[int]) -> int:
    return min(widths[1:], key=lambda width: abs(width - widths[0] / 2))


def _price(graph: Graph, group_id: str, whole: int, width: int) -> float:
    group = graph.group(group_id)
    writers = set(group.layers) - set(group.consumers)  # a depthwise convolution is both, and adds nothing
    return max(1, len(writers)) * (whole / width - 1)
