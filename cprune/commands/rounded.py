"""A model in fewer bits for `cprune tune --precision`: int8 is calibrated on training images, bf16 needs none.

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
from cprune.network.halving import halved
from cprune.network.network import Network
from cprune.network.quantizing import quantized
from cprune.progress import Progress
from cprune.targets.errors import UserError
from cprune.targets.paired import Paired
from cprune.training.accuracy import paired

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
class Rounded:
    """The model in fewer bits under its name; `plain` is as it came, `answers` None where no data was given."""

    name: str
    network: Network
    plain: Network
    example: tuple[Tensor, ...]
    answers: Answers | None


def rounded(request: Request, precision: str, data: str | None, progress: Progress, learn: bool = False) -> Rounded:
    """Return the model of a request in int8 or bf16; with `learn` the rounding of int8 weights is learnt.

    Raises UserError for int8 without data, where the target's processor does not multiply in that precision, and see
    `subject_of`.
    """
    target = request.target
    layout_in(precision, target)
    if data is None:
        if precision == "int8":
            raise UserError(
                "int8 needs images, to know the range of every value",
                "Add --data npz:FILE or folder:DIR (cprune run --help).",
            )
        opened = request.opened()
        network = halved(opened.network, opened.example_inputs)
        return Rounded(opened.name, network, opened.network, opened.example_inputs, None)
    subject = subject_of(request.source, data, target, request.settings)
    if precision == "int8":
        split = subject.trainer.samples(IMAGES, request.settings.seed)
        assert split is not None  # the data of a command can be seen
        progress.say(f"{subject.name}: ranges of all values from {len(split):,} training images")
        if learn:
            progress.say("learning how its weights are rounded")
        network = quantized(subject.network, split.inputs(BATCH), learn=learn_rounding if learn else None)
    else:
        network = halved(subject.network, subject.example)
    before, after = (subject.trainer.look(model, "report") for model in (subject.network.eval(), network.eval()))
    answers = Answers(before.accuracy, after.accuracy, paired(before, after))
    return Rounded(subject.name, network, subject.network, subject.example, answers)
