"""What is cut where: positions along axes, and nothing about operators.

The repairs beside the rules of the operators (`cprune.channels.rules`) ask a `Cut` for the lengths that are left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cprune.channels.graph import Graph
from cprune.channels.labels import Array, Spread
from cprune.network.node import Node


class Cut:
    """What is left of every value when some classes go."""

    def __init__(self, graph: Graph, classes: Array) -> None:
        """Take the classes that go; `graph` knows where they are."""
        self.graph = graph
        self._stays = np.ones(classes.max(initial=-1) + 2, dtype=np.bool_)  # by class; the last one for all above it
        self._stays[classes] = False

    def kept(self, classes: Array) -> NDArray[np.bool_]:
        """Return which of these positions stay."""
        return self._stays[np.minimum(classes, len(self._stays) - 1)]

    def spares(self, spread: Spread) -> bool:
        """Tell whether nothing goes from a value."""
        return bool(self.kept(spread.labels).all())

    def length(self, spread: Spread, axis: int) -> int:
        """Return the length of a value along an axis after the cut."""
        return int(self.kept(spread.labels).sum()) if spread.varies(axis) else spread.shape[axis]

    def before(self, spread: Spread, axis: int, position: int) -> int:
        """Return how many of the first `position` entries along an axis stay."""
        return int(self.kept(spread.labels[:position]).sum()) if spread.varies(axis) else position


Repair = Callable[[Cut, Node, "Spread | None", "tuple[Spread, ...]"], Node]
"""Returns a node with the constants that depend on widths made right.

It gets the labels of the node's first argument (None if that is not one tensor) and of each tensor that it returns, all
as they are before the cut.
"""


def with_argument(node: Node, index: int, value: object) -> Node:
    """Return the node with one of its positional arguments replaced."""
    return dataclasses.replace(node, args=(*node.args[:index], value, *node.args[index + 1 :]))
