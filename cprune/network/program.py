"""The interpreter of a graph: its nodes made ready once, and run in the order in which they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cprune.network.node import Node, map_refs
from cprune.network.operators import decode, is_encoded, lookup
from cprune.targets.errors import UserError


@dataclass(frozen=True)
class _Slot:
    """Where a value lies in the list of values."""

    index: int


@dataclass(frozen=True)
class _Instruction:
    """One node made ready: the result of `call` goes to `slot`; nobody reads the slots in `free` after it."""

    call: Callable[..., Any]
    by_mode: Callable[[bool, list[Any]], None] | None
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    slot: int
    free: tuple[int, ...]


class Program:
    """Nodes made ready to run, once: names are slots of a list, operators looked up, constants decoded."""

    def __init__(self, nodes: Sequence[Node], holder: Callable[[str], Mapping[str, Tensor | None]]) -> None:
        """Check and prepare `nodes`.

        `holder(name)` returns the mapping that holds the tensor of that state-dict name under its last part;
        it is read at every run, since `torch.export` swaps the tensors in it.  UserError if the nodes are no
        graph.
        """
        self.names = [node.name for node in nodes]
        slots = {name: i for i, name in enumerate(self.names)}
        if len(slots) != len(nodes):
            raise UserError("the graph has two nodes of one name")
        last: dict[int, int] = {}
        for i, node in enumerate(nodes):
            for name in node.refs():
                if slots.get(name, i) >= i:
                    raise UserError(f"the graph's node {node.name!r} reads {name!r}, which is not there before it")
                last[slots[name]] = i
        if [i for i, node in enumerate(nodes) if node.op == "output"] != [len(nodes) - 1]:
            raise UserError("the graph must have one output node, at its end")

        def slotted(value: Any) -> Any:
            return map_refs(value, lambda ref: _Slot(slots[ref.name]))

        self.output: Any = slotted(nodes[-1].args)[0]
        self.inputs: list[tuple[int, tuple[int | None, ...] | None]] = []
        read_last: dict[int, list[int]] = {}
        for slot, reader in last.items():
            read_last.setdefault(reader, []).append(slot)
        self.params: list[tuple[int, Mapping[str, Tensor | None], str]] = []
        self.instructions: list[_Instruction] = []
        for i, node in enumerate(nodes[:-1]):
            if node.op == "input":
                self.inputs.append((i, node.args[0] if node.args else None))
            elif node.op == "param":
                name = str(node.args[0])
                self.params.append((i, holder(name), name.rpartition(".")[2]))
            else:
                args = tuple(_prepare(value) for value in slotted(node.args))
                kwargs = tuple((key, _prepare(slotted(value))) for key, value in node.kwargs)
                free = tuple(read_last.get(i, ()))
                self.instructions.append(
                    _Instruction(lookup(node.op, node.source), _BY_MODE.get(node.op), args, kwargs, i, free)
                )

    def run(
        self,
        inputs: Sequence[Tensor],
        training: bool,
        kept: dict[str, Any] | None = None,
        edit: Callable[[str, Any], Any] | None = None,
        instead: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Any:
        """Return the output.

        `kept` is filled with every value by node name; without it, values go when nobody reads them any more.
        `edit` is called with name and value of every node that computes one and returns the value to go on
        with.  `instead` has functions to call in place of the operators of the nodes named there.
        """
        if len(inputs) != len(self.inputs):
            raise UserError(f"the model takes {len(self.inputs)} input(s), {len(inputs)} were given")
        values: list[Any] = [None] * len(self.names)
        for (slot, shape), value in zip(self.inputs, inputs, strict=True):
            _check_shape(value, shape)
            values[slot] = value
        for slot, holder, leaf in self.params:
            values[slot] = holder[leaf]
        for instruction in self.instructions:
            args = [_fill(arg, values) for arg in instruction.args]
            if instruction.by_mode is not None:
                instruction.by_mode(training, args)
            call = instruction.call if instead is None else instead.get(self.names[instruction.slot], instruction.call)
            values[instruction.slot] = call(*args, **{key: _fill(arg, values) for key, arg in instruction.kwargs})
            if edit is not None:
                values[instruction.slot] = edit(self.names[instruction.slot], values[instruction.slot])
            if kept is None:
                for slot in instruction.free:
                    values[slot] = None
        if kept is not None:
            kept.update(zip(self.names[:-1], values, strict=False))
        return _output(self.output, values)


def _check_shape(value: Tensor, shape: tuple[int | None, ...] | None) -> None:
    """Raise UserError if an input has not the shape it was captured for: the graph holds sizes that follow from it."""
    if shape is None:
        return
    if value.dim() != len(shape) or any(size not in (None, n) for size, n in zip(shape, value.shape, strict=True)):
        sizes = " x ".join("N" if size is None else str(size) for size in shape)
        raise UserError(f"an input has shape {' x '.join(map(str, value.shape))}; the model takes {sizes}")


def _prepare(value: Any) -> Any:
    """Decode constants; a tuple without slots becomes a list, which `_fill` hands over as it is."""
    if is_encoded(value):
        return decode(value)
    if isinstance(value, tuple):
        items = [_prepare(item) for item in value]
        return tuple(items) if any(isinstance(item, (_Slot, tuple)) for item in items) else items
    return value


def _fill(value: Any, values: list[Any]) -> Any:
    if type(value) is _Slot:
        return values[value.index]
    if type(value) is tuple:
        return [_fill(item, values) for item in value]
    return value


def _output(value: Any, values: list[Any]) -> Any:
    if isinstance(value, _Slot):
        return values[value.index]
    if isinstance(value, tuple):
        return tuple(_output(item, values) for item in value)
    if isinstance(value, dict):
        return {key: _output(item, values) for key, item in value.items()}
    return value


def _batch_norm(training: bool, args: list[Any]) -> None:
    # input, weight, bias, running mean, running var, training, momentum, eps, cudnn
    if args[3] is not None:
        args[5] = training
        # An author's momentum=None (a cumulative average) is recorded as 0, which would never update.
        args[6] = args[6] or 0.1


def _instance_norm(training: bool, args: list[Any]) -> None:
    if args[3] is not None:  # input, weight, bias, running mean, running var, use the input's statistics, …
        args[5] = training


def _dropout(training: bool, args: list[Any]) -> None:
    args[2] = training or args[2]  # input, probability, training: one that the author left on for good stays on


def _recurrent(training: bool, args: list[Any]) -> None:
    # input, states (a pair for LSTM), parameters, biases, layers, dropout, training, both ways, batch first
    args[6] = training or args[6]
    x = args[0]
    batch = x.shape[0 if args[8] else 1] if x.dim() == 3 else None
    for state in args[1] if isinstance(args[1], (tuple, list)) else (args[1],):
        # torch's own check is missing on its fast path, which then writes anywhere.
        if state.dim() != x.dim() or (batch is not None and state.shape[1] != batch):
            raise ValueError(f"a state of shape {list(state.shape)} does not go with a batch of {batch}")


_BY_MODE: dict[str, Callable[[bool, list[Any]], None]] = {
    "aten.batch_norm.default": _batch_norm,
    "aten.instance_norm.default": _instance_norm,
    **dict.fromkeys(("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input"), _recurrent),
    "aten.dropout.default": _dropout,
    "aten.feature_dropout.default": _dropout,
    "aten.alpha_dropout.default": _dropout,
    "aten.feature_alpha_dropout.default": _dropout,
}
