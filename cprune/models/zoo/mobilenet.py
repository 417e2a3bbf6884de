"""MobileNetV2 in CIFAR shape (Sandler et al. 2018, table 2).

The strides of the stem and of the second stage are 1 instead of 2, as is usual for 32x32 images: the planes
are 32, 32, 32, 16, 8, 8, 4, 4 pixels wide.  No dropout.
"""

from __future__ import annotations

from torch import Tensor, nn

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks, stride of the first block."""


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class InvertedResidual(nn.Module):
    """1x1 up, 3x3 depthwise, 1x1 down without activation; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_convolution(inputs, hidden, 1), nn.ReLU6()]
        layers += [*_convolution(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        layers += _convolution(hidden, outputs, 1)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, outputs, ceil(H/stride), ceil(W/stride)] for [N, inputs, H, W]."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """A stem, 17 inverted residual blocks, a 1x1 convolution to 1,280 channels, the mean, a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, 32, 3), nn.ReLU6())
        self.blocks = nn.Sequential()
        inputs = 32
        for expansion, outputs, count, stride in STAGES:
            for block in range(count):
                self.blocks.append(InvertedResidual(inputs, outputs, stride if block == 0 else 1, expansion))
                inputs = outputs
        self.head = nn.Sequential(*_convolution(inputs, 1280, 1), nn.ReLU6())
        self.linear = nn.Linear(1280, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] for images [N, 3, 32, 32]."""
        x = self.head(self.blocks(self.stem(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def mobilenetv2_cifar(classes: int = 10) -> MobileNetV2:
    """Return MobileNetV2 for [N, 3, 32, 32]."""
    return MobileNetV2(classes)
