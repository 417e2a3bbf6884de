"""Which channels of a network can be removed, and what shrinks together when one is.

A *class* is one removable channel: every position of every tensor and every intermediate value that must go
with it.  A *group* is a set of classes that lie in the same tensors and values, so its channels can be
removed one by one in any choice that leaves one.  `cprune.channels.rules` finds out how labels travel through the
operators; this file sorts the result.

A worked example, the first stage of a residual network: the stem, the second convolution of every block and
the batch normalisations behind them add into one stream, so channel 3 of all of them is one class, and the 16
classes are the group "conv1".  Each block's first convolution is a group of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cprune.channels.flow import INPUT, RETURNED, Flow, Layer
from cprune.channels.labels import Array, Spread
from cprune.channels.rules import RULES
from cprune.network.network import Network
from cprune.network.node import operator_name
from cprune.targets.errors import UserError, unknown

__all__ = ["Frozen", "Graph", "Group", "Layer", "analyse"]

_ONLY_ONE = "one channel must be left"
_BY_NATURE = (_ONLY_ONE, RETURNED, INPUT, "--ignore ")
_Keys = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Group:
    """Channels that can be removed one by one; removing one shrinks all of `layers` and `consumers` together.

    `id` is the name of the first producing layer, with "+2", "+3", … appended if several groups start there;
    it is the same before and after pruning as long as every group keeps two channels.  `layers` are the
    convolutions and linear layers (state-dict prefix) whose output channels it is, in full or in part;
    `consumers` those that read it.  A depthwise convolution is both.
    """

    id: str
    channels: int
    layers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class Frozen:
    """Output channels of `layers` that must stay; `reason` ends the sentence "they stay because …"."""

    layers: tuple[str, ...]
    channels: int
    reason: str


@dataclass(frozen=True, eq=False)
class Graph:
    """What `analyse` found.

    `layers` holds every convolution and linear layer by name.  The rest is for surgery: `classes` gives the
    classes of each group in the order of its channels; `axes` the class at every position along (tensor,
    axis); `values` the same for every node's value, several where it has several tensors; `shapes` their
    shapes in the example.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    layers: Mapping[str, Layer]
    classes: Mapping[str, Array] = field(repr=False)
    axes: Mapping[tuple[str, int], Array] = field(repr=False)
    values: Mapping[str, tuple[Spread, ...]] = field(repr=False)

    def group(self, group_id: str) -> Group:
        """Return a group by its id; UserError if there is none."""
        for group in self.groups:
            if group.id == group_id:
                return group
        raise unknown("group", group_id, (group.id for group in self.groups))

    def must_be_free(self) -> None:
        """Raise UserError if anything is frozen for want of understanding, and not by nature or by wish."""
        found = [f for f in self.frozen if not f.reason.startswith(_BY_NATURE)]
        if found:
            lines = [f"  {', '.join(f.layers)}: {f.channels} channels stay because {f.reason}" for f in found]
            raise UserError(
                "\n".join([f"--strict: {len(found)} kind(s) of channels cannot be pruned", *lines]),
                "Leave --strict out to prune the rest, or name the layers with --ignore.",
            )

    def groups_of(self, layer: str) -> tuple[str, ...]:
        """Return the ids of the groups on a layer's output channels; UserError if there is no such layer."""
        self._layer(layer)
        return tuple(group.id for group in self.groups if layer in group.layers)

    def inputs_of(self, layer: str) -> tuple[str, ...]:
        """Return the ids of the groups on a layer's input channels; UserError if there is no such layer."""
        self._layer(layer)
        return tuple(group.id for group in self.groups if layer in group.consumers)

    def positions(self, group_id: str, layer: str) -> list[Array]:
        """Return, for every channel of a group, where it is among the outputs of one of its layers."""
        its = self._layer(layer)
        along = self.axes[its.weight, its.out_axis]
        return [np.flatnonzero(along == one) for one in self.classes[self.group(group_id).id]]

    def _layer(self, name: str) -> Layer:
        if name not in self.layers:
            raise unknown("layer", name, self.layers)
        return self.layers[name]


def analyse(
    network: Network,
    example_inputs: tuple[Tensor, ...],
    ignore: Sequence[str] = (),
    whole_heads: bool = False,
    raise_bugs: bool = False,
) -> Graph:
    """Return the channel groups of a network, and what is frozen and why.

    `ignore` names layers whose output channels stay: by name, in which * and ? stand for any text, or by type
    ("Conv2d", "Linear").  UserError for one that fits no layer.  Of attention the width of all heads goes, or, with
    `whole_heads`, heads.

    Of `example_inputs` the shapes matter; no channel is ever looked for along an axis that grows with the
    batch. Everything that has no rule is frozen, with a reason naming the operator and the line of the
    model's code; the one error is the UserError for inputs that the network does not take. With `raise_bugs` a rule
    that fails in a way it does not mean raises what it raised: for tests.
    """
    flow = Flow(network, sample(network, example_inputs), _larger(network, example_inputs), whole_heads, raise_bugs)
    flow.run(RULES)
    for pattern in ignore:
        _ignore(flow, pattern)

    axes = {key: flow.labels.roots(labels) for key, labels in flow.axes.items()}
    values = {
        name: tuple(Spread(s.shape, s.axis, flow.labels.roots(s.labels)) for s in spreads)
        for name, spreads in flow.values.items()
    }
    return _sorted(flow, axes, values)


def sample(network: Network, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Return every node's value by name, tensors on torch's meta device: their shapes without their numbers.

    UserError if the network does not run on these inputs.
    """

    def bare(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to("meta")
        return [bare(one) for one in value] if isinstance(value, (tuple, list)) else value

    try:
        return network.to_meta().values(*(x.to("meta") for x in inputs))
    except (RuntimeError, IndexError, ValueError):  # an operator without shapes alone, or a mistake: the numbers tell
        pass
    try:
        return {name: bare(value) for name, value in network.values(*inputs).items()}
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(f"the model does not run on its example input: {error}") from error


def _ignore(flow: Flow, pattern: str) -> None:
    """Freeze the output channels of the layers that `pattern` means."""
    found = [layer for layer in flow.layers.values() if _meant(flow, layer, pattern)]
    if not found:
        raise unknown("layer or type for --ignore:", pattern, (*flow.layers, "Conv2d", "Linear"))
    for layer in found:
        flow.labels.freeze(flow.axes[layer.weight, layer.out_axis], f"--ignore {pattern} names {layer.name}")


def _meant(flow: Flow, layer: Layer, pattern: str) -> bool:
    kind = operator_name(flow.nodes[layer.calls[0]]).replace("_", "")
    return fnmatchcase(layer.name, pattern) or pattern.lower().replace("_", "") == kind


def _larger(network: Network, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Return the sample for a batch with one more; empty if the network takes no other batch."""
    try:
        return sample(network, tuple(torch.cat([x, x[:1]]) if x.dim() else x for x in inputs))
    except UserError:
        return {}


def _sorted(
    flow: Flow,
    axes: dict[tuple[str, int], Array],
    values: dict[str, tuple[Spread, ...]],
) -> Graph:
    """Sort classes into groups and frozen channels."""
    order = list(flow.layers)
    made_by: dict[int, tuple[str, ...]] = {}
    producers: dict[tuple[str, int], list[str]] = {}
    readers: dict[tuple[str, int], list[str]] = {}
    for layer in flow.layers.values():
        producers.setdefault((layer.weight, layer.out_axis), []).append(layer.name)
        into = layer.out_axis if layer.in_axis is None else layer.in_axis
        readers.setdefault((layer.weight, into), []).append(layer.name)

    def named(keys: Sequence[tuple[str, int]], table: dict[tuple[str, int], list[str]]) -> tuple[str, ...]:
        return tuple(sorted({name for key in keys for name in table.get(key, ())}, key=order.index))

    # Where a class is decides what family it belongs to: the axes of tensors, and the values.  With the
    # values in it, every value holds a family in full or not at all, so none can become empty while each
    # keeps one channel.
    inside = {(name, i): s.labels for name, found in values.items() for i, s in enumerate(found)}
    places: dict[int, tuple[_Keys, _Keys]] = {}
    families: dict[tuple[_Keys, _Keys], list[int]] = {}
    stuck: dict[tuple[tuple[str, ...], str], int] = {}
    for one, number in _numbered(axes, inside, places):
        layers = made_by.get(number)
        if layers is None:
            layers = made_by[number] = named(places[number][0], producers)
        reason = flow.labels.reason(one)
        if reason is None and layers:
            families.setdefault(places[number], []).append(one)
        elif layers:
            stuck[layers, str(reason)] = stuck.get((layers, str(reason)), 0) + 1

    found: list[tuple[Group, Array]] = []
    numbers: dict[str, int] = {}
    # Sorted by layers, not by channel numbers, and counting also a family that is down to its last channel:
    # pruning must not rename its neighbours.
    by_layers = {
        family: (
            [order.index(n) for n in named(family[0], producers)],
            [order.index(n) for n in named(family[0], readers)],
        )
        for family in families
    }
    for family in sorted(families, key=lambda family: (by_layers[family], family)):
        layers = named(family[0], producers)
        number = numbers[layers[0]] = numbers.get(layers[0], 0) + 1
        first = flow.layers[layers[0]]
        along = axes[first.weight, first.out_axis].tolist()
        inside_family = set(families[family])
        members = [one for one in dict.fromkeys(along) if one in inside_family]
        if len(members) == 1:
            stuck[layers, _ONLY_ONE] = stuck.get((layers, _ONLY_ONE), 0) + 1
        else:
            group_id = layers[0] if number == 1 else f"{layers[0]}+{number}"
            group = Group(group_id, len(members), layers, named(family[0], readers))
            found.append((group, np.array(members, dtype=np.int64)))
    return Graph(
        groups=tuple(group for group, _ in found),
        frozen=tuple(Frozen(layers, count, reason) for (layers, reason), count in stuck.items()),
        layers=dict(flow.layers),
        classes={group.id: members for group, members in found},
        axes=axes,
        values=values,
    )


def _numbered(
    axes: Mapping[tuple[str, int], Array],
    inside: Mapping[tuple[str, int], Array],
    places: dict[int, tuple[_Keys, _Keys]],
) -> list[tuple[int, int]]:
    """Return every class of `axes` with a number, equal for classes that are in the same tensors and values.

    `places` gets the axes and the values behind each number.
    """
    met = np.concatenate([*axes.values(), np.zeros(0, dtype=np.int64)])
    classes, first = np.unique(met, return_index=True)
    numbers = np.zeros(len(classes), dtype=np.int64)
    places[0] = ((), ())
    if not len(classes):
        return []
    for which, table in enumerate((axes, inside)):
        for key, along in table.items():
            mine = np.unique(along)
            here = np.minimum(np.searchsorted(classes, mine), len(classes) - 1)
            here = here[classes[here] == mine]
            old, which_old = np.unique(numbers[here], return_inverse=True)
            for i, number in enumerate(old.tolist()):
                before = places[number]
                longer = (*before[which], key)
                places[len(places)] = (longer, before[1]) if which == 0 else (before[0], longer)
                old[i] = len(places) - 1
            numbers[here] = old[which_old]
    for number, (tensors, within) in places.items():
        places[number] = tuple(sorted(tensors)), tuple(sorted(within))
    order = np.argsort(first)
    return list(zip(classes[order].tolist(), numbers[order].tolist(), strict=True))
