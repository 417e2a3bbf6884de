"""What a run promises of the accuracy: what the unpruned model has, what may be lost, and how many images say so.

Two promises are never mixed.  On the images of the report the accuracy is at least what was asked for: a fact.  On new
images at most so much is lost, with a confidence: a bound, from the images that certify.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cprune.method.settings import Settings
from cprune.method.state import RunState
from cprune.runs.events import PartSizes, Start
from cprune.targets.errors import UserError
from cprune.targets.paired import Paired
from cprune.training.accuracy import Look

MEMORISED, MEMORISED_ERRORS = 0.02, 3.0
"""Images are taken for memorised if they are right so much more often than the report's, and beyond these errors."""


@dataclass(frozen=True)
class Promise:
    """Accuracies of the unpruned model on every part, the number of images in each, and what is to be kept."""

    report: float
    decide: float
    certify: float
    images: PartSizes
    required: float
    memorised: bool

    @classmethod
    def of(cls, start: Start) -> Promise:
        """Return the promise of an earlier life.  Raises UserError if that was one of an earlier version."""
        if start.certify is None:
            raise UserError(
                "this run was started by an earlier version of cprune, which shared the data out in another way",
                "Its report can still be written (cprune report); to prune, start a new run.",
            )
        return cls(start.report, start.decide, start.certify, start.images, start.required, start.memorised)

    @property
    def floor(self) -> float:
        """Return the accuracy that decisions keep: they may lose what may be lost of the report's."""
        return self.decide - (self.report - self.required)

    def told(self) -> list[str]:
        """Return lines that say it."""
        sizes = self.images
        lines = [
            f"accuracy {self.report:.2%} on the images of the report{_many(sizes.report)}, {self.decide:.2%} on those "
            f"that decide{_many(sizes.decide)}, {self.certify:.2%} on those that certify{_many(sizes.certify)}; "
            f"{self.required:.2%} is to be kept"
        ]
        return [*lines, self.warning] if self.memorised else lines

    @property
    def warning(self) -> str:
        """Return what is wrong with decisions on images that were learnt by heart."""
        return (
            f"the images that decide look memorised: {self.decide:.2%} there, {self.report:.2%} on those of the "
            "report; leave x_val out or give images the model never saw"
        )


def promised(run: RunState) -> Promise:
    """Look at the unpruned model with every part of the data and return what is promised.

    Raises UserError for an accuracy that is more than the model has, and for a confidence that nothing can reach.
    """
    report, decide, certify = run.parent("report"), run.parent("decide"), run.parent("certify")
    required = _required(run.settings, report.accuracy)
    _must_be_possible(run.settings, report.accuracy - required, certify)
    sizes = PartSizes(decide.images, certify.images, report.images)
    known_by_heart = memorised(decide, report)
    promise = Promise(report.accuracy, decide.accuracy, certify.accuracy, sizes, required, known_by_heart)
    if known_by_heart and run.settings.confidence is not None:
        raise UserError(promise.warning, "--confidence is about new images, and nothing can be said of them so.")
    return promise


def memorised(decide: Look, report: Look) -> bool:
    """Tell whether the model knows the images that decide by heart; False where only the accuracies are known."""
    if not decide.images or not report.images:
        return False
    variance = sum(look.accuracy * (1 - look.accuracy) / look.images for look in (decide, report))
    return decide.accuracy - report.accuracy > max(MEMORISED, MEMORISED_ERRORS * math.sqrt(variance))


def _required(settings: Settings, report: float) -> float:
    """Return the accuracy that is to be kept, of `report` that the unpruned model has."""
    required = settings.min_acc
    if required is None:
        return max(0.0, report - settings.max_drop)
    if required > report:
        raise UserError(
            f"--min-acc {required:.2%} is above what the model reaches: {report:.2%} on the images of the report",
            f"Type --min-acc {max(0.0, report - 0.01):.4f}, or leave it out to allow a loss of one point.",
        )
    return required


def _must_be_possible(settings: Settings, allowed: float, certify: Look) -> None:
    """Refuse a confidence that even a model which answers like its parent could not give."""
    if settings.confidence is None:
        return
    if not certify.images:
        raise UserError(
            "a confidence needs to know which images were right; a function that evaluates says only how many",
            "Leave confidence out, or use the command with --data.",
        )
    best = Paired.of(certify.images, 0, 0).upper(settings.confidence)
    if best > allowed:
        raise UserError(
            f"--confidence {settings.confidence:.4g}: {certify.images:,} images certify, and of a model that answers "
            f"all of them like its parent they prove only that it loses at most {best:.2%}; {allowed:.2%} may be lost",
            "Give more test images, allow more with --max-drop, or leave --confidence out.",
        )


def _many(images: int) -> str:
    return f" ({images:,})" if images else ""
