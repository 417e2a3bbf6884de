"""How far two outputs of a model are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cprune.network.node import tensors_of
from cprune.targets.session import Array

TOLERANCE = 1e-3
"""What a compiled model may differ from PyTorch, of the largest magnitude (of 1 where that is smaller)."""


def difference(found: Sequence[Array], wanted: Any) -> float:
    """Return the largest difference of `found` from the model's output `wanted`, over the magnitude of each tensor.

    Infinite where numbers are missing on one side: another count, another shape, NaN.
    """
    tensors = tensors_of(wanted)
    if len(found) != len(tensors):
        return float("inf")
    return max((_apart(a, b.detach().cpu().numpy()) for a, b in zip(found, tensors, strict=True)), default=0.0)


def _apart(found: Array, wanted: Any) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    alike = (a == b) | (np.isnan(a) & np.isnan(b))  # also infinities of one sign
    if alike.all():
        return 0.0
    error = float(np.abs(a - b)[~alike].max())
    return error / max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0.0))) if error == error else float("inf")
