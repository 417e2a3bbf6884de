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
from collections.abc import Iterable
from typing import Any


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


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a `name` that is not among the `known` ones, with the nearest as a suggestion."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {name!r}", f"{hint}Known: {', '.join(choices)}")
