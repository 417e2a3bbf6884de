"""Readers of data a user brings: an npz file, a folder of images, a function of his own.

Each returns `Arrays` as they lie on the disk; `cprune.training.data` checks them and makes the splits.  Nothing is
ever unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Part:
    """Images and labels as found, and the names that messages use for them ("x_train", "y_train")."""

    name: str
    images: NDArray[Any]
    labels_name: str
    labels: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a reader found; `mean` and `std` (one number a channel) and `classes` only if it says so."""

    train: Part
    test: Part
    val: Part | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: int | None = None
    augment: bool = False


CIFAR_MEAN = (0.485, 0.456, 0.406)
CIFAR_STD = (0.229, 0.224, 0.225)
"""What the published CIFAR-10 checkpoints of ResNet-20 to 56 want (ImageNet's numbers, in fact)."""
