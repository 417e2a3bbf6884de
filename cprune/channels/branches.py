"""Residual branches, the depth that can go beside width: `branches` finds them, `without` takes some away.

A block `relu(f(x) + x)` without its branch `f` is its shortcut: `relu(x)`, and `x` where that is a ReLU's already.  A
block whose shortcut is a projection, or pixels skipped and channels padded, keeps that and loses `f` as well.

The law that the tests hold this file to: the network without a branch computes what the whole one does with the
branch's value at zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from cprune.channels.graph import layer_name
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


def branches(network: Network, example_inputs: tuple[Tensor, ...]) -> tuple[Branch, ...]:
    """Return the residual branches of a network, in the order of their additions.

    Of two values that are added, of one shape (also with one more in the batch, so nothing is broadcast), one is the
    branch and the other the shortcut where

    - nothing but this addition needs the branch's nodes, and a convolution or linear layer is among them,
    - what they read of the input comes from values that the shortcut is computed from too, or is the shortcut,
    - the shortcut is an identity (a way without layers leads to it, and none to the branch); or it has no longer way
      and strictly fewer layers and multiplications of its own.  Two equal ones: neither goes.

    So of two parallel ways with layers (a projection; Inception added up) the longer may go.  A branch that holds all
    layers of the network is none.  UserError if the network does not run on these inputs.
    """
    ways = _Ways(network.nodes, sample(network, example_inputs), larger_sample(network, example_inputs))
    found: list[Branch] = []
    starting: dict[str, int] = {}
    for node in network.nodes:
        for operand in (1, 0) if ways.is_sum(node) else ():
            layers = ways.layers_of_branch(node, operand)
            if layers:
                number = starting[layers[0]] = starting.get(layers[0], 0) + 1
                branch_id = layers[0] if number == 1 else f"{layers[0]}+{number}"
                found.append(Branch(branch_id, layers, node.name, operand))
                break
    return tuple(found)


def without(network: Network, chosen: Collection[Branch]) -> Network:
    """Return a new network without these branches; `network` stays as it is.

    The branches may have been found in the network that this one was pruned from, or that other branches were taken
    from; one that lay in a branch which is gone is gone.  An activation directly behind the addition disappears too
    where the shortcut is the same activation's.  UserError for a branch of another network.
    """
    operands = {branch.add: branch.operand for branch in chosen}
    _must_fit(network.nodes, chosen)
    nodes = _shortened(network.nodes, operands)
    tensors = network.tensors()
    before, after = (_tensors_read(some, tensors) for some in (network.nodes, nodes))
    # What no node has ever read stays, and so does every name of a tied tensor of which one is read.
    kept = {name: tensor for name, tensor in tensors.items() if id(tensor) in after or id(tensor) not in before}
    return Network(nodes, copy.deepcopy(kept), network.constants()).train(network.training)


def _shortened(nodes: Sequence[Node], operands: Mapping[str, int]) -> list[Node]:
    """Return the nodes without the branches that are these operands of these additions."""
    instead: dict[str, Ref] = {}
    kept: dict[str, Node] = {}
    for node in nodes:
        moved = any(name in instead for name in node.refs())
        new = node
        if moved:
            new = replace(
                node,
                args=map_refs(node.args, lambda ref: instead.get(ref.name, ref)),
                kwargs=tuple((k, map_refs(value, lambda ref: instead.get(ref.name, ref))) for k, value in node.kwargs),
            )
        if node.name in operands:
            instead[node.name] = new.args[1 - operands[node.name]]
        elif moved and _changes_nothing(new, kept):
            instead[node.name] = new.args[0]
        else:
            kept[node.name] = new
    return alive(list(kept.values()))


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
            raise UserError(f"the network has no addition {branch.add!r}, where its branch {branch.id!r} should end")


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
        if branch not in own or not calls or len(calls) == len(self.layers):
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
