"""The values of a network while it is lowered, and how they reach memory.

A value is in memory or not computed yet (`cprune.compiling.kinds`): convolutions, linear layers and chains of
element-wise operators wait, so that what follows can still join them.  `Values` holds them by name and writes what is
read from memory; calls and weights gather there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from torch import Tensor, float32

from cprune.compiling import written
from cprune.compiling.activations import joined
from cprune.compiling.kinds import Chain, Conv, Expression, ForeignList, Linear, Parts, Stored, Value, Waiting, read
from cprune.compiling.lowered import Call, Half, Layout, Step
from cprune.compiling.padding import unpadded
from cprune.network.halving import half_of
from cprune.network.network import Network
from cprune.network.node import Node, Ref
from cprune.targets.errors import UserError
from cprune.targets.session import Array
from cprune.tuner.programs.workload import Elementwise, Shape, Workload


class Values:
    """The values of a network for one example input, as far as it is lowered, with the calls and weights for them."""

    def __init__(self, network: Network, inputs: tuple[Tensor, ...], layout: Layout) -> None:
        """Begin with no value: `by_name` is filled in the order of `nodes`."""
        self.network, self.layout = network, layout
        self.examples = network.values(*inputs)
        self.state = network.tensors()
        inside = unpadded(joined(network.nodes), self.examples)
        self.nodes, self.sides = inside.nodes, inside.sides
        self.examples.update(inside.examples)
        self.uses = Counter(name for node in self.nodes for name in node.refs())
        self.params: dict[str, str] = {n.name: n.args[0] for n in self.nodes if n.op == "param"}
        self.halved = {node.name for node in self.nodes if half_of(node)}
        self.constants: set[str] = set()
        """What depends on weights and shapes alone: computed while lowering, once."""
        self.by_name: dict[str, Value] = {}
        self.calls: list[Call] = []
        self.weights: dict[str, Array] = {}
        self.channels: dict[str, int] = {}
        self._reformatted: dict[tuple[str, int], Stored] = {}

    # -- what the network says

    def shape(self, name: str) -> Shape:
        """Return the shape of a value as the model sees it."""
        return tuple(self.examples[name].shape)

    def is_tensor(self, ref: object) -> bool:
        """Tell whether `ref` is a tensor's: no number, and no size of another value."""
        return isinstance(ref, Ref) and isinstance(self.examples[ref.name], Tensor)

    def tensor(self, ref: object) -> Tensor | None:
        """Return the parameter or buffer behind `ref`, None where it is computed."""
        name = self.params.get(ref.name) if isinstance(ref, Ref) else None
        return None if name is None else self.state[name].detach()

    def layer(self, ref: Ref) -> str:
        """Return the layer that owns a parameter: its name without the last part."""
        name = self.params[ref.name]
        return name.rpartition(".")[0] or name

    # -- values that wait

    def pending(self, ref: object, kind: type[Waiting]) -> Waiting | None:
        """Return the value if it is of this kind and nobody else reads it."""
        if not isinstance(ref, Ref) or self.uses[ref.name] != 1:
            return None
        value = self.by_name.get(ref.name)
        return value if isinstance(value, kind) else None

    def chain(self, ref: Ref) -> Chain:
        """Return the value as an expression: its own if nobody else reads it, else one read from memory."""
        pending = self.pending(ref, Chain)
        if pending is not None:
            return pending
        stored = self.in_memory(ref, None)
        return Chain(read(stored), (stored,), stored.shape)

    def chained(self, node: Node, ref: Ref, extended: Callable[[Expression], Expression]) -> Chain:
        """Return the value of `node`: that of `ref` as an expression, and what `extended` makes of it."""
        chain = self.chain(ref)
        return Chain(extended(chain.expression), chain.inputs, self.shape(node.name))

    def same(self, ref: Ref) -> Value | None:
        """Return the value of `ref` for an operator that changes nothing; nothing may join it afterwards."""
        value = self.by_name.get(ref.name)
        if isinstance(value, Parts):
            return value
        return self.in_memory(ref, None) if self.uses[ref.name] > 1 else value

    # -- values in memory

    def blocked(self, ref: Ref) -> Stored:
        """Return the value in memory, in the block that the layout has for its channels."""
        return self.stored(ref, self.layout.of(self.shape(ref.name)[1]))

    def stored(self, ref: Ref, block: int | None) -> Stored:
        """Return the value in memory as float32, emitting what is pending; in this block unless `block` is None."""
        value = self.in_memory(ref, block)
        block = value.block if block is None else block
        if value.block == block and value.step is None:
            return value
        again = self._reformatted.get((value.name, block))
        if again is None:
            workload = Elementwise(read(value), ((value.shape, value.block),), value.shape, block)
            again = self.emit(f"{value.name}_b{block}", workload, (value,), value.shape, block)
            self._reformatted[value.name, block] = again
        return again

    def in_memory(self, ref: Ref, block: int | None) -> Stored:
        """Return the value as it lies in memory, bytes or not; what is pending is emitted, in `block` if it may."""
        value = self.by_name.get(ref.name)
        if value is None:
            value = self.by_name[ref.name] = self._constant(ref.name)
        if not isinstance(value, Stored):
            value = self.by_name[ref.name] = self._written(ref.name, value, block)
        return value

    def quantized(self, ref: Ref, *, whole: bool = True) -> Stored | None:
        """Return the value in memory if it is rounded there; with `whole` only in whole blocks, not an image's."""
        if not self.layout.dot:
            return None
        value = self.in_memory(ref, None)
        fits = value.block == self.layout.block or not whole
        return value if value.step is not None and fits else None

    def emit(
        self,
        name: str,
        workload: Workload,
        inputs: Sequence[Stored],
        shape: Shape,
        block: int,
        weights: tuple[str, ...] = (),
        layers: tuple[str, ...] = (),
        step: Step | Half | None = None,
    ) -> Stored:
        """Add the call that writes the value `name`, and return that value."""
        self.calls.append(Call(name, workload, tuple(i.name for i in inputs), weights, layers))
        return Stored(name, shape, block, step)

    def foreign(self, *nodes: Node) -> Stored | ForeignList:
        """Return the value of the last node, computed by TVM's own operators.

        Raises UserError where TVM cannot import them.
        """
        from cprune.compiling.tvm_import import import_nodes

        last = nodes[-1]
        if not isinstance(self.examples[last.name], Tensor):
            return ForeignList(last)
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
        return Stored(named(imported.output), self.shape(last.name), 0)

    def _constant(self, name: str) -> Stored:
        """Return a parameter, a buffer, or what was computed from them, as a value in memory."""
        tensor = self.examples[name]
        if not isinstance(tensor, Tensor) or tensor.dtype != float32:
            raise UserError(f"cannot compile the constant {self.params.get(name, name)!r}: it is not float32")
        self.weights[name] = tensor.detach().contiguous().numpy()
        return Stored(name, tuple(tensor.shape), 0)

    def _written(self, name: str, value: Conv | Linear | Chain | Parts | ForeignList, block: int | None) -> Stored:
        if isinstance(value, Conv):
            return written.write_conv(self, name, value)
        if isinstance(value, Linear):
            return written.write_linear(self, name, value)
        if not isinstance(value, Chain):
            raise UserError(f"cannot compile the value {name!r}: it is a list of tensors")
        if block is None:
            block = self.layout.of(value.shape[1]) if len(value.shape) == 4 else 0
        workload = Elementwise(value.expression, tuple((i.shape, i.block) for i in value.inputs), value.shape, block)
        return self.emit(name, workload, value.inputs, value.shape, block)


Lowering = Callable[[Values, Node], Value | None]
"""An operator's own: returns the value of a node, or None where it has no form of ours."""
