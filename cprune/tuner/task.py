"""A task while it is tuned: what was tried, what the next trials may bring, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence

from cprune.tuner.programs.workload import Workload, key
from cprune.tuner.records.record import Record
from cprune.tuner.search.points import Strategy

LEAST = 24  # no task ends early before so many trials: the models know nothing before a dozen
PATIENCE = 12
GAIN = 0.01  # an improvement of less is none
MOST = 256  # trials that a task may have, whatever was asked for, while none of its programs works


def stalled(records: Sequence[Record]) -> bool:
    """Tell whether a task may end before its trials are spent: its last third (PATIENCE at least) brought nothing."""
    last = max(PATIENCE, len(records) // 3)
    if len(records) < LEAST:
        return False
    before = min(r.latency_s for r in records[:-last])
    after = min(r.latency_s for r in records[-last:])
    return before < float("inf") and after > (1 - GAIN) * before


class OpenTask:
    """A workload that is called `uses` times and may have `trials` trials; `records` are those it had before."""

    def __init__(self, workload: Workload, uses: int, trials: int, search: Strategy, records: Sequence[Record]) -> None:
        self.workload, self.uses, self.trials, self.search = workload, uses, trials, search
        self.key = key(workload)
        self.records: list[Record] = []
        self.used_up = False  # whether the search has nothing left to propose
        self.measured = 0
        self.best_s = float("inf")
        self.tell(records)

    def tell(self, records: Sequence[Record]) -> None:
        """Take note of records."""
        self.records += records
        self.search.tell(records)
        self.best_s = min([self.best_s, *(r.latency_s for r in records)])

    @property
    def known(self) -> int:
        """Return how many candidates were tried."""
        return len(self.records)

    @property
    def left(self) -> int:
        """Return how many more candidates may be tried: until one works, more than were asked for."""
        most = self.trials if self.best_s < float("inf") else max(self.trials, MOST)
        return max(0, most - self.known)

    @property
    def begun(self) -> bool:
        """Tell whether it has had what no task goes without: a few trials, and a program that works."""
        enough = self.best_s < float("inf") and self.known >= min(LEAST, self.trials)
        return self.used_up or enough or not self.left

    @property
    def finished(self) -> bool:
        """Tell whether nothing more should be tried."""
        return self.used_up or not self.left or stalled(self.records)

    @property
    def gain(self) -> float:
        """Return the seconds of the whole model that the next trials may bring.

        That is how often the task runs times what its best improved by over its last trials, a trial (the idea of
        Ansor's task scheduler, Zheng et al. 2020, section 6, without its similarity term).
        """
        last = max(PATIENCE, self.known // 3)
        before = min((r.latency_s for r in self.records[:-last]), default=float("inf"))
        if before == float("inf"):
            return float("inf")
        return self.uses * (before - self.best_s) / last
