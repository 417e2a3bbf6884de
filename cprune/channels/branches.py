"""Residual branches, the depth that can go beside width: `branches` finds them, `without` takes some away.

A block `relu(f(x) + x)` without its branch `f` is its shortcut: `relu(x)`, and `x` where that is a ReLU's already.  A
block whose shortcut is a projection, or pixels skipped and channels padded, keeps that and loses `f` as well.

The law that the tests hold this file to: the network without a branch computes what the whole one does with the
branch's value at zero.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from cprune.channels.graph import is_meant, layer_name
from cprune.network.network import Network
from cprune.network.node import Node, Ref, alive, map_refs, operator_name
from cprune.network.shapes import larger_sample, sample
from cprune.targets.errors import UserError

_IDEMPOTENT = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min"})
"""Operators that change nothing the second time, where their numbers are the same."""


@dataclass(frozen=True)
class Branch:
    """One residual branch.  The names are the same in a network that `prune` made of the one it was found in.

    `id` is the name of its first layer (state-dict prefix), with "+2", "+3", … appended if several start there: the
    inner one comes first.  `layers` are the convolutions and linear layers that run in it, in order; of one that runs
    elsewhere too, only what runs here goes.  `add` is the node that adds it to the shortcut, `operand` which of that
    node's two arguments it is, 0 or 1.
    """

    id: str
    layers: tuple[str, ...]
    add: str
    operand: int


def branches(network: Network, example_inputs: tuple[Tensor, ...], ignore: Sequence[str] = ()) -> tuple[Branch, ...]:
    """Return the residual branches of a network, in the order of their additions.

    Of two values that are added, of one shape (also with one more in the batch, so nothing is broadcast), one is the
    branch and the other the shortcut where

    - nothing but this addition needs the branch's nodes, and a convolution or linear layer is among them,
    - what they read of the input comes from values that the shortcut is computed from too, or is the shortcut,
    - the shortcut is an identity (a way without layers leads to it, and none to the branch); or it has no longer way
      and strictly fewer layers and multiplications of its own.  Two equal ones: neither goes.

    So of two parallel ways with layers (a projection; Inception added up) the longer may go.  A branch that holds all
    layers of the network is none, nor is one with a layer that `ignore` means (see `cprune.channels.groups.analyse`).
    UserError if the network does not run on these inputs.
    """
    ways = _Ways(network.nodes, sample(network, example_inputs), larger_sample(network, example_inputs))
    found: list[Branch] = []
    starting: dict[str, int] = {}
    for node in network.nodes:
        for operand in (1, 0) if ways.is_sum(node) else ():
            layers = ways.layers_of_branch(node, operand)
            if layers:
                if any(is_meant(name, ways.kinds[name], pattern) for name in layers for pattern in ignore):
                    break
                number = starting[layers[0]] = starting.get(layers[0], 0) + 1
                branch_id = layers[0] if number == 1 else f"{layers[0]}+{number}"
                found.append(Branch(branch_id, layers, node.name, operand))
                break
    return tuple(found)


def without(
    network: Network, chosen: Collection[Branch], means: Mapping[str, Tensor] = MappingProxyType({})
) -> Network:
    """Return a new network without these branches; `network` stays as it is.

    The branches may have been found in the network that this one was pruned from, or that other branches were taken
    from; one that lay in a branch which is gone is gone.  An activation directly behind the addition disappears too
    where the shortcut is the same activation's.  UserError for a branch of another network.

    `means` may have, by the name of an addition, the mean of the branch's value, one number a channel.  It stays as
    part of a bias where that is exact: where the shortcut is the value of a BatchNorm, convolution or linear layer
    with a bias of its own (or a sum with one), and whatever reads that value now read the whole sum before.
    Elsewhere, behind a ReLU for example, it is left out.  ValueError for a mean of another length than that bias.
    """
    _must_fit(network.nodes, chosen)
    short = _shortened(network.nodes, {branch.add: branch.operand for branch in chosen})
    tensors = network.tensors()
    before, after = (_tensors_read(some, tensors) for some in (network.nodes, short.nodes))
    # What no node has ever read stays, and so does every name of a tied tensor of which one is read.
    kept = {name: tensor for name, tensor in tensors.items() if id(tensor) in after or id(tensor) not in before}
    kept = copy.deepcopy(kept)
    for add, mean in means.items():
        bias = kept.get(_bias_for(add, network.nodes, short, tensors))
        if bias is not None:
            if bias.shape != mean.shape:
                raise ValueError(f"the mean at {add!r} has shape {tuple(mean.shape)}, the bias {tuple(bias.shape)}")
            bias.data += mean.to(bias)
    return Network(short.nodes, kept, network.constants()).train(network.training)


def zeroed(network: Network, chosen: Collection[Branch], *inputs: Tensor) -> Any:
    """Return the whole network's output in evaluation mode with the values of these branches at zero.

    UserError for a branch of another network, or one that is gone.
    """
    additions = {node.name: node for node in network.nodes if _is_addition(node)}
    values = set()
    for branch in chosen:
        if branch.add not in additions:
            raise _stranger(branch)
        values.add(additions[branch.add].args[branch.operand].name)
    with torch.no_grad():
        return network.run_edited(inputs, lambda name, value: torch.zeros_like(value) if name in values else value)


@dataclass(frozen=True)
class _Shortened:
    """What is left: `instead` has what is read now in place of a node that went, `sums` the additions behind it."""

    nodes: list[Node]
    instead: dict[str, Ref]
    sums: dict[str, frozenset[str]]


def _shortened(nodes: Sequence[Node], operands: Mapping[str, int]) -> _Shortened:
    """Return the nodes without the branches that are these operands of these additions."""
    instead: dict[str, Ref] = {}
    sums: dict[str, frozenset[str]] = {}
    kept: dict[str, Node] = {}
    for node in nodes:
        new = node
        if not instead.keys().isdisjoint(node.refs()):
            new = replace(
                node,
                args=map_refs(node.args, lambda ref: instead.get(ref.name, ref)),
                kwargs=tuple((k, map_refs(value, lambda ref: instead.get(ref.name, ref))) for k, value in node.kwargs),
            )
        if node.name in operands:
            at = 1 - operands[node.name]
            instead[node.name] = new.args[at]
            sums[node.name] = sums.get(node.args[at].name, frozenset()) | {node.name}
        elif new is not node and _changes_nothing(new, kept):
            instead[node.name] = new.args[0]
            sums[node.name] = sums[node.args[0].name]
        else:
            kept[node.name] = new
    return _Shortened(alive(list(kept.values())), instead, sums)


def _bias_for(add: str, nodes: Sequence[Node], short: _Shortened, tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the bias that a constant can join which is to reach all that read this sum, or ""."""
    if add not in short.instead:
        return ""
    left = {node.name: node for node in short.nodes}
    value = short.instead[add].name
    reads = Counter(name for node in short.nodes for name in node.refs())
    before = [name for node in nodes if node.name in left for name in node.refs()]  # as they were called
    if any(add not in short.sums.get(n, ()) for n in before if n == value or short.instead.get(n) == Ref(value)):
        return ""
    tied = Counter(id(tensors[str(node.args[0])]) for node in short.nodes if node.op == "param")

    def bias_of(node: Node) -> str:
        if _is_addition(node):
            alone = [left[ref.name] for ref in node.args[:2] if reads[ref.name] == 1]
            return next((bias for bias in map(bias_of, alone) if bias), "")
        place = 2 if operator_name(node).startswith(("conv", "linear", "batch_norm")) else len(node.args)
        ref = node.args[place] if place < len(node.args) else None
        if not isinstance(ref, Ref) or left[ref.name].op != "param" or reads[ref.name] > 1:
            return ""
        name = str(left[ref.name].args[0])
        return name if tied[id(tensors[name])] == 1 else ""

    return bias_of(left[value])


def _changes_nothing(node: Node, before: Mapping[str, Node]) -> bool:
    """Tell whether a node is an activation on the value of the same activation."""
    if operator_name(node) not in _IDEMPOTENT or any(isinstance(value, Ref) for value in node.args[1:]):
        return False
    first = before[node.args[0].name]
    return (first.op, first.args[1:], first.kwargs) == (node.op, node.args[1:], node.kwargs)


def _must_fit(nodes: Sequence[Node], chosen: Iterable[Branch]) -> None:
    additions = {node.name for node in nodes if _is_addition(node)}
    layers = set(layers_by_call(nodes).values())
    for branch in chosen:
        if branch.add not in additions and not layers.isdisjoint(branch.layers):
            raise _stranger(branch)


def _stranger(branch: Branch) -> UserError:
    return UserError(f"the network has no addition {branch.add!r}, where its branch {branch.id!r} should end")


def _tensors_read(nodes: Sequence[Node], tensors: Mapping[str, Tensor]) -> set[int]:
    return {id(tensors[str(node.args[0])]) for node in nodes if node.op == "param"}


def layers_by_call(nodes: Sequence[Node]) -> dict[str, str]:
    """Return the name of the layer that each convolution and linear node runs, by the node's name, in order."""
    weights = {node.name: str(node.args[0]) for node in nodes if node.op == "param"}
    return {
        node.name: layer_name(weights[node.args[1].name])
        for node in nodes
        if operator_name(node).startswith(("conv", "linear"))
        and len(node.args) > 1
        and isinstance(node.args[1], Ref)
        and node.args[1].name in weights
    }


def _is_addition(node: Node) -> bool:
    return (
        node.op == "aten.add.Tensor"
        and dict(node.kwargs).get("alpha", 1) == 1
        and all(isinstance(value, Ref) for value in node.args[:2])
    )


class _Ways:
    """The ways through a graph: what needs what, and how many layers lie between."""

    def __init__(self, nodes: Sequence[Node], shapes: Mapping[str, object], larger: Mapping[str, object]) -> None:
        self.nodes, self.shapes, self.larger = nodes, shapes, larger
        self.by_name = {node.name: node for node in nodes}
        self.layers = layers_by_call(nodes)
        self.kinds = {layer: operator_name(self.by_name[call]) for call, layer in self.layers.items()}
        self.needed = self._needed()
        # Values that depend on the inputs' numbers, not on their sizes or on parameters alone.
        self.computed: set[str] = set()
        for node in nodes:
            reads = not self.computed.isdisjoint(node.refs())
            if node.op == "input" or (reads and not isinstance(shapes.get(node.name), (bool, int, float))):
                self.computed.add(node.name)

    def is_sum(self, node: Node) -> bool:
        """Tell whether a node adds two computed values of one shape and type."""
        if not _is_addition(node) or node.args[0] == node.args[1]:
            return False
        if not all(ref.name in self.computed for ref in node.args[:2]):
            return False
        for values in (self.shapes, self.larger):
            a, b = (values.get(ref.name) for ref in node.args[:2])
            if isinstance(a, Tensor) and isinstance(b, Tensor):
                if a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point():
                    return False
            elif values is self.shapes:
                return False
        return True

    def layers_of_branch(self, add: Node, operand: int) -> tuple[str, ...]:
        """Return the layers in an operand of a sum if that is a residual branch; else nothing."""
        branch, shortcut = add.args[operand].name, add.args[1 - operand].name
        own, rest = self._own(add, operand), self._own(add, 1 - operand)
        calls, other_calls = self._calls(own), self._calls(rest)
        sources = {name for one in own for name in self.by_name[one].refs() if name in self.computed - own}
        if not calls or len(calls) == len(self.layers):
            return ()
        if not sources or not sources <= self._ancestors(shortcut):
            return ()
        far, near = self._lengths(sources, branch, shortcut)
        shorter = len(other_calls) < len(calls) and self._macs(other_calls) < self._macs(calls)
        if not (near == 0 < far or (near <= far and shorter)):
            return ()
        return tuple(dict.fromkeys(self.layers[call] for call in calls))

    def _needed(self, add: Node | None = None, operand: int = 0) -> set[str]:
        """Return what the output needs, without one operand of an addition."""
        needed: set[str] = set()
        for node in reversed(self.nodes):
            if node.op in ("input", "output") or node.name in needed:
                needed.add(node.name)
                needed.update([node.args[1 - operand].name] if node is add else node.refs())
        return needed

    def _own(self, add: Node, operand: int) -> set[str]:
        """Return what nothing but this operand of an addition needs."""
        return self.needed - self._needed(add, operand)

    def _calls(self, names: set[str]) -> list[str]:
        return [call for call in self.layers if call in names]

    def _ancestors(self, name: str) -> set[str]:
        """Return the computed values that a value is computed from, itself among them."""
        found = {name}
        for node in reversed(self.nodes):
            if node.name in found:
                found.update(ref for ref in node.refs() if ref in self.computed)
        return found

    def _lengths(self, sources: set[str], *ends: str) -> list[float]:
        """Return for each of `ends` the fewest layers on a way there from one of `sources`."""
        length: dict[str, float] = dict.fromkeys(sources, 0)
        for node in self.nodes:
            if node.name not in length:
                nearest = min((length[ref] for ref in node.refs() if ref in length), default=math.inf)
                if nearest < math.inf and node.name in self.computed:
                    length[node.name] = nearest + (node.name in self.layers)
        return [length.get(end, math.inf) for end in ends]

    def _macs(self, calls: Iterable[str]) -> int:
        total = 0
        for call in calls:
            out, weight = self.shapes[call], self.shapes[self.by_name[call].args[1].name]
            if isinstance(out, Tensor) and isinstance(weight, Tensor):
                total += out.numel() * weight[0].numel()
        return total
