"""A model in integers for `cprune tune --precision int8`: calibrated on training images, compared on the report's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cprune.commands.request import Request
from cprune.compiling.tuned import integer_layout
from cprune.method.subject import subject_of
from cprune.network.network import Network
from cprune.network.quantizing import quantized
from cprune.progress import Progress
from cprune.targets.errors import UserError
from cprune.targets.paired import Paired
from cprune.training.accuracy import paired

IMAGES, BATCH = 512, 64
"""Training images that the ranges of values come from."""


@dataclass(frozen=True)
class Integers:
    """The model in integers under its name; accuracy in [0, 1] before and after, and what it lost image by image."""

    name: str
    network: Network
    example: tuple[Tensor, ...]
    before: float
    after: float
    loss: Paired

    def to_dict(self) -> Mapping[str, Any]:
        """Return what the folder's `model.json` tells of it."""
        return {"before": self.before, "after": self.after, "lost": self.loss.to_dict()}


def in_integers(request: Request, data: str | None, progress: Progress) -> Integers:
    """Return the model of a request in integers.

    Raises UserError without data, where the target's processor does not multiply bytes, and see `subject_of`.
    """
    target = request.target
    integer_layout(target)
    if data is None:
        raise UserError(
            "int8 needs images, to know the range of every value",
            "Add --data npz:FILE or folder:DIR (cprune run --help).",
        )
    subject = subject_of(request.source, data, target, request.settings)
    split = subject.trainer.samples(IMAGES, request.settings.seed)
    assert split is not None  # the data of a command can be seen
    progress.say(f"{subject.name}: ranges of all values from {len(split):,} training images")
    network = quantized(subject.network, split.inputs(BATCH))
    before, after = (subject.trainer.look(model, "report") for model in (subject.network.eval(), network.eval()))
    return Integers(subject.name, network, subject.example, before.accuracy, after.accuracy, paired(before, after))
