"""Functions over arrays that numba compiles when they are first called in a process.

What is compiled is not kept on the disk: numba would notice a change of the file that a function stands in, but not of
the constants that it takes from another one, and go on with the old ones.
"""

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
    return cast(F, njit(nogil=True)(function))
