"""Post-training quantization: a network whose layers read bytes, as `fake_quantize` nodes and rounded weights.

    folded    BatchNorm into the convolution before it
    places    which values become bytes: what a convolution or linear layer reads, and what a convolution's sum adds
    ranges    the step of each, from calibration images, by the least squared error
    rounded   weights to 255 steps a channel, symmetric
    corrected biases, so that every layer's channels keep the mean that they had

The result is a `Network` like any other: PyTorch computes what the compiled integers will, and where a target cannot
multiply bytes it is compiled as it stands.  Scheme (Jacob et al. 2018; Nagel et al., "A white paper on neural network
quantization", 2021, sections 2 and 3; bias correction is its section 3.4): one scale and zero point a value, one scale
a weight's output channel.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cprune.network.folding import folded, with_nodes
from cprune.network.network import Network
from cprune.network.node import Node, Ref, map_refs, operator_name

LOWEST, MIDDLE, HIGHEST = 0, 128, 255
LARGEST = 127
"""Weights are whole multiples of their channel's scale from -LARGEST to LARGEST: no sum of them needs a zero point."""
KEPT = 1 << 14
"""Numbers of a value that are kept of each batch for finding its range."""
SHRUNK = tuple(1 - i / 50 for i in range(36))
"""Shares of the whole range that are tried."""
Step = tuple[float, int]
"""Scale and zero point of a value's bytes."""
BYTES_PASS = frozenset({"max_pool2d", "dropout", "feature_dropout"})
"""Operators whose output is of the same bytes as their input."""


@dataclass(frozen=True)
class Range:
    """The smallest and the largest number that bytes stand for."""

    low: float
    high: float

    @property
    def step(self) -> Step:
        """Return scale and zero point of the 256 bytes; 0 is one of the numbers."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = (high - low) / HIGHEST or 1.0  # a value that is always 0 has any step
        return scale, min(HIGHEST, max(LOWEST, round(-low / scale)))


@dataclass(frozen=True)
class Scheme:
    """How numbers become integers; the default is what loses least on the networks that were tried.

    Attributes:
        clipping: of the range of a value: "error" keeps the part with the least squared error, "none" all of it.
        steps: "asymmetric" takes the 256 bytes from one end of the range to the other; "symmetric" has 0 in the middle,
            "symmetric-uint8" too where a value has both signs, and "power-of-two" has asymmetric steps of 2^n.
        by_channel: a weight has a scale for every output channel, else one.
        correct: biases are moved so that every layer's channels keep their mean.
        floats: layers that stay in fp32, by the name of their node.
    """

    clipping: str = "error"
    steps: str = "asymmetric"
    by_channel: bool = True
    correct: bool = True
    floats: tuple[str, ...] = ()

    def step(self, found: Range) -> Step:
        """Return scale and zero point for the numbers of a range."""
        if self.steps == "symmetric" or (self.steps == "symmetric-uint8" and found.low < 0):
            return max(-found.low, found.high) / LARGEST or 1.0, MIDDLE
        if self.steps == "power-of-two":
            scale = 2.0 ** math.ceil(math.log2(found.step[0]))
            return scale, min(HIGHEST, max(LOWEST, round(-min(found.low, 0.0) / scale)))
        return found.step


DEFAULT = Scheme()


Learning = Callable[[Network, Network, Sequence[str], Sequence[Tensor]], object]
"""Rounds the weights of some layers of a network in place; given too are the one in floats, and a batch of inputs."""


def quantized(
    network: Network,
    batches: Iterable[Sequence[Tensor]],
    scheme: Scheme = DEFAULT,
    learn: Learning | None = None,
) -> Network:
    """Return a copy of the network in integers, its ranges taken from `batches` of inputs.

    `learn` rounds weights in a better way than each to its nearest neighbour (`cprune.network.flexround`).
    Layers that have no form in integers stay as they are: grouped and transposed convolutions, linear layers of
    sequences, recurrent ones.
    """
    plain, batches = folded(network).eval(), list(batches)
    means, steps = _measured(plain, batches, scheme)
    integers = inserted(plain, steps)
    if learn is not None:
        integers = deepcopy(integers)  # what is learnt is compared with the weights as they were
        learn(integers, plain, list(means), batches[0])
    integers = rounded(integers, means, scheme.by_channel)
    return corrected(integers, means, batches[0]) if scheme.correct else integers


def measured(network: Network, batches: Sequence[Sequence[Tensor]]) -> tuple[dict[str, Tensor], dict[str, Step]]:
    """Return the means of every layer that can be of integers, and scale and zero point of every value that is rounded.

    The names are those of the network with BatchNorm folded; the network itself is left alone.
    """
    return _measured(folded(network).eval(), batches, DEFAULT)


def _measured(
    plain: Network, batches: Sequence[Sequence[Tensor]], scheme: Scheme
) -> tuple[dict[str, Tensor], dict[str, Step]]:
    means = {name: mean for name, mean in channel_means(plain, batches[0]).items() if name not in scheme.floats}
    ranges = calibrated(plain, places(plain, means), batches, scheme)
    steps = {name: scheme.step(found) for name, found in ranges.items()}
    by_name = {node.name: node for node in plain.nodes}
    for name in ranges:  # what is only moved keeps its bytes
        steps[name] = steps.get(_moved_from(name, by_name), steps[name])
    return means, steps


def _moved_from(name: str, by_name: Mapping[str, Node]) -> str:
    """Return the value of whose numbers, and zeros, this one consists."""
    while _moves(by_name[name]):
        name = by_name[name].args[0].name
    return name


def _moves(node: Node) -> bool:
    """Tell whether a node only chooses among numbers, or puts zeros around them."""
    kind, rest = operator_name(node), node.args[2:]
    if kind == "pad":
        return rest[:1] in ((), ("constant",)) and not any(rest[1:])
    return kind == "slice" or (kind == "constant_pad_nd" and not any(rest))


def channel_means(network: Network, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the mean of every output channel of every layer that can be of integers, by the layer's node."""
    by_name, tensors = {node.name: node for node in network.nodes}, network.tensors()
    means: dict[str, Tensor] = {}

    def watch(name: str, value: Tensor) -> Tensor:
        node = by_name[name]
        if has_form(node, by_name, tensors) and value.dim() == (4 if operator_name(node) == "conv2d" else 2):
            means[name] = _mean(value)
        return value

    with torch.no_grad():
        network.run_edited(tuple(batch), watch)
    return means


def has_form(node: Node, by_name: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether a node is a convolution or linear layer whose weight can be of integers."""
    kind = operator_name(node)
    if (
        kind not in ("conv2d", "linear")
        or not isinstance(node.args[1], Ref)
        or by_name[node.args[1].name].op != "param"
    ):
        return False
    groups = node.args[6] if kind == "conv2d" and len(node.args) > 6 else 1
    weight = weight_of(node, by_name, tensors)
    return bool(groups == 1 or (groups == weight.shape[0] and weight.shape[1] == 1))


def weight_of(layer: Node, by_name: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the weight of a convolution or a linear layer."""
    return tensors[by_name[layer.args[1].name].args[0]]


def _mean(value: Tensor) -> Tensor:
    """Return the mean of each channel of [N, C] or [N, C, H, W]."""
    return value.movedim(1, 0).flatten(1).mean(1)


def places(network: Network, layers: Collection[str], passed: Collection[str] = BYTES_PASS) -> list[str]:
    """Return the names of the values to round, in the order of the nodes, for these layers to be of integers.

    What operators of `passed` only choose among is rounded before them.
    """
    by_name, tensors = {node.name: node for node in network.nodes}, network.tensors()
    uses = Counter(name for node in network.nodes for name in node.refs())
    found: set[str] = set()
    for node in network.nodes:
        if node.name in layers:
            found.add(_source(node.args[0].name, by_name, passed))
        elif operator_name(node) == "add" and all(isinstance(a, Ref) for a in node.args[:2]):
            # When the network is lowered the larger of two convolutions takes a sum along; the other end is read.
            convs = [
                r for r in node.args[:2] if r.name in layers and uses[r.name] == 1 and "conv2d" in by_name[r.name].op
            ]
            joined = max(convs, key=lambda r: weight_of(by_name[r.name], by_name, tensors).numel(), default=None)
            found.update(_source(ref.name, by_name, passed) for ref in node.args[:2] if joined and ref != joined)
    return [node.name for node in network.nodes if node.name in found]


def _source(name: str, by_name: Mapping[str, Node], passed: Collection[str]) -> str:
    """Return the value whose numbers the operators before `name` only choose among."""
    while operator_name(by_name[name]) in passed:
        name = by_name[name].args[0].name
    return name


def calibrated(
    network: Network, names: Sequence[str], batches: Iterable[Sequence[Tensor]], scheme: Scheme = DEFAULT
) -> dict[str, Range]:
    """Return the range of each value over all batches, clipped as the scheme says."""
    inputs = [node.name for node in network.nodes if node.op == "input"]
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    ends = dict.fromkeys(names, (0.0, 0.0))

    def watch(name: str, value: Tensor) -> Tensor:
        if name in kept:
            flat = value.detach().flatten()
            low, high = (float(end) for end in torch.aminmax(flat))
            ends[name] = (min(ends[name][0], low), max(ends[name][1], high))
            kept[name].append(flat[:: max(1, len(flat) // KEPT)].clone())
        return value

    with torch.no_grad():
        for batch in batches:
            for name, value in zip(inputs, batch, strict=True):
                watch(name, value)
            network.run_edited(tuple(batch), watch)
    if scheme.clipping == "none":
        return {name: Range(*ends[name]) for name in names}
    return {name: _least_error(torch.cat(kept[name]), *ends[name], scheme) for name in names}


def _least_error(values: Tensor, low: float, high: float, scheme: Scheme) -> Range:
    """Return the part of a range that loses least: a few outliers are cut for smaller steps of all others."""
    values = values.double()

    def error(share: float) -> float:
        scale, zero = scheme.step(Range(share * low, share * high))
        whole = (values / scale + zero).round().clamp(LOWEST, HIGHEST)
        return float(((whole - zero) * scale - values).square().mean())

    share = min(SHRUNK, key=error)
    return Range(share * low, share * high)


def inserted(network: Network, steps: Mapping[str, Step]) -> Network:
    """Return the network in which the readers of each named value read it rounded to its step's bytes."""
    op = "aten.fake_quantize_per_tensor_affine.default"
    made = {name: (Node(f"{name}.bytes", op, (Ref(name), *step, LOWEST, HIGHEST)),) for name, step in steps.items()}
    return with_readers(network, made)


def with_readers(network: Network, made: Mapping[str, Sequence[Node]]) -> Network:
    """Return the network in which what read a named value reads the last of the nodes that are made of it."""

    def instead(ref: Ref) -> Ref:
        return Ref(made[ref.name][-1].name) if ref.name in made else ref

    nodes: list[Node] = []
    for node in network.nodes:
        nodes.append(replace(node, args=map_refs(node.args, instead), kwargs=map_refs(node.kwargs, instead)))
        nodes += made.get(node.name, ())
    return with_nodes(network, nodes, network.tensors())


def rounded(network: Network, layers: Collection[str], by_channel: bool = True) -> Network:
    """Return the network with the weights of these layers at the numbers that int8 can hold, in place."""
    by_name, tensors = {node.name: node for node in network.nodes}, network.tensors()
    with torch.no_grad():
        for name in layers:
            weight = weight_of(by_name[name], by_name, tensors)
            weight.copy_(to_steps(weight) if by_channel else to_steps(weight.reshape(1, -1)).reshape(weight.shape))
    return network


def to_steps(weight: Tensor) -> Tensor:
    """Return a weight [O, …] at the numbers that int8 can hold: what `quantized_weight` says, multiplied."""
    whole, scale = quantized_weight(weight)
    return (whole * scale.reshape(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)


def quantized_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers [O, …] (float64) and a scale a channel [O], so that their product is nearest to `weight`.

    The largest magnitude of a channel becomes LARGEST.  The product of the two is quantized to the same again.
    """
    weight = weight.detach().double()
    scale = scales(weight)
    return (weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).round(), scale


def scales(weight: Tensor) -> Tensor:
    """Return the scale of every output channel [O] of a weight [O, …]: that of its largest magnitude, over LARGEST."""
    largest = weight.detach().flatten(1).abs().amax(1)
    return torch.where(largest > 0, largest, 1.0) / LARGEST


def corrected(network: Network, means: Mapping[str, Tensor], batch: Sequence[Tensor]) -> Network:
    """Return the network, its biases moved in place so that every layer's channels have these means on `batch`.

    Layer after layer in one pass: each is corrected with what reaches it from those that were corrected before.
    """
    by_name, tensors = {node.name: node for node in network.nodes}, network.tensors()

    def move(name: str, value: Tensor) -> Tensor:
        node = by_name[name]
        bias = node.args[2] if name in means and len(node.args) > 2 else None
        if not isinstance(bias, Ref):
            return value
        missing = means[name] - _mean(value)
        tensors[by_name[bias.name].args[0]].add_(missing)
        return value + missing.reshape(-1, *[1] * (value.dim() - 2))

    with torch.no_grad():
        network.run_edited(tuple(batch), move)
    return network
