"""How far two arrays are apart, said in one way for programs, devices and whole models."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def apart(output: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the largest difference, as a share of the largest magnitude in `reference` (of 1 where that is smaller).

    Infinite if the shapes differ, or NaN and infinities do not stand in the same places.  They may stand there: inputs
    are drawn without regard to what an operator can take, and the root of a negative number is NaN.
    """
    if output.shape != reference.shape:
        return float("inf")
    exact = np.complex128 if np.iscomplexobj(output) or np.iscomplexobj(reference) else np.float64
    a, b = output.astype(exact), reference.astype(exact)
    alike = (a == b) | (np.isnan(a) & np.isnan(b))  # also infinities of one sign
    if alike.all():
        return 0.0
    with np.errstate(invalid="ignore"):  # infinities of one sign
        largest = float(np.abs(a - b)[~alike].max())
    magnitude = max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
    return float("inf") if np.isnan(largest) else largest / magnitude
