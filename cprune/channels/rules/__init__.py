"""What every operator does to channels: its rule, how they travel through it, and its repair, when some of them go.

A rule is applied to labels instead of numbers; an operator without one freezes what it reads and returns.  A repair
makes right the constants of a node that follow from widths; most operators need none.  Both stand side by side:
convolutions, linear layers and their like in `layers`, sums and activations in `elementwise`, operators that only move
values about in `moves`, those that sum or average over channels in `products`.
"""

from __future__ import annotations

from cprune.channels.cut import Cut, Repair
from cprune.channels.flow import Rule
from cprune.channels.rules.elementwise import ELEMENTWISE_RULES
from cprune.channels.rules.layers import LAYER_REPAIRS, LAYER_RULES
from cprune.channels.rules.moves import MOVE_REPAIRS, MOVE_RULES
from cprune.channels.rules.products import PRODUCT_REPAIRS, PRODUCT_RULES
from cprune.network.node import Node, Ref, operator_name

RULES: dict[str, Rule] = {**LAYER_RULES, **ELEMENTWISE_RULES, **MOVE_RULES, **PRODUCT_RULES}
"""The rule of every operator that has one, by its `operator_name`."""

REPAIRS: dict[str, Repair] = {**LAYER_REPAIRS, **MOVE_REPAIRS, **PRODUCT_REPAIRS}
"""The repair of every operator that needs one, by the same names."""


def repaired(cut: Cut, node: Node) -> Node:
    """Return the node as it has to be after a cut; itself where nothing goes from what it reads and returns."""
    repair, out = REPAIRS.get(operator_name(node)), cut.graph.values.get(node.name, ())
    if repair is None or not out:
        return node
    first = node.args[0] if node.args else None
    x = cut.graph.values.get(first.name, ()) if isinstance(first, Ref) else ()
    if all(map(cut.spares, (*x, *out))):
        return node  # also where a rule did not know this use and froze it
    return repair(cut, node, x[0] if len(x) == 1 else None, out)
