"""Reading the `.pt2` files of `torch.export.save` without running anything that is in them.

`torch.export.load` unpickles tensors and objects, evaluates expressions and loads compiled libraries from the archive.
Here only its JSON and the raw numbers are read (schema 8 of `torch._export.serde`, torch 2.8 and newer), and the only
functions that the graph may name are ATen operators and arithmetic on sizes.
"""

from __future__ import annotations

import json
import math
import operator
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from cprune.models.formats.input_shapes import by_name
from cprune.models.opened import Opened
from cprune.network.capture import compare, network_of
from cprune.network.operators import SIZE_OPERATORS
from cprune.targets.errors import UserError, type_and_first_line

SCHEMA = 8
_ADVICE = "Save it with torch.export.save(torch.export.export(model.eval(), example_inputs), FILE), torch 2.8 or newer."
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_MEMORY = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
_STRIDED = 7
_SIZES = {f"_{name}": function for function, name in SIZE_OPERATORS.items() if name.startswith("operator.")} | {
    name: function for function, name in SIZE_OPERATORS.items() if name.startswith("torch.")
}
_KINDS = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


def read(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Opened:
    """Return the model of a `.pt2` file as a Network, its inputs noise (zeros where it takes integers).

    `shapes` says the shape of inputs, by name, where the file leaves sizes open.

    Raises UserError for a file that is none, is damaged, or needs more than ATen's operators.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive, path).opened(shapes or {})
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error})") from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path} is no .pt2 file, or is cut short ({error})", _ADVICE) from error
    except UserError as error:
        raise UserError(f"{path}: {error.message}", error.hint) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {type_and_first_line(error)}", _ADVICE) from error


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.archive, self.path = archive, path
        self.members = {info.filename: info for info in archive.infolist()}
        models = [name for name in self.members if "/models/" in name and name.endswith(".json")]
        if len(models) != 1:
            what = f"it holds {len(models)} models" if models else "it holds no exported model, or is cut short"
            raise UserError(what, _ADVICE)
        self.root, _, name = models[0].partition("/models/")
        self.name = name.removesuffix(".json")
        self.program = self.json(models[0])
        schema = self.program["schema_version"]["major"]
        if schema != SCHEMA:
            raise UserError(f"it has schema {schema} of torch.export, this version of cprune reads {SCHEMA}", _ADVICE)

    def bytes(self, name: str) -> bytes:
        info = self.members.get(name)
        if info is None:
            raise UserError(f"it lacks {name}", _ADVICE)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > self.path.stat().st_size:
            raise UserError(f"its part {name} is packed, which torch does not do", _ADVICE)
        return self.archive.read(info)

    def json(self, name: str) -> Any:
        return json.loads(self.bytes(name))

    # -- tensors

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters, buffers and constants; two names of one payload are one tensor."""
        tensors: dict[str, Tensor] = {}
        for folder in ("weights", "constants"):
            listed = f"{self.root}/data/{folder}/{self.name}_{folder}_config.json"
            config = self.json(listed)["config"] if listed in self.members else {}
            by_payload: dict[str, Tensor] = {}
            for name, about in config.items():
                key = json.dumps([about["path_name"], about["tensor_meta"]], sort_keys=True)
                if key not in by_payload:
                    by_payload[key] = self.tensor(name, about, f"{self.root}/data/{folder}/{about['path_name']}")
                tensors[name] = by_payload[key]
        return tensors

    def tensor(self, name: str, about: Mapping[str, Any], member: str) -> Tensor:
        if about["use_pickle"] or about["tensor_meta"] is None:
            raise UserError(f"{name!r} is pickled; cprune runs no code from a file")
        meta = about["tensor_meta"]
        dtype = _DTYPES.get(meta["dtype"])
        if dtype is None or meta["layout"] != _STRIDED:
            raise UserError(f"the tensor {name!r} is of a kind that cprune does not know")
        sizes, strides = [int(s["as_int"]) for s in meta["sizes"]], [int(s["as_int"]) for s in meta["strides"]]
        data = bytearray(self.bytes(member))
        if not math.prod(sizes):
            tensor = torch.empty(sizes, dtype=dtype)
        else:
            flat = torch.frombuffer(data, dtype=dtype)
            tensor = flat.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"])).clone()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"the tensor {name!r} holds NaN or infinity", "Use weights that were saved earlier.")
        if about["is_param"]:
            return nn.Parameter(tensor, bool(meta["requires_grad"]) and tensor.is_floating_point())
        return tensor

    # -- the graph

    def opened(self, shapes: Mapping[str, Sequence[int]]) -> Opened:
        module = self.program["graph_module"]
        graph = module["graph"]
        tensors, targets, constants = self.tensors(), dict[str, str](), list[str]()
        for spec in module["signature"]["input_specs"]:
            ((kind, about),) = spec.items()
            if kind in _KINDS:
                targets[about["arg"]["name"]] = about[_KINDS[kind]]
                if kind == "tensor_constant" or (kind == "buffer" and not about["persistent"]):
                    constants.append(about[_KINDS[kind]])
            elif kind != "user_input":
                raise UserError(f"the model takes an input of the kind {kind}, which cprune does not know")
        for spec in module["signature"]["output_specs"]:
            if "user_output" not in spec:
                raise UserError("the model changes a buffer or an input while it runs")
        missing = sorted(set(targets.values()) - set(tensors))
        if missing:
            raise UserError(f"the weights lack the tensor {missing[0]!r}")
        fx_graph, names = self.graph(graph, targets)
        shapes = by_name(shapes, names, "the file")
        out_spec = json.loads(module["module_call_graph"][0]["signature"]["out_spec"])[1]
        own = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
        network = network_of(fx_graph, targets, own, constants, lambda flat: _structure(out_spec, list(flat)))
        inputs = tuple(_example(name, graph["tensor_values"][name], shapes) for name in names)
        compare(network, _AsItIs(fx_graph, targets, tensors), inputs)
        return Opened(network, inputs, self.path.name, input_names=tuple(names))

    def graph(self, stored: Mapping[str, Any], targets: Mapping[str, str]) -> tuple[fx.Graph, list[str]]:
        """Return the graph with ATen's operators as they are in the file, and the names of the user's inputs."""
        graph = fx.Graph()
        values: dict[str, fx.Node] = {}
        inputs = []
        for spec in stored["inputs"]:
            name = spec["as_tensor"]["name"] if "as_tensor" in spec else ""
            if not name:
                raise UserError(f"the model takes an input that is no tensor ({next(iter(spec))})")
            values[name] = graph.placeholder(name)
            values[name].name = name
            if name not in targets:
                inputs.append(name)
                values[name].meta["shape"] = _open_shape(stored["tensor_values"][name])
        for node in stored["nodes"]:
            target = _target(str(node["target"]))
            args, kwargs = _arguments(target, node["inputs"], values)
            called = graph.call_function(target, args, kwargs)
            called.meta["stack_trace"] = str(node.get("metadata", {}).get("stack_trace") or "")
            _name_outputs(graph, called, node["outputs"], values)
        graph.output(tuple(_value(out, values) for out in stored["outputs"]))
        return graph, inputs


class _AsItIs(nn.Module):
    """Runs the graph as the file has it, in-place operators included: what the network is compared with."""

    def __init__(self, graph: fx.Graph, targets: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.steps = fx.Interpreter(fx.GraphModule(nn.Module(), graph))
        self.order = [targets.get(node.name) for node in graph.nodes if node.op == "placeholder"]
        self.tensors = tensors

    def forward(self, *inputs: Tensor) -> Any:
        rest = iter(inputs)
        return self.steps.run(*(next(rest) if name is None else self.tensors[name].detach() for name in self.order))


def _target(name: str) -> Callable[..., Any]:
    """Return the function that a node names: an ATen overload, arithmetic on sizes, or a check (left out later)."""
    if name in _SIZES:
        return _SIZES[name]
    prefix, _, rest = name.partition("torch.ops.aten.")
    op, _, overload = rest.partition(".")
    function = None
    if not prefix and op.isidentifier() and overload.isidentifier() and not op.startswith("__"):
        function = getattr(getattr(torch.ops.aten, op, None), overload, None)
    if not isinstance(function, torch._ops.OpOverload) or op == "from_file":
        raise UserError(f"the model uses the operator {name}, which is not one of ATen's")
    return function


def _arguments(
    target: Callable[..., Any], arguments: Sequence[Mapping[str, Any]], values: Mapping[str, fx.Node]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and named arguments: by position as far as none is left out."""
    named = {str(item["name"]): _value(item["arg"], values) for item in arguments}
    if not isinstance(target, torch._ops.OpOverload):
        return tuple(named.values()), {}
    args = []
    for argument in target._schema.arguments:
        if argument.kwarg_only or argument.name not in named:
            break
        args.append(named.pop(argument.name))
    return tuple(args), named


def _value(argument: Mapping[str, Any], values: Mapping[str, fx.Node]) -> Any:
    ((kind, value),) = argument.items()
    if kind in ("as_tensor", "as_name"):
        return values[value if kind == "as_name" else value["name"]]
    if kind == "as_none":
        return None
    if kind in ("as_int", "as_float", "as_string", "as_bool", "as_ints", "as_floats", "as_bools", "as_strings"):
        if isinstance(value, str) and kind != "as_string":  # JSON has no infinity
            return float(value)
        return value
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
        return _value(value, values)
    if kind in ("as_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools", "as_optional_tensors"):
        return [values[item["name"]] if kind == "as_tensors" else _value(item, values) for item in value]
    if kind == "as_scalar_type":
        return _DTYPES[value]
    if kind == "as_memory_format":
        return _MEMORY[value]
    if kind == "as_layout" and value == _STRIDED:
        return torch.strided
    if kind == "as_device":
        return torch.device("cpu")
    raise UserError(f"the model has an argument of the kind {kind}, which cprune does not know")


def _name_outputs(
    graph: fx.Graph, called: fx.Node, outputs: Sequence[Mapping[str, Any]], values: dict[str, fx.Node]
) -> None:
    """Give a node its name; several outputs become nodes that pick one each."""
    if len(outputs) == 1 and "as_tensors" not in outputs[0]:
        ((kind, about),) = outputs[0].items()
        name = about["name"] if kind == "as_tensor" else about.get("as_name", "") if isinstance(about, dict) else ""
        if name:
            called.name = name
            values[name] = called
        return
    parts = [part for out in outputs for part in (out["as_tensors"] if "as_tensors" in out else [out["as_tensor"]])]
    for i, part in enumerate(parts):
        picked = graph.call_function(operator.getitem, (called, i))
        picked.name = part["name"]
        values[part["name"]] = picked


def _open_shape(meta: Mapping[str, Any]) -> tuple[int | None, ...]:
    return tuple(size.get("as_int") for size in meta["sizes"])


def _example(name: str, meta: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Tensor:
    """Return an input: of the shape that is asked for, else of the file's, a batch of one where it is open."""
    own = _open_shape(meta)
    hints = [size["as_int"] if "as_int" in size else _hint(size["as_expr"]) for size in meta["sizes"]]
    sizes = list(shapes.get(name, [1 if d == 0 and own[0] is None else hint for d, hint in enumerate(hints)]))
    if len(sizes) != len(own) or any(o not in (None, s) for o, s in zip(own, sizes, strict=True)):
        raise UserError(f"the input {name!r} takes {_shown(own)}, not {_shown(sizes)}")
    dtype = _DTYPES[meta["dtype"]]
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.zeros(sizes, dtype=dtype)


def _hint(expression: Mapping[str, Any]) -> int:
    hint = expression.get("hint") or {}
    return int(hint.get("as_int", 1))


def _shown(sizes: Sequence[int | None]) -> str:
    return " x ".join("N" if size is None else str(size) for size in sizes) or "a single number"


def _structure(spec: Mapping[str, Any], flat: list[Any]) -> Any:
    """Return the flat outputs in the tuples and dicts that the model returns."""
    kind, children = spec["type"], spec["children_spec"]
    if kind is None:
        return flat.pop(0)
    parts = [_structure(child, flat) for child in children]
    if kind in ("builtins.tuple", "builtins.list", "collections.namedtuple"):
        return tuple(parts)
    if kind in ("builtins.dict", "collections.OrderedDict"):
        return dict(zip(map(str, json.loads(spec["context"])), parts, strict=True))
    raise UserError(f"the model returns a {kind}; cprune knows tensors, tuples, lists and dicts")
