"""`cprune export --pick`: which model of a run's front is meant by a latency or a speed-up, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cprune.runs.folder import RunFolder
from cprune.runs.front import Front, FrontPoint, read_front
from cprune.targets.errors import UserError

CLOSE = 1.01  # times as slow as asked for is as fast: what people read in a table is rounded


@dataclass(frozen=True)
class Pick:
    """What was typed: a latency in ms or a speed-up, one of them."""

    latency_ms: float | None = None
    speedup: float | None = None

    def fast_enough(self, point: FrontPoint) -> bool:
        """Tell whether a model is that fast."""
        if self.latency_ms is not None:
            return point.latency_ms.median <= CLOSE * self.latency_ms
        return CLOSE * point.speedup >= (self.speedup or 0.0)

    def told(self) -> str:
        """Return it as it is typed."""
        return f"{self.latency_ms:g}ms" if self.latency_ms is not None else f"{self.speedup:g}x"

    def as_speedup(self, front: Front) -> float:
        """Return the speed-up that is asked for."""
        if self.latency_ms is not None:
            return front.unpruned.latency_ms.median / self.latency_ms
        return self.speedup or 1.0


@dataclass(frozen=True)
class Picked:
    """A model of a run: the folder that holds it, the file with its programs, and what has to be known of it."""

    folder: Path
    programs: Path
    warning: str = ""


def delivered(run: RunFolder) -> Picked:
    """Return the model that a run delivered.  Raises UserError where it has none yet."""
    if not run.programs.exists():
        raise run.unfinished()
    return Picked(run.path, run.programs)


def picked(run: RunFolder, pick: Pick) -> Picked:
    """Return the most accurate model of the front that is fast enough, a certified one if there is any.

    Raises UserError where there is none, with those that there are and what makes one.
    """
    front = read_front(run.front)
    if front is None:
        if run.result.exists():
            raise UserError(f"{run.path} is of an earlier version, which kept no front", "Leave --pick out.")
        raise run.unfinished()
    there = [point for point in front.points if point.step is not None]
    fast = [point for point in there if pick.fast_enough(point)]
    if not fast:
        raise _nothing(run, pick, front, there)
    best = min(fast, key=lambda point: (point.status != "certified", point.loss))
    if best.delivered:
        return Picked(run.path, run.programs)
    assert best.step is not None
    places = (run.rounded_dir(best.step), run.long_trained_dir(best.step), run.step_dir(best.step))
    folder = next(folder for folder in places if (folder / "model.json").exists() or folder == places[-1])
    warning = "" if best.status == "certified" else f"this model was trained, but not certified: {_told(best)}"
    return Picked(folder, run.programs_of(best.step), warning)


def _nothing(run: RunFolder, pick: Pick, front: Front, there: list[FrontPoint]) -> UserError:
    listed = "".join(f"\n  {_told(point)}" for point in there) or " none"
    hint = f"Train one more: cprune resume {run.path} --speedup {pick.as_speedup(front):.3g}"
    if not any(pick.fast_enough(point) for point in front.points):
        hint += " (the front forecasts no model that is so fast)"
    return UserError(f"no model of {run.path} is as fast as {pick.told()}; there are:{listed}", hint)


def _told(point: FrontPoint) -> str:
    """Return `2.03x, 0.0991 ms, 0.41 points lost, certified`."""
    lost = f"{100 * point.loss:.2f} points lost"
    return f"{point.speedup:.2f}x, {point.latency_ms.median:.4g} ms, {lost}, {point.status}"
