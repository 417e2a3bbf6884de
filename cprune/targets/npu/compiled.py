"""Functions over arrays that numba compiles when they are first called; kept on the disk, so that happens once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from cprune.targets.errors import BrokenWorld

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Return a function that compiles this one at its first call.

    Raises BrokenWorld then where numba is missing.
    """
    try:
        from numba import njit
    except ImportError:

        @functools.wraps(function)
        def missing(*_: Any) -> Any:
            raise BrokenWorld("the simulated accelerator needs numba.  Type: pip install 'cprune[npu]'")

        return cast(F, missing)
    return cast(F, njit(cache=True, nogil=True)(function))
