"""The state of a run, made of its events alone: what happens now and what happened in an earlier life are one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cprune.runs.events import (
    Asked,
    Certified,
    Chosen,
    Event,
    Further,
    Measured,
    Planned,
    Renewed,
    Reported,
    Scouted,
    Start,
    Step,
    Trained,
)

ROOM = 0.25  # of the loss that is allowed, to be left after long training, makes another round worth while


@dataclass
class History:
    """What a run knows.  Nothing but `apply` changes it.

    Attributes:
        start: what was known before the first step; None before that.
        steps: every visit to a task.
        excluded: groups that cost too much accuracy, by `Step.key`; rejected: how often groups were not faster.
        measured: comparisons of the gate by key; trained: long training by step; renewed: steps gone on from after it.
        planned, scouted, chosen: of the method of tables: scouts by round and number, the chosen one by round.
        asked, further: models that were asked for after the run, and what became of them by the number of the wish.
        certified, reported: looks at finished models, by the index of each.
        accuracy: of the current model, on the images that decide.
        hopeful: long training helped whenever accuracy was short, so it may be tried again.
    """

    start: Start | None = None
    steps: list[Step] = field(default_factory=list)
    excluded: set[str] = field(default_factory=set)
    rejected: dict[str, int] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    trained: dict[int, Trained] = field(default_factory=dict)
    renewed: set[int] = field(default_factory=set)
    planned: Planned | None = None
    scouted: dict[tuple[int, int], Scouted] = field(default_factory=dict)
    chosen: dict[int, Chosen] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    further: dict[int, Further] = field(default_factory=dict)
    certified: dict[int, Certified] = field(default_factory=dict)
    reported: dict[int, Reported] = field(default_factory=dict)
    accuracy: float = 0.0
    hopeful: bool = True

    @classmethod
    def of(cls, events: Iterable[Event]) -> History:
        """Return the state after `events`."""
        history = cls()
        for event in events:
            history.apply(event)
        return history

    def apply(self, event: Event) -> None:
        """Take note of one event."""
        if isinstance(event, Start):
            self.start, self.accuracy = event, event.decide
        elif isinstance(event, Measured):
            self.measured[event.key] = event
        elif isinstance(event, Step):
            self._visited(event)
        elif isinstance(event, Trained):
            self.trained[event.index] = event
            self.hopeful = self.hopeful and self.would_renew(event.accuracy)
        elif isinstance(event, Renewed):
            self.renewed.add(event.index)
            self.accuracy = event.accuracy
            self.excluded, self.rejected = set(), {}
        elif isinstance(event, Planned):
            self.planned = event
        elif isinstance(event, Scouted):
            self.scouted[event.round, event.number] = event
        elif isinstance(event, Chosen):
            self.chosen[event.round] = event
        elif isinstance(event, Asked):
            self.asked.append(event)
        elif isinstance(event, Further):
            self.further[event.number] = event
        elif isinstance(event, Certified):
            self.certified[event.index] = event
        elif isinstance(event, Reported):
            self.reported[event.index] = event

    def _visited(self, step: Step) -> None:
        self.steps.append(step)
        if step.verdict == "excluded":
            self.excluded.add(step.key)
            if not self.roomy(self.accuracy) and not self.may_renew:
                self.hopeful = False
        elif step.verdict == "rejected":
            self.rejected[step.key] = self.rejected.get(step.key, 0) + 1
        else:
            self.rejected = {}
            self.accuracy = step.accuracy or 0.0

    @property
    def accepted(self) -> list[Step]:
        """Return the accepted steps, oldest first."""
        return [step for step in self.steps if step.verdict == "accepted"]

    @property
    def last(self) -> int | None:
        """Return the index of the last accepted step; None while the model is whole."""
        return self.accepted[-1].index if self.accepted else None

    @property
    def may_renew(self) -> bool:
        """Tell whether the current model was pruned and did not go on from long training yet."""
        return self.last is not None and self.last not in self.renewed

    @property
    def should_renew(self) -> bool:
        """Tell whether what comes now would be excluded as well, and long training may help."""
        excluded_last = bool(self.steps) and self.steps[-1].verdict == "excluded"
        return self.hopeful and excluded_last and not self.roomy(self.accuracy) and self.may_renew

    def would_renew(self, accuracy: float) -> bool:
        """Tell whether long training that led to `accuracy` helped, and leaves room for more steps."""
        return accuracy > self.accuracy and self.roomy(accuracy)

    def roomy(self, accuracy: float) -> bool:
        """Tell whether `accuracy` leaves enough of the allowed loss to go on."""
        assert self.start is not None
        room = accuracy - self.start.floor
        return room > 0 and room >= ROOM * (self.start.decide - self.start.floor)

    def count(self, verdict: str) -> int:
        """Return how many steps ended so."""
        return sum(step.verdict == verdict for step in self.steps)
