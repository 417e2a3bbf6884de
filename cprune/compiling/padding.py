"""Zeros around a value that only convolutions read become padding of these: nothing is copied for them.

Networks that came from TensorFlow pad one side more than the other before a stride; PyTorch says that as an operator of
its own, and kernels pad every side by what they are told.  Where the padded value is rounded on the way, what is inside
is rounded instead: zero is one of the numbers that bytes and 16 bits stand for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from cprune.network.halving import half_of, is_to_single
from cprune.network.node import Node, Ref, alive, operator_name
from cprune.network.precision import ROUNDING

Sides = tuple[int, int, int, int]
"""Rows above, columns to the left, rows below, columns to the right."""


@dataclass(frozen=True)
class Unpadded:
    """The nodes without such pads, what each convolution pads beside its own, and the values of nodes that are new.

    `rounded` has, for every new node, the node of the network that rounds the same value with its zeros, and these.
    """

    nodes: list[Node]
    sides: Mapping[str, Sides]
    examples: Mapping[str, Tensor]
    rounded: Mapping[str, tuple[str, Sides]]


def unpadded(nodes: Sequence[Node], examples: Mapping[str, Tensor]) -> Unpadded:
    """Return the nodes of a network with the pads taken out that convolutions can do; `examples` are their values."""
    readers: dict[str, list[Node]] = {}
    parameters = {node.name for node in nodes if node.op == "param"}
    for node in nodes:
        for name in dict.fromkeys(node.refs()):
            readers.setdefault(name, []).append(node)
    sides: dict[str, Sides] = {}
    instead: dict[str, tuple[str, str]] = {}  # of a convolution: what it read, and what it reads now
    new: dict[str, list[Node]] = {}  # by the pad in whose place they are
    values: dict[str, Tensor] = {}
    rounded: dict[str, tuple[str, Sides]] = {}
    for node in nodes:
        around = _zeros(node, examples)
        if around is None:
            continue
        chain = list(_roundings(node.name, readers))
        last = chain[-1].name if chain else node.name
        convolutions = readers.get(last, [])
        if not convolutions or not all(_pads(c, last, examples, parameters) for c in convolutions):
            continue
        source = node.args[0].name
        for rounding in chain:
            inside = f"{rounding.name}.inside"
            new.setdefault(node.name, []).append(replace(rounding, name=inside, args=(Ref(source), *rounding.args[1:])))
            values[inside] = examples[node.args[0].name].to(examples[rounding.name].dtype)
            rounded[inside] = rounding.name, around
            source = inside
        sides |= {convolution.name: around for convolution in convolutions}
        instead |= {convolution.name: (last, source) for convolution in convolutions}
    found = []
    for node in nodes:
        found += new.get(node.name, [])
        if node.name in instead:
            node = replace(node, args=(Ref(instead[node.name][1]), *node.args[1:]))
        found.append(node)
    return Unpadded(alive(found), sides, values, rounded)


def _pads(node: Node, source: str, examples: Mapping[str, Tensor], parameters: Collection[str]) -> bool:
    """Tell whether a node is a convolution of `source` that has a form of ours, and so pads what it is told to."""
    if operator_name(node) != "conv2d" or node.args[0] != Ref(source) or node.refs().count(source) != 1:
        return False
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    if weight.name not in parameters or not (bias is None or bias.name in parameters):
        return False
    groups, (outputs, inputs) = node.args[6] if len(node.args) > 6 else 1, examples[weight.name].shape[:2]
    return bool(groups == 1 or (groups == outputs and inputs == 1))


def _roundings(name: str, readers: Mapping[str, list[Node]]) -> Iterator[Node]:
    """Yield the roundings that follow a value, one after the other, as long as nothing else reads it."""
    while len(readers.get(name, ())) == 1:
        (reader,) = readers[name]
        if operator_name(reader) != ROUNDING and not half_of(reader) and not is_to_single(reader):
            return
        yield reader
        name = reader.name


def _zeros(node: Node, examples: Mapping[str, Tensor]) -> Sides | None:
    """Return how many zeros a node puts around the plane of an image; None if it does anything else."""
    kind = operator_name(node)
    if kind not in ("constant_pad_nd", "pad") or node.kwargs:
        return None
    x, pads, *rest = node.args
    if kind == "pad" and rest[:1] not in ([], ["constant"]):
        return None
    number = next(iter(rest[kind == "pad" :]), 0)
    amounts = [pad for pad in pads if isinstance(pad, int) and pad >= 0]
    plain = number in (None, 0, 0.0) and len(amounts) == len(pads) and not any(amounts[4:])
    if not plain or not isinstance(examples.get(x.name), Tensor) or examples[x.name].dim() != 4:
        return None
    left, right, above, below = [*amounts, 0, 0, 0, 0][:4]
    return above, left, below, right
