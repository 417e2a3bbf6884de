"""A model in fewer bits for `cprune tune --precision`: int8 is calibrated on training images, bf16 and fp16 need none.

Where data is given both are compared with the model as it came, on the images of the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cprune.commands.request import Request
from cprune.compiling.tuned import layout_in
from cprune.method.subject import subject_of
from cprune.network.flexround import learn_rounding
from cprune.network.network import Network
from cprune.network.quantizing import quantized
from cprune.progress import Progress
from cprune.targets.errors import UserError
from cprune.targets.paired import Paired
from cprune.training.accuracy import paired
from cprune.training.trainer import Trainer

IMAGES, BATCH = 512, 64
"""Training images that the ranges of values come from."""


@dataclass(frozen=True)
class Answers:
    """Accuracy in [0, 1] of a model before and after it was rounded, and what it lost image by image."""

    before: float
    after: float
    loss: Paired

    def to_dict(self) -> Mapping[str, Any]:
        """Return what the folder's `model.json` tells of it."""
        return {"before": self.before, "after": self.after, "lost": self.loss.to_dict()}


@dataclass(frozen=True)
class Given:
    """A model as it came, under its name; `trainer` has its data, and is None where none was given."""

    name: str
    network: Network
    example: tuple[Tensor, ...]
    trained: bool
    trainer: Trainer | None

    def answers(self, rounded: Network) -> Answers | None:
        """Return what the model answers before and after it was rounded, on the images of the report."""
        if self.trainer is None:
            return None
        before, after = (self.trainer.look(model, "report") for model in (self.network.eval(), rounded.eval()))
        return Answers(before.accuracy, after.accuracy, paired(before, after))


def given(request: Request, precision: str, data: str | None) -> Given:
    """Return the model of a request that is to be rounded to int8, bf16 or fp16.

    Raises UserError for int8 without data, where the target's processor does not multiply in that precision, and see
    `subject_of`.
    """
    layout_in(precision, request.target)
    if data is not None:
        subject = subject_of(request.source, data, request.target, request.settings)
        return Given(subject.name, subject.network, subject.example, True, subject.trainer)
    if precision == "int8":
        raise UserError(
            "int8 needs images, to know the range of every value",
            "Add --data npz:FILE or folder:DIR (cprune run --help).",
        )
    opened = request.opened()
    return Given(opened.name, opened.network, opened.example_inputs, opened.trained, None)


def in_integers(model: Given, seed: int, progress: Progress, learn: bool = False) -> Network:
    """Return a model with data in int8; with `learn` it is learnt how its weights are rounded."""
    split = model.trainer.samples(IMAGES, seed) if model.trainer is not None else None
    assert split is not None  # the data of a command can be seen
    progress.say(f"{model.name}: ranges of all values from {len(split):,} training images")
    if learn:
        progress.say("learning how its weights are rounded")
    return quantized(model.network, split.inputs(BATCH), learn=learn_rounding if learn else None)
