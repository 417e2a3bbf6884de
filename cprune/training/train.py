"""Accuracy, BatchNorm recalibration and gradients.

Every function takes any module that maps images [N, C, H, W] to logits [N, classes], a `Network` or the
user's own.  With one seed and one number of threads the result is the same to the last bit on one machine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cprune.training.computing import fastest_layout, in_mode, statistics_of
from cprune.training.data import Split

EVALUATION_BATCH = 128
TRAINING_BATCH = 128


# ----------------------------------------------------------------------------------------------------
# Looking


def evaluate(model: nn.Module, split: Split, batch: int = EVALUATION_BATCH) -> float:
    """Return the share of images, in [0, 1], whose largest logit is at the label, in evaluation mode."""
    return float((logits(model, split, batch).argmax(1) == split.labels).double().mean())


def logits(model: nn.Module, split: Split, batch: int = EVALUATION_BATCH) -> Tensor:
    """Return float32 [N, classes] for the images as they are, in evaluation mode."""
    sample = _ready(split, torch.arange(min(2, len(split))))
    with in_mode(model, training=False), torch.no_grad(), fastest_layout(model, sample, False) as layout:
        return torch.cat(
            [model(_ready(split, index, layout)) for index in _parts(torch.arange(len(split)), batch)]
        ).float()


def gradients(
    model: nn.Module, split: Split, seed: int, images: int = 512, batch: int = TRAINING_BATCH
) -> dict[str, Tensor]:
    """Return the gradient of the mean cross entropy over `images` random images, by parameter name.

    Evaluation mode: the statistics of BatchNorm are constants.  The model's own `.grad` fields are left
    alone.
    """
    chosen = _some(split, images, seed)
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    total = {name: torch.zeros_like(value) for name, value in named.items()}
    with in_mode(model, training=False):
        for index in _parts(chosen, batch):
            loss = F.cross_entropy(model(_ready(split, index)), split.labels[index], reduction="sum")
            parts = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, parts, strict=True):
                if gradient is not None:
                    total[name] += gradient / len(chosen)
    return total


# ----------------------------------------------------------------------------------------------------
# Recalibration


def recalibrate(model: nn.Module, split: Split, seed: int, images: int = 512, batch: int = TRAINING_BATCH) -> None:
    """Re-estimate the running statistics of every BatchNorm as the plain mean over batches of random images.

    After surgery the inputs of a layer have another distribution than the one its statistics describe.
    Weights are not touched.  Only whole batches count (the last one is left out unless it is the only one).
    A model without BatchNorm stays as it is.

    Works on anything that keeps its statistics as buffers `running_mean` and `running_var` and updates them
    as (1 - m) * old + m * batch: from zero, one update gives m * batch, and m itself is read off an update
    that starts from a large number.  So neither the kind of the module nor its momentum need be known.
    Dropout, where there is any, is active meanwhile.
    """
    statistics = statistics_of(model)
    if not statistics:
        return
    chosen = _some(split, images, seed)
    parts = [part for part in _parts(chosen, batch) if len(part) == batch] or [chosen]
    before = {name: value.clone() for name, value in statistics.items()}
    sums = {name: torch.zeros_like(value) for name, value in statistics.items()}
    cumulative = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.momentum is None]

    def update_from(start: float, part: Tensor) -> None:
        for value in statistics.values():
            value.fill_(start)
        model(_ready(split, part, layout))

    large = 2.0**20
    done = False
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            fastest_layout(model, _ready(split, chosen[:2]), False) as layout,
            in_mode(model, training=True),
        ):
            torch.manual_seed(seed)
            for module in cumulative:  # their m would change with every batch
                module.momentum = 0.1
            update_from(large, parts[0])
            after_large = {name: float(value[0]) for name, value in statistics.items()}
            rates: dict[str, float] = {}
            for part in parts:
                update_from(0.0, part)
                for name, value in statistics.items():
                    rates.setdefault(name, 1 - (after_large[name] - float(value[0])) / large)
                    sums[name] += value
        done = True
    finally:
        for module in cumulative:
            module.momentum = None
        for name, value in statistics.items():
            # A rate of 0: this layer does not take part in the forward pass.
            used = done and rates[name] > 1e-6
            value.copy_(sums[name] / (len(parts) * rates[name]) if used else before[name])


# ----------------------------------------------------------------------------------------------------
# Some of the images


def _ready(split: Split, index: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Return some images as float32 for the model."""
    return split.model_input(split.images[index]).contiguous(memory_format=layout)


def _parts(index: Tensor, size: int) -> tuple[Tensor, ...]:
    return torch.split(index, size)


def _some(split: Split, images: int, seed: int) -> Tensor:
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:images]
