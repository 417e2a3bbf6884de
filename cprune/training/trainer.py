"""What a method asks of training, answered from cprune's data or by a user's own functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from cprune.progress import Progress
from cprune.training import train
from cprune.training.accuracy import Look
from cprune.training.data import Data, Split

PartName = Literal["decide", "certify", "report"]
"""The parts of the data that accuracy is looked at with: any number of looks, a few, one before and one after."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: epochs over the training images, first learning rate of a cosine.

    `varied` moves and flips the images (where the data allow it) and asks the teacher about each as the student sees
    it; without it the teacher's answers of one pass over the training data serve the whole run, which is cheaper and,
    for an epoch or two, better.
    """

    epochs: float
    lr: float
    varied: bool


class Trainer(Protocol):
    """Looks at accuracy, repairs and trains networks in place."""

    def look(self, model: nn.Module, part: PartName) -> Look:
        """Return what the model answers on that part of the data."""

    def samples(self, images: int, seed: int) -> Split | None:
        """Return so many training images (all, if there are fewer), drawn with `seed`; None where none can be seen."""

    def recalibrate(self, model: nn.Module, seed: int) -> None:
        """Re-estimate the statistics of BatchNorm after surgery."""

    def fine_tune(self, model: nn.Module, schedule: Schedule, seed: int, progress: Progress) -> None:
        """Train in place; FineTuneDiverged if the loss stops being a number."""

    def gradients(self, model: nn.Module, seed: int) -> Mapping[str, Tensor]:
        """Return the loss's gradient for every parameter (for the importance "taylor")."""


class DataTrainer:
    """Trains on `data` with distillation from `teacher`, the model as it was before pruning."""

    def __init__(self, data: Data, teacher: nn.Module, threads: int, distil: bool = True) -> None:
        torch.set_num_threads(threads)
        self.data, self.teacher, self.distil = data, teacher, distil
        self._targets: Tensor | None = None

    def look(self, model: nn.Module, part: PartName) -> Look:
        """See `Trainer.look`."""
        split: Split = getattr(self.data, part)
        return Look.of((train.logits(model, split).argmax(1) == split.labels).numpy())

    def samples(self, images: int, seed: int) -> Split:
        """See `Trainer.samples`."""
        generator = torch.Generator().manual_seed(seed)
        return self.data.train.take(torch.randperm(len(self.data.train), generator=generator)[:images])

    def recalibrate(self, model: nn.Module, seed: int) -> None:
        """See `Trainer.recalibrate`."""
        train.recalibrate(model, self.data.train, seed)

    def fine_tune(self, model: nn.Module, schedule: Schedule, seed: int, progress: Progress) -> None:
        """See `Trainer.fine_tune`."""
        varied = schedule.varied and self.data.augment
        teacher: nn.Module | Tensor | None = None
        if self.distil and varied:
            teacher = self.teacher
        elif self.distil:
            if self._targets is None:
                self._targets = train.logits(self.teacher, self.data.train)
            teacher = self._targets
        started = False

        def on_step(done: int, total: int) -> None:
            nonlocal started
            if not started:
                progress.start("fine-tuning", total)
                started = True
            progress.advance()

        try:
            train.fine_tune(
                model,
                self.data.train,
                schedule.epochs,
                schedule.lr,
                seed,
                teacher=teacher,
                augment=varied,
                progress=on_step,
            )
        finally:
            progress.done()

    def gradients(self, model: nn.Module, seed: int) -> Mapping[str, Tensor]:
        """See `Trainer.gradients`."""
        return train.gradients(model, self.data.train, seed)


class CallableTrainer:
    """A user's own functions: `evaluate(model) -> float`, higher is better, and `train(model)`, in place.

    `evaluate` answers for the images that decide and certify, `test` for those of the report (default: the same
    function).  `calibrate(model)` may run a few batches through the model in training mode after surgery.
    """

    def __init__(
        self,
        evaluate: Callable[[nn.Module], float],
        train: Callable[[nn.Module], object] | None,
        test: Callable[[nn.Module], float] | None = None,
        calibrate: Callable[[nn.Module], object] | None = None,
    ) -> None:
        self._evaluate, self._train, self._test, self._calibrate = (
            evaluate,
            train,
            test or evaluate,
            calibrate,
        )

    def look(self, model: nn.Module, part: PartName) -> Look:
        """See `Trainer.look`.  A function of a user's gives a number and not which images were right."""
        asked = self._test if part == "report" else self._evaluate
        return Look(float(asked(model.eval())))

    def samples(self, images: int, seed: int) -> None:
        """Return None: the user's images are not seen."""

    def recalibrate(self, model: nn.Module, seed: int) -> None:
        """Call the user's `calibrate`, if there is one."""
        if self._calibrate is not None:
            self._calibrate(model)
            model.eval()

    def fine_tune(self, model: nn.Module, schedule: Schedule, seed: int, progress: Progress) -> None:
        """Call the user's `train`, if there is one.  How long it trains is the user's business."""
        if self._train is not None:
            torch.manual_seed(seed)
            self._train(model.train())
            model.eval()

    def gradients(self, model: nn.Module, seed: int) -> Mapping[str, Tensor]:
        """Return nothing: `importance="taylor"` needs data that cprune can see."""
        return {}


__all__ = ["CallableTrainer", "DataTrainer", "PartName", "Schedule", "Trainer"]
