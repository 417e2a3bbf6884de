"""What a report says of the accuracy: on its own images, on new ones, and how many images there were for what.

The first is a fact that one can check, the second a bound with a confidence; they stand beside each other and are never
mixed.
"""

from __future__ import annotations

from cprune.runs.report.numbers import MISSING, percent
from cprune.runs.report.run import Accuracy
from cprune.targets.paired import Bound


def sentences(accuracy: Accuracy) -> tuple[str, ...]:
    """Return what is known, a paragraph each; none for a result of an earlier version."""
    loss, sizes = accuracy.loss, accuracy.images
    if loss is None:
        return ()
    those = f"these {sizes.report:,} images" if sizes.report else "the images that the test function looks at"
    change = f"{percent(accuracy.before)} before, {percent(accuracy.after)} after, {points(loss.loss)}"
    counted = f" ({loss.lost:,} images lost, {loss.gained:,} gained; standard error {100 * loss.se:.2f} points)"
    told = [f"On {those}, which no decision saw: {change}{counted if loss.lost or loss.gained else ''}."]
    if accuracy.bound is not None:
        told.append(f"On new images {bounded(accuracy.bound)}, with {sure(accuracy.bound)} confidence.")
    elif accuracy.memorised:
        told.append("On new images nothing can be said: the images that certify the model look memorised.")
    else:
        told.append("On new images nothing can be said: which images the model got right is not known.")
    if sizes.report:
        told.append(
            f"Decisions were made on {sizes.decide:,} images, models were certified with {sizes.certify:,} others, and "
            f"this report is about {sizes.report:,} that are in neither."
        )
    return tuple(told)


def new_images(bound: Bound | None) -> str:
    """Return the bound for a table, as in `at most 1.21 points (95 % sure)`."""
    return MISSING if bound is None else f"{bounded(bound).removesuffix(' are lost')} ({sure(bound)} sure)"


def points(loss: float) -> str:
    """Return `0.83 points lost`, `0.10 points gained` or `nothing lost`."""
    if abs(loss) < 5e-5:
        return "nothing lost"
    return f"{100 * abs(loss):.2f} points {'lost' if loss > 0 else 'gained'}"


def bounded(bound: Bound) -> str:
    """Return `at most 1.21 points are lost`; a bound below nothing is nothing."""
    return f"at most {100 * max(0.0, bound.loss):.2f} points are lost"


def sure(bound: Bound) -> str:
    """Return the confidence as in `95 %`."""
    return f"{100 * bound.confidence:g} %"
