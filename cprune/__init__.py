"""cprune: prune a trained CNN until its compiled code is faster on your device, at the accuracy you ask for.

    import cprune
    result = cprune.prune(model, example_inputs, evaluate=evaluate, train=train, min_acc=0.9)
    pruned = cprune.load("runs/my-run")

Importing this package is cheap: torch and TVM are loaded when a function needs them.
"""

from __future__ import annotations

from typing import Any

from cprune.targets.errors import BrokenWorld, CpruneError, UserError

__all__ = ["BrokenWorld", "CpruneError", "UserError", "load", "open_compiled", "prune"]


def __getattr__(name: str) -> Any:
    if name in ("load", "prune"):
        from cprune import api

        return getattr(api, name)
    if name == "open_compiled":
        from cprune.compiling.deploy import open_compiled

        return open_compiled
    if name == "__version__":
        from importlib.metadata import version

        return version("cprune")
    raise AttributeError(f"module 'cprune' has no attribute {name!r}")
