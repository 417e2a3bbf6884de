"""A network on disk: `model.json`, the graph as JSON values, beside `model.safetensors`, its numbers.

Nothing is unpickled when one is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from cprune.files import atomic_write
from cprune.network.network import Network
from cprune.network.node import Node, Ref
from cprune.targets.errors import UserError

FORMAT = 1


def save(network: Network, folder: Path) -> None:
    """Write `model.safetensors` and `model.json` into `folder`, made if missing.

    At no moment is there a half-written model: the new graph is complete under a name of its own before the numbers
    take their place, and `load` reads what a crash between the two left.  Raises BrokenWorld if the disk is full.
    """
    folder = Path(folder)
    graph = to_json(network)
    own = {n: t.detach().contiguous() for n, t in network.tensors().items() if "tied_to" not in graph["tensors"][n]}
    data = tensors_to_bytes(own, metadata={"format": "pt"})
    graph["sha256"] = _checksum(graph, data)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "model.json.new", json.dumps(graph, indent=1) + "\n")
    atomic_write(folder / "model.safetensors", data)
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
        return from_json(graph, tensors_from_bytes(data))
    except OSError as error:
        raise UserError(f"cannot read a saved model in {folder}: {error}") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"the saved model in {folder} is damaged: {type(error).__name__} {error}") from error
    except UserError as error:
        raise UserError(f"{folder}: {error.message}", error.hint) from error


def to_json(network: Network) -> dict[str, Any]:
    """Return the graph, and shape, type and role of every tensor, as JSON values, without the numbers."""
    constants = set(network.constants())
    tensors: dict[str, Any] = {}
    first: dict[int, str] = {}
    for name, tensor in network.tensors().items():
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
    return {"format": FORMAT, "nodes": [_node_to_json(node) for node in network.nodes], "tensors": tensors}


def from_json(graph: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Network:
    """Return the network that `to_json` described, with these tensors; UserError if they do not fit."""
    if graph.get("format") != FORMAT:
        raise UserError(f"the model's graph has format {graph.get('format')!r}, this version of cprune reads {FORMAT}")
    try:
        nodes = [_node_from_json(node) for node in graph["nodes"]]
        described = {str(name): dict(about) for name, about in graph["tensors"].items()}
        own: dict[str, Tensor] = {}
        for name, about in described.items():
            if "tied_to" in about:
                own[name] = own[about["tied_to"]]
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
            own[name] = nn.Parameter(tensor, about.get("trained", True)) if parameter else tensor
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the model's graph is damaged: {type(error).__name__} {error}") from error
    constants = [name for name, about in described.items() if about["role"] == "constant"]
    return Network(nodes, own, constants).eval()


def _checksum(graph: Mapping[str, Any], data: bytes) -> str:
    """Return the SHA-256 of both files' contents, but for the checksum itself."""
    text = json.dumps({key: value for key, value in graph.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode() + data).hexdigest()


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


def _to_json(value: object) -> Any:
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _to_json(item) for key, item in value.items()}}
    return value


def _from_json(value: object) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(item) for item in value)
    if isinstance(value, dict):
        if "ref" in value:
            return Ref(str(value["ref"]))
        return {key: _from_json(item) for key, item in value["dict"].items()}
    return value
