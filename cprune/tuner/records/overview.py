"""What a store holds, for people: a row for each task on each target."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cprune.tuner.programs.describing import describe
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import from_key
from cprune.tuner.records.record import Record, fastest


@dataclass(frozen=True)
class Row:
    """One task on one target: how many candidates were tried and failed, the fastest, when the last was tried."""

    task: str
    target: str
    tried: int
    failed: int
    best: Record | None
    last: float

    def to_dict(self) -> dict[str, Any]:
        """Return the row as `cprune records list --json` prints it; microseconds, unix seconds."""
        return {**_identity(self), "tried": self.tried, "failed": self.failed, **_speed(self.best), "last": self.last}

    def best_to_dict(self) -> dict[str, Any]:
        """Return the fastest candidate as `cprune records best --json` prints it."""
        best = self.best
        program = {"candidate": knobs(best), "checked": best.checked, "runs": len(best.runs_s)} if best else {}
        return {**_identity(self), **_speed(best), **program, "task": self.task}


def rows(records: Iterable[Record]) -> list[Row]:
    """Return a row for each task and target of `records`, in order of first record.  Holds one record of each."""
    row_of: dict[tuple[str, str], Row] = {}
    for record in records:
        key = record.task, record.target
        row = row_of.get(key) or Row(record.task, record.target, 0, 0, None, record.created)
        row_of[key] = Row(
            record.task,
            record.target,
            row.tried + 1,
            row.failed + (record.failure != ""),
            fastest([row.best, record] if row.best else [record]),
            max(row.last, record.created),
        )
    return list(row_of.values())


def description(task: str) -> str:
    """Return a short text for a workload text; its beginning if it is no workload that this cprune knows."""
    try:
        return _printable(describe(from_key(task)))
    except Exception:  # the text may come from anywhere
        return _printable(task[:60])


def knobs(record: Record) -> dict[str, int | str] | str:
    """Return the candidate of `record` as plain values; as text if it is no JSON object."""
    try:
        return dict(Candidate.parse(record.candidate).knobs)
    except (ValueError, TypeError):
        return record.candidate


def knobs_text(record: Record) -> str:
    """Return the candidate of `record` on one short line."""
    plain = knobs(record)
    text = "  ".join(f"{name}={value}" for name, value in plain.items()) if isinstance(plain, dict) else str(plain)
    return _printable(text if len(text) <= 160 else f"{text[:160]}…")


def _identity(row: Row) -> dict[str, Any]:
    short = hashlib.sha256(row.task.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return {"id": short, "description": description(row.task), "target": row.target}


def _speed(best: Record | None) -> dict[str, float | None]:
    if best is None:
        return {"best_us": None, "low_us": None, "high_us": None}
    values = {"best_us": best.latency_s, "low_us": min(best.runs_s), "high_us": max(best.runs_s)}
    return {name: float(f"{1e6 * seconds:.6g}") for name, seconds in values.items()}


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
