"""From an `nn.Module` to a `Network`, through `torch.export`.

The graph of export's first stage is used, where convolutions, batch normalisation, dropout and linear layers
are still one operator each.  Its in-place operators become their functional twins here; what is written
into a slice is put back into the whole.  Writing into any other view is the one case that this cannot express, and
the comparison with the original at the end finds it.  torch's own functionalisation
(`run_decompositions({})`) knows every view, but takes batch normalisation and dropout apart on its way.
"""

from __future__ import annotations

import copy
import inspect
import re
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from cprune.network.difference import CAPTURED_TOLERANCE, difference
from cprune.network.fixed_weights import computed_once
from cprune.network.network import Network
from cprune.network.node import Node, Ref, alive, tensors_of
from cprune.network.operators import SIZE_OPERATORS, encode, lookup
from cprune.network.torch_export import quiet
from cprune.targets.errors import UserError, type_and_first_line

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent)
# There, the frames of a file's operators are the user's places.
_ONNX = str(Path(__file__).parents[1] / "models" / "formats" / "onnx")
_STDLIB = sysconfig.get_paths()["stdlib"]


def capture(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Network:
    """Return `model` as a Network in evaluation mode, with tensors of its own; the model is left as it was.

    The batch dimension (the first of every input) stays open where the model allows it.  Layers used twice
    and tied weights stay one; weights computed from parameters alone become parameters.  UserError, naming the
    place in the model's code, if `torch.export` cannot follow it.  A Network is copied.
    """
    if isinstance(model, Network):
        return copy.deepcopy(model).eval()
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
            f"the model fails on its example input {_shapes(example_inputs)}{_place(error)}: "
            f"{type_and_first_line(error)}"
        ) from error

    # A batch of one would be taken for a constant by export: it is shown two.
    several = tuple(torch.cat([x, x]) if x.dim() and x.shape[0] == 1 else x for x in example_inputs)
    open_batch: tuple[Any, ...] = tuple({0: Dim.AUTO} if x.dim() else None for x in several)
    if _takes_any_number(original):
        open_batch = (open_batch,)
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
                compare(network, original, trial)
            return network
        except Exception as error:  # whatever export raises; the second failure is the one to tell
            failure = error
    if isinstance(failure, UserError):
        raise failure
    raise UserError(
        f"the model cannot be exported{_place(failure)}: {type_and_first_line(failure)}",
        "cprune needs a forward pass whose steps do not depend on the values of tensors; "
        "`torch.export.export(model.eval(), example_inputs)` shows the same error at length.",
    ) from failure


def _takes_any_number(model: nn.Module) -> bool:
    """Tell whether `forward(self, *inputs)` gathers all its inputs in one argument."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return bool(kinds) and kinds[0] is inspect.Parameter.VAR_POSITIONAL


def _export(model: nn.Module, inputs: tuple[Tensor, ...], shapes: Any) -> torch.export.ExportedProgram:
    with quiet():
        return torch.export.export(model, inputs, dynamic_shapes=shapes)


def compare(network: Network, original: nn.Module, examples: tuple[Tensor, ...]) -> None:
    """Raise UserError unless `network` computes what `original` does on noise of the examples' shape."""
    noise = torch.Generator().manual_seed(0)
    inputs = tuple(
        torch.randn(x.shape, generator=noise).to(x) if x.is_floating_point() else x.clone() for x in examples
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        originals = tensors_of(original(*(x.clone() for x in inputs)))
        torch.manual_seed(0)
        outputs = tensors_of(network(*inputs))
    same_types = [tensor.dtype for tensor in outputs] == [tensor.dtype for tensor in originals]
    if not same_types or difference(outputs, originals) > CAPTURED_TOLERANCE:
        raise UserError(
            "the exported graph does not compute what the model does",
            "The usual cause is writing into part of a tensor in place (x[:, :2] += y): avoid that.",
        )


_WRAPPERS = ("wrap_with_autocast", "wrap_with_set_grad_enabled")
"""What a block under `torch.autocast` or `torch.no_grad` becomes: an operator with the block's graph beside it."""


def _unwrap(module: fx.GraphModule) -> None:
    """Put the graphs of such blocks where they are called.  UserError for one that computes in another precision."""
    graph = module.graph
    while wrapped := [n for n in graph.nodes if n.op == "call_function" and str(n.target) in _WRAPPERS]:
        for node in wrapped:
            if str(node.target) == _WRAPPERS[0] and node.args[2]:
                raise UserError(f"the model computes in {node.args[1]} under torch.autocast{_at(_source(node))}")
            at = next(i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
            body = getattr(module, node.args[at].target)
            values = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), node.args[at + 1 :], strict=True))
            results: Any = ()
            with graph.inserting_before(node):
                for inner in body.graph.nodes:
                    if inner.op == "output":
                        results = inner.args[0]
                    elif inner.op == "get_attr":  # a block in the block
                        name = f"{node.name}_{inner.target}"
                        setattr(module, name, getattr(body, inner.target))
                        values[inner] = graph.get_attr(name)
                    elif inner.op != "placeholder":
                        values[inner] = graph.node_copy(inner, lambda n: values[n])  # noqa: B023 - called at once
            for user in list(node.users):
                if getattr(user.target, "__name__", "") != "getitem":
                    raise UserError(f"the model uses {node.target}{_at(_source(node))} in a way cprune cannot hold")
                user.replace_all_uses_with(values[results[user.args[1]]])
                graph.erase_node(user)
            graph.erase_node(node)


def _network(program: torch.export.ExportedProgram, original: nn.Module) -> Network:
    _unwrap(program.graph_module)
    targets = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.target is not None and hasattr(spec.arg, "name")
    }
    tensors: dict[str, Tensor] = dict(original.named_parameters(remove_duplicate=False))
    tensors.update(original.named_buffers(remove_duplicate=False))
    tensors = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    persistent = original.state_dict(keep_vars=True).keys()
    constants = [name for name in tensors if name not in persistent]
    for name in targets.values():
        if name not in tensors and not name.endswith("num_batches_tracked"):
            tensors[name] = program.constants[name].detach().clone()
            constants.append(name)
    out_spec = program.call_spec.out_spec

    def structure(flat: Sequence[Any]) -> Any:
        return pytree.tree_unflatten(list(flat), out_spec) if out_spec is not None else tuple(flat)

    for fx_node in program.graph.nodes:
        if fx_node.op == "placeholder" and fx_node.name not in targets:
            sizes = fx_node.meta["val"].shape
            fx_node.meta["shape"] = tuple(size if isinstance(size, int) else None for size in sizes)
    return network_of(program.graph, targets, tensors, constants, structure)


def network_of(
    graph: fx.Graph,
    targets: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    constants: Sequence[str],
    structure: Callable[[Sequence[Any]], Any],
) -> Network:
    """Return the network of a graph of ATen operators.

    `targets` says which placeholder is which of `tensors`; the others are inputs, with their shape (None for an open
    size) in `meta["shape"]`.  `structure` puts the flat outputs into what the model returns.
    """
    own = dict(tensors)
    nodes: list[Node] = []
    by_name: dict[str, Node] = {}
    replaced: dict[str, str] = {}  # a value written in place: its name to the name of what it is now
    for fx_node in graph.nodes:
        node = _node(fx_node, targets, replaced)
        if node is None:
            continue
        if node.op == "output":
            node = Node(node.name, "output", (_structure(structure(node.args[0])),))
        for line in (node, *_written_back(fx_node, node, by_name, replaced)):
            nodes.append(line)
            by_name[line.name] = line
    return Network(computed_once(alive(nodes), own), own, constants).eval()


def _node(node: fx.Node, targets: Mapping[str, str], replaced: dict[str, str]) -> Node | None:
    """Translate one node; None for checks, which the graph does without."""
    source = _source(node)
    if node.op == "placeholder":
        if node.name in targets:
            if targets[node.name].endswith("num_batches_tracked"):
                return None
            return Node(node.name, "param", (targets[node.name],))
        return Node(node.name, "input", (node.meta["shape"],))
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


def _written_back(fx_node: fx.Node, node: Node, by_name: Mapping[str, Node], replaced: dict[str, str]) -> list[Node]:
    """Return the nodes that put what an in-place operator wrote into a slice back into what the slice was cut from."""
    if not isinstance(fx_node.target, torch._ops.OpOverload) or not fx_node.target._schema.is_mutable:
        return []
    scattered: list[Node] = []
    written = fx_node.args[0]
    view, value = by_name.get(written.name) if isinstance(written, fx.Node) else None, Ref(node.name)
    while view is not None and view.op in _SCATTERS:
        base = view.args[0]
        while base.name in replaced:  # written before: into the newest
            base = Ref(replaced[base.name])
        put_back = f"{node.name}_into_{len(scattered)}"
        back = Node(put_back, _SCATTERS[view.op], (base, value, *view.args[1:]), (), node.source)
        scattered.append(back)
        for name, now in list(replaced.items()):
            if now == base.name:
                replaced[name] = back.name
        replaced[view.args[0].name], replaced[base.name] = back.name, back.name
        view, value = by_name.get(view.args[0].name), Ref(back.name)
    return scattered


_SCATTERS = {"aten.slice.Tensor": "aten.slice_scatter.default", "aten.select.int": "aten.select_scatter.default"}
"""What puts back what was written into a view; into views of other kinds nothing does."""


def _functional(op: str, node: fx.Node, source: str) -> str:
    """Return the operator that computes what an in-place one writes: for add_.Tensor add.Tensor."""
    twin = re.sub(r"_(?=\.)", "", op, count=1)
    try:
        lookup(twin)
    except UserError:
        raise UserError(f"the model uses the in-place operator {node.target}{_at(source)}") from None
    return twin


def _encoded(value: object, replaced: Mapping[str, str]) -> Any:
    if isinstance(value, fx.Node):
        return Ref(replaced.get(value.name, value.name))
    if isinstance(value, (list, tuple)):
        return tuple(_encoded(item, replaced) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return encode(value)


def _structure(value: object) -> Any:
    """Return an output's structure in tuples and dicts."""
    if isinstance(value, Mapping):
        return {str(key): _structure(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_structure(item) for item in value)
    if isinstance(value, Ref) or value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"the model returns a {type(value).__name__}; cprune knows tensors, tuples, lists and dicts")


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
    if file.startswith((_TORCH, _OURS, _ONNX, "torch/", "<")) or "site-packages/torch/" in file:
        return False
    return not file.startswith(_STDLIB) or "site-packages" in file


def _at(source: str) -> str:
    return f" ({source})" if source else ""


def _shapes(inputs: tuple[Tensor, ...]) -> str:
    return ", ".join("x".join(map(str, x.shape)) or "scalar" for x in inputs)
