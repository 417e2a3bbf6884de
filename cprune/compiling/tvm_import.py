"""Operators without a form of ours: imported one by one through TVM's own front end for PyTorch.

The operator is exported alone, legalised and fused by TVM, and comes back as calls of PrimFuncs on plain values, which
are tuned in MetaSchedule's generic space (`cprune.tuner.programs.metaschedule`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from cprune.network.network import Network
from cprune.network.node import Node, Ref, map_refs
from cprune.targets.errors import UserError, first_line
from cprune.targets.session import Array
from cprune.tuner.programs.workload import Shape, Tir


@dataclass(frozen=True)
class ImportedCall:
    """One PrimFunc: reads and writes values by name."""

    output: str
    workload: Tir
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Imported:
    """The calls of an imported operator, the constants they read, and the name of the last value."""

    calls: tuple[ImportedCall, ...]
    constants: Mapping[str, Array]
    output: str


_KNOWN: dict[str, Imported] = {}
"""What operators became, by the operator, its arguments and shapes: an import takes most of a second."""
MOST_KNOWN = 1024


def import_nodes(network: Network, nodes: Sequence[Node], examples: Mapping[str, Any]) -> Imported:
    """Return the calls that compute the last of `nodes`; the others are read by it alone.

    Values are named as in the network; what is new is named "0", "1", …, and weights "@" and their name.
    Raises UserError for an operator that TVM cannot import or that works on other numbers than float32, naming the
    operator and its place in the code.
    """
    last = nodes[-1]
    where = f" ({last.source})" if last.source else ""
    operator = nodes[0].op
    if operator == "aten.scaled_dot_product_attention.default":
        nodes = _attention(last, examples)
    own = {node.name for node in nodes}
    outside = dict.fromkeys(n for node in nodes for n in node.refs() if n not in own)
    inputs = [n for n in outside if isinstance(examples[n], Tensor)]
    strange = [n for n in (*inputs, last.name) if examples[n].dtype != torch.float32]
    if strange:
        raise UserError(
            f"cannot compile {operator}{where}: it works on {examples[strange[0]].dtype}, not on float32 numbers"
        )
    short = {name: f"x{i}" for i, name in enumerate(inputs)} | {node.name: f"n{i}" for i, node in enumerate(nodes)}

    def renamed(ref: Ref) -> Any:
        return Ref(short[ref.name]) if ref.name in short else examples[ref.name]

    alone = (
        *(Node(short[n], "input") for n in inputs),
        *(
            Node(short[n.name], n.op, map_refs(n.args, renamed), tuple((k, map_refs(v, renamed)) for k, v in n.kwargs))
            for n in nodes
        ),
        Node("output", "output", (Ref(short[last.name]),)),
    )
    try:
        imported = _known(alone, [tuple(examples[n].shape) for n in inputs])
    except Exception as error:
        raise UserError(f"cannot compile {operator}{where}: {first_line(error)}") from error
    tensors = network.tensors()
    weights = {n.name: tensors[n.args[0]].detach() for n in network.nodes if n.op == "param" and n.name in inputs}
    back = {short[name]: f"@{name}" if name in weights else name for name in inputs}  # no value of a network has an @
    calls = tuple(replace(call, inputs=tuple(back.get(n, n) for n in call.inputs)) for call in imported.calls)
    constants = dict(imported.constants) | {f"@{n}": np.ascontiguousarray(w.numpy()) for n, w in weights.items()}
    return Imported(calls, constants, back.get(imported.output, imported.output))


def _attention(node: Node, examples: Mapping[str, Any]) -> Sequence[Node]:
    """Return the operators that an attention is made of; itself where heads are shared or the mask is triangular.

    TVM's importer guards the softmax against rows that a mask empties, which takes passes of their own over the scores
    and a table of truths between two kernels.
    """
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    arguments = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if arguments.get("is_causal") or arguments.get("enable_gqa"):
        return (node,)
    scale = arguments.get("scale")
    if scale is None:
        scale = examples[arguments["query"].name].shape[-1] ** -0.5

    def step(name: str, op: str, *args: Any) -> Node:
        steps.append(Node(f"{node.name}.{name}", f"aten.{op}", args, source=node.source))
        return steps[-1]

    steps: list[Node] = []
    query = step("scaled", "mul.Tensor", arguments["query"], scale)
    key = step("turned", "transpose.int", arguments["key"], -2, -1)
    scores = step("scores", "matmul.default", Ref(query.name), Ref(key.name))
    if arguments.get("attn_mask") is not None:
        scores = step("masked", "add.Tensor", Ref(scores.name), arguments["attn_mask"])
    shares = step("shares", "softmax.int", Ref(scores.name), -1)
    return (*steps, replace(node, op="aten.matmul.default", args=(Ref(shares.name), arguments["value"]), kwargs=()))


def _known(alone: tuple[Node, ...], shapes: list[Shape]) -> Imported:
    """Return `_imported`, found again where an equal operator came before: its weights are inputs like any other."""
    key = repr((alone, shapes))  # not the nodes themselves: 1 and True are equal
    if key not in _KNOWN:
        if len(_KNOWN) >= MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[key] = _imported(alone, shapes)
    return _KNOWN[key]


def _imported(alone: tuple[Node, ...], shapes: list[Shape]) -> Imported:
    """Return the calls of a small network of its own, whose inputs are named as its nodes are."""
    examples = tuple(torch.ones(shape) for shape in shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TVM's copies of torch's own objects
        module = from_exported_program(torch.export.export(Network(alone, {}).eval(), examples))
    passes = relax.transform
    module = tvm.transform.Sequential(
        [
            passes.LegalizeOps(),
            passes.AnnotateTIROpPattern(),
            passes.FoldConstant(),
            passes.FuseOps(),
            passes.FuseTIR(),
            passes.DeadCodeElimination(),
        ]
    )(module)
    return _calls(module, [node.name for node in alone if node.op == "input"])


def _calls(module: Any, parameters: Sequence[str]) -> Imported:
    main = module["main"]
    names: dict[Any, str] = dict(zip(main.params, parameters, strict=True))
    calls: list[ImportedCall] = []
    constants: dict[str, Array] = {}

    def name_of(expression: Any) -> str:
        if isinstance(expression, tvm.ir.Constant):
            name = f"constant{len(constants)}"
            array = expression.value.numpy()
            if array.dtype != np.float32:
                raise ValueError(f"it reads a table of {array.dtype}")
            constants[name] = np.ascontiguousarray(array)
            return name
        return names[expression]

    for block in main.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
                reads = list(value.args[1].fields)
                out = _shape(binding.var)
                if binding.var.ty.dtype != "float32":
                    raise ValueError(f"one of its parts hands {binding.var.ty.dtype} numbers to the next")
                func = module[value.args[0]].with_attr("global_symbol", "main")
                json = tvm.ir.save_json(tvm.IRModule({"main": func}))
                shapes = (*(_shape(r) for r in reads), out)
                inputs = tuple(name_of(r) for r in reads)
                names[binding.var] = str(len(calls))
                calls.append(ImportedCall(names[binding.var], Tir(value.args[0].name_hint, json, shapes), inputs))
            elif isinstance(value, relax.Tuple) and len(value.fields) == 1:
                names[binding.var] = name_of(value.fields[0])
            elif isinstance(value, relax.Var):
                names[binding.var] = names[value]
            else:
                raise ValueError(f"{value} has no kernel")
    result = main.body.body
    if isinstance(result, relax.Tuple):
        result = result.fields[0]
    return Imported(tuple(calls), constants, name_of(result))


def _shape(expression: Any) -> Shape:
    return tuple(int(extent) for extent in expression.ty.shape)
