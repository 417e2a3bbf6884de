"""Trained networks that experiments look at: what each is, where its weights are, and the data that fit it.

Weights are looked for in the folders given: those of CIFAR shape come from `train_cifar.py` (or are published ones),
`plain`, `residual`, `inverted` and `fire` from `unseen.py`.  The built-in model has its own, and so has lite0, which
wants its package and `PHOTOGRAPHS` (`photographs.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cprune.method.settings import Settings
from cprune.method.subject import Subject, subject_of
from cprune.models.source import Source
from cprune.targets.target import find

CIFAR = "cifar"


@dataclass(frozen=True)
class Trained:
    """What `-m` says, the name of the file with its weights ("" where it brings them), and its data (CIFAR: a file)."""

    spec: str
    file: str
    data: str


NETWORKS = {
    "built-in": Trained("resnet-fashion", "", "fashion-mnist"),
    "resnet20": Trained("resnet20", "resnet20_cifar10jpeg.safetensors", CIFAR),
    "resnet56": Trained("resnet56", "resnet56_cifar10jpeg.safetensors", CIFAR),
    "mobilenetv2": Trained("mobilenetv2", "mobilenetv2.safetensors", CIFAR),
    "vgg16": Trained("vgg16_bn", "vgg16.safetensors", CIFAR),
    "resnet32-wide": Trained("experiments.train_cifar:resnet32_wide_model", "resnet32-wide.safetensors", CIFAR),
    "lite0": Trained("experiments.photographs:lite0", "", "experiments.photographs:photographs"),
    **{
        name: Trained(f"experiments.unseen:{name}", f"{name}.safetensors", "fashion-mnist")
        for name in ("plain", "residual", "inverted", "fire")
    },
}


def opened(name: str, folders: Sequence[Path], cifar: Path | None, seed: int) -> Subject | None:
    """Return a network with its trainer and data; None, and a word on standard error, where something is missing."""
    network = NETWORKS[name]
    weights = next(
        (folder / network.file for folder in folders if network.file and (folder / network.file).exists()), None
    )
    missing = [
        *([network.file] if network.file and weights is None else []),
        *(["--cifar"] if network.data == CIFAR and cifar is None else []),
        *(["PHOTOGRAPHS"] if name == "lite0" and "PHOTOGRAPHS" not in os.environ else []),
    ]
    if missing:
        print(f"{name} is left out: it needs {' and '.join(missing)}", file=sys.stderr)
        return None
    data = f"npz:{cifar}" if network.data == CIFAR else network.data
    source = Source(network.spec, weights)
    return subject_of(source, data, find("local"), Settings(seed=seed))
