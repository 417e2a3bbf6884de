"""The end of a run: long training, the choice of a model, equal trials for both models, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

from cprune.method.certify import Choice, Contender, chosen, unpruned
from cprune.method.limits import Limits, meets
from cprune.method.promise import Promise
from cprune.method.state import RunState, Version
from cprune.network.facts import Size, size_of
from cprune.network.network import Network
from cprune.runs.events import Final, Start, Status
from cprune.runs.forecasts import Forecasts, forecasts
from cprune.runs.limits import Limited
from cprune.targets.interval import Comparison

WAITS, WAIT_S = 8, 15.0
WHOLE = -1  # what the unpruned model in integers is called in the journal
SLOWER = 1.1


@dataclass(frozen=True)
class Outcome:
    """What a run ends with.

    `choice` is the final model and what is known of its accuracy.  `comparison` is of the unpruned and the final model,
    `sizes` are theirs; `counts` says how many steps had which verdict; `forecasts` are those of all models.  `limits`
    are those that were asked for beside the accuracy, with what the final model has of each.
    """

    status: Status
    choice: Choice
    before: Version
    after: Version
    start: Start
    comparison: Comparison
    sizes: tuple[Size, Size]
    trials: Mapping[str, int]
    seconds: Mapping[str, float]
    counts: Mapping[str, int]
    notes: tuple[str, ...]
    forecasts: Forecasts
    limits: tuple[Limited, ...] = ()

    @property
    def network(self) -> Network:
        """Return the final model, as it is compiled."""
        return self.after.tuned.network


def finish(run: RunState, current: Version) -> Outcome:
    """Train long, choose a model that is certified, tune both models with equal trials, measure them in turns.

    `current` is the newest accepted model, whose programs the final tuning starts from.  Where the walk ends at an
    earlier one, that is returned (status "stepped-back"), and if there is none, the unpruned one (status "unpruned").
    """
    settings, siblings = run.settings, current.tuned.layer_programs
    choice = chosen(run, contenders(run))
    run.progress.say(f"accuracy {choice.accuracy:.2%} on the images of the report ({run.start.required:.2%} asked for)")
    before = after = run.tune(run.first, run.first_layout, settings.trials, text="tuning, unpruned")
    if choice.index is not None:
        layout = run.choose_layout(choice.network, run.layout, siblings)
        after = run.tune(choice.network, layout, settings.trials, siblings, "tuning, pruned", "final")
    run.load("before", before)
    if after is not before:
        run.load("after", after)
    comparison = _at_full_speed(run, "after" if after is not before else "before")
    if choice.index is not None and comparison.ratio.high >= 1:
        slower = "the pruned model is not clearly faster after final tuning; the model stays as it is"
        choice = unpruned(run, (*choice.notes, slower))
        after, comparison = before, run.compare("before", "before", run.settings.rounds)
    sizes = size_of(run.first, run.example), size_of(choice.network, run.example)
    limits = Limits.of(settings).all_of(comparison.new_ms.median, 1 / comparison.ratio.median, sizes[1])
    outcome = Outcome(
        _status(run, choice),
        choice,
        before,
        after,
        run.start,
        comparison,
        sizes,
        dict(run.cost.trials),
        {name: round(value, 1) for name, value in run.cost.now().items()},
        {verdict: run.history.count(verdict) for verdict in ("accepted", "rejected", "excluded")},
        _notes(run, choice, limits),
        forecasts(run.history.steps, _step(run, choice), comparison.ratio.median / run.start.share),
        limits,
    )
    run.happened(Final(outcome.status, choice.accuracy))
    return outcome


def _at_full_speed(run: RunState, new: str) -> Comparison:
    """Time the unpruned and the final model in turns, as often as the unpruned one is slow, WAITS times at most.

    Machines have several speeds, and the models that are better at one are not so at another.
    """
    usual_ms = run.start.latency_ms.median
    comparison = run.compare("before", new, 2 * run.settings.rounds)
    for _ in range(WAITS if new != "before" else 0):
        if comparison.old_ms.median <= SLOWER * usual_ms:
            break
        run.progress.say(
            f"the machine is slow now: the unpruned model takes {comparison.old_ms.median:.3f} ms and took "
            f"{usual_ms:.3f}; measured again"
        )
        time.sleep(WAIT_S)
        again = run.compare("before", new, 2 * run.settings.rounds)
        comparison = min(comparison, again, key=lambda c: c.old_ms.median)
    return comparison


def _step(run: RunState, choice: Choice) -> int | None:
    """Return the step whose model was chosen; None where it is of no step."""
    return choice.index if any(step.index == choice.index for step in run.history.steps) else None


def contenders(run: RunState) -> list[Contender]:
    """Train the last accepted model long; return all accepted ones, slowest first, as far trained as each is.

    In integers the whole model is the first of them; one that the run asked for itself comes before all accepted ones.
    """
    if run.history.last is not None:
        run.long_trained(run.history.last)
    found = []
    if run.precision != "fp32":
        look = run.look(deepcopy(run.first), "decide")
        name, load = f"the whole model in {run.precision}", partial(deepcopy, run.first)
        found.append(Contender(WHOLE, name, look.accuracy, load, run.loss(look, "decide")))
    for asked in run.history.asked:
        safe = run.history.trained.get(asked.index) if asked.safer else None
        if safe is not None:
            load = partial(run.keeper.load, asked.index, long_trained=True)
            found.append(Contender(asked.index, "the safer model", safe.accuracy, load, safe.loss))
    for step in run.history.accepted:
        trained = run.history.trained.get(step.index)
        decided = trained.accuracy if trained else step.accuracy or 0.0
        load = partial(run.keeper.load, step.index, long_trained=trained is not None)
        loss, enough = trained.loss if trained else step.loss, meets(run, step.index)
        name = f"the model after step {step.index}"
        found.append(Contender(step.index, name, decided, load, loss, enough))
    return found


def _status(run: RunState, choice: Choice) -> Status:
    if choice.index in (None, WHOLE):
        return "unpruned"
    return "pruned" if choice.index == run.history.last else "stepped-back"


def _notes(run: RunState, choice: Choice, limits: Sequence[Limited]) -> tuple[str, ...]:
    """Return what has to be known of the result beside its numbers."""
    memorised = (Promise.of(run.start).warning,) if run.start.memorised else ()
    trained = tuple(trained.note for trained in run.history.trained.values() if trained.note)
    met = bool(limits) and all(limit.met for limit in limits)
    nothing = "no step was both faster and accurate enough; the model stays as it is, tuned"
    if met:
        nothing = "the model meets the limits as it is, tuned: nothing was pruned"
    missed = tuple(f"a limit was missed: {limit.told()}" for limit in limits if not limit.met)
    return (*memorised, *trained, *choice.notes, *(() if run.history.accepted else (nothing,)), *missed)
