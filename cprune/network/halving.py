"""A network whose layers read bfloat16: nothing to calibrate, about three decimal digits, the range of float32.

Weights and what layers read are rounded to bfloat16, sums stay in float32; PyTorch computes what the compiled kernels
will.  Where a target does not multiply bfloat16 the network is compiled as it stands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from cprune.network.folding import folded
from cprune.network.network import Network
from cprune.network.node import Node, Ref, operator_name
from cprune.network.quantizing import BYTES_PASS, has_form, places, weight_of, with_readers

PASSED = BYTES_PASS - {"max_pool2d"}
"""Operators before which a value is rounded as well as after them."""
_TO_HALF, _TO_SINGLE = (("dtype", ("dtype", name)) for name in ("bfloat16", "float32"))


def halved(network: Network, example: Sequence[Tensor], floats: Collection[str] = ()) -> Network:
    """Return a copy of the network in bfloat16 for inputs like `example`; the layers of these names stay in float32.

    Layers that have no form in it stay as they are, see `cprune.network.quantizing.quantized`.
    """
    plain = folded(network).eval()
    by_name, tensors = {node.name: node for node in plain.nodes}, plain.tensors()
    layers = [name for name in layers_of(plain, example) if _layer(by_name[name], by_name) not in floats]
    with torch.no_grad():
        for name in layers:
            weight = weight_of(by_name[name], by_name, tensors)
            if weight.dim() == 2 or weight.shape[1] > 1:  # a depthwise kernel keeps float32
                weight.copy_(weight.bfloat16())
    rounded = places(plain, layers, PASSED)
    nodes = {
        name: (
            Node(f"{name}.half", "aten._to_copy.default", (Ref(name),), (_TO_HALF,)),
            Node(f"{name}.single", "aten._to_copy.default", (Ref(f"{name}.half"),), (_TO_SINGLE,)),
        )
        for name in rounded
    }
    return with_readers(plain, nodes)


def _layer(node: Node, by_name: Mapping[str, Node]) -> str:
    """Return the name of the layer that a node's weight belongs to."""
    weight: str = by_name[node.args[1].name].args[0]
    return weight.rpartition(".")[0] or weight


def layers_of(network: Network, example: Sequence[Tensor]) -> list[str]:
    """Return the nodes of all layers that have a form in fewer bits; BatchNorm is folded."""
    by_name, tensors = {node.name: node for node in network.nodes}, network.tensors()
    values = network.values(*example)
    dimensions = {"conv2d": 4, "linear": 2}
    return [
        node.name
        for node in network.nodes
        if has_form(node, by_name, tensors) and values[node.name].dim() == dimensions[operator_name(node)]
    ]


def is_halved(network: Network) -> bool:
    """Tell whether a network rounds values to bfloat16."""
    return any(is_to_half(node) for node in network.nodes)


def is_to_half(node: Node) -> bool:
    """Tell whether a node makes bfloat16 of a value, and nothing else."""
    return operator_name(node) == "_to_copy" and node.kwargs == (_TO_HALF,)


def is_to_single(node: Node) -> bool:
    """Tell whether a node makes float32 of a value, and nothing else."""
    return operator_name(node) == "_to_copy" and node.kwargs == (_TO_SINGLE,)
