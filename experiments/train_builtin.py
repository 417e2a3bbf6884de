"""Train the built-in model `resnet-fashion` on Fashion-MNIST, or report what the packaged one reaches.

    python experiments/train_builtin.py --source DIR    # 15 minutes on one core that computes in bfloat16
    python experiments/train_builtin.py --evaluate      # needs only the package

SGD with Nesterov momentum, one-cycle learning rate, label smoothing, flips, shifts by up to 2 pixels and one
erased rectangle an image; bfloat16 in the convolutions, weights kept in float32.  It trains on 58,000 images:
the 60,000 of the data set without 2,000 that are in the package beside the 10,000 test images.  So it was trained
on none of the 12,000 that `cprune run` decides on, certifies with and reports on.  The weights are those of the
last epoch; the test images are looked at once, after it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pack_fashion_mnist import ASSETS, chosen, fashion_mnist
from safetensors.torch import save_file
from torch import Tensor, nn

from cprune.models import zoo
from cprune.models.zoo.resnet import resnet_fashion
from cprune.training.data import load_data
from cprune.training.train import evaluate
from cprune.training.views import augmented

MEAN, STD = 0.2860, 0.3530
WEIGHTS = ASSETS / "resnet_fashion.safetensors"


def erased(images: Tensor, generator: torch.Generator, largest: int = 10) -> Tensor:
    """Return the normalised batch with one rectangle (sides up to `largest`) an image set to the mean."""
    count, _, height, width = images.shape
    keep = torch.ones(2, count, max(height, width), dtype=torch.bool)
    for axis, size in enumerate((height, width)):
        side = torch.randint(0, largest + 1, (count, 1), generator=generator)
        start = torch.randint(0, size, (count, 1), generator=generator) - side // 2
        place = torch.arange(size)
        keep[axis, :, :size] = (place < start) | (place >= start + side)
    mask = keep[0, :, :height, None] | keep[1, :, None, :width]
    return images * mask[:, None]


def train(source: Path, epochs: int, batch: int, lr: float, seed: int) -> nn.Module:
    """Return the trained model; one line of progress a minute or so."""
    arrays = fashion_mnist(source)
    _, held_out = chosen(arrays["y_train"])
    use = np.setdiff1d(np.arange(len(arrays["y_train"])), held_out)
    images = torch.from_numpy(arrays["x_train"][use])[:, None]
    labels = torch.from_numpy(arrays["y_train"][use].astype(np.int64))
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = resnet_fashion().to(memory_format=torch.channels_last).train()
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}],
        lr=lr,
        momentum=0.9,
        nesterov=True,
    )
    steps = len(images) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=epochs * steps, pct_start=0.2, cycle_momentum=False
    )
    started = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for step in range(steps):
            index = order[step * batch : (step + 1) * batch]
            x = augmented(images[index], generator, shift=2).float().div_(255).sub_(MEAN).div_(STD)
            x = erased(x, generator)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x).float(), labels[index], label_smoothing=0.1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
            if step == 50:
                print(f"  step 50: {(time.perf_counter() - started):.0f} s since the start", flush=True)
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}/{epochs}  loss {total / steps:.4f}  {seconds:.0f} s", flush=True)
    return model.eval()


def report() -> None:
    """Print the accuracy of the model in the package on every part of the data in the package."""
    data = load_data("fashion-mnist", seed=0)
    model = zoo.load_model("resnet-fashion").model
    unseen = {"decide": data.decide, "certify": data.certify, "report": data.report}
    shares = {name: evaluate(model, split) for name, split in {**unseen, "train": data.train}.items()}
    for name, share in shares.items():
        seen = "never seen in training" if name in unseen else "trained on"
        print(f"{name:8} {100 * share:6.2f} %  of {len(getattr(data, name)):,} images, {seen}")
    images = sum(map(len, unseen.values()))
    together = sum(shares[name] * len(split) for name, split in unseen.items()) / images
    print(f"{'together':8} {100 * together:6.2f} %  of the {images:,} images never seen in training")


def main() -> None:
    """Read the command line; train and save, or evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder with the *-ubyte.gz files")
    parser.add_argument("--evaluate", action="store_true", help="only report the model in the package")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.evaluate:
        if arguments.source is None:
            parser.error("--source DIR is needed for training (or --evaluate)")
        model = train(arguments.source, arguments.epochs, arguments.batch, arguments.lr, arguments.seed)
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(tensors, WEIGHTS, metadata={"format": "pt"})
    report()


if __name__ == "__main__":
    main()
