"""VGG-16 with BatchNorm in CIFAR shape (Simonyan and Zisserman 2015, configuration D).

Thirteen 3x3 convolutions, a 2x2 maximum after the 2nd, 4th, 7th, 10th and 13th, and *one* linear layer on the
512 numbers that are left of a 32x32 image, as is usual for CIFAR; the original's two hidden layers of 4,096
are gone.
"""

from __future__ import annotations

from torch import Tensor, nn

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """A chain of convolutions without shortcuts: every layer is a channel group of its own."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs = 3
        for stage in STAGES:
            for width in stage:
                self.features.append(nn.Conv2d(inputs, width, 3, padding=1, bias=False))
                self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU())
                inputs = width
            self.features.append(nn.MaxPool2d(2))
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] for images [N, 3, 32, 32]."""
        return self.classifier(self.features(x).flatten(1))  # type: ignore[no-any-return]


def vgg16_bn_cifar(classes: int = 10) -> VGG:
    """Return VGG-16-BN for [N, 3, 32, 32]."""
    return VGG(classes)
