"""The walk through a network that gives every value its labels, node by node.

The rules for the operators are in `cprune.channels.rules`.  An operator without one freezes what it reads and what it
returns, so nothing can go wrong behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from cprune.channels.graph import INPUT, RETURNED, Layer
from cprune.channels.labels import Array, Labels, Spread
from cprune.network.network import Network
from cprune.network.node import Node, Ref, find_refs, operator_name, tensors_of

Entry = TypeVar("Entry")


class NoRule(Exception):
    """An operator, or this use of it, about which nothing is known; the text ends "they stay because …".

    Without a text it is a form of the operator that the rule does not foresee.
    """


@dataclass
class Flow:
    """The state of one analysis: the labels of every value so far.

    `sample` holds every node's value for the example inputs, `larger` for a batch with one more (empty if
    there is no such batch); of tensors, only the shapes are looked at.  With `whole_heads` features that are split
    into heads are channels head by head, not by their place within every head.

    A rule that stumbles, which is a bug of ours, freezes what its operator reads and returns; with `raise_bugs`
    it raises, so that a test sees it.
    """

    network: Network
    sample: Mapping[str, object]
    larger: Mapping[str, object]
    whole_heads: bool = False
    raise_bugs: bool = False
    labels: Labels = field(default_factory=Labels)
    values: dict[str, tuple[Spread, ...]] = field(default_factory=dict)
    axes: dict[tuple[str, int], Array] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = {node.name: node for node in self.network.nodes}
        first: dict[int, str] = {}
        self.tensors = self.network.tensors()
        # Tied weights are one tensor under two names; labels know it under the first.
        self.one_name = {name: first.setdefault(id(tensor), name) for name, tensor in self.tensors.items()}

    def run(self, rules: Mapping[str, Rule]) -> None:
        """Visit every node in order; `rules` has the rule of an operator by its name without the overload."""
        for node in self.network.nodes:
            if node.op == "input":
                self.values[node.name] = (self.frozen(self.shape(node), INPUT),)
            elif node.op == "output":
                for ref in node.refs():
                    for spread in self.values.get(ref) or self.spreads(Ref(ref)):
                        self.labels.freeze(spread.labels, RETURNED)
            elif node.op != "param" and tensors_of(self.sample[node.name]):
                self._visit(node, rules.get(operator_name(node)))

    def _visit(self, node: Node, rule: Rule | None) -> None:
        shapes = self.shapes(node)
        unforeseen = f"{called(node)} reads it in a way that has no pruning rule"
        try:
            if rule is None:
                raise NoRule(f"{called(node)} reads it and has no pruning rule")
            spreads = rule(self, node)
            if [spread.shape for spread in spreads] != shapes or not all(map(_fits, spreads)):
                raise ValueError(f"the rule for {called(node)} returns labels for other shapes than {shapes}")
        except (NoRule, RuntimeError, IndexError, TypeError, ValueError) as error:
            # A rule that stumbles over an unforeseen form of its operator is no rule for it.
            if self.raise_bugs and not isinstance(error, NoRule):
                raise
            about = (str(error) if isinstance(error, NoRule) else "") or unforeseen
            for ref in find_refs((node.args, tuple(value for _, value in node.kwargs))):
                for spread in self.spreads(ref):
                    self.labels.freeze(spread.labels, about)
            spreads = tuple(self.frozen(shape, f"{called(node)} makes it and has no pruning rule") for shape in shapes)
        for i, spread in enumerate(spreads):
            if not spread.constant and spread.axis in self.open_axes(node, i):
                self.labels.unite_all(spread.labels)
        self.values[node.name] = spreads

    # What rules use.

    def shape(self, of: Node | Ref) -> tuple[int, ...]:
        """Return the shape of a node's value in the example."""
        value = self.sample[of.name]
        if not isinstance(value, Tensor):
            raise NoRule  # a tensor was expected
        return tuple(value.shape)

    def shapes(self, of: Node | Ref) -> list[tuple[int, ...]]:
        """Return the shapes of the tensors of a node's value in the example: one, several or none."""
        return [tuple(tensor.shape) for tensor in tensors_of(self.sample[of.name])]

    def open_axes(self, node: Node, i: int = 0) -> list[int]:
        """Return the axes of a node's i-th tensor that grow with the batch: no channel may lie along them."""
        if node.name not in self.larger:
            return []
        here, there = tensors_of(self.sample[node.name])[i], tensors_of(self.larger[node.name])[i]
        return [d for d, sizes in enumerate(zip(here.shape, there.shape, strict=True)) if len(set(sizes)) > 1]

    def frozen(self, shape: tuple[int, ...], reason: str) -> Spread:
        """Return one new label for a whole value, frozen."""
        label = self.labels.fresh(1)
        self.labels.freeze(label, reason)
        return Spread(shape, 0, label)

    def spreads(self, ref: Ref) -> tuple[Spread, ...]:
        """Return the labels of a value: several where it is several tensors, none for a number."""
        node = self.nodes[ref.name]
        if node.op != "param":
            return self.values.get(ref.name, ())
        shape = self.shape(node)
        long = [d for d, size in enumerate(shape) if size > 1]
        if len(long) > 1:  # nobody can say yet which axis holds channels: an element-wise operator may
            self._freeze_axes(node, -1, "it is used outside a convolution or linear layer")
            return (self.frozen(shape, "a tensor of the model without a channel axis makes it"),)
        return (self.along_param(ref, long[0] if long else 0),)

    def spread(self, ref: object) -> Spread:
        """Return the labels of an argument that must be one tensor."""
        spreads = self.spreads(ref) if isinstance(ref, Ref) else ()
        if len(spreads) != 1:
            raise NoRule  # a tensor was expected
        return spreads[0]

    def axis_labels(self, ref: object, axis: int) -> Array:
        """Return the labels along one axis of a parameter or buffer, made at the first call."""
        node = self.nodes[ref.name] if isinstance(ref, Ref) else None
        if node is None or node.op != "param":
            raise NoRule  # a parameter was expected
        name = self.one_name[node.args[0]]
        if (name, axis) not in self.axes:
            self.axes[name, axis] = self.labels.fresh(self.tensors[name].shape[axis])
        return self.axes[name, axis]

    def along_param(self, ref: Ref, axis: int) -> Spread:
        """Return a parameter used like any value, its channels along `axis`; its other axes stay whole."""
        node = self.nodes[ref.name]
        shape = self.shape(node)
        if not shape:
            return Spread(shape, 0, self.labels.fresh(1))
        self._freeze_axes(node, axis, "it is used outside a convolution or linear layer")
        return Spread(shape, axis, self.axis_labels(ref, axis))

    def _freeze_axes(self, node: Node, but: int, reason: str) -> None:
        for axis, size in enumerate(self.shape(node)):
            if axis != but and size > 1:
                self.labels.freeze(self.axis_labels(Ref(node.name), axis), reason)

    def varied(self, spread: Spread) -> bool:
        """Tell whether a value's labels are more than one class."""
        return not spread.constant and len(np.unique(self.labels.roots(spread.labels))) > 1

    def along(self, spread: Spread, axis: int) -> Array:
        """Return a value's labels along `axis`, uniting them where they change along another."""
        if spread.varies(axis):
            return spread.labels
        self.labels.unite_all(spread.labels)
        return np.repeat(spread.labels[:1], spread.shape[axis])

    def tie(self, labels: Array, ref: object) -> None:
        """Unite labels with those of a vector of the model (a bias, a scale); None is no vector."""
        if ref is not None:
            self.labels.unite(labels, self.axis_labels(ref, 0))


Rule = Callable[[Flow, Node], tuple[Spread, ...]]
"""Returns the labels of each tensor that a node returns, uniting others on the way; NoRule if it cannot."""


def named(entry: Entry, names: str) -> dict[str, Entry]:
    """Return a rule or a repair under each of these names of operators, for its table."""
    return dict.fromkeys(names.split(), entry)


def argument(node: Node, index: int, name: str, default: object = None) -> Any:
    """Return an argument given by position or by name."""
    if index < len(node.args):
        return node.args[index]
    return dict(node.kwargs).get(name, default)


def called(node: Node) -> str:
    """Return a node's operator and where it stands in the model's code, for messages."""
    return f"{node.op} ({node.source})" if node.source else node.op


def _fits(spread: Spread) -> bool:
    return spread.constant or len(spread.labels) == spread.shape[spread.axis]
