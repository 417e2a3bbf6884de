"""From a `Network` to the calls that the compiled model makes, and the exact table task <-> call <-> layer.

BatchNorm is folded into the convolution before it; bias, one residual addition and one activation ride along with
their convolution; chains of element-wise operators, slices, paddings and concatenations become one call.  Values
between calls are blocked (see `cprune.tuner.programs.workload`) and stay so until an operator needs them plain.  What
has no form here is imported operator by operator through TVM's own front end (`cprune.compiling.tvm_import`).

Weights keep their names: a call lists the layers whose weights it reads, so that nothing is ever guessed by order or
by equal cost (the released CPrune maps tasks to layers by position).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, float32

from cprune.compiling.kinds import Stored, Value
from cprune.compiling.lowered import Layout, Lowered
from cprune.compiling.operators import LOWERINGS
from cprune.compiling.quantized import joined_means
from cprune.compiling.values import Values
from cprune.network.halving import is_to_single
from cprune.network.network import Network
from cprune.network.node import Node, find_refs, operator_name

SHAPE_ALONE = frozenset(
    f"{how}{what}{like}"
    for what in ("zeros", "ones", "full")
    for how, like in (("", ""), ("new_", ""), ("", "_like"))
) | {"arange", "eye", "linspace", "scalar_tensor"}  # fmt: skip
"""Operators whose result does not depend on the numbers that they read."""


def lower(network: Network, example_inputs: Sequence[Tensor], layout: Layout | int) -> Lowered:
    """Return the calls of `network` for inputs of exactly these shapes, in this layout (a number: its block).

    Raises UserError for an operator that neither we nor TVM's importer can compile, naming it and its place.
    """
    layout = Layout(layout) if isinstance(layout, int) else layout
    values = Values(network, tuple(example_inputs), layout)
    inputs, outputs = [], []
    for node in values.nodes:
        if node.op == "input":
            shape = values.shape(node.name)
            values.by_name[node.name] = Stored(node.name, shape, 0)
            inputs.append((node.name, shape))
        elif node.op == "output":
            stored = [values.stored(ref, 0) for ref in find_refs(node.args)]
            outputs += [(value.name, value.shape) for value in stored]
        elif node.op != "param":
            example = values.examples[node.name]
            if _is_constant(values, node):
                values.constants.add(node.name)
            elif isinstance(example, Tensor) or (isinstance(example, (tuple, list)) and node.op != "getitem"):
                values.by_name[node.name] = _lowered(values, node)
    calls = joined_means(values, [name for name, _ in outputs])
    return Lowered(tuple(inputs), calls, tuple(outputs), layout, values.channels, values.weights)


def _lowered(values: Values, node: Node) -> Value:
    operator = LOWERINGS.get(operator_name(node))
    value = operator(values, node) if operator is not None and _is_float(values, node) else None
    return values.foreign(node) if value is None else value


def _is_constant(values: Values, node: Node) -> bool:
    """Tell whether a node depends on weights and shapes alone."""
    if operator_name(node) in SHAPE_ALONE:
        return True
    refs = [n for n in node.refs() if not isinstance(values.examples[n], (int, float))]
    return bool(refs) and all(n in values.params or n in values.constants for n in refs)


def _is_float(values: Values, node: Node) -> bool:
    """Tell whether every tensor that a node reads, weights aside, is of float32 numbers, or was and is so again."""
    if is_to_single(node):
        return node.args[0].name in values.halved
    computed = [values.examples.get(n) for n in node.refs() if n not in values.params and n not in values.constants]
    return all(not isinstance(v, Tensor) or v.dtype == float32 for v in computed)
