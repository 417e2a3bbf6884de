"""A network that nothing was tuned to: plain, of 24 to 96 channels, trained for a minute on the built-in images.

    python experiments/unseen.py --out plain.safetensors
    cprune run -m experiments.unseen:plain --weights plain.safetensors -d fashion-mnist
    cprune run -m experiments.unseen:plain --weights plain.safetensors -d fashion-mnist \\
        --method one-shot --train-time 5m

The last run is what one does by hand: half of every width by the L1 norm of its filters, and all of the training in
one go.  Half blocks hold 24 channels without padding, and no power of two is among its widths.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from cprune.training.data import Split, load_data
from cprune.training.train import evaluate

WIDTHS = (24, 48, 96)
BATCH, LR = 128, 0.1


def network() -> nn.Sequential:
    """Return two 3x3 convolutions a stage, pooling between the stages, and a classifier of 10 classes."""
    layers: list[nn.Module] = []
    before = 1
    for width in WIDTHS:
        layers += [nn.MaxPool2d(2)] if before > 1 else []
        for channels in (before, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def plain() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the network and one image, for `-m experiments.unseen:plain`."""
    return network(), (torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)),)


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
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data = load_data("fashion-mnist", 0)
    torch.manual_seed(given.seed)
    model = network()
    train(model, data.train, given.epochs)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, given.out)
    print(f"{evaluate(model.eval(), data.report):.2%} of the report's images")


if __name__ == "__main__":
    main()
