"""From tasks that were timed one by one to the chain of calls that a model is: a scale, and what goes between calls.

A call alone finds its input where the call before it, itself, left it; in a model that lies with another core.  And the
cores wait for each other between two calls, which weighs more the less each has to do.  So a sum of tasks is too low
for narrow models.  Both are fitted on a few models that are compiled and timed; what is left of their errors is taken
off models of nearly the same latency: a plain network whose narrow weights stay in the cache took 16 % less than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SCALES = (0.5, 2.0)  # what is believed of the scale at least and at most


@dataclass(frozen=True)
class Timed:
    """A model that was timed: how many calls it has, what they take alone, and what it takes, in seconds."""

    calls: int
    alone_s: float
    seconds: float


@dataclass(frozen=True)
class Chain:
    """A call takes `scale` times what it takes alone, and there are `between_s` seconds between two."""

    between_s: float = 0.0
    scale: float = 1.0

    def seconds(self, alone_s: float, calls: int = 1) -> float:
        """Return what so many calls take in a model."""
        return self.between_s * calls + self.scale * alone_s

    def alone_s(self, seconds: float, calls: int) -> float:
        """Return what so many calls take alone that take `seconds` in a model."""
        return (seconds - self.between_s * calls) / self.scale

    def corrected(self, seconds: Sequence[float], models: Sequence[Timed]) -> list[float]:
        """Return what models take of which this chain says `seconds` each, by its errors in `models`.

        Between two of them the logarithm of the error is a line in that of the latency; beyond them it stays.
        """
        said = {self.seconds(model.alone_s, model.calls): model.seconds for model in models}
        latencies = sorted(said)
        errors = [math.log(said[one] / one) for one in latencies]
        return [float(one) for one in seconds * np.exp(np.interp(np.log(seconds), np.log(latencies), errors))]


def fitted(models: Sequence[Timed]) -> Chain:
    """Return the chain with the least squares of relative errors; neither time nor scale is negative."""
    rows = [(model.calls / model.seconds, model.alone_s / model.seconds) for model in models]
    cc, ca, aa = (
        sum(x * y for x, y in pairs) for pairs in ([(c, c) for c, _ in rows], rows, [(a, a) for _, a in rows])
    )
    c, a = sum(row[0] for row in rows), sum(row[1] for row in rows)
    determinant = cc * aa - ca * ca
    low, high = SCALES
    scale = (cc * a - ca * c) / determinant if determinant > 1e-9 * cc * aa else a / aa
    between_s = (c - scale * ca) / cc
    if between_s < 0 or not low <= scale <= high:
        scale = min(high, max(low, a / aa if between_s < 0 else scale))
        between_s = max(0.0, (c - scale * ca) / cc)
    return Chain(between_s, scale)
