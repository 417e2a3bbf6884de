"""npz:FILE — arrays in a numpy archive."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cprune.targets.errors import UserError
from cprune.training.readers import Arrays, Part

NEEDED = ("x_train", "y_train", "x_test", "y_test")
_HINT = (
    "Needed: x_train, y_train, x_test, y_test (images float32 [N, C, H, W] as the model wants them, or uint8 "
    "[N, H, W, C]; labels integers [N]).  Optional: x_val and y_val to decide on, images that the model was not "
    "trained on; mean and std (one number a channel, for uint8), classes (one number), augment (1 if flips and shifts "
    "keep the class)."
)


def read(path: Path) -> Arrays:
    """Return the arrays of an .npz file, never unpickling any.

    UserError if the file is missing, no archive, cut short, or lacks an array (the message lists what is
    there).
    """
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise UserError(f"{path} is a single array, not an .npz file", _HINT)
        with opened as archive:
            return arrays({name: archive[name] for name in archive.files}, str(path))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}", "Type npz: and the path of an .npz file.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        if "allow_pickle" in str(error) or "pickled" in str(error):
            raise UserError(
                f"{path} is no .npz file of plain arrays: it holds Python objects, or is another format",
                "cprune never unpickles data; save numbers with numpy.savez.",
            ) from error
        raise UserError(f"{path} is damaged: {error}") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError, NotImplementedError) as error:
        raise UserError(f"{path} is no .npz file, or is cut short: {error}", "Copy or write it again.") from error


def arrays(content: Mapping[str, Any], where: str) -> Arrays:
    """Return the `Arrays` of a mapping with the names of an npz file; `where` names it in messages."""
    missing = [name for name in NEEDED if name not in content]
    missing += [b for a, b in (("x_val", "y_val"), ("y_val", "x_val")) if a in content and b not in content]
    if missing:
        there = ", ".join(sorted(map(str, content))) or "nothing"
        raise UserError(f"{where} lacks {', '.join(missing)}; it holds {there}", _HINT)
    val = _part(content, "val") if "x_val" in content else None
    mean, std = _per_channel(content, "mean", where), _per_channel(content, "std", where)
    if len(mean) != len(std) or min(std, default=1.0) <= 0:
        raise UserError(
            f"{where}: mean {list(mean)} and std {list(std)} do not belong together",
            "Give both with one number a channel, for images scaled to 0 to 1, std above 0.",
        )
    classes = _number(content, "classes", where)
    if classes is not None and classes < 1:
        raise UserError(f"{where}: classes is {classes}", "Leave it out, or give the number of classes.")
    augment = bool(_number(content, "augment", where))
    return Arrays(_part(content, "train"), _part(content, "test"), val, mean, std, classes, augment)


def _part(content: Mapping[str, Any], name: str) -> Part:
    return Part(f"x_{name}", np.asarray(content[f"x_{name}"]), f"y_{name}", np.asarray(content[f"y_{name}"]))


def _per_channel(content: Mapping[str, Any], name: str, where: str) -> tuple[float, ...]:
    if name not in content:
        return ()
    values: NDArray[Any] = np.asarray(content[name])
    if values.dtype.kind not in "fiu" or values.ndim > 1 or not np.isfinite(values).all():
        raise UserError(f"{where}: {name} must be one number a channel")
    return tuple(float(value) for value in values.reshape(-1))


def _number(content: Mapping[str, Any], name: str, where: str) -> int | None:
    if name not in content:
        return None
    value = np.asarray(content[name])
    if value.size != 1 or value.dtype.kind not in "iub":
        raise UserError(f"{where}: {name} must be one whole number")
    return int(value.reshape(-1)[0])
