"""MODULE:FUNCTION — data made by the user's own code."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cprune.targets.errors import UserError
from cprune.training.readers import Arrays, npz


def arrays(returned: object, spec: str) -> Arrays:
    """Return the `Arrays` of what the function `spec` returned.

    A dict has the names of an npz file; a tuple is (x_train, y_train, x_test, y_test).  Values are numpy
    arrays or tensors.  UserError for anything else.
    """
    if isinstance(returned, (tuple, list)) and len(returned) == len(npz.NEEDED):
        returned = dict(zip(npz.NEEDED, returned, strict=True))
    if not isinstance(returned, Mapping):
        raise UserError(
            f"{spec} returned a {type(returned).__name__}",
            "Return cprune.training.data.Data, a dict of x_train, y_train, x_test, y_test, or a tuple of the four.",
        )
    plain = {
        name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        for name, value in returned.items()
    }
    return npz.arrays(plain, f"what {spec} returned")
