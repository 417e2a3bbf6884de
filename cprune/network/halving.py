"""A network whose layers read numbers of 16 bits: nothing to calibrate.

bfloat16 has more than two decimal digits and the range of float32; float16 has more than three, up to 65,504.  Weights
and what layers read are rounded, sums stay in float32; PyTorch computes what the compiled kernels will, but for sums
that these have in float16.  Where a target does not multiply such numbers the network is compiled as it stands.
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
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""PyTorch's types of 16 bits by their precision."""
_TO_HALF = {precision: ("dtype", ("dtype", str(kind).removeprefix("torch."))) for precision, kind in HALVES.items()}
_TO_SINGLE = ("dtype", ("dtype", "float32"))


def halved(
    network: Network, example: Sequence[Tensor], floats: Collection[str] = (), precision: str = "bf16"
) -> Network:
    """Return a copy of the network in bf16 or fp16 for inputs like `example`; layers of these names stay in float32.

    Layers that have no form in it stay as they are, see `cprune.network.quantizing.quantized`.
    """
    plain = folded(network).eval()
    by_name, tensors = {node.name: node for node in plain.nodes}, plain.tensors()
    layers = [name for name in layers_of(plain, example) if _layer(by_name[name], by_name) not in floats]
    with torch.no_grad():
        for name in layers:
            weight = weight_of(by_name[name], by_name, tensors)
            if precision == "fp16" or weight.dim() == 2 or weight.shape[1] > 1:  # a depthwise one of bfloat16 does not
                weight.copy_(weight.to(HALVES[precision]))
    rounded = places(plain, layers, PASSED)
    nodes = {
        name: (
            Node(f"{name}.half", "aten._to_copy.default", (Ref(name),), (_TO_HALF[precision],)),
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


def halves_in(network: Network) -> str:
    """Return bf16 or fp16 for a network that rounds values to bfloat16 or float16, "" for any other."""
    return next(filter(None, map(half_of, network.nodes)), "")


def half_of(node: Node) -> str:
    """Return bf16 or fp16 for a node that makes such numbers of a value, and does nothing else; "" for any other."""
    if operator_name(node) != "_to_copy":
        return ""
    return next((precision for precision, to in _TO_HALF.items() if node.kwargs == (to,)), "")


def is_to_single(node: Node) -> bool:
    """Tell whether a node makes float32 of a value, and nothing else."""
    return operator_name(node) == "_to_copy" and node.kwargs == (_TO_SINGLE,)
