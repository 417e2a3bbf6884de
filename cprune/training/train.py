"""Accuracy, BatchNorm recalibration, gradients, and fine-tuning with distillation.

Short-term training follows CPrune's released code: SGD, momentum 0.9, weight decay 5e-4.  Where ours differs:
distillation from the unpruned model (Hinton et al. 2015), statistics of BatchNorm re-estimated after surgery,
and bfloat16 convolutions on CPUs that compute in it (weights, statistics and loss stay float32).

Every function takes any module that maps images [N, C, H, W] to logits [N, classes], a `Network` or the
user's own.  With one seed and one number of threads the result is the same to the last bit on one machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cprune.targets.errors import CpruneError, UserError
from cprune.training.data import Split

EVALUATION_BATCH = 128
TRAINING_BATCH = 128


class FineTuneDiverged(CpruneError):
    """The loss or a weight became NaN or infinite; the model is spoilt, whatever led here is rejected."""


@dataclass(frozen=True)
class Distillation:
    """How the teacher counts: loss = (1 - weight) * cross entropy + weight * T^2 * KL(teacher || student)."""

    weight: float = 0.9
    temperature: float = 4.0


# ----------------------------------------------------------------------------------------------------
# Looking


def evaluate(model: nn.Module, split: Split, batch: int = EVALUATION_BATCH) -> float:
    """Return the share of images, in [0, 1], whose largest logit is at the label, in evaluation mode."""
    return float((logits(model, split, batch).argmax(1) == split.labels).double().mean())


def logits(model: nn.Module, split: Split, batch: int = EVALUATION_BATCH) -> Tensor:
    """Return float32 [N, classes] for the images as they are, in evaluation mode."""
    sample = _ready(split, torch.arange(min(2, len(split))))
    with _mode(model, training=False), torch.no_grad(), _fastest_layout(model, sample, False) as layout:
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
    with _mode(model, training=False):
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
    statistics = {
        name: value for name, value in model.named_buffers() if name.endswith(("running_mean", "running_var"))
    }
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
        model(_ready(split, part))

    large = 2.0**20
    done = False
    try:
        with torch.random.fork_rng(devices=[]), _mode(model, training=True), torch.no_grad():
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
# Fine-tuning


def fine_tune(
    model: nn.Module,
    split: Split,
    epochs: float,
    lr: float,
    seed: int,
    teacher: nn.Module | Tensor | None = None,
    distillation: Distillation = Distillation(),
    augment: bool = False,
    batch: int = TRAINING_BATCH,
    bfloat16: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train `model` in place on `split` for `epochs` (a fraction will do); it ends in evaluation mode.

    SGD with Nesterov momentum 0.9 and weight decay 5e-4; the learning rate starts at `lr` and falls to zero
    along a cosine.  `augment` flips images left to right and moves them by up to a tenth of their width.

    `teacher` is the unpruned model, run on every batch as the student sees it, or, much cheaper, its logits
    [len(split), classes] for the images as they are (`logits(teacher, split)`, worth keeping between calls).

    `bfloat16` computes convolutions and linear layers in bfloat16; None: if this CPU has the instructions for
    it and the model can.  `progress(done, total)` is called after every step.

    FineTuneDiverged as soon as the loss is not a number, UserError for fewer than two images.
    """
    count = len(split)
    if count < 2:
        raise UserError(f"{count} image is too few to train on")
    batch = min(batch, count)
    steps = max(1, math.ceil(epochs * (count // batch)))
    generator = torch.Generator().manual_seed(seed)
    sample = _ready(split, torch.arange(2))
    if bfloat16 is None:
        bfloat16 = _has_bfloat16() and _runs(model, sample, training=True, bfloat16=True)
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    with (
        torch.random.fork_rng(devices=[]),
        _fastest_layout(model, sample, True) as layout,
        _mode(model, training=True),
    ):
        torch.manual_seed(seed)  # dropout's
        for step, index in enumerate(_batches(count, batch, steps, generator)):
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            raw = split.images[index]
            if augment:
                raw = augmented(raw, generator, shift=raw.shape[3] // 10)
            images = split.model_input(raw).contiguous(memory_format=layout)
            targets = _targets(teacher, images, index, bfloat16)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                output = model(images)
            loss = _loss(output.float(), split.labels[index], targets, distillation)
            if not math.isfinite(loss.item()):
                raise FineTuneDiverged(f"the loss became {loss.item()} in step {step + 1} of {steps} (lr {lr:g})")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if progress is not None:
                progress(step + 1, steps)
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise FineTuneDiverged(f"{name} holds NaN or infinity after {steps} steps (lr {lr:g})")


def _batches(count: int, batch: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` index tensors: whole batches of one shuffling after the other."""
    done = 0
    while True:
        for index in _parts(torch.randperm(count, generator=generator), batch)[: count // batch]:
            if done == steps:
                return
            done += 1
            yield index


def _targets(teacher: nn.Module | Tensor | None, images: Tensor, index: Tensor, bfloat16: bool) -> Tensor | None:
    if teacher is None or isinstance(teacher, Tensor):
        return None if teacher is None else teacher[index]
    with (
        _mode(teacher, training=False),
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        return teacher(images.contiguous()).float()  # type: ignore[no-any-return]


def _loss(output: Tensor, labels: Tensor, targets: Tensor | None, distillation: Distillation) -> Tensor:
    hard = F.cross_entropy(output, labels)
    if targets is None:
        return hard
    t = distillation.temperature
    soft = F.kl_div(F.log_softmax(output / t, 1), F.log_softmax(targets / t, 1), reduction="batchmean", log_target=True)
    return (1 - distillation.weight) * hard + distillation.weight * t * t * soft


def augmented(images: Tensor, generator: torch.Generator, shift: int) -> Tensor:
    """Return the batch [N, C, H, W] with every image flipped left to right or not, and moved by up to `shift`
    pixels.

    What moves in from outside is zero, so this belongs before normalisation, where zero is black.  The result
    is one gather, in channels-last memory, of the dtype it was given.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (shift, shift, shift, shift))
    across = torch.arange(width).expand(count, width)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    across = torch.where(flipped, width - 1 - across, across)
    moves = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator)
    columns = (across + moves[0])[:, None, :]
    rows = (torch.arange(height) + moves[1])[:, :, None]
    return padded[torch.arange(count)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


# ----------------------------------------------------------------------------------------------------
# How it is computed


def _ready(split: Split, index: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Return some images as float32 for the model."""
    return split.model_input(split.images[index]).contiguous(memory_format=layout)


def _parts(index: Tensor, size: int) -> tuple[Tensor, ...]:
    return torch.split(index, size)


def _some(split: Split, images: int, seed: int) -> Tensor:
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:images]


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the model into training or evaluation mode, and into evaluation mode at the end."""
    model.train(training)
    try:
        yield
    finally:
        model.eval()


@contextmanager
def _fastest_layout(model: nn.Module, images: Tensor, training: bool) -> Iterator[torch.memory_format]:
    """Yield the memory format for images; convolution weights are in it meanwhile.

    Channels last trains 1.2 to 1.5 times as fast on a CPU.  A model that cannot take it, because of a `view`
    of the plane perhaps, gets what it always gets.
    """
    chosen = torch.contiguous_format
    try:
        try:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if _runs(model, images.contiguous(memory_format=torch.channels_last), training):
                chosen = torch.channels_last
        except RuntimeError:  # a weight that has no such format
            pass
        model.to(memory_format=chosen)  # type: ignore[call-overload]
        yield chosen
    finally:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _has_bfloat16() -> bool:
    """Tell whether this CPU computes in bfloat16 (elsewhere it is emulated, slower than float32)."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name)()) for name in names if hasattr(torch.cpu, name))


def _runs(model: nn.Module, images: Tensor, training: bool, bfloat16: bool = False) -> bool:
    """Tell whether the model can go forward (and back) on these images in this way; nothing in it changes."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    with _mode(model, training=False):
        try:
            with (
                torch.set_grad_enabled(training),
                torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
            ):
                total = model(images).float().sum()
            if training:
                torch.autograd.grad(total, parameters, allow_unused=True)
        except (RuntimeError, TypeError):
            return False
    return True
