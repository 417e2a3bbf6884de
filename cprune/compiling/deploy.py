"""The compiled model as files: what `cprune tune` and `cprune export` write, and how to run it.

A folder holds `model.so` (code for one kind of machine), `weights.safetensors` (packed, in the order in which the code
takes them), `model.json` (shapes, threads, what it was compiled for) and `example.safetensors` (an input, and what
PyTorch makes of it).  `model.json` is written last: a folder without it is no compiled model.  Nothing in it is
unpickled.  The code in `model.so` runs when it is loaded: open only folders that you trust, as with any program.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cprune.compiling.lowered import Lowered
from cprune.compiling.relax_module import linked
from cprune.files import atomic_write, write_json
from cprune.targets.errors import BrokenWorld, UserError, first_line, front_door
from cprune.targets.link import export
from cprune.targets.session import Array, Model
from cprune.targets.target import Target
from cprune.tuner.programs.space import Candidate


def keep_programs(path: Path, lowered: Lowered, programs: Mapping[str, Candidate], target: Target) -> None:
    """Write into `path` what is needed to compile this model again without measuring anything."""
    stored = {
        "format": 1,
        "target": target.to_dict(),
        "inputs": [list(shape) for _, shape in lowered.inputs],
        "layout": {"block": lowered.layout.block, "narrow": list(lowered.layout.narrow), "dot": lowered.layout.dot},
        "programs": {task.key: programs[task.key].text() for task in lowered.tasks()},
    }
    write_json(path, stored)


@dataclass(frozen=True)
class Example:
    """An input of the model and what PyTorch makes of it."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]


def write(
    folder: Path, name: str, lowered: Lowered, model: Model, target: Target, example: Example, facts: dict[str, Any]
) -> None:
    """Compile `model` for `target` into `folder`.  `facts` (latency, trials) go into model.json as they are.

    Raises UserError for a simulated target and where there is nothing to link with, BrokenWorld where the folder cannot
    be written.
    """
    if target.simulated:
        raise UserError(
            f"{target.name} is simulated: there is no machine that would run a compiled model",
            "Name one with --target; see: cprune targets",
        )
    import tvm
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    compiled = tvm.compile(linked(model), tvm.target.Target(json.loads(target.compiler)))
    try:
        export(compiled, folder / "model.so", target.triple)
    except OSError as error:
        raise BrokenWorld(f"cannot write {folder}: {error.strerror or error}") from error
    atomic_write(folder / "weights.safetensors", save({f"{i:05}": w for i, w in enumerate(model.weights)}))
    arrays = {f"input.{i}": x for i, x in enumerate(example.inputs)}
    arrays |= {f"output.{i}": x for i, x in enumerate(example.outputs)}
    floats = {n: np.ascontiguousarray(x, np.float32) for n, x in arrays.items()}
    atomic_write(folder / "example.safetensors", save(floats))
    description = {
        "format": 1,
        "model": name,
        "inputs": [{"name": n, "shape": list(s)} for n, s in lowered.inputs],
        "outputs": [{"name": n, "shape": list(s)} for n, s in lowered.outputs],
        "target": target.to_dict(),
        **facts,
    }
    write_json(folder / "model.json", description)


@dataclass(frozen=True)
class CompiledModel:
    """A compiled model in this process: call it with one float32 array an input, get one array an output.

    `description` is what `model.json` says of it.
    """

    description: dict[str, Any]
    main: Any
    weights: tuple[Any, ...]

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """Return the outputs.  Raises ValueError for another number of inputs or another shape."""
        import tvm

        expected = [tuple(i["shape"]) for i in self.description["inputs"]]
        shapes = [np.shape(x) for x in inputs]
        if shapes != expected:
            raise ValueError(f"the compiled model takes inputs of {expected}, not of {shapes}")
        args = [tvm.runtime.tensor(np.ascontiguousarray(x, np.float32)) for x in inputs]
        output = self.main(*args, *self.weights)
        parts: Sequence[Any] = [output] if hasattr(output, "numpy") else list(output)
        return tuple(part.numpy() for part in parts)


@front_door
def open_compiled(folder: str | os.PathLike[str]) -> CompiledModel:
    """Return the model of a folder that `cprune tune` wrote.

    The number of threads is TVM's to choose when it is first imported: set TVM_NUM_THREADS to the `threads` of
    model.json to have it as it was measured.  Raises UserError for a folder that holds none, or is damaged.
    """
    where = Path(folder)
    description, weights = read(where)
    os.environ.setdefault("TVM_NUM_THREADS", str(description["target"]["threads"]))
    import tvm

    try:
        library = tvm.runtime.load_module(str(where / "model.so"))
        main = tvm.relax.VirtualMachine(library, tvm.cpu())["main"]
    except Exception as error:
        raise UserError(f"{where / 'model.so'} cannot be loaded here ({first_line(error)})") from error
    return CompiledModel(description, main, tuple(tvm.runtime.tensor(w) for w in weights))


def read(where: Path) -> tuple[dict[str, Any], tuple[Array, ...]]:
    """Return what `model.json` of a compiled folder says, and its weights in order.

    Raises UserError for a folder that holds no compiled model, or is damaged.
    """
    try:
        description = json.loads((where / "model.json").read_text(encoding="utf-8"))
        if not isinstance(description["target"]["threads"], int) or not isinstance(description["inputs"], list):
            raise ValueError("model.json is of something else")
        return description, tuple(array for _, array in sorted(_arrays(where / "weights.safetensors").items()))
    except OSError as error:
        raise UserError(f"{where} holds no compiled model ({error.strerror}: {error.filename})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the compiled model in {where} is damaged ({error})", "Write it again: cprune tune") from error


def read_example(where: Path) -> Example:
    """Return the example of a compiled folder.  Raises UserError if there is none, or it is damaged."""
    try:
        arrays = _arrays(where / "example.safetensors")
        inputs = tuple(arrays[f"input.{i}"] for i in range(len(arrays)) if f"input.{i}" in arrays)
        outputs = tuple(arrays[f"output.{i}"] for i in range(len(arrays)) if f"output.{i}" in arrays)
    except OSError as error:
        raise UserError(f"{where} holds no example ({error.strerror}: {error.filename})") from error
    except ValueError as error:
        raise UserError(f"the example in {where} is damaged ({error})", "Write it again: cprune export") from error
    if not inputs or not outputs:
        raise UserError(f"the example in {where} has no input or no output", "Write it again: cprune export")
    return Example(inputs, outputs)


def _arrays(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from error
