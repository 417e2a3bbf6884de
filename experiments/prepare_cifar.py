"""Make the npz file of CIFAR-10 (JPEG) that `cprune run --data npz:FILE` takes.

    python experiments/prepare_cifar.py --source DIR --out cifar10jpeg.npz

DIR holds `load.py` and the JPEG-coded images.  x_train has all 50,000 training images, x_test all 10,000 test
images.  There is no x_val: the checkpoints we prune have seen every training image, and on a part of the training
set ResNet-20 reads five points too high.  So a run shares the test images out by its seed.

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

from cprune.training.readers import CIFAR_MEAN, CIFAR_STD


def loader(source: Path) -> ModuleType:
    """Return the module in DIR/load.py."""
    spec = importlib.util.spec_from_file_location("cifar_loader", source / "load.py")
    if spec is None or spec.loader is None or not (source / "load.py").is_file():
        raise SystemExit(f"there is no load.py in {source}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Read the command line, decode, split and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with load.py and the images")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    arguments = parser.parse_args()
    module = loader(arguments.source)
    x_train, y_train = module.cifar10_jpeg("train")
    x_test, y_test = module.cifar10_jpeg("test")
    arrays: dict[str, Any] = {
        "x_train": x_train,
        "y_train": y_train,
        "x_test": x_test,
        "y_test": y_test,
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
