"""Residual networks: the built-in one, the CIFAR family of ResNet-20 and ResNet-18 in CIFAR shape.

He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2 for the CIFAR family.  Parameter
names are those of the widely published CIFAR checkpoints: `conv1`, `bn1`, `layer1.0.conv1`, …, `linear`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class PaddedShortcut(nn.Module):
    """Option A of the paper: every other pixel, and zero channels on both sides.  It has no parameters."""

    def __init__(self, added_channels: int) -> None:
        super().__init__()
        self.before = added_channels // 2
        self.after = added_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C + added, ceil(H/2), ceil(W/2)] for [N, C, H, W]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))`."""

    def __init__(self, inputs: int, outputs: int, stride: int, padded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or inputs != outputs:
            if padded:
                self.shortcut = PaddedShortcut(outputs - inputs)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
                )

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, outputs, ceil(H/stride), ceil(W/stride)] for [N, inputs, H, W]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages `layer1`, `layer2`, … of basic blocks, the mean over the plane, one linear layer.

    Every stage but the first halves the plane.  `padded` chooses the parameter-free option-A shortcut,
    otherwise a 1x1 convolution with BatchNorm (option B) stands wherever the shape changes.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        stem_stride: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        classes: int,
        padded: bool,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(image_channels, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        self.stages = tuple(f"layer{index + 1}" for index in range(len(widths)))
        for index, (name, width, count) in enumerate(zip(self.stages, widths, blocks, strict=True)):
            stage = nn.Sequential()
            for block in range(count):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(BasicBlock(inputs, width, stride, padded))
                inputs = width
            self.add_module(name, stage)
        self.linear = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] for images [N, image_channels, H, W]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def resnet_fashion(classes: int = 10) -> ResNet:
    """Return the built-in network: [N, 1, 28, 28], six blocks, about 22 million multiply-adds an image."""
    return ResNet(
        image_channels=1, stem_stride=2, widths=(32, 64, 128), blocks=(2, 2, 2), classes=classes, padded=False
    )


def cifar_resnet(depth: int, classes: int = 10) -> ResNet:
    """Return the CIFAR ResNet of `depth` = 6n + 2 layers ([N, 3, 32, 32], widths 16, 32, 64, option A)."""
    blocks = (depth - 2) // 6
    return ResNet(
        image_channels=3,
        stem_stride=1,
        widths=(16, 32, 64),
        blocks=(blocks,) * 3,
        classes=classes,
        padded=True,
    )


def resnet18_cifar(classes: int = 10) -> ResNet:
    """Return ResNet-18 for [N, 3, 32, 32]: 3x3 stem, no pooling, widths 64 to 512, 1x1 shortcuts."""
    return ResNet(
        image_channels=3,
        stem_stride=1,
        widths=(64, 128, 256, 512),
        blocks=(2, 2, 2, 2),
        classes=classes,
        padded=False,
    )
