"""A small network, and images that it learns in a second: horizontal stripes and vertical ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cprune.training.data import Split


def small_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 2),
        ).eval()


def stripes(count: int = 256, seed: int = 0) -> Split:
    """Images of 8x8: class 0 has horizontal stripes, class 1 vertical ones, in bytes, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    lines = ((torch.arange(8) % 2) * 100)[:, None].expand(8, 8)
    images = torch.stack([lines if label == 0 else lines.T for label in labels])[:, None]
    noise = torch.randint(0, 60, images.shape, generator=generator)
    return Split((images + noise).to(torch.uint8), labels, mean=(0.3,), std=(0.2,))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])
