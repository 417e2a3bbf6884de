"""The exceptions that cross rooms.

Exception
└── CpruneError
    ├── UserError      a mistake of the user: what is wrong, where, what to type instead
    └── BrokenWorld    a tool, a device or a disk that went away; the run can be resumed
        └── DeviceLost  no device answers any more

Both end a command with exit code 2 and one message, never with a traceback.

A candidate that fails is neither: it is data (`cprune.targets.session.Failure`).  A bug of ours is none of these and no
data either: it surfaces, also out of another process (`Bug`), because what is recorded as a failure is never tried
again.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class CpruneError(Exception):
    """The root of everything that cprune raises on purpose."""


class UserError(CpruneError):
    """A mistake of the user.  `str(error)` is the whole message, ready to print."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint


class BrokenWorld(CpruneError):
    """The world around the run broke (worker cannot start, disk full, tool missing); nothing recorded is lost."""


class DeviceLost(BrokenWorld):
    """No device answers any more.

    `answers` are those of the request that was interrupted, None for what was not answered: they are to be kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.answers: list[Any] = []


class Bug(Exception):
    """A bug of ours in another process.  `str(error)` is the traceback of that process."""


def ours(error: BaseException) -> bool:
    """Tell whether an exception is a bug of ours, which must surface, and not what became of a candidate.

    TVM raises ValueError, RuntimeError and kinds of it (ScheduleError, InternalError, RPCError).  But an error of its
    C++ code may name any class of Python, TypeError or IndexError too; TVM-FFI leaves a mark on those.
    """
    mistakes = (TypeError, AttributeError, NameError, LookupError, AssertionError, ArithmeticError)
    return isinstance(error, mistakes) and not hasattr(error, "__tvm_ffi_error__")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none.

    What follows in a message of TVM, PyTorch or ONNX is a trace, or a page of advice.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def type_and_first_line(error: BaseException) -> str:
    """Return `first_line` behind the type: of an error that is nobody's message to a user."""
    line = first_line(error)
    return line if line == type(error).__name__ else f"{type(error).__name__}: {line}"


def front_door(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return `function` as one that users call: errors of ours leave it without what they were made from.

    Their message says it all, and the traceback of a JSON parser above it says nothing to a user.  It is still there
    for whoever looks, as `error.__context__`.  Every other error is a mistake of ours or of the user's code and leaves
    as it is.
    """

    @functools.wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except CpruneError as error:
            error.__cause__ = None  # and the context is not shown; `from None` would show this line twice
            raise

    return called


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a `name` that is not among the `known` ones, with the nearest as a suggestion."""
    choices = sorted(known)
    near = nearest(name, choices)
    hint = f"Did you mean {near!r}? " if near is not None else ""
    return UserError(f"unknown {kind} {name!r}", f"{hint}Known: {', '.join(choices)}")


_LOOK_ALIKES = str.maketrans("oil|", "0111")


def nearest(name: str, known: Collection[str], at_least: float = 0.5) -> str | None:
    """Return the one of `known` that was meant by `name`, None if none is alike by `at_least` (of 1).

    difflib says which ones are alike, but not which is nearest: it finds "resnet2" in resnet32 as in resnet20, and
    takes the letter O for anything but a nought.  So the fewest letters to type decide, and letters that look alike,
    or are the same in capitals, are one.
    """
    read = name.lower().translate(_LOOK_ALIKES)
    spelled = {item: item.lower().translate(_LOOK_ALIKES) for item in known}
    alike = difflib.get_close_matches(read, spelled.values(), n=len(spelled) or 1, cutoff=at_least)
    return min(
        (item for item, text in spelled.items() if text in alike),
        key=lambda item: (_edits(read, spelled[item]), _edits(name, item)),
        default=None,
    )


def _edits(a: str, b: str) -> int:
    """Return how many letters must be typed, deleted or replaced to make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]
