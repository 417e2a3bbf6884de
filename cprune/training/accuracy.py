"""Accuracy that is compared image by image, the order in which models are certified, and a smoother score.

The loss on new images is tested along a fixed sequence: from the safest model to the fastest, each at the full level,
to the first that fails (Angelopoulos et al., "Learn then Test", arXiv 2110.01052; Laufer-Goldshtein et al., "Pareto
Testing", 2210.07913).  The model that is delivered is then truly too inaccurate only as often as one test may be wrong,
however many models there were.  Going back from the fastest until one passes is a search over noise instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cprune.targets.paired import Paired

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Look:
    """What a model answered on one part of the data.

    `accuracy` is in [0, 1]; `right` says of every image whether it got it right, bool [N], and is None where only the
    number is known (a user's function).  `divergence` is how far its answers are from those of the model before
    pruning, in nats an image (`kl`); None where nobody asked.
    """

    accuracy: float
    right: NDArray[np.bool_] | None = None
    divergence: float | None = None

    @classmethod
    def of(cls, right: NDArray[Any], divergence: float | None = None) -> Look:
        """Return the look that these answers make."""
        return cls(float(np.mean(right)), np.asarray(right, dtype=np.bool_), divergence)

    @property
    def images(self) -> int:
        """Return the number of images; 0 where it is not known."""
        return 0 if self.right is None else len(self.right)


def paired(parent: Look, pruned: Look) -> Paired:
    """Return what `pruned` loses against `parent`, both looks being at the same images in the same order.

    Where one of them does not say which images were right the result is the difference of the two numbers.
    """
    if parent.right is None or pruned.right is None:
        return Paired(parent.accuracy - pruned.accuracy)
    if parent.images != pruned.images:
        raise ValueError(f"looks at {parent.images} and at {pruned.images} images cannot be compared image by image")
    lost = int(np.sum(parent.right & ~pruned.right))
    return Paired.of(parent.images, lost, int(np.sum(pruned.right & ~parent.right)), pruned.divergence)


def walk(candidates: Iterable[T], passes: Callable[[T], bool]) -> list[T]:
    """Return the candidates before the first that fails; none is looked at after it.

    `candidates` go from the safest on, in an order that owes nothing to the images that `passes` looks at.
    """
    return list(takewhile(passes, candidates))


def kl(parent_logits: Tensor, logits: Tensor) -> float:
    """Return how far a model's answers are from its parent's: the mean of KL(parent || model), in nats an image.

    Both are logits [N, classes] for the same images.  Unlike accuracy it moves with every answer and not only where one
    tips over, so that a few hundred images tell models apart; 0 for equal answers.
    """
    wanted, answered = parent_logits.double().log_softmax(1), logits.double().log_softmax(1)
    return float(F.kl_div(answered, wanted, log_target=True, reduction="batchmean"))
