"""Make the npz file of CIFAR-10 (JPEG) that `cprune run --data npz:FILE` takes.

    python experiments/prepare_cifar.py --source DIR --out cifar10jpeg.npz

DIR holds `load.py` and the JPEG-coded images.  x_train has all 50,000 training images; of the 10,000 test
images 2,000 (200 a class, drawn with a fixed seed) become x_val, on which decisions are made, and x_test has
the other 8,000.  Decisions have to take some of the test images here, because the checkpoints we prune have
seen every training image: on a part of the training set held out afterwards ResNet-20 reads five points too
high.

CIFAR-10 (JPEG) is CIFAR-10 coded again as JPEG: never call it plain CIFAR-10.  It has no explicit licence;
use it to measure, do not ship it.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cprune.training.readers import CIFAR_MEAN, CIFAR_STD

SEED = 10
HELD_OUT_PER_CLASS = 200


def loader(source: Path) -> ModuleType:
    """Return the module in DIR/load.py."""
    spec = importlib.util.spec_from_file_location("cifar_loader", source / "load.py")
    if spec is None or spec.loader is None or not (source / "load.py").is_file():
        raise SystemExit(f"there is no load.py in {source}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def set_aside(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of the test images decisions are made on: 200 a class."""
    random = np.random.default_rng(SEED)
    aside = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        aside[random.permutation(np.flatnonzero(labels == label))[:HELD_OUT_PER_CLASS]] = True
    return aside


def main() -> None:
    """Read the command line, decode, split and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with load.py and the images")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    arguments = parser.parse_args()
    module = loader(arguments.source)
    x_train, y_train = module.cifar10_jpeg("train")
    images, labels = module.cifar10_jpeg("test")
    aside = set_aside(labels)
    arrays: dict[str, Any] = {
        "x_train": x_train,
        "y_train": y_train,
        "x_val": images[aside],
        "y_val": labels[aside],
        "x_test": images[~aside],
        "y_test": labels[~aside],
        "mean": np.array(CIFAR_MEAN),
        "std": np.array(CIFAR_STD),
        "classes": np.array(10),
        "augment": np.array(1),
    }
    with arguments.out.open("wb") as file:
        np.savez(file, **arrays)
    for name, values in arrays.items():
        print(f"{name:8} {values.dtype!s:8} {values.shape}")
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
