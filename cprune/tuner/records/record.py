"""What was tried for a task on a target, and what came of it.

A record is a plain value: which task (workload), which target, which candidate, and either its timing runs or
the stage and the reason of its failure.  Failures are kept like successes: they teach the validity model, and a
candidate that is known to fail is never built again.

Words as in TVM's MetaSchedule (task, candidate, record).  Ours differs in that a failure is not a latency of
1e10, and in that a record says whether the program's *result* was ever compared with the reference.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from cprune.targets.session import STAGES


@dataclass(frozen=True)
class Record:
    """One candidate of one task, tried on one target.

    Attributes:
        task: the workload as canonical JSON text.
        target: fingerprint of the target, a short hex string.
        candidate: knobs or decisions as canonical JSON text.
        runs_s: every timing run in seconds; empty exactly if the candidate failed.
        failure: "" or one of `cprune.targets.session.STAGES`.
        reason: why it failed, for people.
        checked: True once the result was compared with the reference, whatever came of it (also True if the
            program failed when it was about to be compared).
        space: which search space proposed it: "sketch" or "metaschedule".
        hidden: the hidden features, read from the compiled form, as canonical JSON object text; "" where unknown.
        created: when it was tried, in unix seconds.

    Raises ValueError for a record that contradicts itself (no runs and no failure, runs and a failure, a run
    that is not a positive number, a stage that does not exist, features that are no object): that is a mistake
    in the code, not in the data.
    """

    task: str
    target: str
    candidate: str
    runs_s: tuple[float, ...]
    failure: str = ""
    reason: str = ""
    checked: bool = False
    space: str = "sketch"
    hidden: str = ""
    created: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        if self.failure and self.failure not in STAGES:
            raise ValueError(f"failure stage {self.failure!r} is none of {', '.join(STAGES)}")
        if bool(self.runs_s) == bool(self.failure):
            raise ValueError("a record has either timing runs or a failure, never both or none")
        if not all(math.isfinite(run) and run > 0 for run in self.runs_s):
            raise ValueError(f"timing runs must be positive seconds, got {self.runs_s}")
        if self.hidden and not (self.hidden.startswith("{") and self.hidden.endswith("}")):
            raise ValueError(f"hidden features are a JSON object, got {self.hidden[:80]!r}")

    @property
    def latency_s(self) -> float:
        """The median of the runs in seconds; infinity for a candidate that failed."""
        return statistics.median(self.runs_s) if self.runs_s else math.inf

    @property
    def key(self) -> str:
        """The sha256 (hex) of task, target and candidate: what a store keeps one record of."""
        return digest(self.task, self.target, self.candidate)


def better_informed(new: Record, old: Record) -> bool:
    """Say whether `new` should take the place of `old`, a record of the same key.

    From least to most: failed; timed; timed and its result found right; its result found wrong (or it failed
    when it was about to be compared).  The last is final: a wrong program never comes back because somebody
    timed it again. A failure below that can be bad luck (a timeout on a busy machine), so a timing replaces
    it and it never replaces a timing.  Among equals more runs win, otherwise the older record stays, unless the new
    one is the very same with its hidden features added.
    """

    def information(record: Record) -> tuple[int, int]:
        wrong = record.failure == "check" or (record.failure != "" and record.checked)
        rank = 3 if wrong else 0 if record.failure else 2 if record.checked else 1
        return rank, len(record.runs_s)

    if new.hidden and not old.hidden and replace(new, hidden="", created=old.created) == old:
        return True
    return information(new) > information(old)


def fastest(records: Iterable[Record]) -> Record | None:
    """Return the fastest of `records` that did not fail, or None; among equals a checked one, then the first."""
    valid = (record for record in records if not record.failure)
    return min(valid, key=lambda record: (record.latency_s, not record.checked), default=None)


def digest(*texts: str) -> str:
    """Return the sha256 (hex) of several texts together."""
    # The length in front keeps ("ab", "c") and ("a", "bc") apart.
    parts = (f"{len(text)}:{text}" for text in texts)
    return hashlib.sha256("".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
