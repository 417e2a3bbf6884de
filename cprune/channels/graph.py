"""What is known about the channels of a network: plain data that whoever prunes it is handed.

A *class* is one removable channel: every position of every tensor and every intermediate value that must go
with it.  A *group* is a set of classes that lie in the same tensors and values, so its channels can be
removed one by one in any choice that leaves one.

A worked example, the first stage of a residual network: the stem, the second convolution of every block and
the batch normalisations behind them add into one stream, so channel 3 of all of them is one class, and the 16
classes are the group "conv1".  Each block's first convolution is a group of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from cprune.channels.labels import Array, Spread
from cprune.targets.errors import UserError, unknown

INPUT, RETURNED = "it is an input of the model", "the model returns it"
ONLY_ONE = "one channel must be left"
_BY_NATURE = (ONLY_ONE, RETURNED, INPUT, "--ignore ")


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, by the state-dict prefix of its weight.

    Its output channels lie along `out_axis` of the tensor `weight`, its input channels along `in_axis`; a
    depthwise convolution has no axis for its input (None).  `calls` are the nodes that run it.
    """

    name: str
    weight: str
    out_axis: int
    in_axis: int | None
    calls: tuple[str, ...]


def layer_name(weight: str) -> str:
    """Return the name of the layer that a weight belongs to, by the weight's state-dict name.

    It is the prefix; the name itself where the weight is called otherwise or is the model's own.
    """
    owner, _, leaf = weight.rpartition(".")
    return owner if owner and leaf in ("weight", "computed_weight") else weight


def is_meant(layer: str, operator: str, pattern: str) -> bool:
    """Tell whether `--ignore pattern` means a layer: by its name, with * and ?, or by its type ("Conv2d", "Linear")."""
    return fnmatchcase(layer, pattern) or pattern.lower().replace("_", "") == operator.replace("_", "")


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
    """The groups of a network, from `cprune.channels.groups.analyse`.

    `layers` holds every convolution and linear layer by name.  The rest is for surgery: `classes` gives the
    classes of each group in the order of its channels; `axes` the class at every position along (tensor,
    axis); `values` the same for every node's value, several where it has several tensors, each with its shape
    in the example.
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
        stuck = [frozen for frozen in self.frozen if not frozen.reason.startswith(_BY_NATURE)]
        if stuck:
            lines = [f"  {', '.join(f.layers)}: {f.channels} channels stay because {f.reason}" for f in stuck]
            raise UserError(
                "\n".join([f"--strict: {len(stuck)} kind(s) of channels cannot be pruned", *lines]),
                "Leave --strict out to prune the rest, or name the layers with --ignore.",
            )

    def groups_of(self, layer: str) -> tuple[str, ...]:
        """Return the ids of the groups on a layer's output channels; UserError if there is no such layer."""
        self._layer(layer)
        return tuple(group.id for group in self.groups if layer in group.layers)

    def positions(self, group_id: str, layer: str) -> list[Array]:
        """Return, for every channel of a group, where it is among the outputs of one of its layers."""
        producer = self._layer(layer)
        along = self.axes[producer.weight, producer.out_axis]
        return [np.flatnonzero(along == one) for one in self.classes[self.group(group_id).id]]

    def _layer(self, name: str) -> Layer:
        if name not in self.layers:
            raise unknown("layer", name, self.layers)
        return self.layers[name]
