"""Files that are written whole or not at all, and JSON in them.  Light: only the standard library."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from cprune.targets.errors import BrokenWorld, UserError

TEMPORARY = ".tmp"  # how the names of files end that are not whole yet
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_counter = itertools.count()


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace the content of `path` (text as UTF-8): afterwards it is the old one or the new one, never a part.

    It is on the disk when this returns.  Raises BrokenWorld if the disk is full or the place cannot be
    written; then the old content is still there and no temporary file is left.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_counter)}{TEMPORARY}")
    with disk_errors(path):
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                write_all(file, content, 0)
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` to `path` as indented JSON, atomically; nan and inf become null, numpy scalars numbers."""
    atomic_write(path, json_text(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`, or None if there is no such file; UserError if it holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        detail = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read as JSON: {detail}", "Put a copy of the file back") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object", "Put a copy of the file back")
    return value


def json_text(value: Mapping[str, Any], indent: int | None = None) -> str:
    """Return `value` as JSON; nan and inf become null, numpy scalars numbers.  Raises TypeError for anything else."""
    text = json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode()  # a file name that is no UTF-8 must not stop a run


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a numpy or torch scalar
        return _plain(value.item())
    raise TypeError(f"{type(value).__name__} is no plain value: {value!r}")


def write_all(file: int, data: bytes, offset: int) -> None:
    """Write `data` to the open `file` at `offset`.  Raises OSError."""
    view = memoryview(data)
    while view:  # a disk that is nearly full takes a part and fails at the next attempt
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def sync_folder(path: Path) -> None:
    """Make a new or renamed file of the folder `path` survive a power cut."""
    with contextlib.suppress(OSError):  # some file systems cannot, and then need not
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into BrokenWorld."""
    try:
        yield
    except OSError as error:
        _broken(path, error)


def _broken(path: Path, error: OSError) -> NoReturn:
    problem = f"cannot write {path} ({error.strerror}).  Nothing recorded so far is lost"
    if error.errno in _FULL:
        problem = f"disk full: {problem}; make room and resume the run"
    raise BrokenWorld(problem) from error


@contextlib.contextmanager
def path_errors(problem: str) -> Iterator[None]:
    """Turn an OSError about a path that the user typed into UserError, a full disk into BrokenWorld."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            _broken(Path(error.filename or "."), error)
        raise UserError(f"{problem}: {error.strerror}", "Choose another folder") from error
