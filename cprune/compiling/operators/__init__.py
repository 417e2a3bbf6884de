"""How each operator is lowered: one function an operator, found by the name that its channel rule has too."""

from __future__ import annotations

from collections.abc import Mapping

from cprune.compiling.operators.elementwise import ELEMENTWISE
from cprune.compiling.operators.layers import LAYERS
from cprune.compiling.operators.moves import MOVES
from cprune.compiling.operators.pools import POOLS
from cprune.compiling.operators.quantizing import COPIES, QUANTIZING
from cprune.compiling.values import Lowering

LOWERINGS: Mapping[str, Lowering] = {**LAYERS, **ELEMENTWISE, **MOVES, **POOLS, **QUANTIZING, **COPIES}
"""The lowering of every operator that has a form of ours, by its name without the overload (`operator_name`)."""
