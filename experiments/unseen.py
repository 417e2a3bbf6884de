"""Networks that nothing was tuned to, trained for a minute or two on the built-in images.

    python experiments/unseen.py plain --out plain.safetensors
    cprune run -m experiments.unseen:plain --weights plain.safetensors -d fashion-mnist
    cprune run -m experiments.unseen:plain --weights plain.safetensors -d fashion-mnist \\
        --method one-shot --train-time 5m

The last run is what one does by hand: half of every width by the L1 norm of its filters, and all of the training in
one go.  No power of two is among the widths, and half blocks hold 24 channels without padding.  `plain` has
convolutions and pooling, `residual` basic blocks, `inverted` those of MobileNetV2, and `fire` the two branches of
SqueezeNet, whose outputs are put one behind the other.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from cprune.models.zoo.mobilenet import InvertedResidual
from cprune.models.zoo.resnet import ResNet
from cprune.training.data import Split, load_data
from cprune.training.train import evaluate

BATCH, LR = 128, 0.1
CLASSES = 10
Example = tuple[nn.Module, tuple[Tensor, ...]]


def with_image(build: Callable[[], nn.Module]) -> Callable[[], Example]:
    """Return a function that returns a network and one image, as `-m MODULE:FUNCTION` takes it."""

    @wraps(build)
    def both() -> Example:
        return build(), (torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)),)

    return both


@with_image
def plain() -> nn.Module:
    """Return two 3x3 convolutions a stage, pooling between the stages, and a classifier."""
    layers: list[nn.Module] = []
    before = 1
    for width in (24, 48, 96):
        layers += [nn.MaxPool2d(2)] if before > 1 else []
        for channels in (before, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


@with_image
def residual() -> nn.Module:
    """Return seven basic blocks of 20, 40 and 80 channels."""
    return ResNet(image_channels=1, stem_stride=1, widths=(20, 40, 80), blocks=(3, 2, 2), classes=CLASSES, padded=False)


@with_image
def inverted() -> nn.Module:
    """Return eight inverted residual blocks, four times as wide inside."""
    blocks: list[nn.Module] = []
    before = 20
    for width, count, stride in ((20, 2, 1), (28, 3, 2), (56, 3, 2)):
        for block in range(count):
            blocks.append(InvertedResidual(before, width, stride if block == 0 else 1, 4))
            before = width
    stem = [nn.Conv2d(1, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU6()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


class Fire(nn.Module):
    """1x1 to a few channels, then 1x1 and 3x3 side by side (Iandola et al. 2016), with BatchNorm."""

    def __init__(self, inputs: int, few: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = self._layers(inputs, few, 1)
        self.small = self._layers(few, outputs // 2, 1)
        self.large = self._layers(few, outputs // 2, 3)

    def _layers(self, inputs: int, outputs: int, kernel: int) -> nn.Sequential:
        layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, outputs, H, W] for [N, inputs, H, W]."""
        x = self.squeeze(x)
        return torch.cat((self.small(x), self.large(x)), 1)


@with_image
def fire() -> nn.Module:
    """Return six fire modules of 72 to 216 channels."""
    layers: list[nn.Module] = [nn.Conv2d(1, 36, 3, padding=1, bias=False), nn.BatchNorm2d(36), nn.ReLU()]
    before = 36
    for outputs in (72, 144, 216):
        for _ in range(2):
            layers.append(Fire(before, outputs // 4, outputs))
            before = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


NETWORKS = {"plain": plain, "residual": residual, "inverted": inverted, "fire": fire}


def train(model: nn.Module, split: Split, epochs: int) -> None:
    """Train in place: SGD, one-cycle rate, every second batch flipped, convolutions in bfloat16."""
    steps = len(split) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=epochs * steps, pct_start=0.2, cycle_momentum=False
    )
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for epoch in range(epochs):
        began = time.perf_counter()
        for index in torch.randperm(len(split))[: steps * BATCH].split(BATCH):
            images = split.model_input(split.images[index])
            images = images.flip(3) if torch.rand(()) < 0.5 else images
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                output = model(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(output.float(), split.labels[index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}  {time.perf_counter() - began:.1f} s", flush=True)


def main() -> None:
    """Read the command line, train, write, look at the images of the report once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data = load_data("fashion-mnist", 0)
    torch.manual_seed(given.seed)
    model, _ = NETWORKS[given.network]()
    train(model, data.train, given.epochs)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, given.out)
    print(f"{evaluate(model.eval(), data.report):.2%} of the report's images")


if __name__ == "__main__":
    main()
