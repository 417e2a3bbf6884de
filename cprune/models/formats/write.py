"""The pruned model as one file that others open: `.pt2` for PyTorch (ExecuTorch, AOTInductor), `.onnx` for the rest.

What was written is read again and compared with the model before this says that it is done.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from cprune.models.formats import pt2
from cprune.models.source import Opened, of_run
from cprune.network.difference import WRITTEN_TOLERANCE, difference
from cprune.network.node import tensors_of
from cprune.network.torch_export import batches, exported, quiet
from cprune.targets.errors import BrokenWorld, UserError

SUFFIXES = (".pt2", ".onnx")


def save(directory: Path, out: Path) -> float:
    """Write the pruned model of a run into the file `out`; return its largest difference from the model.

    Raises UserError for an ending that is none of SUFFIXES or a run that is not finished, and leaves no file behind if
    it cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out} has the ending {out.suffix!r}", f"Choose one of {', '.join(SUFFIXES)}.")
    if out.exists():
        raise UserError(f"{out} exists already", "Give another file with --out")
    if not (directory / "run.json").exists():
        raise UserError(f"{directory} is no run folder", f"A {out.suffix} file is written from a run of cprune run.")
    opened = of_run(directory)
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.stem}.new{out.suffix}")
    try:
        apart = _pt2(opened, new) if out.suffix == ".pt2" else _onnx(opened, new)
        if apart > WRITTEN_TOLERANCE:
            raise BrokenWorld(f"what was written differs from the model by {apart:.3g}; {out} was not made")
        os.replace(new, out)
    finally:
        new.unlink(missing_ok=True)
    return apart


def _pt2(opened: Opened, path: Path) -> float:
    network, inputs = opened.network, opened.example_inputs
    with quiet():
        torch.export.save(exported(network, inputs, batches(network, inputs)), path)
    again = pt2.read(path).network
    with torch.no_grad():
        return difference(again(*inputs), network(*inputs))


def _onnx(opened: Opened, path: Path) -> float:
    from cprune.models.formats import onnx as onnx_format

    network, inputs = opened.network, opened.example_inputs
    with torch.no_grad():
        count = len(tensors_of(network(*inputs)))
    names = opened.input_names or _numbered("input", len(inputs)), opened.output_names or _numbered("output", count)
    onnx_format.write(network, path, *names, inputs)
    return onnx_format.difference(path, network, inputs)


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return (name,) if count == 1 else tuple(f"{name}_{i}" for i in range(count))
