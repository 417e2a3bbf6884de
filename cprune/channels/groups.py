"""How groups are found: labels are sent through the network (`flow`, `rules`), then sorted by where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from cprune.channels.flow import Flow
from cprune.channels.graph import ONLY_ONE, Frozen, Graph, Group, Layer, is_meant
from cprune.channels.labels import Array, Spread
from cprune.channels.rules import RULES
from cprune.network.network import Network
from cprune.network.node import operator_name
from cprune.network.shapes import larger_sample, sample
from cprune.targets.errors import unknown

_Key = tuple[str, int]
"""An axis of a tensor of the model, by its state-dict name; or one of the tensors that a node returns."""


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
    shapes, larger = sample(network, example_inputs), larger_sample(network, example_inputs)
    flow = Flow(network, shapes, larger, whole_heads, raise_bugs)
    flow.run(RULES)
    for pattern in ignore:
        _ignore(flow, pattern)
    return _sorted(flow)


def _ignore(flow: Flow, pattern: str) -> None:
    """Freeze the output channels of the layers that `pattern` means."""
    kinds = {name: operator_name(flow.nodes[layer.calls[0]]) for name, layer in flow.layers.items()}
    layers = [layer for name, layer in flow.layers.items() if is_meant(name, kinds[name], pattern)]
    if not layers:
        raise unknown("layer or type for --ignore:", pattern, (*flow.layers, "Conv2d", "Linear"))
    for layer in layers:
        flow.labels.freeze(flow.axes[layer.weight, layer.out_axis], f"--ignore {pattern} names {layer.name}")


@dataclass
class _Family:
    """The classes that are along the same axes of tensors and in the same values, each sorted by name.

    `layers` produce them and `consumers` read them, in the order of the network; `free` are those that are not frozen.
    """

    axes: tuple[_Key, ...]
    values: tuple[_Key, ...]
    layers: tuple[str, ...]
    consumers: tuple[str, ...]
    free: list[int] = field(default_factory=list)


def _sorted(flow: Flow) -> Graph:
    """Sort classes into groups and frozen channels.

    Where a class is decides what family it belongs to.  With the values in it, every value holds a family in full or
    not at all, so none can become empty while each keeps one channel.

    An example: `fc(cat([a(x), b(x)]))` where a has two channels and b three.  Classes 0 and 1 are along axis 0 of
    a.weight and axis 1 of fc.weight, in a's value and in that of cat: the group "a".  Classes 2, 3 and 4 are the
    group "b", though fc and cat do not tell them from the others.
    """
    axes = {key: flow.labels.roots(labels) for key, labels in flow.axes.items()}
    values = {
        name: tuple(Spread(s.shape, s.axis, flow.labels.roots(s.labels)) for s in spreads)
        for name, spreads in flow.values.items()
    }
    stuck: dict[tuple[tuple[str, ...], str], int] = {}

    def stick(layers: tuple[str, ...], reason: str) -> None:
        stuck[layers, reason] = stuck.get((layers, reason), 0) + 1

    families: dict[int, _Family] = {}
    for one, family in _placed(flow.layers, axes, values):
        reason = flow.labels.reason(one)
        if reason is None and family.layers:
            family.free.append(one)
            families[id(family)] = family
        elif family.layers:
            stick(family.layers, str(reason))

    order = {name: i for i, name in enumerate(flow.layers)}
    groups: list[Group] = []
    classes: dict[str, Array] = {}
    starting: dict[str, int] = {}
    # Sorted by layers, not by channel numbers, and counting also a family that is down to its last channel:
    # pruning must not rename its neighbours.
    for family in sorted(
        families.values(),
        key=lambda f: ([order[n] for n in f.layers], [order[n] for n in f.consumers], f.axes, f.values),
    ):
        first = flow.layers[family.layers[0]]
        number = starting[first.name] = starting.get(first.name, 0) + 1
        if len(family.free) == 1:
            stick(family.layers, ONLY_ONE)
            continue
        group = Group(
            id=first.name if number == 1 else f"{first.name}+{number}",
            channels=len(family.free),
            layers=family.layers,
            consumers=family.consumers,
        )
        free = set(family.free)
        along = axes[first.weight, first.out_axis].tolist()
        groups.append(group)
        classes[group.id] = np.array([one for one in dict.fromkeys(along) if one in free], dtype=np.int64)
    return Graph(
        groups=tuple(groups),
        frozen=tuple(Frozen(layers, count, reason) for (layers, reason), count in stuck.items()),
        layers=dict(flow.layers),
        classes=classes,
        axes=axes,
        values=values,
    )


def _placed(
    layers: Mapping[str, Layer], axes: Mapping[_Key, Array], values: Mapping[str, tuple[Spread, ...]]
) -> list[tuple[int, _Family]]:
    """Return every class of `axes` in the order in which they are met, with its family.

    Families are told apart step by step.  At first all classes have number 0, that of a place in no tensor.  Every
    axis and every value then gives new numbers to the classes in it: one for each number that they had, whose place is
    the old one and this key.
    """
    along_axes = np.concatenate([*axes.values(), np.zeros(0, dtype=np.int64)])
    classes, first = np.unique(along_axes, return_index=True)
    if not len(classes):
        return []
    where = [(True, key, labels) for key, labels in axes.items()]
    where += [(False, (name, i), spread.labels) for name, spreads in values.items() for i, spread in enumerate(spreads)]
    numbers = np.zeros(len(classes), dtype=np.int64)
    places: list[tuple[tuple[_Key, ...], tuple[_Key, ...]]] = [((), ())]
    for is_axis, key, labels in where:
        present = np.unique(labels)
        at = np.minimum(np.searchsorted(classes, present), len(classes) - 1)
        at = at[classes[at] == present]
        old, which = np.unique(numbers[at], return_inverse=True)
        numbers[at] = len(places) + which
        for number in old.tolist():
            in_axes, in_values = places[number]
            places.append(((*in_axes, key), in_values) if is_axis else (in_axes, (*in_values, key)))

    producers, readers = _by_axis(layers)
    order = {name: i for i, name in enumerate(layers)}

    def named(keys: Sequence[_Key], table: Mapping[_Key, Sequence[str]]) -> tuple[str, ...]:
        return tuple(sorted({name for key in keys for name in table.get(key, ())}, key=order.__getitem__))

    families = {
        number: _Family(
            axes=tuple(sorted(places[number][0])),
            values=tuple(sorted(places[number][1])),
            layers=named(places[number][0], producers),
            consumers=named(places[number][0], readers),
        )
        for number in np.unique(numbers).tolist()
    }
    met = np.argsort(first)
    return [(one, families[number]) for one, number in zip(classes[met].tolist(), numbers[met].tolist(), strict=True)]


def _by_axis(layers: Mapping[str, Layer]) -> tuple[dict[_Key, list[str]], dict[_Key, list[str]]]:
    """Return the layers whose output channels lie along an axis, and those whose input channels do."""
    producers: dict[_Key, list[str]] = {}
    readers: dict[_Key, list[str]] = {}
    for layer in layers.values():
        producers.setdefault((layer.weight, layer.out_axis), []).append(layer.name)
        in_axis = layer.out_axis if layer.in_axis is None else layer.in_axis
        readers.setdefault((layer.weight, in_axis), []).append(layer.name)
    return producers, readers
