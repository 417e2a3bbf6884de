"""Weights that a model computes from its parameters at every run: computed once, so that they can be sliced.

Weight standardisation, weight and spectral normalisation and other parametrisations are of this kind.  In evaluation
the result is the same; fine-tuning trains the computed weight itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cprune.network.network import Network
from cprune.network.node import Node, Ref, alive

LAYERS = frozenset(
    f"aten.{name}"
    for name in (
        *("conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding"),
        *("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input", "linear.default"),
    )
)


def computed_once(nodes: Sequence[Node], tensors: dict[str, Tensor]) -> list[Node]:
    """Return the nodes with the weights of layers as parameters where they follow from parameters alone.

    `tensors` gets those parameters, named "….computed_weight", and loses what nothing reads any more.
    """
    by_name = {node.name: node for node in nodes}
    sources = _sources(nodes)
    computed = dict.fromkeys(
        node.args[1].name
        for node in nodes
        if node.op in LAYERS
        and isinstance(node.args[1], Ref)
        and by_name[node.args[1].name].op != "param"
        and sources[node.args[1].name]
    )
    if not computed:
        return list(nodes)
    needed = {name: _before(name, by_name) for name in computed}
    params: dict[str, Node] = {}
    for name, before in needed.items():
        own = [node for node in nodes if node.name in before]
        value = Network([*own, Node("output", "output", (Ref(name),))], tensors)()
        trained = any(tensors[param].requires_grad for param in sources[name] or ())
        path = _named_after(value, sorted(sources[name] or ()), tensors)
        with torch.no_grad():
            tensors[path] = nn.Parameter(value.detach().clone(), trained)
        params[name] = Node(name, "param", (path,))
    changed = alive([params.get(node.name, node) for node in nodes])
    read = {node.args[0] for node in changed if node.op == "param"}
    for gone in {source for name in computed for source in sources[name] or ()} - read:
        del tensors[gone]
    return changed


def _sources(nodes: Sequence[Node]) -> dict[str, frozenset[str] | None]:
    """Return the tensors of the model that each value follows from; None if it depends on an input or on chance."""
    sources: dict[str, frozenset[str] | None] = {}
    for node in nodes:
        tensors: frozenset[str] | None = frozenset({str(node.args[0])}) if node.op == "param" else frozenset()
        for ref in node.refs():
            more = sources[ref]
            tensors = None if tensors is None or more is None else tensors | more
        chance = any(word in node.op for word in ("rand", "dropout", "bernoulli", "normal_"))
        sources[node.name] = None if node.op == "input" or chance else tensors
    return sources


def _before(name: str, by_name: dict[str, Node]) -> set[str]:
    """Return the names of the nodes that a value follows from, and its own."""
    before, todo = set[str](), [name]
    while todo:
        node = todo.pop()
        if node not in before:
            before.add(node)
            todo.extend(by_name[node].refs())
    return before


def _named_after(value: Tensor, sources: Sequence[str], tensors: dict[str, Tensor]) -> str:
    """Return a free name beside the parameter that has the weight's shape, or else beside the first."""
    alike = [name for name in sources if tensors[name].shape == value.shape]
    owner = (alike or sources)[0].rpartition(".")[0].partition("parametrizations.")[0].rstrip(".")
    path = f"{owner}.computed_weight" if owner else "computed_weight"
    while path in tensors:
        path += "_"
    return path
