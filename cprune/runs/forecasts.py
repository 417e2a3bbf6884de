"""How far forecasts were from what was measured later: of whole models, and of calls whose task had been estimated."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cprune.runs.events import Step


@dataclass(frozen=True)
class Forecast:
    """The latency of a model as a share of another's, forecast and measured; `error` is the first less 1 of the other.

    The other is the model before its step; of the model that is delivered it is the unpruned one.
    """

    model: str
    forecast: float
    measured: float
    error: float


@dataclass(frozen=True)
class Forecasts:
    """The forecasts of a run's models, and how many calls were estimated, with the median of their absolute errors."""

    models: tuple[Forecast, ...] = ()
    estimated: int = 0
    error: float | None = None

    def sentences(self) -> tuple[str, ...]:
        """Return what is known, a sentence a model and one for the calls."""
        models = (
            f"{one.model}: {one.forecast:.3f} of the time was forecast, {one.measured:.3f} measured "
            f"(error {one.error:+.1%})"
            for one in self.models
        )
        calls = f"{self.estimated} calls were estimated before they were measured: median error {self.error or 0:.1%}"
        return (*models, *([calls] if self.estimated else []))


def forecast(model: str, forecast: float, measured: float) -> Forecast:
    """Return a forecast with its error."""
    return Forecast(model, round(forecast, 4), round(measured, 4), round(forecast / measured - 1, 4))


def forecasts(steps: Sequence[Step], delivered: int | None = None, ratio: float | None = None) -> Forecasts:
    """Return the forecasts of steps that were measured.

    `delivered` is the index of the step whose model is, and `ratio` the latency of that one as a share of the unpruned
    one's; its forecast is the product over the accepted steps that led to it.
    """
    models = [
        forecast(f"step {step.index}", step.forecast, step.ratio.median)
        for step in steps
        if step.forecast is not None and step.ratio is not None
    ]
    if delivered is not None and ratio is not None:
        led, known = 1.0, True
        for step in steps:
            if step.verdict == "accepted" and step.index <= delivered:
                known = known and step.forecast is not None
                led *= step.forecast or 1.0
        models += [forecast("the pruned model", led, ratio)] if known else []
    errors = [abs(one.error) for step in steps for one in step.estimated]
    return Forecasts(tuple(models), len(errors), round(statistics.median(errors), 4) if errors else None)
