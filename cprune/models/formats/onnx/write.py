"""From a network to an ONNX file, with the names of inputs and outputs that its users know."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cprune.files import atomic_write
from cprune.models.formats.onnx.rounding import with_integers
from cprune.network.difference import difference
from cprune.network.network import Network
from cprune.network.torch_export import batches, exported, quiet
from cprune.targets.errors import UserError, first_line


def write(
    network: Network,
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    example_inputs: tuple[Tensor, ...],
) -> bool:
    """Write a network as ONNX and return whether the batch is open there, as it is wherever the network's is.

    An operator that goes over the batch step by step (a recurrent layer along it) closes it.  Weights have their
    state-dict names.  `path` is there complete or not at all.

    Raises UserError for names that are not as many as inputs and outputs, or a name twice, an operator that ONNX has
    not, or weights of more than 2 GiB.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"writing ONNX files needs {' and '.join(missing)}", "Type: pip install 'cprune[onnx]'")
    inputs = [node for node in network.nodes if node.op == "input"]
    _check_names("input", input_names, len(inputs))
    with torch.no_grad():
        _check_names("output", output_names, len(pytree.tree_leaves(network(*example_inputs))))
    both = sorted(set(input_names).intersection(output_names))
    if both:
        raise UserError(f"{both[0]!r} cannot name an input and an output")
    open_batch = batches(network, example_inputs)
    names = list(input_names), list(output_names)
    try:
        data = _exported(network, example_inputs, *names, open_batch)
    except UserError:
        if not any(open_batch):
            raise
        open_batch = [False] * len(inputs)
        data = _exported(network, example_inputs, *names, open_batch)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)
    return any(open_batch)


def runtime_difference(path: Path, network: Network, inputs: Sequence[Tensor]) -> float:
    """Return how far ONNX Runtime's result of a file is from the network's.

    It is the largest difference, divided by the largest number of the result if that is above one.  UserError if the
    package onnxruntime is missing, or does not run the file.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(
            "comparing with ONNX Runtime needs the package onnxruntime", "Type: pip install 'cprune[bench]'"
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        outputs = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    except Exception as error:  # it has an exception for everything, none of them public
        raise UserError(f"ONNX Runtime does not run {path} ({first_line(error)})") from error
    with torch.no_grad():
        return difference(outputs, network.eval()(*inputs))


def _check_names(kind: str, names: Sequence[str], count: int) -> None:
    if len(names) != count:
        raise UserError(f"the network has {count} {kind}(s), {len(names)} name(s) were given: {', '.join(names)}")
    twice = [name for name in names if list(names).count(name) > 1 or not name]
    if twice:
        raise UserError(f"every {kind} needs a name of its own; {twice[0]!r} is none")


def _exported(
    network: Network, examples: tuple[Tensor, ...], inputs: list[str], outputs: list[str], open_batch: list[bool]
) -> bytes:
    """Return the file's content."""
    import onnx

    try:
        program = exported(network, examples, open_batch)
        with quiet():
            written = torch.onnx.export(
                program, (), input_names=inputs, output_names=outputs, dynamo=True, verbose=False, optimize=True
            )
        with tempfile.TemporaryDirectory(prefix="cprune-onnx-") as folder:
            there = Path(folder) / "model.onnx"
            assert written is not None
            written.save(str(there), external_data=False)
            model = onnx.load(str(there))
            with_integers(model)
            onnx.save(model, str(there))
            onnx.checker.check_model(str(there), full_check=True)
            return there.read_bytes()
    except Exception as error:  # whatever export, onnxscript and onnx raise
        raise UserError(f"the network cannot be written as ONNX ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """Return the innermost cause's first line: the outer ones are about the exporter."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
