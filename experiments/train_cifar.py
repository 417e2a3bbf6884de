"""Train a network of the zoo (or one more, `resnet32-wide`) on CIFAR-10 (JPEG): the models that the proof prunes.

    python experiments/train_cifar.py --source DIR --model vgg16 --out vgg16.safetensors
    python experiments/train_cifar.py --source DIR --model resnet18 --quick --out FILE     # minutes on two cores

DIR holds `load.py` and the JPEG-coded images.  SGD with Nesterov momentum, one-cycle learning rate, flips and shifts
by up to 4 pixels, bfloat16 in the convolutions, weights kept in float32 and written as float16 (nothing is lost that
the accuracy shows).  It runs on a GPU where PyTorch finds one.  Test images are looked at once, after the last epoch.
`--quick` takes 2,000 images and one epoch: for trying the other scripts, not for numbers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from prepare_cifar import loader
from safetensors.torch import save_file
from torch import Tensor, nn

from cprune.models.zoo.mobilenet import mobilenetv2_cifar
from cprune.models.zoo.resnet import ResNet, cifar_resnet, resnet18_cifar
from cprune.models.zoo.vgg import vgg16_bn_cifar
from cprune.training.readers import CIFAR_MEAN, CIFAR_STD

QUICK_IMAGES = 2000


def resnet32_wide(classes: int = 10) -> ResNet:
    """Return 15 residual blocks of 20, 40 and 80 channels with 1x1 shortcuts: a network that nothing is tuned to."""
    return ResNet(image_channels=3, stem_stride=1, widths=(20, 40, 80), blocks=(5, 5, 5), classes=classes, padded=False)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vgg16": vgg16_bn_cifar,
    "resnet18": resnet18_cifar,
    "mobilenetv2": mobilenetv2_cifar,
    "resnet20": partial(cifar_resnet, 20),
    "resnet56": partial(cifar_resnet, 56),
    "resnet32-wide": resnet32_wide,
}


def resnet32_wide_model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return `resnet32-wide` and one image, for `-m experiments.train_cifar:resnet32_wide_model`."""
    return resnet32_wide(), (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)


def moved(images: Tensor, shift: int) -> Tensor:
    """Return a batch [N, 3, H, W] of bytes flipped or not and moved by up to `shift` pixels, image by image."""
    count, channels, height, width = images.shape
    device = images.device
    padded = F.pad(images, (shift, shift, shift, shift))
    columns = torch.arange(width, device=device).expand(count, width)
    flip = torch.rand(count, 1, device=device) < 0.5
    columns = torch.where(flip, width - 1 - columns, columns)
    columns = columns + torch.randint(0, 2 * shift + 1, (count, 1), device=device)
    rows = torch.arange(height, device=device) + torch.randint(0, 2 * shift + 1, (count, 1), device=device)
    where = torch.arange(count, device=device)
    return padded[
        where[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int, lr: float, limit_s: float) -> None:
    """Train in place; ends early, with the schedule cut short, if an epoch would pass `limit_s` seconds in all."""
    device = images.device
    mean = torch.tensor(CIFAR_MEAN, device=device)[:, None, None]
    std = torch.tensor(CIFAR_STD, device=device)[:, None, None]
    model.train().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(images) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=epochs * steps, pct_start=0.2, cycle_momentum=False
    )
    started = time.perf_counter()
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        for index in torch.randperm(len(images), device=device)[: steps * batch].split(batch):
            x = moved(images[index], 4).float().div_(255).sub_(mean).div_(std)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)).float(), labels[index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.detach()
        spent = time.perf_counter() - started
        print(f"epoch {epoch + 1}/{epochs}  loss {float(total) / steps:.4f}  {spent:.0f} s", flush=True)
        if spent * (epoch + 2) / (epoch + 1) > limit_s:
            break


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose class the model says."""
    device = images.device
    mean = torch.tensor(CIFAR_MEAN, device=device)[:, None, None]
    std = torch.tensor(CIFAR_STD, device=device)[:, None, None]
    model.eval()
    right = 0
    for x, y in zip(images.split(500), labels.split(500), strict=True):
        right += int((model((x.float() / 255 - mean) / std).argmax(1) == y).sum())
    return right / len(labels)


def main() -> None:
    """Read the command line, train, write, look at the test images once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with load.py and the images")
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds of training at most")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_IMAGES} images, one epoch")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = loader(given.source)
    images, labels = module.cifar10_jpeg("train")
    torch.manual_seed(given.seed)
    chosen = torch.randperm(len(labels))[: QUICK_IMAGES if given.quick else len(labels)]
    x = torch.from_numpy(images).permute(0, 3, 1, 2)[chosen].contiguous().to(device)
    y = torch.from_numpy(labels)[chosen].to(device)
    model = MODELS[given.model]()
    train(model, x, y, 1 if given.quick else given.epochs, given.batch, given.lr, given.limit)
    images, labels = module.cifar10_jpeg("test")
    test = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
    print(f"{given.model}: {accuracy(model, test, torch.from_numpy(labels).to(device)):.2%} of the test images")
    whole = {"num_batches_tracked"}
    tensors = {
        name: value.detach().cpu().contiguous().half() if value.is_floating_point() else value.detach().cpu()
        for name, value in model.state_dict().items()
        if name.rsplit(".", 1)[-1] not in whole
    }
    save_file(tensors, given.out, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
