"""The one form in which cprune holds a model: the ATen graph of `torch.export` as plain data.

A `Network` runs it with an interpreter and trains like any module.  It is saved and loaded without unpickling
code, can be exported again for the compiler, and `cprune.channels.surgery` edits it as a tuple of frozen nodes.

What differs from the `nn.Module` it was captured from: the forward pass is the one of evaluation mode (a
branch `if self.training:` of the author is gone, stochastic depth with it), but batch normalisation and
dropout obey `train()` and `eval()` as always.  `num_batches_tracked` is not kept.  A weight that the
original computes from its parameters (standardised, normalised) is a parameter `….computed_weight` here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from cprune.network.node import Node, Program, Ref, on_meta
from cprune.targets.errors import UserError

__all__ = ["Network", "Node", "Ref", "load", "save"]

FORMAT = 1


class Network(nn.Module):
    """A model as a tuple of nodes; parameters and buffers keep the state-dict names of the original.

    Constants and non-persistent buffers of the original are non-persistent buffers here too, so
    `state_dict()` has the original's keys (without `num_batches_tracked`), and a checkpoint of the original
    loads.
    """

    nodes: tuple[Node, ...]

    def __init__(self, nodes: Sequence[Node], tensors: Mapping[str, Tensor], constants: Sequence[str] = ()) -> None:
        """Take `tensors` by state-dict name, `nn.Parameter` or buffer, without copying them.

        Two names of one tensor object stay tied.  `constants` names the buffers that `state_dict()` leaves
        out.  UserError if the nodes do not make a graph (unknown operator, value or tensor that is not
        there).
        """
        super().__init__()
        self.nodes = tuple(nodes)
        for name, tensor in tensors.items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                # Straight into the dicts: the author may call a layer like one of our methods ("values").
                child = owner._modules.get(part)
                if child is None:
                    child = owner._modules[part] = nn.Module()
                owner = child
            if isinstance(tensor, nn.Parameter):
                owner._parameters[leaf] = tensor
            else:
                owner._buffers[leaf] = tensor
                if name in constants:
                    owner._non_persistent_buffers_set.add(leaf)
        self._program: Program | None = Program(self.nodes, self._holder)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_program": None}  # it holds the tensors' dicts: a copy must make its own

    def _ready(self) -> Program:
        if self._program is None:
            self._program = Program(self.nodes, self._holder)
        return self._program

    def _holder(self, name: str) -> Mapping[str, Any]:
        *path, leaf = name.split(".")
        owner: nn.Module | None = self
        for part in path:
            owner = owner._modules.get(part) if owner is not None else None
        for held in (owner._parameters, owner._buffers) if owner is not None else ():
            if leaf in held:
                return held
        raise UserError(f"the graph uses the tensor {name!r}, which the weights do not have")

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the original model returns: a tensor, or tuples and dicts of them; lists become tuples.

        In training mode batch_norm uses and updates its statistics and dropout is active; else neither.
        """
        return self._ready().run(inputs, self.training)

    def values(self, *inputs: Tensor) -> dict[str, Any]:
        """Return every node's value by name (bar the output's), in evaluation mode, without gradients."""
        kept: dict[str, Any] = {}
        with torch.no_grad():
            self._ready().run(inputs, False, kept)
        return kept

    def run_edited(
        self,
        inputs: Sequence[Tensor],
        edit: Callable[[str, Any], Any],
        instead: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Any:
        """Return the output in evaluation mode, every node's value replaced by `edit(name, value)`.

        The nodes in `instead` call the function given there with the arguments of their operator.
        """
        return self._ready().run(inputs, False, edit=edit, instead=instead or {})

    def to_meta(self) -> Network:
        """Return the same network without numbers, on torch's meta device: it computes shapes only."""
        bare = {name: t.detach().to("meta") for name, t in self.tensors().items()}
        return Network([on_meta(node) for node in self.nodes], bare)

    def tensors(self) -> dict[str, Tensor]:
        """Return every parameter, buffer and constant by name; tied names give one and the same object."""
        found: dict[str, Tensor] = dict(self.named_parameters(remove_duplicate=False))
        found.update(self.named_buffers(remove_duplicate=False))
        return found

    def constants(self) -> tuple[str, ...]:
        """Return the names of the tensors that `state_dict()` leaves out."""
        kept = self.state_dict(keep_vars=True).keys()
        return tuple(name for name in self.tensors() if name not in kept)

    def to_json(self) -> dict[str, Any]:
        """Return the graph, and shape, type and role of every tensor, as JSON values, without the numbers."""
        constants = set(self.constants())
        tensors: dict[str, Any] = {}
        first: dict[int, str] = {}
        for name, tensor in self.tensors().items():
            role = "parameter" if isinstance(tensor, nn.Parameter) else "constant" if name in constants else "buffer"
            about: dict[str, Any] = {
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "role": role,
            }
            if role == "parameter" and not tensor.requires_grad:
                about["trained"] = False
            if first.setdefault(id(tensor), name) != name:
                about["tied_to"] = first[id(tensor)]
            tensors[name] = about
        return {"format": FORMAT, "nodes": [_node_to_json(node) for node in self.nodes], "tensors": tensors}

    @classmethod
    def from_json(cls, d: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Network:
        """Return the network that `to_json` described, with these tensors; UserError if they do not fit."""
        if d.get("format") != FORMAT:
            raise UserError(f"the model's graph has format {d.get('format')!r}, this version of cprune reads {FORMAT}")
        try:
            nodes = [_node_from_json(node) for node in d["nodes"]]
            described = {str(name): dict(about) for name, about in d["tensors"].items()}
            made: dict[str, Tensor] = {}
            for name, about in described.items():
                if "tied_to" in about:
                    made[name] = made[about["tied_to"]]
                    continue
                tensor = tensors.get(name)
                if tensor is None:
                    raise UserError(f"the weights lack the tensor {name!r}")
                shape, dtype = list(about["shape"]), str(about["dtype"])
                if list(tensor.shape) != shape or tensor.dtype != getattr(torch, dtype, None):
                    raise UserError(
                        f"the tensor {name!r} of the weights is {str(tensor.dtype).removeprefix('torch.')} "
                        f"{list(tensor.shape)}, the model needs {dtype} {shape}"
                    )
                parameter = about["role"] == "parameter"
                made[name] = nn.Parameter(tensor, about.get("trained", True)) if parameter else tensor
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the model's graph is damaged: {type(error).__name__} {error}") from error
        constants = [name for name, about in described.items() if about["role"] == "constant"]
        return cls(nodes, made, constants).eval()


# ----------------------------------------------------------------------------------------------------
# On disk


def save(network: Network, folder: Path) -> None:
    """Write `model.safetensors` and `model.json` into `folder`, made if missing.

    At no moment is there a half-written model: both files are complete under a temporary name before the
    first takes its place, and `load` reads what a crash between the two left.
    """
    folder = Path(folder)
    graph = network.to_json()
    own = {n: t.detach().contiguous() for n, t in network.tensors().items() if "tied_to" not in graph["tensors"][n]}
    data = tensors_to_bytes(own, metadata={"format": "pt"})
    graph["sha256"] = _checksum(graph, data)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "model.json.new", (json.dumps(graph, indent=1) + "\n").encode())
    _write(folder / "model.safetensors.new", data)
    os.replace(folder / "model.safetensors.new", folder / "model.safetensors")
    os.replace(folder / "model.json.new", folder / "model.json")


def load(folder: Path) -> Network:
    """Return the network saved in `folder`, in evaluation mode; UserError if missing, cut or altered."""
    folder = Path(folder)
    try:
        data = (folder / "model.safetensors").read_bytes()
        graph = json.loads((folder / "model.json").read_text())
        unfinished = folder / "model.json.new"
        if graph["sha256"] != _checksum(graph, data) and unfinished.exists():  # the crash that `save` speaks of
            graph = json.loads(unfinished.read_text())
        if graph["sha256"] != _checksum(graph, data):
            raise UserError(
                f"model.safetensors and model.json in {folder} are not as they were saved",
                "One of them was cut short or changed; save the model again.",
            )
        return Network.from_json(graph, tensors_from_bytes(data))
    except OSError as error:
        raise UserError(f"cannot read a saved model in {folder}: {error}") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"the saved model in {folder} is damaged: {type(error).__name__} {error}") from error
    except UserError as error:
        raise UserError(f"{folder}: {error.message}", error.hint) from error


def _checksum(graph: Mapping[str, Any], data: bytes) -> str:
    """Return the SHA-256 of both files' contents, but for the checksum itself."""
    text = json.dumps({key: value for key, value in graph.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode() + data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _node_to_json(node: Node) -> dict[str, Any]:
    d: dict[str, Any] = {"name": node.name, "op": node.op, "args": [_to_json(arg) for arg in node.args]}
    if node.kwargs:
        d["kwargs"] = {key: _to_json(value) for key, value in node.kwargs}
    if node.source:
        d["source"] = node.source
    return d


def _node_from_json(d: Mapping[str, Any]) -> Node:
    kwargs = tuple((str(key), _from_json(value)) for key, value in d.get("kwargs", {}).items())
    args = tuple(_from_json(arg) for arg in d["args"])
    return Node(str(d["name"]), str(d["op"]), args, kwargs, str(d.get("source", "")))


def _to_json(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _to_json(item) for key, item in value.items()}}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(item) for item in value)
    if isinstance(value, dict):
        if "ref" in value:
            return Ref(str(value["ref"]))
        return {key: _from_json(item) for key, item in value["dict"].items()}
    return value
