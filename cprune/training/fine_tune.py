"""Fine-tuning with distillation: seconds of it after a step, or one long training that a kill does not undo.

It follows CPrune's released code: SGD, momentum 0.9, weight decay 5e-4.  Where ours differs: distillation from the
unpruned model (Hinton et al. 2015) with its answers kept (`cprune.training.views`), a rate that rises in a moment and
falls to zero with the budget (Li et al., "Budgeted training", ICLR 2020), gradients cut to a length, an average of the
last weights where it is asked for, and bfloat16 convolutions on CPUs that compute in it (weights, statistics and loss
stay float32).

Everything random in step n follows from the seed and n.  With one seed and one number of threads the result is the same
to the last bit on one machine, however often the training was killed and continued.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cprune.targets.errors import CpruneError, UserError
from cprune.training.checkpoint import Checkpoint, digest
from cprune.training.computing import faster_in_bfloat16, fastest_layout, in_mode, statistics_of
from cprune.training.views import VIEWS, Views, drawn_from, seed_from

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LONGEST_GRADIENT = 5.0
ROUNDING_PART = 0.3  # of a training in a run in integers
ROUNDING_COST = 1.5  # times as long takes an epoch that rounds
ROUNDING_RATE = 0.25
AVERAGED_PART = 3  # the last third of the steps
FEWEST, STEPS = 32, 8


class FineTuneDiverged(CpruneError):
    """The loss, a gradient or a weight became NaN or infinite; the model is spoilt, whatever led here is rejected."""


@dataclass(frozen=True)
class Distillation:
    """How the teacher counts: loss = (1 - weight) * cross entropy + weight * T^2 * KL(teacher || student)."""

    weight: float = 0.9
    temperature: float = 4.0


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: over the training images; a part of one will do.
        lr: the highest learning rate, reached after `warm_up`, a share of all steps in which it rises along a line;
            from there it falls to zero along `shape`.
        varied: every epoch sees the next view of the images, where the data allow more than one.  Without it all see
            the images as they are, which is cheaper and, for an epoch or two, better.
        ema: the trained weights and statistics are an exponential moving average over the last third of the steps.
        batch: images a step; fewer, with a rate as many times smaller, where that leaves few steps an epoch.
        views: of how many views of the images the teacher is asked at most.
    """

    epochs: float
    lr: float
    varied: bool = False
    ema: bool = False
    shape: Literal["cosine", "linear"] = "cosine"
    warm_up: float = 0.03
    batch: int = 128
    views: int = VIEWS

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, 0 to `steps` - 1."""
        rising = int(self.warm_up * steps)
        if step < rising:
            return self.lr * (step + 1) / (rising + 1)
        done = (step - rising) / (steps - rising)
        return self.lr * (1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2)

    def parts(self) -> tuple[Schedule, Schedule]:
        """Return a training as it is, and one that rounds, which together take about as long as this one.

        The second begins with a smaller rate, as where the first one ends; its images are varied from the start again.
        """
        floats = replace(self, epochs=self.epochs * (1 - ROUNDING_PART), ema=False)
        rounding = replace(self, epochs=self.epochs * ROUNDING_PART / ROUNDING_COST, lr=self.lr * ROUNDING_RATE)
        return floats, rounding


@dataclass(frozen=True)
class Pace:
    """How fast a model trains here: seconds an epoch, and for each view that the teacher is yet to be asked about."""

    seconds_per_epoch: float
    seconds_per_view: float = 0.0
    unknown_views: int = 0

    def seconds(self, epochs: float) -> float:
        """Return how long so many epochs take."""
        return epochs * self.seconds_per_epoch + min(math.ceil(epochs), self.unknown_views) * self.seconds_per_view

    def epochs(self, seconds: float) -> float:
        """Return the most epochs that take no longer than `seconds`, 0 if not even a part of one fits."""
        for views in range(self.unknown_views, -1, -1):  # so many are asked about in the first `views` epochs
            epochs = (seconds - views * self.seconds_per_view) / self.seconds_per_epoch
            if views < self.unknown_views:
                epochs = min(epochs, views)
            if epochs > views - 1 and epochs > 0:
                return epochs
        return 0.0


def batch_of(images: int, most: int) -> int:
    """Return how many of the training images a step takes: `most`, or so few that an epoch has STEPS of them.

    But not fewer than FEWEST, as the statistics of a batch would be too rough.
    """
    return min(images, most, max(FEWEST, images // STEPS))


def fine_tune(
    model: nn.Module,
    views: Views,
    schedule: Schedule,
    seed: int,
    distillation: Distillation = Distillation(),
    bfloat16: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train `model` in place on the images of `views`, taught by their teacher; it ends in evaluation mode.

    `bfloat16` computes convolutions and linear layers in bfloat16; None: if this CPU has the instructions for
    it and the model can.  `progress(done, total)` is called after every step.

    With a `checkpoint` the training goes on where an earlier one with these arguments and these first weights was
    killed, and ends where that would have ended.  The last state is written as well: `checkpoint.discard()` when the
    model is kept elsewhere.

    FineTuneDiverged as soon as the loss or a gradient is not a number, UserError for fewer than two images.
    """
    fingerprint = _fingerprint(model, views, schedule, seed, distillation) if checkpoint else ""
    with _under_way(model, views, schedule, seed, distillation, bfloat16) as training:
        kept = checkpoint.begin(fingerprint) if checkpoint else None
        if checkpoint and kept is not None:
            training.restore(kept)
            checkpoint.say(f"the training goes on after step {training.done} of {training.steps}")
        while training.done < training.steps:
            training.step()
            last = training.done == training.steps
            if checkpoint and (checkpoint.due or last):
                checkpoint.write(fingerprint, training.state())
            if progress is not None:
                progress(training.done, training.steps)
        training.finish()


def pace(
    model: nn.Module,
    views: Views,
    schedule: Schedule,
    distillation: Distillation = Distillation(),
    bfloat16: bool | None = None,
    least_steps: int = 5,
    least_s: float = 1.5,
) -> Pace:
    """Measure on a few batches how fast `model` trains; neither it nor anything else is changed.

    The median of `least_steps` steps and more, until `least_s` have passed, after two that warm up.
    """
    # Nobody wants to wait for the teacher here, and to listen to what it said costs nothing; a rate of 0 diverges not.
    untaught, standing = Views(views.split, None, views.seed, views.count), replace(schedule, lr=0.0)
    with _under_way(deepcopy(model), untaught, standing, 0, distillation, bfloat16) as training:
        took_s: list[float] = []
        while len(took_s) < 2 + least_steps or sum(took_s) < least_s:
            began = time.perf_counter()
            training.step()
            took_s.append(time.perf_counter() - began)
            training.done %= training.steps
    a_step = statistics.median(took_s[2:])
    unknown = views.unknown(schedule.varied, schedule.views)
    return Pace(a_step * training.steps_per_epoch, views.seconds_to_ask() if unknown else 0.0, unknown)


def _fingerprint(model: nn.Module, views: Views, schedule: Schedule, seed: int, distillation: Distillation) -> str:
    taught = views.teacher is not None
    what = (asdict(schedule), seed, asdict(distillation), len(views.split), views.seed, views.count, taught)
    first = dict(model.named_parameters()) | dict(model.named_buffers())
    return hashlib.sha256(f"{what} {digest(first)}".encode()).hexdigest()


@contextmanager
def _under_way(
    model: nn.Module, views: Views, schedule: Schedule, seed: int, distillation: Distillation, bfloat16: bool | None
) -> Iterator[_Training]:
    if len(views.split) < 2:
        raise UserError(f"{len(views.split)} image is too few to train on")
    sample = views.images(0, torch.arange(2))
    if bfloat16 is None:
        bfloat16 = faster_in_bfloat16(model, sample, training=True)
    with (
        torch.random.fork_rng(devices=[]),
        fastest_layout(model, sample, True) as layout,
        in_mode(model, training=True),
    ):
        training = _Training(model, views, schedule, seed, distillation, bfloat16, layout)
        try:
            yield training
        finally:
            training.optimizer.zero_grad()


class _Training:
    """A training under way.  What it will do depends on its arguments and on `state()` alone."""

    def __init__(
        self,
        model: nn.Module,
        views: Views,
        schedule: Schedule,
        seed: int,
        distillation: Distillation,
        bfloat16: bool,
        layout: torch.memory_format,
    ) -> None:
        self.model, self.views, self.schedule, self.seed = model, views, schedule, seed
        self.distillation, self.bfloat16, self.layout = distillation, bfloat16, layout
        self.batch = batch_of(len(views.split), schedule.batch)
        self.part = self.batch / min(schedule.batch, len(views.split))  # of the rate: as many times as of the images
        self.steps_per_epoch = len(views.split) // self.batch
        self.steps = max(1, math.ceil(schedule.epochs * self.steps_per_epoch))
        self.done = 0
        self._order: tuple[int, Tensor] | None = None

        self.trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.buffers = dict(model.named_buffers())
        # Fused: the whole step in one call, a third of the time.
        self.optimizer = torch.optim.SGD(
            list(self.trained.values()),
            lr=schedule.lr,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        # Zero is what it begins with anyway; so every tensor has one from the start.
        self.momentum = {name: torch.zeros_like(value) for name, value in self.trained.items()}
        for name, value in self.trained.items():
            self.optimizer.state[value]["momentum_buffer"] = self.momentum[name]

        self.averaged_from = self.steps - self.steps // AVERAGED_PART
        living = {name: value.detach() for name, value in self.trained.items()} | statistics_of(model)
        self.living = living if schedule.ema else {}
        self.average = {name: value.clone() for name, value in self.living.items()}

    def step(self) -> None:
        """Train on the next batch."""
        number = self.done
        index, view = self._batch_of(number)
        images = self.views.images(view, index, self.layout)
        answers = self.views.answers(view)
        torch.default_generator.manual_seed(seed_from("dropout", self.seed, number))
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            output = self.model(images)
        targets = None if answers is None else answers[index]
        loss = _loss(output.float(), self.views.split.labels[index], targets, self.distillation)
        self._must_be_finite("the loss", loss.item())
        loss.backward()  # type: ignore[no-untyped-call]
        length = nn.utils.clip_grad_norm_(list(self.trained.values()), LONGEST_GRADIENT)
        self._must_be_finite("the gradient", length.item())
        self.optimizer.param_groups[0]["lr"] = self.part * self.schedule.rate(number, self.steps)
        self.optimizer.step()
        self.done += 1
        if self.average and self.done >= self.averaged_from:
            self._take_into_average()

    def _batch_of(self, number: int) -> tuple[Tensor, int]:
        """Return the images of a step, whole batches of one shuffling an epoch, and the view they are seen in."""
        epoch, place = divmod(number, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.randperm(len(self.views.split), generator=drawn_from("order", self.seed, epoch))
        index = self._order[1][place * self.batch : (place + 1) * self.batch]
        return index, self.views.of_epoch(epoch, self.schedule.varied, self.schedule.views)

    def _must_be_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            rate = f"lr {self.schedule.lr:g}"
            raise FineTuneDiverged(f"{what} became {value} in step {self.done + 1} of {self.steps} ({rate})")

    def _take_into_average(self) -> None:
        """The plain mean at first, then with a horizon of a fifth of the steps that are averaged."""
        taken = self.done - self.averaged_from + 1
        horizon = max(1.0, (self.steps - self.averaged_from) / 5)
        share = max(1 / taken, 1 / horizon)
        torch._foreach_lerp_(list(self.average.values()), list(self.living.values()), share)

    def state(self) -> dict[str, Tensor]:
        """Return all that the rest of the training depends on, not copied."""
        groups: dict[str, dict[str, Tensor]] = {
            "weight": dict(self.trained),
            "buffer": self.buffers,
            "momentum": self.momentum,
            "average": self.average,
        }
        named = {f"{kind}:{name}": value for kind, group in groups.items() for name, value in group.items()}
        return {**named, "done": torch.tensor(self.done)}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a `state()`."""
        for name, value in self.state().items():
            value.copy_(state[name])
        self.done = int(state["done"])

    @torch.no_grad()
    def finish(self) -> None:
        """Put the average in the place of the last weights, where there is one."""
        for name, value in self.living.items():
            value.copy_(self.average[name])
        for name, value in {**self.trained, **statistics_of(self.model)}.items():
            if not bool(torch.isfinite(value).all()):
                rate = f"lr {self.schedule.lr:g}"
                raise FineTuneDiverged(f"{name} holds NaN or infinity after {self.steps} steps ({rate})")


def _loss(output: Tensor, labels: Tensor, targets: Tensor | None, distillation: Distillation) -> Tensor:
    hard = F.cross_entropy(output, labels)
    if targets is None:
        return hard
    t = distillation.temperature
    soft = F.kl_div(F.log_softmax(output / t, 1), F.log_softmax(targets / t, 1), reduction="batchmean", log_target=True)
    return (1 - distillation.weight) * hard + distillation.weight * t * t * soft
