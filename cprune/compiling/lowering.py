"""From a `Network` to the calls that the compiled model makes, and the exact table task <-> call <-> layer.

BatchNorm is folded into the convolution before it; bias, one residual addition and one activation ride along with
their convolution; chains of element-wise operators, slices, paddings and concatenations become one call.  Values
between calls are blocked (see `cprune.tuner.programs.workload`) and stay so until an operator needs them plain.  What
has no form here is imported operator by operator through TVM's own front end (`cprune.compiling.tvm_import`).

Weights keep their names: a call lists the layers whose weights it reads, so that nothing is ever guessed by order or
by equal cost (the released CPrune maps tasks to layers by position).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from cprune.compiling.activations import joined
from cprune.network.network import Network
from cprune.network.node import Node, Ref, find_refs, operator_name
from cprune.targets.errors import UserError
from cprune.targets.session import Array
from cprune.tuner.programs.reference import pack_conv_weight, pack_rows
from cprune.tuner.programs.workload import Conv2d, Dense, Elementwise, Mean, Pool2d, Shape, Workload, key, padded

MOST_PARTS = 64  # that a row of chosen places may be made of; every value asks for each of them which it lies in
PLAIN_INPUT_CHANNELS = 4  # a convolution of so few channels (an image) reads the plain layout itself

SHAPE_ALONE = frozenset(
    f"{how}{what}{like}"
    for what in ("zeros", "ones", "full")
    for how, like in (("", ""), ("new_", ""), ("", "_like"))
) | {"arange", "eye", "linspace", "scalar_tensor"}  # fmt: skip
"""Operators whose result does not depend on the numbers that they read."""


@dataclass(frozen=True)
class Layout:
    """How values lie in memory: channels in blocks of `block`, or of half of that.

    Half blocks waste less padding but half of every vector; whether that pays is measured width by width
    (`cprune.compiling.layout`).  `narrow` lists the numbers of channels that are stored in half blocks; what fits into
    one half block always is.
    """

    block: int
    narrow: tuple[int, ...] = ()

    def of(self, channels: int) -> int:
        """Return the block of a value of so many channels."""
        half = self.block // 2
        if half < 4:
            return self.block
        return half if channels <= half or channels in self.narrow else self.block

    def open(self, channels: int) -> bool:
        """Tell whether both blocks make sense for so many channels: half ones would save padding."""
        half = self.block // 2
        return half >= 4 and channels > half and padded(channels, half) < padded(channels, self.block)

    def toggled(self, channels: int) -> Layout:
        """Return this layout with the other block for values of so many channels."""
        return replace(self, narrow=tuple(sorted({channels} ^ set(self.narrow))))


@dataclass(frozen=True)
class Call:
    """One kernel call: reads `inputs` (values) and `weights`, writes the value `output`."""

    output: str
    workload: Workload
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A unique workload with the layers that it stands for.  `uses` is the number of calls."""

    key: str
    workload: Workload
    layers: tuple[str, ...]
    uses: int


@dataclass(frozen=True)
class Lowered:
    """The whole model as calls in order.  `weights` are packed arrays by name, `channels` the width of every
    value that a convolution writes; both are not part of equality.
    """

    inputs: tuple[tuple[str, Shape], ...]
    calls: tuple[Call, ...]
    outputs: tuple[tuple[str, Shape], ...]
    layout: Layout
    channels: dict[str, int] = field(compare=False, repr=False)
    weights: dict[str, Array] = field(compare=False, repr=False)

    def tasks(self) -> tuple[Task, ...]:
        """Return the unique workloads in the order of their first call."""
        by_key: dict[str, list[Call]] = {}
        for call in self.calls:
            by_key.setdefault(key(call.workload), []).append(call)
        return tuple(
            Task(k, calls[0].workload, tuple(dict.fromkeys(n for c in calls for n in c.layers)), len(calls))
            for k, calls in by_key.items()
        )

    @property
    def widths(self) -> set[int]:
        """Return the channels of all values that convolutions write, without padding."""
        return set(self.channels.values())

    @property
    def macs(self) -> int:
        """Return the multiplications of one inference as compiled, padding included."""
        return sum(call.workload.macs for call in self.calls)


def lower(network: Network, example_inputs: Sequence[Tensor], layout: Layout | int) -> Lowered:
    """Return the calls of `network` for inputs of exactly these shapes, in this layout (a number: its block).

    Raises UserError for an operator that neither we nor TVM's importer can compile, naming it and its place.
    """
    chosen = Layout(layout) if isinstance(layout, int) else layout
    return _Lowering(network, tuple(example_inputs), chosen).result()


# --- values while lowering -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """A value in memory.  `name` is a buffer of `memory` shape; `shape` is how the model sees it."""

    name: str
    shape: Shape
    block: int


@dataclass
class _Conv:
    """A convolution that is not emitted yet, so that what follows can still join it."""

    x: Any
    weight: Tensor
    bias: Tensor
    shape: Shape
    layers: list[str]
    stride: tuple[int, int]
    pad: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    residual: Any = None
    activation: str = "none"


@dataclass
class _Linear:
    """A linear layer that is not emitted yet."""

    x: Any
    weight: Tensor
    bias: Tensor
    shape: Shape
    layers: list[str]
    activation: str = "none"


@dataclass(frozen=True)
class _Chain:
    """An element-wise expression over values in memory, not emitted yet."""

    expression: tuple[Any, ...]
    inputs: tuple[_Stored, ...]
    shape: Shape


class _Lowering:
    def __init__(self, network: Network, inputs: tuple[Tensor, ...], layout: Layout) -> None:
        self.network, self.layout = network, layout
        self.examples = network.values(*inputs)
        self.state = network.tensors()
        self.nodes = joined(network.nodes)
        self.uses = Counter(name for node in self.nodes for name in node.refs())
        self.params: dict[str, str] = {n.name: n.args[0] for n in self.nodes if n.op == "param"}
        self.values: dict[str, Any] = {}
        self.constants: set[str] = set()
        self.calls: list[Call] = []
        self.weights: dict[str, Array] = {}
        self.channels: dict[str, int] = {}
        self.reformatted: dict[tuple[str, int], _Stored] = {}

    # -- the walk

    def result(self) -> Lowered:
        inputs, outputs = [], []
        for node in self.nodes:
            if node.op == "param":
                continue
            if node.op == "input":
                shape = tuple(self.examples[node.name].shape)
                self.values[node.name] = _Stored(node.name, shape, 0)
                inputs.append((node.name, shape))
            elif node.op == "output":
                for ref in _outputs(node):
                    stored = self.stored(ref, 0)
                    outputs.append((stored.name, stored.shape))
            else:
                value = self.examples[node.name]
                if self.is_constant(node):
                    self.constants.add(node.name)  # depends on weights and shapes alone: computed here, once
                elif isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and node.op != "getitem"):
                    self.values[node.name] = self.node(node)
        return Lowered(tuple(inputs), tuple(self.calls), tuple(outputs), self.layout, self.channels, self.weights)

    def node(self, node: Node) -> Any:
        rule = getattr(self, f"op_{operator_name(node)}", None)
        value = rule(node) if rule is not None and self.is_float(node) else None
        if value is None:
            value = self.foreign(node)
        return value

    def is_constant(self, node: Node) -> bool:
        if operator_name(node) in SHAPE_ALONE:
            return True
        refs = [n for n in node.refs() if not isinstance(self.examples[n], (int, float))]
        return bool(refs) and all(n in self.params or n in self.constants for n in refs)

    def is_float(self, node: Node) -> bool:
        computed = [self.examples.get(n) for n in node.refs() if n not in self.params and n not in self.constants]
        return all(not isinstance(v, Tensor) or v.dtype == torch.float32 for v in computed)

    def shape(self, name: str) -> Shape:
        return tuple(self.examples[name].shape)

    # -- operators; each returns the new value, or None where it is not one of ours

    def op_conv2d(self, node: Node) -> Any:
        x, weight, bias, stride, pad, dilation, groups = _filled(node, [None, (1, 1), (0, 0), (1, 1), 1], 2)
        w = self.tensor(weight)
        if w is None or (groups != 1 and not (groups == w.shape[0] and w.shape[1] == 1)):
            return None
        stride, dilation = _pair(stride), _pair(dilation)
        if isinstance(pad, str):
            total = [d * (k - 1) if pad == "same" else 0 for d, k in zip(dilation, w.shape[2:], strict=True)]
            sides = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
        else:
            sides = _pair(pad) * 2
        b = self.tensor(bias) if isinstance(bias, Ref) else torch.zeros(w.shape[0])
        if b is None:
            return None
        layers = [self.layer(weight)]
        return _Conv(x.name, w, b, self.shape(node.name), layers, stride, sides, dilation, groups)

    def op_batch_norm(self, node: Node) -> Any:
        x, weight, bias, mean, var, _, _, eps, *_ = node.args
        tensors = [self.tensor(t) if isinstance(t, Ref) else None for t in (weight, bias, mean, var)]
        if tensors[2] is None or tensors[3] is None or len(self.shape(node.name)) != 4:
            return None
        gamma = tensors[0] if tensors[0] is not None else torch.ones_like(tensors[2])
        beta = tensors[1] if tensors[1] is not None else torch.zeros_like(tensors[2])
        scale = gamma.double() / torch.sqrt(tensors[3].double() + eps)
        shift = beta.double() - tensors[2].double() * scale
        conv = self.pending(x, _Conv)
        if conv is not None and conv.activation == "none" and conv.residual is None:
            folded = (conv.weight.double() * scale[:, None, None, None]).float()
            layers = [*conv.layers, *([self.layer(weight)] if isinstance(weight, Ref) else [])]
            return replace(conv, weight=folded, bias=(conv.bias.double() * scale + shift).float(), layers=layers)
        layer = self.layer(weight if isinstance(weight, Ref) else mean)
        ones = scale.float()[:, None, None, None]
        shape = self.shape(node.name)
        return _Conv(x.name, ones, shift.float(), shape, [layer], (1, 1), (0, 0, 0, 0), (1, 1), len(ones))

    def op_linear(self, node: Node) -> Any:
        x, weight, bias = _filled(node, [None], 2)
        w = self.tensor(weight)
        if w is None:
            return None
        b = self.tensor(bias) if isinstance(bias, Ref) else torch.zeros(w.shape[0])
        return None if b is None else _Linear(x.name, w, b, self.shape(node.name), [self.layer(weight)])

    def op_relu(self, node: Node) -> Any:
        return self.activated(node, "relu")

    def op_relu6(self, node: Node) -> Any:
        return self.activated(node, "relu6")

    def op_hardtanh(self, node: Node) -> Any:
        _, low, high = _filled(node, [-1.0, 1.0], 1)
        return self.clipped(node, float(low), float(high))

    def op_clamp(self, node: Node) -> Any:
        _, low, high = _filled(node, [None, None], 1)
        if isinstance(low, Ref) or isinstance(high, Ref):
            return None
        return self.clipped(node, -3.4e38 if low is None else float(low), 3.4e38 if high is None else float(high))

    def clipped(self, node: Node, low: float, high: float) -> Any:
        if (low, high) == (0, 6):
            return self.activated(node, "relu6")
        return self.chained(node, node.args[0], lambda e: ("clip", e, low, high))

    def op_sigmoid(self, node: Node) -> Any:
        return self.chained(node, node.args[0], lambda e: ("sigmoid", e))

    def op_silu(self, node: Node) -> Any:
        return self.activated(node, "silu")

    def op_tanh(self, node: Node) -> Any:
        return self.chained(node, node.args[0], lambda e: ("tanh", e))

    def op_erf(self, node: Node) -> Any:
        return self.chained(node, node.args[0], lambda e: ("erf", e))

    def op_gelu(self, node: Node) -> Any:
        exact = dict(node.kwargs).get("approximate", "none") == "none"
        return self.activated(node, "gelu" if exact else "gelu_tanh")

    def op_hardsigmoid(self, node: Node) -> Any:
        return self.chained(node, node.args[0], lambda e: ("scale", ("clip", ("shift", e, 3.0), 0.0, 6.0), 1.0 / 6.0))

    def op_hardswish(self, node: Node) -> Any:
        return self.activated(node, "hardswish")

    def activated(self, node: Node, activation: str) -> Any:
        for kind in (_Conv, _Linear):
            held = self.pending(node.args[0], kind)
            if held is not None and held.activation == "none":
                return replace(held, activation=activation)
        return self.chained(node, node.args[0], lambda e: (activation, e))

    def chained(self, node: Node, ref: Any, expression: Any) -> Any:
        chain = self.chain(ref)
        return _Chain(expression(chain.expression), chain.inputs, self.shape(node.name))

    def op_add(self, node: Node) -> Any:
        if dict(node.kwargs).get("alpha", 1) != 1:
            return None
        a, b = node.args[:2]
        if isinstance(a, Ref) and isinstance(b, Ref) and self.shape(a.name) == self.shape(b.name) != ():
            held = [
                (value, other)
                for value, other in ((self.pending(a, _Conv), b), (self.pending(b, _Conv), a))
                if value is not None and value.activation == "none" and value.residual is None
            ]
            if held and a != b:
                # The larger of two convolutions takes the sum along; the other one is written first.
                conv, other = max(held, key=lambda pair: pair[0].weight.numel())
                return replace(conv, residual=other.name)
        return self.binary(node, "add", "shift")

    def op_mul(self, node: Node) -> Any:
        return self.binary(node, "mul", "scale")

    def op_sub(self, node: Node) -> Any:
        if dict(node.kwargs).get("alpha", 1) != 1:
            return None
        if not isinstance(node.args[1], Ref):
            return self.chained(node, node.args[0], lambda e: ("shift", e, -float(node.args[1])))
        return self.binary(node, "sub", "")

    def op_div(self, node: Node) -> Any:
        if isinstance(node.args[1], Ref) or dict(node.kwargs):
            return None
        return self.chained(node, node.args[0], lambda e: ("scale", e, 1.0 / float(node.args[1])))

    def binary(self, node: Node, op: str, scalar_op: str) -> Any:
        a, b = node.args[:2]
        if not isinstance(a, Ref):
            a, b = b, a
        if not isinstance(b, Ref):
            return self.chained(node, a, lambda e: (scalar_op, e, float(b)))
        if not isinstance(self.examples[b.name], Tensor) or not isinstance(self.examples[a.name], Tensor):
            return None
        shape = self.shape(node.name)
        sides = [self.chain(ref) for ref in (a, b)]
        inputs = list(dict.fromkeys((*sides[0].inputs, *sides[1].inputs)))
        parts = []
        for side in sides:
            e = _renumbered(side.expression, [inputs.index(i) for i in side.inputs])
            if side.shape != shape:
                e = ("broadcast", e, (1,) * (len(shape) - len(side.shape)) + side.shape, len(side.shape))
            parts.append(e)
        return _Chain((op, *parts), tuple(inputs), shape)

    def op_slice(self, node: Node) -> Any:
        x, axis, start, end, step = _filled(node, [0, None, None, 1], 1)
        if any(isinstance(v, Ref) for v in (start, end)):
            return None
        before, after = self.shape(x.name), self.shape(node.name)
        start = 0 if start is None else start
        start = max(0, start + before[axis] if start < 0 else start)
        moves = tuple((start, step) if i == axis % len(before) else (0, 1) for i in range(len(before)))
        if before == after:
            return self.same(x)
        return self.chained(node, x, lambda e: ("slice", e, moves, after))

    def op_select(self, node: Node) -> Any:
        x, axis, index = node.args
        if isinstance(index, Ref):
            return None
        before, after = self.shape(x.name), self.shape(node.name)
        axis %= len(before)
        index %= before[axis]
        one = (*before[:axis], 1, *before[axis + 1 :])
        return self.chained(node, x, lambda e: ("reshape", _cut(e, before, axis, index, 1)[0], one, after))

    def op_index_select(self, node: Node) -> Any:
        x, axis, index = node.args
        return self.gathered(node, x, int(axis), index)

    def op_index(self, node: Node) -> Any:
        x, indices = node.args
        given = [axis for axis, index in enumerate(indices) if index is not None]
        return self.gathered(node, x, given[0], indices[given[0]]) if len(given) == 1 else None

    def gathered(self, node: Node, x: Ref, axis: int, index: Ref) -> Any:
        """Return the places of an axis that a constant names, as parts that are evenly spaced."""
        if index.name not in self.params and index.name not in self.constants:
            return None
        places, shape = self.examples[index.name], self.shape(x.name)
        axis %= len(shape)
        if places.dtype != torch.int64 or places.numel() == 0:
            return None
        runs = _runs([int(place) % shape[axis] for place in places.flatten()])
        if len(runs) > MOST_PARTS:
            return None
        flat = (*shape[:axis], places.numel(), *shape[axis + 1 :])

        def parts(e: Any) -> Any:
            cut = tuple(_cut(e, shape, axis, start, count, step) for start, step, count in runs)
            whole = cut[0][0] if len(cut) == 1 else ("cat", axis, cut)
            return whole if places.dim() == 1 else ("reshape", whole, flat, self.shape(node.name))

        return self.chained(node, x, parts)

    def op_flip(self, node: Node) -> Any:
        x, axes = node.args
        shape = self.shape(x.name)
        turned = {axis % len(shape) for axis in axes}
        moves = tuple((extent - 1, -1) if i in turned else (0, 1) for i, extent in enumerate(shape))
        return self.chained(node, x, lambda e: ("slice", e, moves, shape))

    def op_roll(self, node: Node) -> Any:
        x, shifts, axes = _filled(node, [()], 2)
        shape = self.shape(x.name)
        if not axes or any(isinstance(shift, Ref) for shift in shifts):
            return None
        chain = self.chain(x)
        e = chain.expression
        for shift, axis in zip(shifts, axes, strict=True):
            axis %= len(shape)
            start = -shift % shape[axis]
            if start:
                e = ("cat", axis, (_cut(e, shape, axis, start, shape[axis] - start), _cut(e, shape, axis, 0, start)))
        return _Chain(e, chain.inputs, shape)

    def op_pad(self, node: Node) -> Any:
        x, pads, mode, value = _filled(node, ["constant", None], 2)
        if mode != "constant" or value not in (None, 0, 0.0) or any(isinstance(p, Ref) or p < 0 for p in pads):
            return None
        before, after = self.shape(x.name), self.shape(node.name)
        lows = [0] * len(before)
        for i in range(len(pads) // 2):
            lows[len(before) - 1 - i] = pads[2 * i]
        return self.chained(node, x, lambda e: ("pad", e, tuple(lows), before, after))

    def op_constant_pad_nd(self, node: Node) -> Any:
        x, pads, value = _filled(node, [0], 2)
        return self.op_pad(replace(node, args=(x, pads, "constant", value), kwargs=()))

    def op_cat(self, node: Node) -> Any:
        refs, axis = _filled(node, [0], 1)
        sides = [self.chain(ref) for ref in refs]
        shape = self.shape(node.name)
        inputs = list(dict.fromkeys(i for side in sides for i in side.inputs))
        axis %= len(shape)
        parts = tuple((_renumbered(s.expression, [inputs.index(i) for i in s.inputs]), s.shape[axis]) for s in sides)
        return _Chain(("cat", axis, parts), tuple(inputs), shape)

    def op_chunk(self, node: Node) -> Any:
        return _Parts(node.args[0], tuple(v.shape for v in self.examples[node.name]), _axis(node, 2))

    op_split = op_split_with_sizes = op_chunk

    def op_getitem(self, node: Node) -> Any:
        ref, index = node.args
        parts = self.values[ref.name]
        if isinstance(parts, Node):
            return self.foreign(parts, node)
        axis = parts.axis % len(parts.shapes[0])
        start = sum(shape[axis] for shape in parts.shapes[:index])
        shape = tuple(parts.shapes[index])
        return self.chained(node, parts.x, lambda e: _cut(e, shape, axis, start, shape[axis])[0])

    def op_max_pool2d(self, node: Node) -> Any:
        x, kernel, stride, pad, dilation, ceil = _filled(node, [None, (0, 0), (1, 1), False], 2)
        if _pair(dilation) != (1, 1):
            return None
        return self.pool(node, "max", x, _pair(kernel), stride, _pair(pad), bool(ceil), True)

    def op_avg_pool2d(self, node: Node) -> Any:
        x, kernel, stride, pad, ceil, count, divisor = _filled(node, [None, (0, 0), False, True, None], 2)
        if divisor is not None:
            return None
        return self.pool(node, "avg", x, _pair(kernel), stride, _pair(pad), bool(ceil), bool(count))

    def pool(
        self,
        node: Node,
        op: str,
        x: Ref,
        kernel: tuple[int, int],
        stride: Any,
        pad: tuple[int, int],
        ceil: bool,
        count: bool,
    ) -> Any:
        n, c, h, w = self.shape(x.name)
        step = _pair(stride) if stride else kernel
        _, _, oh, ow = self.shape(node.name)
        pads = (
            *pad,
            (oh - 1) * step[0] + kernel[0] - h - pad[0],
            (ow - 1) * step[1] + kernel[1] - w - pad[1],
        )
        pads = (*pad, max(pads[2], 0), max(pads[3], 0))
        if ceil and op == "avg" and pads[2:] != pad:
            return None
        source = self.blocked(x)
        workload = Pool2d(op, n, padded(c, source.block), h, w, kernel, step, pads, count, source.block)
        return self.emit(node.name, workload, (source,), (), (), (n, c, oh, ow), source.block)

    def op_adaptive_avg_pool2d(self, node: Node) -> Any:
        x, size = node.args[:2]
        _, _, h, w = self.shape(x.name)
        oh, ow = _pair(size)
        if (oh, ow) == (1, 1):
            return self.mean(node, x)
        if h % oh or w % ow:
            return None
        kernel = (h // oh, w // ow)
        return self.pool(node, "avg", x, kernel, kernel, (0, 0), False, True)

    def op_mean(self, node: Node) -> Any:
        x, axes = _filled(node, [None, False, None], 1)[:2]
        rank = len(self.shape(x.name))
        if rank != 4 or axes is None or sorted(a % rank for a in axes) != [2, 3]:
            return None
        return self.mean(node, x)

    def mean(self, node: Node, x: Ref) -> Any:
        n, c, h, w = self.shape(x.name)
        source = self.blocked(x)
        stored = self.emit(node.name, Mean(n, c, h, w, source.block), (source,), (), (), (n, c), 0)
        return replace(stored, shape=self.shape(node.name))

    def op_view(self, node: Node) -> Any:
        x = node.args[0]
        before, after = self.shape(x.name), self.shape(node.name)
        if before == after:
            return self.same(x)
        held = self.values.get(x.name)
        if isinstance(held, _Linear):
            held = self.stored(x, 0)
        if isinstance(held, _Stored) and held.block == 0:
            return replace(held, shape=after)
        return self.chained(node, x, lambda e: ("reshape", e, before, after))

    op_reshape = op_flatten = op__unsafe_view = op_squeeze = op_unsqueeze = op_view

    def op_dropout(self, node: Node) -> Any:
        return self.same(node.args[0])

    op_feature_dropout = op_contiguous = op_clone = op_alias = op_detach = op_dropout

    # -- values

    def same(self, ref: Ref) -> Any:
        """Return the value of `ref` for an operator that changes nothing; nothing may join it afterwards."""
        held = self.values.get(ref.name)
        if isinstance(held, _Parts):
            return held
        return self.stored(ref, None) if self.uses[ref.name] > 1 else held

    def pending(self, ref: Any, kind: type) -> Any:
        """Return the value if it is of this kind and nobody else reads it."""
        if not isinstance(ref, Ref) or self.uses[ref.name] != 1:
            return None
        held = self.values.get(ref.name)
        return held if isinstance(held, kind) else None

    def chain(self, ref: Ref) -> _Chain:
        """Return the value as an expression: its own if nobody else reads it, else one read from memory."""
        held = self.pending(ref, _Chain)
        if held is not None:
            assert isinstance(held, _Chain)
            return held
        stored = self.stored(ref, None)
        return _Chain(("in", 0), (stored,), stored.shape)

    def blocked(self, ref: Ref) -> _Stored:
        return self.stored(ref, self.layout.of(self.shape(ref.name)[1]))

    def stored(self, ref: Ref, block: int | None) -> _Stored:
        """Return the value in memory, emitting what is pending; in this block unless `block` is None."""
        held = self.values.get(ref.name)
        if held is None:
            held = self.values[ref.name] = self.constant(ref.name)
        if not isinstance(held, _Stored):
            held = self.write(ref.name, held, block)
            self.values[ref.name] = held
        if block is None or held.block == block:
            return held
        again = self.reformatted.get((held.name, block))
        if again is None:
            layout = Elementwise(("in", 0), ((held.shape, held.block),), held.shape, block)
            again = self.emit(f"{held.name}_b{block}", layout, (held,), (), (), held.shape, block)
            self.reformatted[held.name, block] = again
        return again

    def constant(self, name: str) -> _Stored:
        """Return a parameter, a buffer, or what was computed from them, as a value in memory."""
        value = self.examples[name]
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            raise UserError(f"cannot compile the constant {self.params.get(name, name)!r}: it is not float32")
        self.weights[name] = value.detach().contiguous().numpy()
        return _Stored(name, tuple(value.shape), 0)

    def write(self, name: str, held: Any, block: int | None) -> _Stored:
        if isinstance(held, _Conv):
            return self.write_conv(name, held)
        if isinstance(held, _Linear):
            return self.write_linear(name, held)
        if not isinstance(held, _Chain):
            raise UserError(f"cannot compile the value {name!r}: it is a list of tensors")
        if block is None:
            block = self.layout.of(held.shape[1]) if len(held.shape) == 4 else 0
        workload = Elementwise(held.expression, tuple((i.shape, i.block) for i in held.inputs), held.shape, block)
        return self.emit(name, workload, held.inputs, (), (), held.shape, block)

    def write_conv(self, name: str, conv: _Conv) -> _Stored:
        n, c, h, w = self.shape(conv.x)
        held = self.values.get(conv.x)
        plain = isinstance(held, _Stored) and held.block == 0 and c <= PLAIN_INPUT_CHANNELS and conv.groups == 1
        x = self.stored(Ref(conv.x), 0) if plain else self.blocked(Ref(conv.x))
        out = self.layout.of(conv.shape[1])
        self.channels[name] = conv.shape[1]
        outputs = padded(conv.shape[1], out)
        residual = (self.stored(Ref(conv.residual), out),) if conv.residual else ()
        workload = Conv2d(
            n,
            padded(c, x.block),
            h,
            w,
            outputs,
            (int(conv.weight.shape[2]), int(conv.weight.shape[3])),
            conv.stride,
            conv.pad,
            conv.dilation,
            outputs if conv.groups > 1 else 1,
            bool(residual),
            conv.activation,
            x.block,
            out,
        )
        weights = self.pack(name, conv.layers[0], pack_conv_weight(conv.weight, workload), pack_rows(conv.bias, out))
        return self.emit(name, workload, (x, *residual), weights, tuple(conv.layers), conv.shape, out)

    def write_linear(self, name: str, linear: _Linear) -> _Stored:
        x = self.stored(Ref(linear.x), 0)
        *rows, k = self.shape(linear.x)  # a plain value is the same in memory with its leading axes flattened
        o = linear.shape[-1]
        workload = Dense(prod(rows), k, o, linear.activation, self.layout.block)
        weight, bias = (pack_rows(value, self.layout.block) for value in (linear.weight, linear.bias))
        weights = self.pack(name, linear.layers[0], weight, bias)
        return self.emit(name, workload, (x,), weights, tuple(linear.layers), linear.shape, 0)

    def pack(self, name: str, layer: str, weight: Array, bias: Array) -> tuple[str, str]:
        # A layer that is used twice may be folded with two BatchNorms: the value's name keeps the two apart.
        names = (f"{layer}.weight@{name}", f"{layer}.bias@{name}")
        self.weights[names[0]], self.weights[names[1]] = weight, bias
        return names

    def emit(
        self,
        name: str,
        workload: Workload,
        inputs: Sequence[_Stored],
        weights: tuple[str, ...],
        layers: tuple[str, ...],
        shape: Shape,
        block: int,
    ) -> _Stored:
        self.calls.append(Call(name, workload, tuple(i.name for i in inputs), weights, layers))
        return _Stored(name, shape, block)

    def foreign(self, *nodes: Node) -> Any:
        """Return the value of the last node, computed by TVM's own operators."""
        from cprune.compiling.tvm_import import import_nodes

        last = nodes[-1]
        if not isinstance(self.examples[last.name], Tensor):
            return last  # a list: compiled with the item that is taken from it
        own = {node.name for node in nodes}
        reads = [n for node in nodes for n in node.refs() if n not in own and isinstance(self.examples[n], Tensor)]
        names = {n: self.stored(Ref(n), 0).name for n in reads if n not in self.params}
        layers = tuple(dict.fromkeys(self.layer(Ref(n)) for n in reads if n in self.params))
        imported = import_nodes(self.network, nodes, self.examples)

        def named(name: str) -> str:
            return names.get(name, f"{last.name}.{name}")

        for call in imported.calls:
            inputs = tuple(named(name) for name in call.inputs)
            self.calls.append(Call(named(call.output), call.workload, inputs, (), layers))
        for name, array in imported.constants.items():
            self.weights[named(name)] = array
        return _Stored(named(imported.output), self.shape(last.name), 0)

    def tensor(self, ref: Any) -> Tensor | None:
        """Return the parameter or buffer behind `ref`, None where it is computed."""
        name = self.params.get(ref.name) if isinstance(ref, Ref) else None
        return None if name is None else self.state[name].detach()

    def layer(self, ref: Ref) -> str:
        """Return the layer that owns a parameter: its name without the last part."""
        name = self.params[ref.name]
        return name.rpartition(".")[0] or name


@dataclass(frozen=True)
class _Parts:
    """The list that chunk and split return."""

    x: Ref
    shapes: tuple[Any, ...]
    axis: int


def _cut(e: Any, shape: Shape, axis: int, start: int, count: int, step: int = 1) -> tuple[Any, int]:
    """Return `count` places of `e` along an axis, and `count`, as a concatenation wants them; other axes are whole."""
    moves = tuple((start, step) if i == axis else (0, 1) for i in range(len(shape)))
    return ("slice", e, moves, (*shape[:axis], count, *shape[axis + 1 :])), count


def _runs(places: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the start, the step and the length of the evenly spaced runs that a row of places is made of."""
    runs: list[tuple[int, int, int]] = []
    for place in places:
        if runs:
            start, step, count = runs[-1]
            if count == 1 or place == start + step * count:
                runs[-1] = (start, place - start if count == 1 else step, count + 1)
                continue
        runs.append((place, 1, 1))
    return runs


def _outputs(node: Node) -> list[Ref]:
    return list(find_refs(node.args))


def _filled(node: Node, defaults: list[Any], required: int) -> list[Any]:
    """Return the positional arguments of a node with missing ones filled in."""
    given = list(node.args)
    return given + defaults[len(given) - required :] if len(given) < required + len(defaults) else given


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


def _axis(node: Node, position: int) -> int:
    return int(node.args[position]) if len(node.args) > position else int(dict(node.kwargs).get("dim", 0))


def _renumbered(expression: Any, order: list[int]) -> Any:
    if isinstance(expression, tuple):
        if len(expression) == 2 and expression[0] == "in":
            return ("in", order[expression[1]])
        return tuple(_renumbered(part, order) for part in expression)
    return expression
