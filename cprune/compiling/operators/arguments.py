"""The arguments of a node, read as the operators want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cprune.network.node import Node


def filled(node: Node, defaults: Sequence[Any], required: int) -> list[Any]:
    """Return the positional arguments of a node, `required` ones and the rest with missing ones filled in."""
    return [*node.args, *defaults[max(0, len(node.args) - required) :]]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Return a number for both axes of a plane, or the numbers of each, as two."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))
