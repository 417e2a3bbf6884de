"""The verdict on a candidate: forecast, gate, accuracy, in this order, since each costs more than the one before."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cprune.method.plan import Proposal
from cprune.method.state import RunState, Version
from cprune.network.network import Network
from cprune.runs.events import Estimated, Measured, Verdict
from cprune.targets.interval import Comparison
from cprune.targets.paired import Paired
from cprune.training.accuracy import Look
from cprune.training.fine_tune import FineTuneDiverged
from cprune.training.trainer import Schedule

BEYOND_REACH = 0.98  # a step whose accuracy is below this share of what it needs gets no second training
HOPELESS = 1.25  # a forecast is the sum of single measurements: only the gate may say that a candidate is slower


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reason, and what was measured for it.

    `forecast` is the share of the latency that was expected, `estimated` are calls that had been estimated.
    """

    verdict: Verdict
    reason: str
    comparison: Comparison | None = None
    accuracy: float | None = None
    loss: Paired | None = None
    forecast: float | None = None
    estimated: tuple[Estimated, ...] = ()


def judge(run: RunState, index: int, proposal: Proposal, old: Version, new: Version, held: str) -> Judgement:
    """Return the verdict on `new`, the candidate of step `index`, against `old`, which is held under the name `held`.

    The network of a candidate that is fast enough is trained in place.
    """
    forecast = new.tuned.forecast_s / old.tuned.forecast_s
    if forecast >= HOPELESS:
        return Judgement(
            "rejected", f"the changed tasks are slower (forecast {forecast:.3f} of the time)", forecast=forecast
        )
    comparison = gate(run, index, proposal, new, held, forecast)
    if not comparison.faster(run.settings.beta):
        return Judgement("rejected", not_faster(comparison), comparison, forecast=forecast)
    judgement = learned(run, index, new.network)
    reason = faster(comparison) if judgement.verdict == "accepted" else judgement.reason
    return replace(judgement, reason=reason, comparison=comparison, forecast=forecast)


def faster(comparison: Comparison) -> str:
    """Return why a model is accepted."""
    return f"{1 / comparison.ratio.median:.3f}x faster"


def not_faster(comparison: Comparison) -> str:
    """Return why a model is rejected."""
    ratio = comparison.ratio
    return f"not clearly faster: {ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of the time"


def learned(run: RunState, index: int, network: Network) -> Judgement:
    """Return the verdict on the accuracy of a candidate that is trained shortly, in place; "accepted" has no reason."""
    floor = max(run.start.floor, run.settings.alpha * run.history.accuracy)
    try:
        look = _short_trained(run, index, network, floor)
    except FineTuneDiverged as error:
        return Judgement("excluded", f"training diverged: {error}")
    accuracy, loss = look.accuracy, run.loss(look, "decide")
    if accuracy < floor:
        reason = f"accuracy {accuracy:.2%} is below {floor:.2%}"
        return Judgement("excluded", reason, accuracy=accuracy, loss=loss)
    return Judgement("accepted", "", accuracy=accuracy, loss=loss)


def gate(run: RunState, index: int, proposal: Proposal, new: Version, held: str, forecast: float) -> Comparison:
    """Time the candidate against the current model, or read what an earlier life of this run measured.

    What contradicts the forecast is measured once more, and the less favourable of the two counts.
    """
    name = f"step{index}"
    key = f"{index} {proposal.key} {proposal.removed}"
    run.load(name, new)
    known = run.history.measured.get(key)
    if known is not None:
        return known.comparison
    comparison = run.compare(held, name, run.settings.rounds, run.settings.beta)
    if comparison.contradicts(forecast):
        again = run.compare(held, name, run.settings.rounds, run.settings.beta)
        comparison = max(comparison, again, key=lambda c: c.ratio.median)
    run.happened(Measured(key, comparison.old_ms, comparison.new_ms, comparison.ratio))
    return comparison


def _short_trained(run: RunState, index: int, network: Network, floor: float) -> Look:
    """Repair and train a little, in place, and look at the network with the images that decide.

    What is only a little below `floor` gets one more, longer training before a task is given up for good.
    """
    settings = run.settings
    seed = settings.seed * 1000 + index
    with run.cost.spent("train"):
        run.trainer.recalibrate(network, seed)
    run.fine_tune(network, Schedule(settings.short_epochs, settings.short_lr, False), seed)
    look = run.look(network, "decide")
    if BEYOND_REACH * floor <= look.accuracy < floor and settings.retry_epochs:
        run.fine_tune(network, Schedule(settings.retry_epochs, settings.short_lr, False), seed + 500)
        look = run.look(network, "decide")
    return look
