"""Post-training quantization: a network whose layers read bytes, as `fake_quantize` nodes and rounded weights.

    folded    BatchNorm into the convolution before it
    places    which values become bytes: what a convolution or linear layer reads, and what a convolution's sum adds
    ranges    the step of each, from calibration images, by the least squared error
    rounded   weights to 255 steps a channel, symmetric

The result is a `Network` like any other: PyTorch computes what the compiled integers will, and where a target cannot
multiply bytes it is compiled as it stands.  Scheme (Jacob et al. 2018; Nagel et al., "A white paper on neural network
quantization", 2021, sections 2 and 3): one scale and zero point a value, one scale a weight's output channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cprune.network.network import Network
from cprune.network.node import Node, Ref, alive, map_refs, operator_name

LOWEST, HIGHEST = 0, 255
LARGEST = 127
KEPT = 1 << 14
"""Numbers of a value that are kept of each batch for finding its range."""
SHRUNK = tuple(1 - i / 50 for i in range(36))
"""Shares of the whole range that are tried."""
BYTES_PASS = frozenset({"max_pool2d", "dropout", "feature_dropout"})
"""Operators whose output is of the same bytes as their input."""


@dataclass(frozen=True)
class Range:
    """The smallest and the largest number that bytes stand for."""

    low: float
    high: float

    @property
    def step(self) -> tuple[float, int]:
        """Return scale and zero point of the 256 bytes; 0 is one of the numbers."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = max((high - low) / HIGHEST, 1e-12)
        return scale, min(HIGHEST, max(LOWEST, round(-low / scale)))


def quantized(network: Network, batches: Iterable[Sequence[Tensor]]) -> Network:
    """Return a copy of the network in integers, its ranges taken from `batches` of inputs.

    Layers that have no form in integers (grouped convolutions, transposed ones, recurrent ones) stay as they are.
    """
    plain = folded(network)
    ranges = calibrated(plain, places(plain), batches)
    steps = {name: found.step for name, found in ranges.items()}
    return rounded(inserted(plain, steps))


def folded(network: Network) -> Network:
    """Return a copy in which every BatchNorm that alone reads a convolution is part of it."""
    by_name = {node.name: node for node in network.nodes}
    uses = Counter(name for node in network.nodes for name in node.refs())
    tensors = {name: _copied(tensor) for name, tensor in network.tensors().items()}
    nodes: list[Node] = []
    instead: dict[str, Ref] = {}
    for node in network.nodes:
        if operator_name(node) == "batch_norm":
            conv = by_name.get(node.args[0].name)
            if conv is not None and _takes_norm(conv, by_name, uses):
                weight, bias = _with_norm(conv, node, by_name, tensors)
                path = by_name[conv.args[1].name].args[0]
                tensors[path] = nn.Parameter(weight)
                own = f"{path.rpartition('.')[0]}.bias".lstrip(".")
                tensors[own] = nn.Parameter(bias)
                place = next(i for i, known in enumerate(nodes) if known.name == conv.name)
                of_bias = Node(f"{conv.name}_bias", "param", (own,))
                args = (*conv.args[:2], Ref(of_bias.name), *conv.args[3:])
                nodes[place : place + 1] = [of_bias, replace(nodes[place], args=args)]
                instead[node.name] = Ref(conv.name)
                continue
        nodes.append(replace(node, args=map_refs(node.args, lambda ref: instead.get(ref.name, ref)),
                             kwargs=map_refs(node.kwargs, lambda ref: instead.get(ref.name, ref))))  # fmt: skip
    return _network(alive(nodes), tensors, network)


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


def places(network: Network) -> list[str]:
    """Return the names of the values to round, in the order of the nodes."""
    by_name = {node.name: node for node in network.nodes}
    uses = Counter(name for node in network.nodes for name in node.refs())
    tensors = network.tensors()
    found: set[str] = set()
    for node in network.nodes:
        if _is_layer(node, by_name):
            found.add(_source(node.args[0].name, by_name))
        elif operator_name(node) == "add" and all(isinstance(a, Ref) for a in node.args[:2]):
            joined = _joined(node, by_name, uses, tensors)
            found.update(_source(ref.name, by_name) for ref in node.args[:2] if joined and ref != joined)
    return [node.name for node in network.nodes if node.name in found]


def _is_layer(node: Node, by_name: Mapping[str, Node]) -> bool:
    kind = operator_name(node)
    if (
        kind not in ("conv2d", "linear")
        or not isinstance(node.args[1], Ref)
        or by_name[node.args[1].name].op != "param"
    ):
        return False
    groups = node.args[6] if kind == "conv2d" and len(node.args) > 6 else 1
    return bool(groups == 1 or kind == "conv2d")


def _source(name: str, by_name: Mapping[str, Node]) -> str:
    """Return the value whose bytes the operators before `name` only choose among."""
    while operator_name(by_name[name]) in BYTES_PASS:
        name = by_name[name].args[0].name
    return name


def _joined(node: Node, by_name: Mapping[str, Node], uses: Counter[str], tensors: Mapping[str, Tensor]) -> Ref | None:
    """Return the convolution that takes a sum along when the network is lowered, None where neither does."""
    own = [
        ref
        for ref in node.args[:2]
        if operator_name(by_name[ref.name]) == "conv2d"
        and uses[ref.name] == 1
        and _is_layer(by_name[ref.name], by_name)
    ]
    size = lambda ref: tensors[by_name[by_name[ref.name].args[1].name].args[0]].numel()  # noqa: E731
    return max(own, key=size, default=None)


def calibrated(network: Network, names: Sequence[str], batches: Iterable[Sequence[Tensor]]) -> dict[str, Range]:
    """Return the range of each value that loses least by being rounded, over all batches."""
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    ends: dict[str, list[float]] = {name: [0.0, 0.0] for name in names}

    def watch(name: str, value: Tensor) -> Tensor:
        if name in kept:
            flat = value.detach().flatten()
            low, high = (float(end) for end in torch.aminmax(flat))
            ends[name] = [min(ends[name][0], low), max(ends[name][1], high)]
            kept[name].append(flat[:: max(1, len(flat) // KEPT)].clone())
        return value

    with torch.no_grad():
        for batch in batches:
            for node in network.nodes:
                if node.op == "input" and node.name in kept:
                    watch(node.name, batch[[n.name for n in network.nodes if n.op == "input"].index(node.name)])
            network.run_edited(tuple(batch), watch)
    return {name: _least_error(torch.cat(kept[name]), *ends[name]) for name in names}


def _least_error(values: Tensor, low: float, high: float) -> Range:
    """Return the part of a range that loses least: a few outliers are cut for smaller steps of all others."""
    values = values.double()

    def error(share: float) -> float:
        scale, zero = Range(share * low, share * high).step
        whole = (values / scale + zero).round().clamp(LOWEST, HIGHEST)
        return float(((whole - zero) * scale - values).square().mean())

    share = min(SHRUNK, key=error)
    return Range(share * low, share * high)


def inserted(network: Network, steps: Mapping[str, tuple[float, int]]) -> Network:
    """Return the network in which the readers of each named value read it rounded to its step's bytes."""
    nodes: list[Node] = []
    rounded_names = {name: Ref(f"{name}_bytes") for name in steps}
    for node in network.nodes:
        args, kwargs = (
            map_refs(part, lambda ref: rounded_names.get(ref.name, ref)) for part in (node.args, node.kwargs)
        )
        nodes.append(replace(node, args=args, kwargs=kwargs))
        if node.name in steps:
            scale, zero = steps[node.name]
            args = (Ref(node.name), scale, zero, LOWEST, HIGHEST)
            nodes.append(Node(rounded_names[node.name].name, "aten.fake_quantize_per_tensor_affine.default", args))
    return _network(nodes, network.tensors(), network)


def rounded(network: Network) -> Network:
    """Return the network with the weights of its layers at the numbers that int8 can hold, in place."""
    by_name = {node.name: node for node in network.nodes}
    tensors = network.tensors()
    for node in network.nodes:
        if _is_layer(node, by_name):
            weight = tensors[by_name[node.args[1].name].args[0]]
            with torch.no_grad():
                weight.copy_(to_steps(weight))
    return network


def to_steps(weight: Tensor) -> Tensor:
    """Return a weight [O, …] rounded to LARGEST steps on both sides of 0, which its largest magnitude spans."""
    largest = weight.detach().double().flatten(1).abs().amax(1)
    scale = (torch.where(largest > 0, largest, 1.0) / LARGEST).reshape(-1, *[1] * (weight.dim() - 1))
    return ((weight.double() / scale).round() * scale).to(weight.dtype)


def _network(nodes: Sequence[Node], tensors: Mapping[str, Tensor], like: Network) -> Network:
    read = {node.args[0] for node in nodes if node.op == "param"}
    constants = set(like.constants())
    return Network(nodes, {n: t for n, t in tensors.items() if n in read}, tuple(n for n in constants if n in read))
