"""The nodes of a `Network`: plain frozen data, and the interpreter that runs them.

A graph may come from a file, so an operator name is only ever looked up among the ATen overloads that change
nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cprune.targets.errors import UserError


@dataclass(frozen=True)
class Ref:
    """The value of another node, by its name."""

    name: str


@dataclass(frozen=True)
class Node:
    """One line of the graph.

    `op` is "input" (`args[0]`, where given, is the shape it must have, None for a size that is open), "param"
    (`args[0]` is its state-dict name), "output", "getitem", an ATen overload ("aten.conv2d.default") or
    arithmetic on sizes ("operator.mul").  `args` and `kwargs` are nested tuples of Ref, int, float, bool,
    str, None, and pairs such as ("dtype", "float32") or ("memory_format", "contiguous_format"); the one
    argument of "output" may hold dicts as well.  `source` is "model.py:42" of the user's code where known.
    """

    name: str
    op: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    source: str = ""

    def refs(self) -> tuple[str, ...]:
        """Return the names of the nodes that this one reads, in order, repeated where it reads one twice."""
        return tuple(ref.name for ref in find_refs((self.args, tuple(v for _, v in self.kwargs))))


def operator_name(node: Node) -> str:
    """Return the name of a node's operator without the overload: "conv2d", "getitem"."""
    return node.op.split(".")[1] if node.op.startswith("aten.") else node.op


def find_refs(value: Any) -> Iterator[Ref]:
    """Yield every Ref inside nested tuples, lists and dicts."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from find_refs(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from find_refs(item)


def map_refs(value: Any, function: Callable[[Ref], Any]) -> Any:
    """Return `value` with every Ref inside it replaced by `function(ref)`; lists become tuples."""
    if isinstance(value, Ref):
        return function(value)
    if isinstance(value, (tuple, list)):
        return tuple(map_refs(item, function) for item in value)
    if isinstance(value, dict):
        return {key: map_refs(item, function) for key, item in value.items()}
    return value


def on_meta(node: Node) -> Node:
    """Return the node with torch's meta device wherever it names a device."""

    def moved(value: Any) -> Any:
        if is_encoded(value):
            return ("device", "meta") if value[0] == "device" else value
        if isinstance(value, (tuple, list)):
            return tuple(moved(item) for item in value)
        return value

    return replace(node, args=moved(node.args), kwargs=tuple((key, moved(value)) for key, value in node.kwargs))


def alive(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes that the output needs; inputs stay."""
    needed: set[str] = set()
    kept: list[Node] = []
    for node in reversed(nodes):
        if node.op in ("output", "input") or node.name in needed:
            needed.update(node.refs())
            kept.append(node)
    return kept[::-1]


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors of a node's value: one, several or none."""
    if isinstance(value, Tensor):
        return [value]
    return [t for t in value if isinstance(t, Tensor)] if isinstance(value, (tuple, list)) else []


# ----------------------------------------------------------------------------------------------------
# Names of operators and constants


_SIZES: dict[str, Callable[..., Any]] = {
    f"operator.{name}": getattr(operator, name)
    for name in (
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "neg",
        "pow",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    )
} | {f"torch.{name}": getattr(torch, name) for name in ("sym_int", "sym_float", "sym_max", "sym_min")}

SIZE_OPERATORS = {function: name for name, function in _SIZES.items()}
"""Arithmetic on sizes that a graph may hold: function to operator name."""

_ENCODED: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
    "device": torch.device,
}


RESHAPES = ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
"""The operators that give a value another shape, all run as the last one."""


def lookup(op: str, where: str = "") -> Callable[..., Any]:
    """Return the function behind an operator name.

    UserError, ending in `where`, unless it is an ATen overload that changes nothing or arithmetic on sizes.
    """
    if op in _SIZES:
        return _SIZES[op]
    if op == "getitem":
        return operator.getitem
    place = f" ({where})" if where else ""
    namespace, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    found = None
    if namespace == "aten" and overload and not name.startswith("__"):
        found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise UserError(f"the graph uses {op!r}, which is not an ATen operator{place}")
    if found._schema.is_mutable or name == "from_file":
        raise UserError(f"the graph uses {op!r}, which cprune does not run{place}")
    # A view needs memory in an order that a pruned value, of one channel for example, may not have.
    return torch.ops.aten.reshape.default if op in RESHAPES else found


def encode(value: Any) -> tuple[str, str]:
    """Return the pair that stands for a torch constant, ("dtype", "float32"); ValueError if it has none."""
    for kind, its_type in _ENCODED.items():
        if isinstance(value, its_type):
            return kind, str(value).removeprefix("torch.")
    raise ValueError(f"{type(value).__name__} {value!r} cannot stand in a graph")


def is_encoded(value: Any) -> bool:
    """Tell whether a tuple of a node's arguments is a pair made by `encode`."""
    return isinstance(value, tuple) and len(value) == 2 and value[0] in _ENCODED and isinstance(value[1], str)


def decode(pair: tuple[str, str]) -> Any:
    """Return the torch constant behind a pair such as ("dtype", "float32"); UserError if there is none."""
    kind, name = pair
    try:
        found = torch.device(name) if kind == "device" else getattr(torch, name, None)
    except RuntimeError:
        found = None
    if not isinstance(found, _ENCODED[kind]):
        raise UserError(f"the graph names the {kind} {name!r}, which this torch does not know")
    return found


# ----------------------------------------------------------------------------------------------------
# Running


@dataclass(frozen=True)
class _Slot:
    """Where a value lies in the list of values."""

    index: int


@dataclass(frozen=True)
class _Step:
    """One node made ready: the result of `call` goes to `slot`; nobody reads the slots in `free` after it."""

    call: Callable[..., Any]
    by_mode: Callable[[bool, list[Any]], None] | None
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    slot: int
    free: tuple[int, ...]


class Program:
    """Nodes made ready to run, once: names are slots of a list, operators looked up, constants decoded."""

    def __init__(self, nodes: Sequence[Node], holder: Callable[[str], Mapping[str, Any]]) -> None:
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
        self.params: list[tuple[int, Mapping[str, Any], str]] = []
        self.steps: list[_Step] = []
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
                self.steps.append(_Step(lookup(node.op, node.source), _BY_MODE.get(node.op), args, kwargs, i, free))

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
        for (slot, wanted), value in zip(self.inputs, inputs, strict=True):
            _check_shape(value, wanted)
            values[slot] = value
        for slot, holder, leaf in self.params:
            values[slot] = holder[leaf]
        for step in self.steps:
            args = [_fill(arg, values) for arg in step.args]
            if step.by_mode is not None:
                step.by_mode(training, args)
            call = step.call if instead is None else instead.get(self.names[step.slot], step.call)
            values[step.slot] = call(*args, **{key: _fill(arg, values) for key, arg in step.kwargs})
            if edit is not None:
                values[step.slot] = edit(self.names[step.slot], values[step.slot])
            if kept is None:
                for slot in step.free:
                    values[slot] = None
        if kept is not None:
            kept.update(zip(self.names[:-1], values, strict=False))
        return _output(self.output, values)


def _check_shape(value: Tensor, wanted: tuple[int | None, ...] | None) -> None:
    """Raise UserError if an input has not the shape it was captured for: the graph holds sizes that follow from it."""
    if wanted is None:
        return
    if value.dim() != len(wanted) or any(size not in (None, n) for size, n in zip(wanted, value.shape, strict=True)):
        sizes = " x ".join("N" if size is None else str(size) for size in wanted)
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
