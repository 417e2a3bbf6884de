"""Which of the finished models is delivered: a walk along the images that certify, and one along the report's.

A method looks at the images that decide again and again, so the models that it ends with are the luckiest there.  Other
images say how good they are.  Those are looked at along a fixed sequence, from the safest model to the fastest, up to
the first that loses too much (`cprune.training.accuracy.walk`): however many models there are, one that loses too much
is delivered no more often than one test errs.  Those that pass are looked at once each with the images of the report,
in the same order and up to the first that fails.  Every look is in the journal, so a resumed run repeats none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from cprune.method.state import RunState
from cprune.network.network import Network
from cprune.runs.events import Certified, Reported
from cprune.targets.paired import CONFIDENCE, Bound, Paired
from cprune.training.accuracy import walk

LEAST_ROOM = 0.25
ERRORS = 0.6
"""Standard errors that what is aimed at stays below what may be lost: three of four models pass so.  One that fails in
the report costs what it is faster than the model before it, and one that is more careful is slower for sure."""
SAME = 1e-9  # accuracies that differ by less are one: shares of whole images, computed in two ways


@dataclass(frozen=True, eq=False)
class Contender:
    """A finished model that may be delivered.

    `index` names it in the journal and `name` in messages; `decided` is its accuracy on the images that decide, and
    `decided_loss` what it loses there; `load` reads its network.  `enough` says that it meets limits that were asked
    for, so nothing faster is wanted.
    """

    index: int
    name: str
    decided: float
    load: Callable[[], Network]
    decided_loss: Paired | None = None
    enough: bool = False


@dataclass(frozen=True, eq=False)
class Choice:
    """The model that is delivered: which (None: the unpruned one), and what is known of its accuracy.

    `accuracy` and `loss` (against the unpruned model) are on the images of the report; `bound` is what is lost on new
    images at most, None where the images that certify look memorised, or a function of the user's says only how many of
    them were right.
    """

    index: int | None
    network: Network
    accuracy: float
    loss: Paired
    bound: Bound | None
    notes: tuple[str, ...]


def chosen(run: RunState, contenders: Sequence[Contender]) -> Choice:
    """Return the fastest of the contenders that passes the walk and keeps the promise in the report.

    `contenders` go from the slowest to the fastest.  What is below the promise is never delivered: where the first that
    is looked at is too inaccurate, on the images that certify or on the report's, it is the unpruned model.
    """
    start, notes = run.start, Notes(run)
    kept = [contender for contender in contenders if contender.decided >= start.floor]
    for contender in contenders:
        if contender not in kept:
            notes.say(f"{contender.name}: {contender.decided:.2%} on the images that decide is below {start.floor:.2%}")
    passed = certified(run, up_to_enough(safest_first(kept)), start.allowed, notes)
    if not passed:
        if contenders:
            notes.say("no pruned model holds the accuracy asked for; the model stays as it is, tuned")
        return unpruned(run, notes.said)
    held = walk(passed, lambda contender: _reported(run, contender).accuracy >= start.required - SAME)
    if len(held) < len(passed):
        failed = passed[len(held)]
        instead = f"{held[-1].name} is delivered" if held else "the model stays as it is, tuned"
        notes.say(
            f"{failed.name} was certified, but reaches {_reported(run, failed).accuracy:.2%} on the images of the "
            f"report, and {start.required:.2%} was asked for; {instead}"
        )
    if not held:
        return unpruned(run, notes.said)
    best, reported = held[-1], _reported(run, held[-1])
    bound = None if start.memorised else run.history.certified[best.index].loss.bound(confidence(run))
    return Choice(best.index, best.load(), reported.accuracy, reported.loss, bound, notes.said)


def _reported(run: RunState, contender: Contender) -> Reported:
    """Return what a contender reaches on the images of the report, of which it is shown each once."""
    if contender.index not in run.history.reported:
        look = run.look(contender.load(), "report")
        run.happened(Reported(contender.index, look.accuracy, run.loss(look, "report")))
    return run.history.reported[contender.index]


def safest_first(contenders: Sequence[Contender]) -> list[Contender]:
    """Return those that no faster one beats on the images that decide; they come as they went, the slowest first.

    So each is as safe as all that come after it, and the order owes nothing to the images that certify.  A model is
    safer whose answers there are nearer to the unpruned one's; where that is not known, one that is more accurate.
    Accuracy alone once left out the first of two models, of 0.20 points lost and 0.098 nats, for the second, of 0.11
    and 0.110: that lost 1.11 of the report's images, and there was nothing to fall back on.
    """
    return [
        contender
        for place, contender in enumerate(contenders)
        if all(_is_as_safe(contender, faster) for faster in contenders[place + 1 :])
    ]


def _is_as_safe(one: Contender, other: Contender) -> bool:
    mine, its = (each.decided_loss.divergence if each.decided_loss else None for each in (one, other))
    return one.decided >= other.decided if mine is None or its is None else mine <= its


def up_to_enough(contenders: Sequence[Contender]) -> list[Contender]:
    """Return those up to the first that meets the limits asked for: it is the most accurate of them."""
    first = next((place for place, contender in enumerate(contenders) if contender.enough), len(contenders))
    return list(contenders[: first + 1])


def certified(run: RunState, contenders: Sequence[Contender], allowed: float, notes: Notes) -> list[Contender]:
    """Return the contenders before the first that fails on the images that certify.

    One passes if it loses at most `allowed` against the unpruned model on those images and the ones that decide
    together: 2,000 alone say 1.3 points of a model that loses 0.1 of 6,500.  With the setting `confidence` it passes if
    the bound on its loss on new images says so, of the images that certify alone.
    """
    asked = run.settings.confidence

    def passes(contender: Contender) -> bool:
        event = run.history.certified.get(contender.index)
        if event is None:
            look = run.look(contender.load(), "certify")
            loss = run.loss(look, "certify")
            event = Certified(contender.index, look.accuracy, loss, enough(contender, loss))
            run.happened(event)
        said = f"{contender.name} loses {_points(event.loss, confidence(run))} on the images that certify"
        together = _together(event.loss, contender.decided_loss)
        if asked is None and together.images > event.loss.images:
            said += f", {100 * together.loss:.2f} with those that decide"
        if event.passed:
            run.progress.say(said)
        else:
            notes.say(f"{said}; {100 * allowed:.2f} may be lost, so nothing faster is looked at")
        return event.passed

    def enough(contender: Contender, loss: Paired) -> bool:
        if asked is not None:
            return loss.upper(asked) <= allowed + SAME
        return _together(loss, contender.decided_loss).loss <= allowed + SAME

    return walk(contenders, passes)


def room(run: RunState, loss: Paired) -> float:
    """Return what a model may lose on the images that decide so that it is likely to hold in the report.

    That is ERRORS standard errors less than what may be lost: of the difference between the images that decide and
    those that are yet to be looked at.  The disagreement of `loss` says how large they are.  Never less than LEAST_ROOM
    of what may be lost.
    """
    allowed, images, asked = run.start.allowed, run.start.images, run.settings.confidence

    def error(count: int) -> float:
        return math.sqrt(loss.disagreement / count) if count else loss.se

    if asked is None:
        return max(LEAST_ROOM * allowed, allowed - ERRORS * math.hypot(error(images.decide), error(images.report)))
    certify = error(images.certify)
    return max(LEAST_ROOM * allowed, allowed - (NormalDist().inv_cdf(asked) + 1) * certify)


def _together(certified_loss: Paired, decided: Paired | None) -> Paired:
    """Return the loss on two sets of images as one, where both say which were right; else the first."""
    if decided is None or not (certified_loss.images and decided.images):
        return certified_loss
    pairs = [(one.images, one.lost, one.gained) for one in (certified_loss, decided)]
    return Paired.of(*(sum(counts) for counts in zip(*pairs, strict=True)))


def unpruned(run: RunState, notes: tuple[str, ...]) -> Choice:
    """Return the choice of the unpruned model, which loses nothing."""
    start = run.start
    return Choice(None, run.first, start.report, Paired(0.0, start.images.report), Bound(confidence(run), 0.0), notes)


def confidence(run: RunState) -> float:
    """Return the confidence that was asked for, or the usual one, for what is only said."""
    return CONFIDENCE if run.settings.confidence is None else run.settings.confidence


class Notes:
    """What has to be in the report, said as it happens."""

    def __init__(self, run: RunState) -> None:
        self._run = run
        self.said: tuple[str, ...] = ()

    def say(self, text: str) -> None:
        """Note `text` and show it."""
        self.said = (*self.said, text)
        self._run.progress.say(text)


def _points(loss: Paired, sure: float) -> str:
    """Return "0.83 points (se 0.21, on new images at most 1.21 with 95 %)"."""
    bound = loss.bound(sure)
    if bound is None:
        return f"{100 * loss.loss:.2f} points"
    return (
        f"{100 * loss.loss:.2f} points (se {100 * loss.se:.2f}; {100 * sure:g} % sure: at most {100 * bound.loss:.2f})"
    )
