"""What a pruned model loses against its parent, image by image.  Light: only the standard library.

Two models of one origin answer most images alike.  So the difference of their accuracies on the same images is known
far better than each accuracy by itself: only the images on which they disagree add noise.  See T. Tango, "Equivalence
test and confidence interval for the difference in proportions for the paired-sample design", Statistics in Medicine 17
(1998).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

CONFIDENCE = 0.95
"""Of a bound, where nothing else was asked for."""
_STEPS = 60  # of a bisection between 0 and 1: to the last digit of a float


@dataclass(frozen=True)
class Bound:
    """What is lost at most on new images, with this one-sided confidence; accuracy in [-1, 1]."""

    confidence: float
    loss: float


@dataclass(frozen=True)
class Paired:
    """The accuracy that a pruned model loses against its parent on the same images, in [-1, 1]; below 0 it gained.

    `lost` counts the images that only the parent gets right, `gained` those that only the pruned model does, of
    `images`.  Where only accuracies are known, and not which images were right, all three are 0.  `divergence` is how
    far the answers are from the parent's, KL(parent || pruned) in nats an image; None where nobody looked.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("se",)
    loss: float
    images: int = 0
    lost: int = 0
    gained: int = 0
    divergence: float | None = None

    @classmethod
    def of(cls, images: int, lost: int, gained: int, divergence: float | None = None) -> Paired:
        """Return the loss that these counts make."""
        return cls((lost - gained) / images, images, lost, gained, divergence)

    @property
    def disagreement(self) -> float:
        """Return the share of images that one of the two gets right and the other does not; 0.0 where not known."""
        return (self.lost + self.gained) / self.images if self.images else 0.0

    @property
    def se(self) -> float:
        """Return the standard error of `loss`; 0.0 where the images are not known."""
        if not self.images:
            return 0.0
        return math.sqrt(max(0.0, self.disagreement - self.loss**2) / self.images)

    def upper(self, confidence: float) -> float:
        """Return what is lost at most on images like these, with this one-sided confidence (0.95, say).

        Tango's score bound: the largest true loss that a test of this level does not refuse.  It holds for small
        counts and for none at all.  math.inf where the images are not known.
        """
        if not self.images:
            return math.inf
        z = NormalDist().inv_cdf(confidence)
        low, high = self.loss, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if self._score(middle) > -z:
                low = middle
            else:
                high = middle
        return high

    def bound(self, confidence: float) -> Bound | None:
        """Return `upper` with its confidence; None where the images are not known."""
        return Bound(confidence, self.upper(confidence)) if self.images else None

    def _score(self, true: float) -> float:
        """Return how many standard errors the loss lies above `true`, the errors being those if `true` were true."""
        n, b, c = self.images, self.lost, self.gained
        excess = b - c - n * true
        # The share of images that only the pruned model gets right, most likely if the loss were `true` (Tango, eq. 9).
        linear = (2 * n - b + c) * true - b - c
        gained = (math.sqrt(max(0.0, linear**2 + 8 * n * c * true * (1 - true))) - linear) / (4 * n)
        variance = n * (2 * gained + true * (1 - true))
        return excess / math.sqrt(variance) if variance > 0 else -math.inf if excess < 0 else 0.0

    def to_dict(self) -> Mapping[str, float]:
        """Return the plain values, with the standard error beside them; no divergence where there is none."""
        known = {"loss": self.loss, "images": self.images, "lost": self.lost, "gained": self.gained, "se": self.se}
        return known if self.divergence is None else {**known, "divergence": self.divergence}
