"""What a method asks of training, answered from cprune's data or by a user's own functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from cprune.progress import Progress
from cprune.training import train
from cprune.training.accuracy import Look, kl
from cprune.training.checkpoint import Checkpoint
from cprune.training.computing import keep_freed_memory
from cprune.training.data import Data, Split
from cprune.training.fine_tune import Pace, Schedule, fine_tune, pace
from cprune.training.views import VIEWS, Views, affordable_views

PartName = Literal["decide", "certify", "report"]
"""The parts of the data that accuracy is looked at with: any number of looks, a few, one before and one after."""


class Trainer(Protocol):
    """Looks at accuracy, repairs and trains networks in place."""

    def look(self, model: nn.Module, part: PartName) -> Look:
        """Return what the model answers on that part of the data; where decisions are made, how far from the first."""

    def samples(self, images: int, seed: int) -> Split | None:
        """Return so many training images (all, if there are fewer), drawn with `seed`; None where none can be seen."""

    def recalibrate(self, model: nn.Module, seed: int) -> None:
        """Re-estimate the statistics of BatchNorm after surgery."""

    def fine_tune(
        self,
        model: nn.Module,
        schedule: Schedule,
        seed: int,
        progress: Progress,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Train in place; FineTuneDiverged if the loss stops being a number.

        With a `checkpoint` a training that was killed goes on where it was.
        """

    def pace(self, model: nn.Module, schedule: Schedule) -> Pace | None:
        """Return how long a training of this kind takes, whatever its epochs; None if nobody can know."""

    def gradients(self, model: nn.Module, seed: int) -> Mapping[str, Tensor]:
        """Return the loss's gradient for every parameter (for the importance "taylor")."""


class DataTrainer:
    """Trains on `data` with distillation from `teacher`, the model as it was before pruning."""

    def __init__(self, data: Data, teacher: nn.Module, threads: int, distil: bool = True, seed: int = 0) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self.data, self.teacher, self.distil = data, teacher, distil
        affordable = affordable_views(len(data.train), data.classes) if distil else VIEWS
        count = affordable if data.augment else 1
        self._views = Views(data.train, teacher if distil else None, seed, count)  # all trainings share them
        self._told = False
        self._taught: Tensor | None = None

    def look(self, model: nn.Module, part: PartName) -> Look:
        """See `Trainer.look`."""
        split: Split = getattr(self.data, part)
        logits = train.logits(model, split)
        divergence = None
        if part == "decide":
            if self._taught is None:
                self._taught = train.logits(self.teacher, split)
            divergence = kl(self._taught, logits)
        return Look.of((logits.argmax(1) == split.labels).numpy(), divergence)

    def samples(self, images: int, seed: int) -> Split:
        """See `Trainer.samples`."""
        generator = torch.Generator().manual_seed(seed)
        return self.data.train.take(torch.randperm(len(self.data.train), generator=generator)[:images])

    def recalibrate(self, model: nn.Module, seed: int) -> None:
        """See `Trainer.recalibrate`."""
        train.recalibrate(model, self.data.train, seed)

    def fine_tune(
        self,
        model: nn.Module,
        schedule: Schedule,
        seed: int,
        progress: Progress,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """See `Trainer.fine_tune`."""
        if schedule.varied and self.distil and self.data.augment and self._views.count < VIEWS and not self._told:
            progress.say(
                f"the answers of the unpruned model about {len(self.data.train):,} images of {self.data.classes:,} "
                f"classes are large: trained with {self._views.count} of {VIEWS} views of every image"
            )
            self._told = True
        before = -1

        def on_step(done: int, total: int) -> None:
            nonlocal before
            if before < 0:
                progress.start("fine-tuning", total)
                before = 0
            progress.advance(done - before)
            before = done

        try:
            fine_tune(model, self._views, schedule, seed, progress=on_step, checkpoint=checkpoint)
        finally:
            progress.done()

    def pace(self, model: nn.Module, schedule: Schedule) -> Pace:
        """See `Trainer.pace`; it is measured, which takes some seconds."""
        return pace(model, self._views, schedule)

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

    def fine_tune(
        self,
        model: nn.Module,
        schedule: Schedule,
        seed: int,
        progress: Progress,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Call the user's `train`, if there is one.  How long it trains and what it keeps is the user's business."""
        if self._train is not None:
            torch.manual_seed(seed)
            self._train(model.train())
            model.eval()

    def pace(self, model: nn.Module, schedule: Schedule) -> None:
        """Return None: only the user knows how long `train` takes."""

    def gradients(self, model: nn.Module, seed: int) -> Mapping[str, Tensor]:
        """Return nothing: `importance="taylor"` needs data that cprune can see."""
        return {}


__all__ = ["CallableTrainer", "Checkpoint", "DataTrainer", "Pace", "PartName", "Schedule", "Trainer"]
