"""A network as one file that others open: `.pt2` for PyTorch (ExecuTorch, AOTInductor), `.onnx` for the rest.

What was written is read again and compared with the model before this says that it is done.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cprune.models.formats import pt2
from cprune.network.difference import WRITTEN_TOLERANCE, difference
from cprune.network.network import Network
from cprune.network.node import tensors_of
from cprune.network.precision import written_tolerance
from cprune.network.torch_export import batches, exported, quiet
from cprune.targets.errors import BrokenWorld, UserError

SUFFIXES = (".pt2", ".onnx")


def save(
    network: Network,
    example_inputs: tuple[Tensor, ...],
    out: Path,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> float:
    """Write a network into the file `out`; return the largest difference of what was written from the network.

    The names are for ONNX; without them inputs and outputs are called that, and numbered.

    Raises UserError for an ending that is none of SUFFIXES or a file that is there, BrokenWorld where what was written
    differs by more than WRITTEN_TOLERANCE, of a network that rounds its values what these may differ by in another
    runtime, and leaves no file behind if it cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out} has the ending {out.suffix!r}", f"Choose one of {', '.join(SUFFIXES)}.")
    if out.exists():
        raise UserError(f"{out} exists already", "Give another file with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.stem}.new{out.suffix}")
    try:
        if out.suffix == ".pt2":
            apart, allowed = _pt2(network, example_inputs, new), WRITTEN_TOLERANCE
        else:
            apart = _onnx(network, example_inputs, new, input_names, output_names)
            allowed = written_tolerance(network)
        if apart > allowed:
            raise BrokenWorld(f"what was written differs from the model by {apart:.3g}; {out} was not made")
        os.replace(new, out)
    finally:
        new.unlink(missing_ok=True)
    return apart


def _pt2(network: Network, inputs: tuple[Tensor, ...], path: Path) -> float:
    with quiet():
        torch.export.save(exported(network, inputs, batches(network, inputs)), path)
    again = pt2.read(path).network
    with torch.no_grad():
        return difference(again(*inputs), network(*inputs))


def _onnx(
    network: Network,
    inputs: tuple[Tensor, ...],
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> float:
    from cprune.models.formats import onnx as onnx_format

    with torch.no_grad():
        count = len(tensors_of(network(*inputs)))
    names = input_names or _numbered("input", len(inputs)), output_names or _numbered("output", count)
    onnx_format.write(network, path, *names, inputs)
    return onnx_format.runtime_difference(path, network, inputs)


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return (name,) if count == 1 else tuple(f"{name}_{i}" for i in range(count))
