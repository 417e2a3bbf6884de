"""A compiled model as a sum: its calls, and how wide each is when the groups of channels have other widths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from cprune.channels.graph import Graph, Layer
from cprune.channels.labels import Array
from cprune.compiling.lowered import Call, Lowered
from cprune.tuner.programs.workload import Conv2d, Dense, Mean, Pool2d, Tir, Workload

Widths = Mapping[str, int]
"""Channels by group id."""


@dataclass(frozen=True)
class Axis:
    """How wide one axis of a call is: `fixed` channels that stay, and for every channel of a group so many."""

    fixed: int
    groups: tuple[tuple[str, int], ...] = ()

    def at(self, widths: Widths) -> int:
        """Return the channels, without padding, when the groups have these widths."""
        return self.fixed + sum(each * widths[group] for group, each in self.groups)


@dataclass(frozen=True)
class Term:
    """One call of the compiled model, by the value that it writes; `groups` are those that its workload depends on."""

    call: str
    workload: Workload
    layers: tuple[str, ...]
    inputs: Axis
    outputs: Axis
    groups: tuple[str, ...]


def terms(lowered: Lowered, graph: Graph) -> tuple[Term, ...]:
    """Return every call of a lowered network, in order, with its two axes; `graph` is `analyse` of that network.

    Calls with a weight have the axes of that weight, others those of the values that they read and write.
    """
    axes = _Axes(graph)
    return tuple(axes.term(call) for call in lowered.calls)


def axes_of(graph: Graph) -> Mapping[tuple[str, int], Axis]:
    """Return the axes of a network's tensors that channels lie along, by the tensor's name and the axis' number."""
    axes = _Axes(graph)
    return {place: axes.axis(labels) for place, labels in graph.axes.items()}


class _Axes:
    """The axes of a network's weights and values as its groups make them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sizes = {group: len(classes) for group, classes in graph.classes.items()}
        self.group_of = {int(one): group for group, classes in graph.classes.items() for one in classes}
        self.written: dict[str, Axis] = {}

    def term(self, call: Call) -> Term:
        layer = next((self.graph.layers[name] for name in call.layers if name in self.graph.layers), None)
        if layer is not None and isinstance(call.workload, (Conv2d, Dense)):
            inputs, outputs = self.of_layer(layer)
        else:
            outputs = self.of_value(call.output) or self._inherited(call)
            inputs = (self.read(call.inputs[0]) if call.inputs else None) or outputs
        self.written[call.output] = self.of_value(call.output) or outputs
        groups = dict.fromkeys(group for axis in (inputs, outputs) for group, _ in axis.groups)
        return Term(call.output, call.workload, call.layers, inputs, outputs, tuple(groups))

    def of_layer(self, layer: Layer) -> tuple[Axis, Axis]:
        outputs = self.axis(self.graph.axes[layer.weight, layer.out_axis])
        if layer.in_axis is None:
            return outputs, outputs
        return self.axis(self.graph.axes[layer.weight, layer.in_axis]), outputs

    def of_value(self, name: str) -> Axis | None:
        """Return the axis along which channels of a value go; None for what is no value of the network.

        A value within an operator of TVM's ("conv2d_4.1") is taken to be like that operator's own.
        """
        spreads = self.graph.values.get(name) or self.graph.values.get(name.partition(".")[0], ())
        if not spreads or not spreads[0].shape:
            return None
        spread = spreads[0]
        if spread.constant:
            return Axis(spread.shape[min(1, len(spread.shape) - 1)])
        return self.axis(spread.labels)

    def read(self, name: str) -> Axis | None:
        return self.written.get(name) or self.of_value(name)

    def _inherited(self, call: Call) -> Axis:
        """Return the axis of a value that the network does not have: another layout, or a step within an operator."""
        read = [axis for axis in map(self.read, call.inputs) if axis is not None]
        if read:
            return read[0]
        w = call.workload
        return Axis(w.channels if isinstance(w, (Pool2d, Mean)) else w.shapes[-1][0] if isinstance(w, Tir) else 1)

    def axis(self, labels: Array) -> Axis:
        """Return the axis with these classes, one a position."""
        counts = Counter(self.group_of.get(int(one), "") for one in labels)
        fixed = counts.pop("", 0)
        return Axis(fixed, tuple((group, round(n / self.sizes[group])) for group, n in counts.items()))
