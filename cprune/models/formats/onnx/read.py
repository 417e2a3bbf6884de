"""From an ONNX file to plain data: operators, arrays, inputs and outputs.  Nothing of the file is executed.

Every array and value has a name of its own, those in the branches of an `If` too; a constant is an array like the
weights.  Shapes with names or unknown sizes are open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cprune.targets.errors import UserError, first_line

DOMAINS = ("", "ai.onnx")
OLDEST_OPSET = 7
LARGEST = 2**31 - 1  # of a protobuf message

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Operator:
    """One node, the `number`-th of its file.  A missing optional input or output has the name "".

    Attributes are numbers, text, arrays, lists of them, and a `Branch` where ONNX has a graph.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    number: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}" if self.name else f"{self.kind} (number {self.number})"


@dataclass(frozen=True, eq=False)
class Branch:
    """A graph inside an operator; it reads the values of the graph around it."""

    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """An input or output of the graph; `shape` has None for an open size and is None where nothing is known."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """A graph: operators in an order in which they can run, arrays by name, inputs without those arrays.

    `file` is the name of its file, for messages.
    """

    file: str
    opset: int
    operators: tuple[Operator, ...]
    arrays: Mapping[str, Array] = field(repr=False)
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def read(path: Path) -> OnnxGraph:
    """Return the graph of an ONNX file, weights in files beside it included.

    Raises UserError, naming the file and what is wrong, for one that is missing, none, damaged or cut off, holds an
    operator that is not ONNX's own, weights that are NaN or infinite, or names of files outside its folder.
    """
    onnx = _onnx()
    path = Path(path)
    try:
        size = path.stat().st_size
        if size == 0:
            raise UserError(f"{path} is empty")
        with path.open("rb") as file:
            if not file.read(64).strip(b"\0"):
                raise UserError(f"{path} is no ONNX file: it begins with zeros")
        if size > LARGEST:
            raise UserError(
                f"{path} has {size / 2**30:.1f} GiB; an ONNX file has 2 GiB at most",
                "Save the weights beside it: onnx.save(model, FILE, save_as_external_data=True)",
            )
        model = onnx.load(str(path), load_external_data=False)
        _beside(model, path)
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error})") from error
    except UserError:
        raise
    except Exception as error:  # protobuf's DecodeError, onnx's ValidationError for external data
        raise UserError(f"{path} is no ONNX file, or is damaged ({first_line(error)})") from error
    return graph_of(model, str(path))


def graph_of(model: Any, where: str) -> OnnxGraph:
    """Return the graph of a loaded ModelProto.  `where` names it in a UserError, see `read`."""
    onnx = _onnx()
    if not model.graph.node:
        raise UserError(f"{where} is no ONNX file, or is cut off: it has no operators")
    opset = next((int(o.version) for o in model.opset_import if o.domain in DOMAINS), 0)
    if opset < OLDEST_OPSET:
        raise UserError(
            f"{where} has operators of opset {opset}; cprune reads {OLDEST_OPSET} and newer",
            "Convert it: onnx.version_converter.convert_version(model, 17)",
        )
    if opset > onnx.defs.onnx_opset_version():
        raise UserError(
            f"{where} has operators of opset {opset}; onnx {onnx.__version__} knows them up to "
            f"{onnx.defs.onnx_opset_version()}",
            "Type: pip install --upgrade onnx",
        )
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        reader = _Reader(where)
        operators = reader.graph(model.graph, None).operators
        inputs = tuple(_value(v) for v in model.graph.input if _text(v.name) not in reader.arrays)
        outputs = tuple(_value(v) for v in model.graph.output)
    except UserError:
        raise
    except Exception as error:  # whatever onnx and numpy make of damaged fields
        raise UserError(f"{where} is damaged ({first_line(error)})") from error
    known = {"", *reader.arrays, *(v.name for v in inputs)}
    _check_order(operators, known, where)
    for value in outputs:
        if value.name not in known:
            raise UserError(f"{where} is damaged: nothing makes its output {value.name!r}")
    if not outputs:
        raise UserError(f"{where} is damaged: it has no outputs")
    return OnnxGraph(where, opset, operators, reader.arrays, inputs, outputs)


class _Reader:
    """Collects arrays and operators of a graph and of those inside it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.arrays: dict[str, Array] = {}
        self.taken: set[str] = set()
        self.count = 0

    def graph(self, graph: Any, outer: Mapping[str, str] | None) -> Branch:
        """Return a graph with names that no other has; `outer` are the new names of the graph around it, if any."""
        names = dict(outer or {})
        if outer is None:  # the names of the outermost graph stay
            self.taken.update(_text(v.name) for v in (*graph.initializer, *graph.input))
            self.taken.update(_text(name) for node in graph.node for name in node.output)
        own = set()  # ONNX wants a name to be made once

        def new_name(name: str) -> str:
            if not name:
                return ""
            if name in own:
                raise UserError(f"{self.where} is damaged: the name {name!r} is made twice")
            own.add(name)
            new, number = name, 1
            while outer is not None and new in self.taken:
                number += 1
                new = f"{name}_{number}"
            self.taken.add(new)
            names[name] = new
            return new

        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise UserError(f"{self.where} has sparse weights ({name!r}), which cprune does not read")
        for tensor in graph.initializer:
            self.arrays[new_name(_text(tensor.name))] = self.array(tensor, _text(tensor.name))
        inputs = tuple(new_name(_text(v.name)) for v in graph.input if _text(v.name) not in own)
        operators = []
        for node in graph.node:
            operator = self.operator(node, names, new_name)
            if operator.kind == "Constant":
                self.arrays[operator.outputs[0]] = self.constant(operator)
            else:
                operators.append(operator)
        return Branch(tuple(operators), inputs, tuple(names.get(_text(v.name), _text(v.name)) for v in graph.output))

    def operator(self, node: Any, names: Mapping[str, str], new_name: Callable[[str], str]) -> Operator:
        if node.domain not in DOMAINS:
            raise UserError(
                f"{self.where} uses the operator {node.domain}.{node.op_type} ({node.name or node.output[0]!r}), "
                "which is not one of ONNX's own",
                "Export the model without the optimisations of a runtime.",
            )
        self.count += 1
        number = self.count
        inputs = tuple(names.get(name, name) for name in map(_text, node.input))
        attributes = {_text(a.name): self.attribute(a, _text(node.name), names) for a in node.attribute}
        outputs = tuple(new_name(_text(name)) for name in node.output)
        return Operator(_text(node.name), _text(node.op_type), inputs, outputs, attributes, number)

    def attribute(self, attribute: Any, name: str, names: Mapping[str, str]) -> Any:
        value = _onnx().helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if hasattr(value, "raw_data") and hasattr(value, "dims"):
            return self.array(value, f"{name} {attribute.name}".strip())
        if hasattr(value, "node") and hasattr(value, "initializer"):
            return self.graph(value, names)
        if hasattr(value, "values") and hasattr(value, "indices"):
            raise UserError(f"{self.where} has sparse weights ({name!r}), which cprune does not read")
        if isinstance(value, (str, int, float)):
            return value
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value]

    def constant(self, operator: Operator) -> Array:
        for key, value in operator.attributes.items():
            if key == "value":
                return np.asarray(value)
            if key in ("value_int", "value_ints"):
                return np.array(value, np.int64)
            if key in ("value_float", "value_floats"):
                return np.array(value, np.float32)
            if key in ("value_string", "value_strings"):
                return np.array(value, dtype=object)
        raise UserError(f"{self.where} has a constant {operator.outputs[0]!r} without a value")

    def array(self, tensor: Any, name: str) -> Array:
        array = np.array(_onnx().numpy_helper.to_array(tensor))  # a copy that can be written to, and is aligned
        if array.dtype.kind == "f" and np.isnan(array).any():  # infinity may be a mask: weights are looked at later
            raise UserError(f"{self.where}: the tensor {name or tensor.name!r} holds NaN", "Export the model again.")
        return array


def _check_order(operators: Iterable[Operator], known: set[str], where: str) -> None:
    """Add what operators make to `known`.  UserError where one reads what nothing before it makes (or a cycle)."""
    for operator in operators:
        missing = [name for name in operator.inputs if name not in known]
        if missing:
            raise UserError(
                f"{where} is damaged: the operator {operator} reads {missing[0]!r}, which nothing before it makes"
            )
        if operator.kind == "If" and not _is_choice(operator):
            raise UserError(
                f"{where} is damaged: the operator {operator} has no condition, or not two fitting branches"
            )
        for branch in branches(operator):
            inside = known | set(branch.inputs)
            _check_order(branch.operators, inside, where)
            missing = [name for name in branch.outputs if name not in inside]
            if missing:
                raise UserError(f"{where} is damaged: nothing makes {missing[0]!r}, an output inside {operator}")
        known.update(operator.outputs)


def _is_choice(operator: Operator) -> bool:
    """Tell whether an If has what it needs."""
    both = [operator.attributes.get(f"{which}_branch") for which in ("then", "else")]
    counts = {len(branch.outputs) for branch in both if isinstance(branch, Branch) and not branch.inputs}
    return (
        all(operator.inputs[:1])
        and bool(operator.inputs)
        and len(branches(operator)) == 2
        and counts == {len(operator.outputs)}
    )


def branches(operator: Operator) -> list[Branch]:
    """Return the graphs inside an operator."""
    return [value for value in operator.attributes.values() if isinstance(value, Branch)]


def _value(value: Any) -> Value:
    onnx = _onnx()
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return Value(_text(value.name), None, (kind or "nothing").replace("_type", ""))
    tensor = value.type.tensor_type
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else "float32"
    except (KeyError, TypeError, ValueError):
        dtype = f"type {tensor.elem_type}"
    if not tensor.HasField("shape"):
        return Value(_text(value.name), None, dtype)
    # Some exporters write -1 or 0 for a size that is open.
    shape = tuple(
        int(d.dim_value) if d.WhichOneof("value") == "dim_value" and d.dim_value > 0 else None for d in tensor.shape.dim
    )
    return Value(_text(value.name), shape, dtype)


# -- weights in files beside the file


def _beside(model: Any, path: Path) -> None:
    """Raise UserError unless every file that the model names lies in its folder and is long enough."""
    folder = path.parent.resolve()
    for tensor in _tensors(model.graph):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        location = place.get("location", "")
        target = (folder / location).resolve()
        if not location or Path(location).is_absolute() or folder not in target.parents:
            raise UserError(f"{path}: the weights of {tensor.name!r} lie outside its folder ({location!r})")
        if not target.is_file():
            raise UserError(
                f"{path} keeps the weights of {tensor.name!r} in {location}, which is missing", "Copy that file too."
            )
        end = int(place.get("offset") or 0) + int(place.get("length") or 0)
        if int(place.get("offset") or 0) < 0 or end > target.stat().st_size:
            raise UserError(f"{target} is cut off: the weights of {tensor.name!r} end at byte {end}")


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _tensors(inner)


def _text(name: str | bytes) -> str:
    """Return a name; protobuf hands over the bytes of one that is no UTF-8."""
    return name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")


def _onnx() -> Any:
    try:
        import onnx
        import onnx.external_data_helper
        import onnx.inliner
    except ImportError as error:
        raise UserError("reading ONNX files needs the package onnx", "Type: pip install 'cprune[onnx]'") from error
    return onnx
