"""An ONNX file opened: the module with inputs to try it on, and the names the file has for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cprune.models.formats.input_shapes import by_name
from cprune.models.formats.onnx.module import OnnxModule
from cprune.models.formats.onnx.read import OnnxGraph, Value, read
from cprune.models.formats.onnx.tidy import to_tensor
from cprune.models.opened import Opened
from cprune.targets.errors import UserError, unknown

Shapes = Mapping[str, Sequence[int]]
Constant = object
"""The value of an input for good: a number, nested lists of them, or an array."""
MOST_NUMBERS = 2**28

_DTYPES = {
    "float16": torch.float32, "bfloat16": torch.float32, "float32": torch.float32, "float64": torch.float64,
    **{name: getattr(torch, name) for name in ("int8", "int16", "int32", "int64", "uint8", "bool")},
}  # fmt: skip


def opened(path: Path, shapes: Shapes | None = None, fixed: Mapping[str, Constant] | None = None) -> Opened:
    """Return the model in an ONNX file, its inputs noise (zeros where the file wants integers).

    `shapes` gives inputs a shape by name: needed where the file leaves a size open that is not the batch.  `fixed`
    gives inputs a value for good (a number or nested lists), which the model takes no more: a switch such as a sample
    rate.

    Raises UserError for what is wrong with the file (see `read`), an operator that cprune does not know, names that are
    no input, shapes that do not fit the file, and a model that does not run on its example.
    """
    return model_of(read(Path(path)), shapes or {}, fixed or {})


def model_of(graph: OnnxGraph, shapes: Shapes, fixed: Mapping[str, Constant]) -> Opened:
    """Return the model of a graph, see `opened`."""
    path = graph.file
    names = [value.name for value in graph.inputs]
    shapes = by_name(shapes, [name for name in names if name not in fixed], path)
    for name in fixed:
        if name not in names:
            raise unknown(f"input of {path}", name, names)
    both = [name for name in shapes if name in fixed]
    if both:
        raise UserError(f"the input {both[0]!r} cannot have a value for good and a shape to choose")
    known = {value.name: _fixed(value, fixed[value.name], path) for value in graph.inputs if value.name in fixed}
    values = [value for value in graph.inputs if value.name not in known]
    examples = tuple(_example(value, shapes, path) for value in values)
    module = OnnxModule(graph, known).eval()
    with torch.no_grad():
        module(*examples)
    input_names, output_names = tuple(v.name for v in values), tuple(v.name for v in graph.outputs)
    return Opened(module, examples, Path(path).name, input_names=input_names, output_names=output_names)


def _example(value: Value, shapes: Shapes, path: str) -> Tensor:
    dtype = _DTYPES.get(value.dtype)
    if dtype is None:
        raise UserError(f"the input {value.name!r} of {path} is {value.dtype}; cprune takes tensors of numbers")
    shape = _shape(value, shapes, path)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.zeros(shape, dtype=dtype)


def _shape(value: Value, shapes: Shapes, path: str) -> list[int]:
    """Return the shape of an example: the given one, or the file's with one image to a batch."""
    if value.name not in shapes:
        if value.shape is None:
            raise UserError(f"{path} does not say the shape of its input {value.name!r}", _how(value))
        shape = [1 if i == 0 and size is None else size for i, size in enumerate(value.shape)]
        closed = [size for size in shape if size is not None]
        if len(closed) < len(shape):
            raise UserError(f"the input {value.name!r} of {path} has open sizes ({_sizes(value)})", _how(value))
        return closed
    chosen = [int(size) for size in shapes[value.name]]
    spelled = " x ".join(map(str, chosen))
    if any(size < 0 for size in chosen) or int(np.prod(chosen, dtype=object)) > MOST_NUMBERS:
        raise UserError(f"the input {value.name!r} cannot have the shape {spelled}", _how(value))
    if not _fits(chosen, value):
        raise UserError(
            f"the input {value.name!r} of {path} is {_sizes(value) or 'one number'}, not {spelled}", _how(value)
        )
    return chosen


def _fits(shape: Sequence[int], value: Value) -> bool:
    """Tell whether an input takes a shape: the sizes that the file leaves open may be any."""
    return value.shape is None or (
        len(shape) == len(value.shape) and all(size in (None, n) for n, size in zip(shape, value.shape, strict=True))
    )


def _fixed(value: Value, constant: Constant, path: str) -> Tensor:
    """Return the tensor for an input that has a value for good."""
    dtype = _DTYPES.get(value.dtype)
    try:
        tensor = to_tensor(np.array(constant), value.name, path).to(dtype)
    except (TypeError, ValueError, RuntimeError, UserError) as error:
        raise UserError(f"the input {value.name!r} of {path} is {value.dtype}, not {constant!r}") from error
    if value.shape is not None and tensor.dim() != len(value.shape) and tensor.numel() == 1:
        tensor = tensor.reshape([1] * len(value.shape))
    if dtype is None or not _fits(tensor.shape, value):
        raise UserError(
            f"the input {value.name!r} of {path} is {value.dtype} {_sizes(value) or 'scalar'}, not {constant!r}"
        )
    return tensor


def _sizes(value: Value) -> str:
    return " x ".join("?" if size is None else str(size) for size in value.shape or ())


def _how(value: Value) -> str:
    shape = value.shape if value.shape is not None else (None, 3, None, None)
    sizes = ",".join(str(size or (1 if i == 0 else "SIZE")) for i, size in enumerate(shape))
    return f"Say it with --input {value.name}={sizes}"
