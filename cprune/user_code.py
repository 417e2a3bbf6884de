"""What a command line names: MODULE:FUNCTION of the user's own code; our own names, spelled as one likes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from cprune.targets.errors import CpruneError, UserError, unknown


def plain(name: str) -> str:
    """Return the name without what people spell differently: `ResNet-20` and `resnet_20` are one."""
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def pick(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the one of `known` that `name` means; UserError with the nearest one if there is none."""
    spelled = {plain(item): item for item in known}
    if plain(name) not in spelled:
        raise unknown(kind, name, spelled.values())
    return spelled[plain(name)]


def function(spec: str) -> Callable[..., Any]:
    """Return the function that MODULE:FUNCTION names; modules of the current folder are found first.

    UserError if the module or the function is missing (with the nearest name that exists), or if importing
    the module fails (with the line of the user's file it failed in).
    """
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise UserError(
            f"{spec!r} is not MODULE:FUNCTION",
            "Type for example my_model:build for `def build()` in my_model.py.",
        )
    if module_name.endswith(".py") or "/" in module_name:
        raise UserError(
            f"{module_name!r} in {spec!r} is a path, not a module",
            f"Go to the folder it lies in and type {Path(module_name).stem}:{function_name}.",
        )
    module = _module(module_name, spec)
    value = getattr(module, function_name, None)
    if value is None:
        names = [name for name, known in vars(module).items() if callable(known) and not name.startswith("_")]
        raise unknown(f"function in the module {module_name!r}:", function_name, names)
    if not callable(value):
        raise UserError(f"{spec} is a {type(value).__name__}, not a function")
    return value  # type: ignore[no-any-return]


def call(spec: str, function: Callable[..., Any], **arguments: Any) -> Any:
    """Return what the user's function returns; what it raises becomes a UserError that names the line."""
    with _current_folder_first():
        try:
            return function(**arguments)
        except CpruneError:
            raise
        except Exception as error:
            raise UserError(f"{spec} failed: {_where(error)}") from error


def _module(name: str, spec: str) -> ModuleType:
    with _current_folder_first():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(error.name + ".")):
                raise unknown(f"module in {spec!r}:", name, _modules_here()) from error
            raise UserError(f"the module {name!r} cannot be imported: {_where(error)}") from error
        except Exception as error:
            raise UserError(f"the module {name!r} cannot be imported: {_where(error)}") from error


def _modules_here() -> list[str]:
    here = Path.cwd()
    files = {path.stem for path in here.glob("*.py")}
    return sorted(files | {path.parent.name for path in here.glob("*/__init__.py")})


def _where(error: BaseException) -> str:
    """Return `file.py:3: ValueError: text` for the innermost line that belongs to a file of the user."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: {type(error).__name__}: {error.msg}"
    ours = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        library = "site-packages" in frame.filename or frame.filename.startswith((ours, "<frozen", sys.base_prefix))
        if not library:
            return f"{Path(frame.filename).name}:{frame.lineno}: {text}"
    return text


@contextmanager
def _current_folder_first() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
