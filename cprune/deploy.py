"""The compiled model as files: what `cprune tune` writes, and how to run it.

A folder holds `model.so` (code for one kind of machine), `weights.safetensors` (packed, in the order in which the code
takes them) and `model.json` (shapes, threads, what it was compiled for).  Nothing in it is unpickled.  The code in
`model.so` runs when it is loaded: open only folders that you trust, as with any program.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cprune.compile import linked
from cprune.lower import Lowered
from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.session import Array, Model
from cprune.targets.target import Target

COMPILERS = ("cc", "gcc", "clang")


def write(folder: Path, name: str, lowered: Lowered, model: Model, target: Target, facts: dict[str, Any]) -> None:
    """Compile `model` for `target` into `folder`.  `facts` (latency, trials) go into model.json as they are.

    Raises UserError where no C compiler is there to link with.
    """
    import tvm
    from safetensors.numpy import save_file

    linker = next((found for c in COMPILERS if (found := shutil.which(c))), None)
    if linker is None:
        raise UserError("no C compiler to link the compiled model with", "Install one, for example: apt install gcc")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        compiled = tvm.compile(linked(model), tvm.target.Target(json.loads(target.compiler)))
        compiled.export_library(str(folder / "model.so"), cc=linker)
        save_file({f"{i:05}": w for i, w in enumerate(model.weights)}, folder / "weights.safetensors")
        told = {
            "format": 1,
            "model": name,
            "inputs": [{"name": n, "shape": list(s)} for n, s in lowered.inputs],
            "outputs": [{"name": n, "shape": list(s)} for n, s in lowered.outputs],
            "target": target.to_dict(),
            **facts,
        }
        (folder / "model.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BrokenWorld(f"cannot write {folder}: {error.strerror or error}") from error


@dataclass(frozen=True)
class CompiledModel:
    """A compiled model in this process: call it with one float32 array an input, get one array an output."""

    told: dict[str, Any]
    main: Any
    weights: tuple[Any, ...]

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """Return the outputs.  Raises ValueError for another number of inputs or another shape."""
        import tvm

        wanted = [tuple(i["shape"]) for i in self.told["inputs"]]
        found = [np.shape(x) for x in inputs]
        if found != wanted:
            raise ValueError(f"the compiled model takes inputs of {wanted}, not of {found}")
        args = [tvm.runtime.tensor(np.ascontiguousarray(x, np.float32)) for x in inputs]
        output = self.main(*args, *self.weights)
        parts: Sequence[Any] = [output] if hasattr(output, "numpy") else list(output)
        return tuple(part.numpy() for part in parts)


def open_compiled(folder: str | os.PathLike[str]) -> CompiledModel:
    """Return the model of a folder that `cprune tune` wrote.

    The number of threads is TVM's to choose when it is first imported: set TVM_NUM_THREADS to the `threads` of
    model.json to have it as it was measured.  Raises UserError for a folder that holds none, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    where = Path(folder)
    try:
        told = json.loads((where / "model.json").read_text(encoding="utf-8"))
        os.environ.setdefault("TVM_NUM_THREADS", str(told["target"]["threads"]))
        arrays = load_file(where / "weights.safetensors")
    except OSError as error:
        raise UserError(f"{where} holds no compiled model ({error.strerror}: {error.filename})") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"the compiled model in {where} is damaged ({error})", "Write it again: cprune tune") from error
    import tvm

    try:
        library = tvm.runtime.load_module(str(where / "model.so"))
        main = tvm.relax.VirtualMachine(library, tvm.cpu())["main"]
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{where / 'model.so'} cannot be loaded here ({first})") from error
    return CompiledModel(told, main, tuple(tvm.runtime.tensor(arrays[n]) for n in sorted(arrays)))
