"""From tasks that were timed one by one to the chain of calls that a model is: a scale, and what goes between calls.

A call alone finds its input where the call before it, itself, left it; in a model that lies with another core.  And the
cores wait for each other between two calls, which weighs more the less each has to do.  So a sum of tasks is too low
for narrow models.  Both are fitted on a few models that are compiled and timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    def seconds(self, alone_s: float) -> float:
        """Return what a call takes in a model."""
        return self.between_s + self.scale * alone_s


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
