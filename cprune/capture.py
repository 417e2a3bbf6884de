"""From an `nn.Module` to a `Network`, through `torch.export`.

The graph of export's first stage is used, where convolutions, batch normalisation, dropout and linear layers
are still one operator each.  Its in-place operators become their functional twins here; writing into a view
is the one case that this cannot express, and the comparison with the original at the end finds it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import sysconfig
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from cprune.network import Network
from cprune.nodes import SIZE_OPERATORS, Node, Ref, encode, lookup
from cprune.targets.errors import UserError

_TORCH = str(Path(torch.__file__).parent)
_OURS = tuple(str(Path(__file__).with_name(name)) for name in ("capture.py", "network.py", "nodes.py"))
_STDLIB = sysconfig.get_paths()["stdlib"]


def capture(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Network:
    """Return `model` as a Network in evaluation mode, with tensors of its own; the model is left as it was.

    The batch dimension (the first of every input) stays open where the model allows it.  Layers used twice
    and tied weights stay one.  UserError, naming the place in the model's code, if `torch.export` cannot
    follow it.
    """
    example_inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    for i, example in enumerate(example_inputs):
        if not isinstance(example, Tensor):
            raise UserError(f"example input {i} is {type(example).__name__}; cprune takes models of tensors only")
    try:
        original = copy.deepcopy(model).eval()
        with torch.no_grad():
            original(*example_inputs)
    except Exception as error:
        raise UserError(
            f"the model fails on its example input {_shapes(example_inputs)}{_place(error)}: {_first_line(error)}"
        ) from error

    # A batch of one would be taken for a constant by export: it is shown two.
    several = tuple(torch.cat([x, x]) if x.dim() and x.shape[0] == 1 else x for x in example_inputs)
    open_batch = tuple({0: Dim.AUTO} if x.dim() else None for x in several)
    more = tuple(torch.cat([x, x[:1]]) if x.dim() else x for x in several)
    failure: Exception
    # A batch may look open and not be: a loop over it is unrolled for the size that export saw.
    for inputs, shapes, trials in (
        (several, open_batch, (example_inputs, more)),
        (example_inputs, None, (example_inputs,)),
    ):
        try:
            network = _network(_export(original, inputs, shapes), original)
            for trial in trials:
                _compare(network, original, trial)
            return network
        except Exception as error:  # whatever export raises; the second failure is the one to tell
            failure = error
    if isinstance(failure, UserError):
        raise failure
    raise UserError(
        f"the model cannot be exported{_place(failure)}: {_first_line(failure)}",
        "cprune needs a forward pass whose steps do not depend on the values of tensors; "
        "`torch.export.export(model.eval(), example_inputs)` shows the same error at length.",
    ) from failure


def _export(model: nn.Module, inputs: tuple[Tensor, ...], shapes: Any) -> torch.export.ExportedProgram:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # export also prints pages about what its exception says
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return torch.export.export(model, inputs, dynamic_shapes=shapes)
    finally:
        logging.disable(before)


def _compare(network: Network, original: nn.Module, examples: tuple[Tensor, ...]) -> None:
    """Raise UserError unless `network` computes what `original` does on noise of the examples' shape."""
    noise = torch.Generator().manual_seed(0)
    inputs = tuple(
        torch.randn(x.shape, generator=noise).to(x) if x.is_floating_point() else x.clone() for x in examples
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wanted = pytree.tree_leaves(original(*(x.clone() for x in inputs)))
        torch.manual_seed(0)
        found = pytree.tree_leaves(network(*inputs))
    for a, b in zip(wanted, found, strict=True):
        if isinstance(a, Tensor) and (
            a.shape != b.shape or not torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
        ):
            raise UserError(
                "the exported graph does not compute what the model does",
                "The usual cause is writing into part of a tensor in place (x[:, :2] += y): avoid that.",
            )


def _network(program: torch.export.ExportedProgram, original: nn.Module) -> Network:
    signature = program.graph_signature
    targets = {
        spec.arg.name: spec.target
        for spec in signature.input_specs
        if spec.target is not None and hasattr(spec.arg, "name")
    }
    tensors: dict[str, Tensor] = dict(original.named_parameters(remove_duplicate=False))
    tensors.update(original.named_buffers(remove_duplicate=False))
    tensors = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    persistent = original.state_dict(keep_vars=True).keys()
    constants = [name for name in tensors if name not in persistent]
    nodes: list[Node] = []
    replaced: dict[str, str] = {}  # a value written in place: its name to the name of what it is now
    for fx_node in program.graph.nodes:
        node = _node(fx_node, targets, replaced)
        if node is None:
            continue
        if node.op == "output":
            out_spec = program.call_spec.out_spec
            flat = list(node.args[0])
            structure = _structure(pytree.tree_unflatten(flat, out_spec) if out_spec is not None else tuple(flat))
            node = Node(node.name, "output", (structure,))
        elif node.op == "param" and node.args[0] not in tensors:
            name = node.args[0]
            tensors[name] = program.constants[name].detach().clone()
            constants.append(name)
        nodes.append(node)
    return Network(_alive(nodes), tensors, constants).eval()


def _node(node: fx.Node, targets: Mapping[str, str], replaced: dict[str, str]) -> Node | None:
    """Translate one node; None for checks, which the graph does without."""
    source = _source(node)
    if node.op == "placeholder":
        if node.name in targets:
            if targets[node.name].endswith("num_batches_tracked"):
                return None
            return Node(node.name, "param", (targets[node.name],))
        open_shape = tuple(size if isinstance(size, int) else None for size in node.meta["val"].shape)
        return Node(node.name, "input", (open_shape,))
    if node.op == "get_attr":
        return None  # the body of a control-flow operator, which is named itself
    try:
        args = tuple(_encoded(arg, replaced) for arg in node.args)
        kwargs = tuple((key, _encoded(value, replaced)) for key, value in node.kwargs.items())
    except ValueError as error:
        raise UserError(f"the model uses {node.target}{_at(source)} in a way cprune cannot hold: {error}") from error
    if node.op == "output":
        return Node("output", "output", args)
    target = node.target
    if target in SIZE_OPERATORS:
        return Node(node.name, SIZE_OPERATORS[target], args, kwargs, source)
    if getattr(target, "__name__", "") == "getitem":
        return Node(node.name, "getitem", args, kwargs, source)
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        if "assert" in str(target) or "_check" in str(target) or "constrain" in str(target):
            return None
        raise UserError(f"the model uses the operator {target}{_at(source)}, which is not one of ATen's")
    op = str(target)
    if "_assert" in op or "sym_constrain" in op:
        return None
    if target._schema.is_mutable:
        op = _functional(op, node, source)
        written = args[0].name if args and isinstance(args[0], Ref) else ""
        first = node.args[0]
        if isinstance(first, fx.Node) and first.name in targets:
            raise UserError(f"the model changes its buffer {targets[first.name]!r} while it runs{_at(source)}")
        for name, now in list(replaced.items()):
            if now == written:
                replaced[name] = node.name
        replaced[written] = node.name
    return Node(node.name, op, args, kwargs, source)


def _functional(op: str, node: fx.Node, source: str) -> str:
    """Return the operator that computes what an in-place one writes: for add_.Tensor add.Tensor."""
    twin = re.sub(r"_(?=\.)", "", op, count=1)
    try:
        lookup(twin)
    except UserError:
        raise UserError(f"the model uses the in-place operator {node.target}{_at(source)}") from None
    return twin


def _encoded(value: Any, replaced: Mapping[str, str]) -> Any:
    if isinstance(value, fx.Node):
        return Ref(replaced.get(value.name, value.name))
    if isinstance(value, (list, tuple)):
        return tuple(_encoded(item, replaced) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return encode(value)


def _structure(value: Any) -> Any:
    """Return an output's structure in tuples and dicts."""
    if isinstance(value, Mapping):
        return {str(key): _structure(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_structure(item) for item in value)
    if isinstance(value, Ref) or value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"the model returns a {type(value).__name__}; cprune knows tensors, tuples, lists and dicts")


def _alive(nodes: list[Node]) -> list[Node]:
    """Return the nodes that the output needs; inputs stay."""
    needed: set[str] = set()
    kept: list[Node] = []
    for node in reversed(nodes):
        if node.op in ("output", "input") or node.name in needed:
            needed.update(node.refs())
            kept.append(node)
    return kept[::-1]


# ----------------------------------------------------------------------------------------------------
# Places in the user's code


def _source(node: fx.Node) -> str:
    """Return "model.py:42", the innermost line outside torch that made a node; "" where unknown."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return next((f"{Path(file).name}:{line}" for file, line in reversed(frames) if _is_users(file)), "")


def _place(error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if not frames:
        return ""
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno} ({(frames[-1].line or '').strip()})"


def _is_users(file: str) -> bool:
    if file.startswith((_TORCH, "torch/", "<")) or file in _OURS:
        return False
    return not file.startswith(_STDLIB) or "site-packages" in file


def _at(source: str) -> str:
    return f" ({source})" if source else ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _shapes(inputs: tuple[Tensor, ...]) -> str:
    return ", ".join("x".join(map(str, x.shape)) or "scalar" for x in inputs)
