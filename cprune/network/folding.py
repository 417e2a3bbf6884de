"""BatchNorm folded into the convolution before it: a network that answers the same with one operator less a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from cprune.network.network import Network
from cprune.network.node import Node, Ref, alive, map_refs, operator_name


def folded(network: Network) -> Network:
    """Return a copy in which every BatchNorm that alone reads a convolution is part of it."""
    by_name = {node.name: node for node in network.nodes}
    conv_of = {norm: conv for conv, norm in norms(network).items()}
    tensors = {name: _copied(tensor) for name, tensor in network.tensors().items()}
    nodes: list[Node] = []
    instead: dict[str, Ref] = {}
    for node in network.nodes:
        if node.name in conv_of:
            conv = by_name[conv_of[node.name]]
            weight, bias = _with_norm(conv, node, by_name, tensors)
            path = by_name[conv.args[1].name].args[0]
            tensors[path] = nn.Parameter(weight)
            own = f"{path.rpartition('.')[0]}.bias".lstrip(".")
            tensors[own] = nn.Parameter(bias)
            place = next(i for i, each in enumerate(nodes) if each.name == conv.name)
            of_bias = Node(f"{conv.name}_folded_bias", "param", (own,))
            known = nodes[place]  # what it reads may have been folded already
            args = (*known.args[:2], Ref(of_bias.name), *known.args[3:])
            nodes[place : place + 1] = [of_bias, replace(known, args=args)]
            instead[node.name] = Ref(conv.name)
            continue
        nodes.append(replace(node, args=map_refs(node.args, lambda ref: instead.get(ref.name, ref)),
                             kwargs=map_refs(node.kwargs, lambda ref: instead.get(ref.name, ref))))  # fmt: skip
    return with_nodes(network, alive(nodes), tensors)


def norms(network: Network) -> dict[str, str]:
    """Return the BatchNorm that alone reads each convolution and can be folded into it, node names by node name."""
    by_name = {node.name: node for node in network.nodes}
    uses = Counter(name for node in network.nodes for name in node.refs())
    return {
        node.args[0].name: node.name
        for node in network.nodes
        if operator_name(node) == "batch_norm" and _takes_norm(by_name[node.args[0].name], by_name, uses)
    }


def _copied(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


def _takes_norm(conv: Node, by_name: Mapping[str, Node], uses: Counter[str]) -> bool:
    if operator_name(conv) != "conv2d" or uses[conv.name] != 1 or by_name[conv.args[1].name].op != "param":
        return False
    weight = conv.args[1].name
    bias = conv.args[2] if len(conv.args) > 2 else None
    return uses[weight] == 1 and (bias is None or by_name[bias.name].op == "param")


def _with_norm(
    conv: Node, norm: Node, by_name: Mapping[str, Node], tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    def tensor(ref: Ref | None) -> Tensor | None:
        return None if ref is None else tensors[by_name[ref.name].args[0]].detach().double()

    gamma, beta, mean, variance = (tensor(ref) for ref in norm.args[1:5])
    assert mean is not None
    assert variance is not None
    scale = (1.0 if gamma is None else gamma) / torch.sqrt(variance + norm.args[7])
    weight, before = tensor(conv.args[1]), tensor(conv.args[2] if len(conv.args) > 2 else None)
    assert weight is not None
    bias = ((0.0 if before is None else before) - mean) * scale + (0.0 if beta is None else beta)
    return (weight * scale.reshape(-1, *[1] * (weight.dim() - 1))).float(), bias.float()


def with_nodes(network: Network, nodes: Sequence[Node], tensors: Mapping[str, Tensor]) -> Network:
    """Return a network of other nodes, with those of `tensors` that they read."""
    read = {node.args[0] for node in nodes if node.op == "param"}
    constants = tuple(name for name in network.constants() if name in read)
    return Network(nodes, {name: tensor for name, tensor in tensors.items() if name in read}, constants)
