"""MODULE:FUNCTION — data made by the user's own code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cprune.targets.errors import UserError
from cprune.training.readers import Arrays, npz


def arrays(found: Any, spec: str) -> Arrays:
    """Return the `Arrays` of what the function `spec` returned.

    A dict has the names of an npz file; a tuple is (x_train, y_train, x_test, y_test).  Values are numpy
    arrays or tensors.  UserError for anything else.
    """
    if isinstance(found, (tuple, list)) and len(found) == len(npz.NEEDED):
        found = dict(zip(npz.NEEDED, found, strict=True))
    if not isinstance(found, Mapping):
        raise UserError(
            f"{spec} returned a {type(found).__name__}",
            "Return cprune.training.data.Data, a dict of x_train, y_train, x_test, y_test, or a tuple of the four.",
        )
    plain = {
        name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        for name, value in found.items()
    }
    return npz.arrays(plain, f"what {spec} returned")
