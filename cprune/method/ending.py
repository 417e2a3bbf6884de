"""The end of a run: long training, equal trials for both models, measured in turns, the test set once more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cprune.method.state import RunState, Version
from cprune.network.facts import Size, size_of
from cprune.network.network import Network
from cprune.runs.events import Final, Start, Status
from cprune.targets.interval import Comparison


@dataclass(frozen=True)
class Outcome:
    """What a run ends with.

    `comparison` is of the unpruned and the final model, `sizes` are theirs; `counts` says how many steps had which
    verdict.
    """

    status: Status
    network: Network
    before: Version
    after: Version
    start: Start
    test_after: float
    comparison: Comparison
    sizes: tuple[Size, Size]
    trials: Mapping[str, int]
    seconds: Mapping[str, float]
    counts: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Choice:
    """The model that a run returns, its accuracy on the test set, and why none of the later ones."""

    network: Network
    test: float
    status: Status
    notes: tuple[str, ...]


def finish(run: RunState, current: Version) -> Outcome:
    """Train long, tune both models with equal trials, measure them in turns, look at the test set once more.

    `current` is the newest accepted model, whose programs the final tuning starts from.  Where the test set says less
    than was asked for, the newest accepted model that holds it is returned instead (status "stepped-back"), and if
    there is none, the unpruned one (status "unpruned").
    """
    settings, siblings = run.settings, current.tuned.layer_programs
    choice = _choose(run)
    run.progress.say(f"accuracy {choice.test:.2%} on the test set ({run.start.required:.2%} asked for)")
    before = after = run.tune(run.first, run.layout, settings.trials, text="tuning, unpruned")
    if choice.status != "unpruned":
        layout = run.choose_layout(choice.network, run.layout, siblings)
        after = run.tune(choice.network, layout, settings.trials, siblings, "tuning, pruned", "final")
    run.load("before", before)
    if after is not before:
        run.load("after", after)
    comparison = run.compare("before", "after" if after is not before else "before", 2 * settings.rounds)
    if choice.status != "unpruned" and comparison.ratio.high >= 1:
        slower = "the pruned model is not clearly faster after final tuning; the model stays as it is"
        choice = _Choice(run.first, run.start.test, "unpruned", (*choice.notes, slower))
        after = before
    trained_notes = (trained.note for trained in run.history.trained.values() if trained.note)
    outcome = Outcome(
        choice.status,
        choice.network,
        before,
        after,
        run.start,
        choice.test,
        comparison,
        (size_of(run.first, run.example), size_of(choice.network, run.example)),
        dict(run.cost.trials),
        {name: round(value, 1) for name, value in run.cost.now().items()},
        {verdict: run.history.count(verdict) for verdict in ("accepted", "rejected", "excluded")},
        (*trained_notes, *choice.notes),
    )
    run.happened(Final(choice.status, choice.test))
    return outcome


def _choose(run: RunState) -> _Choice:
    """Return the newest accepted model that keeps the promise after long training.

    A model is looked at with the test set only if it keeps the floor on held-out data.  Where long training did not
    help a model, the ones before it are looked at as they are.
    """
    start, accepted = run.start, run.history.accepted
    notes: list[str] = []
    helped = True
    for back, step in enumerate(reversed(accepted)):
        short_accuracy = step.accuracy or 0.0
        if helped or step.index in run.history.renewed:
            network, decided = run.long_trained(step.index)
            helped = decided > short_accuracy
        else:
            network, decided = run.keeper.load(step.index), short_accuracy
        if decided < start.floor:
            reason = f"{decided:.2%} on held-out data is below {start.floor:.2%}"
        else:
            test = run.look(network, "report").accuracy
            if test >= start.required:
                return _Choice(network, test, "stepped-back" if back else "pruned", tuple(notes))
            reason = f"{test:.2%} on the test set is below {start.required:.2%}"
        _note(run, notes, f"the model after step {step.index}: {reason}; stepping back")
    if accepted:
        _note(run, notes, "no pruned model holds the accuracy asked for; the model stays as it is, tuned")
    else:
        _note(run, notes, "no step was both faster and accurate enough; the model stays as it is, tuned")
    return _Choice(run.first, start.test, "unpruned", tuple(notes))


def _note(run: RunState, notes: list[str], text: str) -> None:
    notes.append(text)
    run.progress.say(text)
