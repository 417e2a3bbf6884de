"""Reading weights from files and putting them into a model, without ever running code from the file."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cprune.targets.errors import UserError, first_line

PICKLED = (".th", ".pt", ".pth", ".bin", ".ckpt")
_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIX = "module."
_COUNTER = "num_batches_tracked"  # BatchNorm's; older checkpoints lack it, and nothing here reads it


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file or a torch checkpoint (.th, .pt, .pth, .bin, .ckpt) by name.

    A checkpoint may hold the state dict itself or have it under "state_dict", "model_state_dict" or "model";
    the prefix "module." of data-parallel training is dropped.  UserError if the file is missing, damaged, cut
    short, or holds more than tensors and plain values (it is read with `weights_only=True`).
    """
    if not path.is_file():
        raise UserError(f"there is no file of weights {path}", "Type --weights and the path of a file.")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is no safetensors file, or is cut short: {error}", "Copy it again.") from error
    if path.suffix not in PICKLED:
        raise UserError(
            f"{path} has the ending {path.suffix!r}",
            f"Weights are read from .safetensors, {', '.join(PICKLED)}.",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or holds more than tensors: {first_line(error)}",
            "cprune runs no code from a file.  Save the state dict: torch.save(model.state_dict(), FILE).",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is no torch checkpoint, or is cut short: {first_line(error)}", "Copy it again."
        ) from error
    return _state_dict(content, path)


def put(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    path: Path,
    name: str,
    fits: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Copy `tensors` into `model`, all or nothing; `path` and the model's `name` are for messages.

    UserError, and the model stays as it was, if a tensor has another shape (the first in the model's order is
    named), is missing, is not the model's, or holds NaN or infinity.  `fits` is asked for the names of models
    that these weights do fit.
    """
    own = model.state_dict()
    for key, tensor in own.items():
        if key in tensors and tensors[key].shape != tensor.shape:
            raise UserError(
                f"{path} does not fit {name}: the first tensor that differs is {key}, "
                f"{list(tensors[key].shape)} in the file and {list(tensor.shape)} in the model",
                _advice(fits()),
            )
    missing = [key for key in own if key not in tensors and not key.endswith(_COUNTER)]
    strangers = [key for key in tensors if key not in own and not key.endswith(_COUNTER)]
    if missing or strangers:
        what = [f"{_some(missing)} missing"] if missing else []
        what += [f"{_some(strangers)} not in the model"] if strangers else []
        raise UserError(f"{path} does not fit {name}: {'; '.join(what)}", _advice(fits()))
    for key in own:
        if key in tensors and not bool(torch.isfinite(tensors[key]).all()):
            raise UserError(f"{path}: the tensor {key} holds NaN or infinity", "Use weights that were saved earlier.")
    with torch.no_grad():
        for key, tensor in own.items():
            if key in tensors:
                tensor.copy_(tensors[key])


def _advice(names: Sequence[str]) -> str:
    if names:
        return f"These weights fit {', '.join(names)}: choose it with --model."
    return "Is it the right --model?"


def shapes_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether `tensors` have the names and shapes of the model's own."""
    own = {key: value.shape for key, value in model.state_dict().items() if not key.endswith(_COUNTER)}
    return own == {key: value.shape for key, value in tensors.items() if not key.endswith(_COUNTER)}


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(
            f"{path} holds no state dict",
            "Save it with torch.save(model.state_dict(), FILE), or under the key 'state_dict'.",
        )
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if all(key.startswith(_PREFIX) for key in tensors):
        tensors = {key[len(_PREFIX) :]: value for key, value in tensors.items()}
    return tensors


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more are" if len(names) > 3 else f"{shown} {'are' if names[1:] else 'is'}"
