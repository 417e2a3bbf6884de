"""Networks that `compare_runtimes.py` times beside those of the zoo: `cprune bench -m experiments.networks:resnet18`.

Weights are random (latency does not depend on them), shapes are the published ones.  Every function returns the module
and its example input, one image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cprune.models.zoo.mobilenet import STAGES, InvertedResidual


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(inputs, outputs, 3, stride), _conv(outputs, outputs, 3)
        self.shortcut = _conv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


class Gated(nn.Module):
    """An inverted residual with squeeze-excitation and SiLU (Tan and Le 2019)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        wide, narrow = inputs * expansion, inputs // 4
        first = [_conv(inputs, wide, 1), nn.SiLU()] if expansion > 1 else []
        self.widen = nn.Sequential(*first, _conv(wide, wide, kernel, stride, wide), nn.SiLU())
        self.squeeze, self.excite = nn.Conv2d(wide, narrow, 1), nn.Conv2d(narrow, wide, 1)
        self.project = _conv(wide, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.widen(x)
        gate = self.excite(nn.functional.silu(self.squeeze(y.mean((2, 3), keepdim=True))))
        y = self.project(y * torch.sigmoid(gate))
        return x + y if self.adds else y


class Classifier(nn.Module):
    """Features, mean over the plane, a linear layer."""

    def __init__(self, features: nn.Module, channels: int, classes: int = 1000) -> None:
        super().__init__()
        self.features, self.linear = features, nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes]."""
        return self.linear(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def _image() -> tuple[Tensor, ...]:
    return (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)


def resnet18() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return ResNet-18 for 224x224 images."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return Classifier(nn.Sequential(*layers), 512), _image()


def mobilenetv1() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return MobileNetV1 for 224x224 images (Howard et al. 2017, table 1)."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2), nn.ReLU()]
    inputs = 32
    plan = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
    for outputs, stride in plan:
        layers += [_conv(inputs, inputs, 3, stride, inputs), nn.ReLU(), _conv(inputs, outputs, 1), nn.ReLU()]
        inputs = outputs
    return Classifier(nn.Sequential(*layers), 1024), _image()


def mobilenetv2() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return MobileNetV2 for 224x224 images (Sandler et al. 2018, table 2)."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2), nn.ReLU6()]
    inputs = 32
    for (expansion, outputs, count, _), stride in zip(STAGES, (1, 2, 2, 2, 1, 2, 1), strict=True):
        for block in range(count):
            layers.append(InvertedResidual(inputs, outputs, stride if block == 0 else 1, expansion))
            inputs = outputs
    layers += [_conv(inputs, 1280, 1), nn.ReLU6()]
    return Classifier(nn.Sequential(*layers), 1280), _image()


def efficientnet_b0() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return EfficientNet-B0 for 224x224 images (Tan and Le 2019, table 1)."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2), nn.SiLU()]
    inputs = 32
    plan = (
        *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
        *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
    )
    for expansion, outputs, count, stride, kernel in plan:
        for block in range(count):
            layers.append(Gated(inputs, outputs, stride if block == 0 else 1, expansion, kernel))
            inputs = outputs
    layers += [_conv(inputs, 1280, 1), nn.SiLU()]
    return Classifier(nn.Sequential(*layers), 1280), _image()


def efficientnet_lite0() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return EfficientNet-Lite0 for 224x224 images; needs the package efficientnet-lite-pytorch."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0"), _image()
