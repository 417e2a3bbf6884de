"""What a run has cost so far, its earlier lives included.

Every event that the loop writes carries it as `so_far`, and where nothing else is written for a while an event "cost"
does, so a run that is killed loses less than half a minute of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from cprune.runs.events import Event, SoFar, cost_so_far

KINDS = ("tune", "measure", "train", "evaluate", "other")
PHASES = ("before", "loop", "final")


def _zeros() -> dict[str, float]:
    return dict.fromkeys(KINDS, 0.0)


@dataclass
class Cost:
    """Seconds by what they went for, and trials by the phase of the run that asked for them.

    The clock runs from the beginning: what is inside no `spent` is "other".
    """

    seconds: dict[str, float] = field(default_factory=_zeros)
    trials: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    clock: Callable[[], float] = time.perf_counter
    kind: str = "other"  # what the clock is running for
    phase: str = ""  # what a trial counts for; "" for nothing

    def __post_init__(self) -> None:
        """Start the clock."""
        self.mark = self.clock()

    @classmethod
    def of(cls, events: Iterable[Event], clock: Callable[[], float] = time.perf_counter) -> Cost:
        """Return what the earlier lives of a run cost, by their events; the clock runs on from there."""
        earlier = cost_so_far(events)
        return cls(
            {kind: earlier.seconds.get(kind, 0.0) for kind in KINDS},
            {phase: earlier.trials.get(phase, 0) for phase in PHASES},
            clock,
        )

    @contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Count the time inside as `kind`."""
        outer = self.kind
        self._turn(kind)
        try:
            yield
        finally:
            self._turn(outer)

    @contextmanager
    def counting(self, phase: str) -> Iterator[None]:
        """Count the trials inside for `phase`."""
        self.phase = phase
        try:
            yield
        finally:
            self.phase = ""

    def trial(self) -> None:
        """Count one trial."""
        if self.phase:
            self.trials[self.phase] += 1

    def now(self) -> dict[str, float]:
        """Return the seconds by kind, and their "total"."""
        self._turn(self.kind)
        return {**self.seconds, "total": sum(self.seconds.values())}

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds that were spent since `before`, a `now`, rounded for the journal."""
        return {kind: round(value - before[kind], 3) for kind, value in self.now().items()}

    def so_far(self) -> SoFar:
        """Return what an event says of it, and `of` reads."""
        return SoFar({kind: round(value, 3) for kind, value in self.now().items()}, dict(self.trials))

    def _turn(self, kind: str) -> None:
        """Give the time since the last turn to what it went for, and run on for `kind`."""
        now = self.clock()
        self.seconds[self.kind] += now - self.mark
        self.kind, self.mark = kind, now
