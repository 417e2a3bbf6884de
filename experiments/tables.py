"""Recorded tables: what came of every point of a task's space (or of a random part), to replay searches on.

One file a task, JSON packed with xz, columns side by side.  `record_tables.py` writes them, `ablation.py` and the tests
read them.
"""

from __future__ import annotations

import json
import lzma
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Workload, from_key, key
from cprune.tuner.records.record import Record
from cprune.tuner.search.features import Machine

TARGET = "recorded"
"""The fingerprint that the records of a table carry."""


@dataclass(frozen=True)
class Entry:
    """One point: timing runs in seconds or the stage of its failure, what it cost, and its hidden features if kept.

    `own` says whether the tool's own space had this point when the table was recorded; the others come from a wider
    space without its hand-written limits.  `build_s` includes lowering.
    """

    candidate: Candidate
    runs_s: tuple[float, ...]
    failure: str
    own: bool
    build_s: float
    measure_s: float
    hidden: dict[str, float] | None

    @property
    def latency_s(self) -> float:
        """Return the median of the runs; infinity for a failure."""
        return statistics.median(self.runs_s) if self.runs_s else float("inf")


@dataclass(frozen=True)
class Recorded:
    """A task with its entries; `about` says in general words which machine they were recorded on."""

    name: str
    about: str
    workload: Workload
    machine: Machine
    entries: tuple[Entry, ...]

    @property
    def best_s(self) -> float:
        """Return the latency of the fastest entry."""
        return min(entry.latency_s for entry in self.entries)

    @property
    def space(self) -> tuple[Candidate, ...]:
        """Return the points."""
        return tuple(entry.candidate for entry in self.entries)

    def part(self, keep: Sequence[Entry]) -> Recorded:
        """Return the table with these entries only."""
        return replace(self, entries=tuple(keep))

    def own(self) -> Recorded:
        """Return the points of the tool's own space."""
        return self.part([entry for entry in self.entries if entry.own])

    def record(self, entry: Entry) -> Record:
        """Return the store's record of an entry."""
        return Record(
            task=key(self.workload),
            target=TARGET,
            candidate=entry.candidate.text(),
            runs_s=entry.runs_s,
            failure=entry.failure,
        )

    def save(self, path: Path) -> None:
        """Write the file."""
        names = sorted({name for entry in self.entries for name, _ in entry.candidate.knobs})
        rows = [dict(entry.candidate.knobs) for entry in self.entries]
        hidden = [entry.hidden for entry in self.entries]
        known: dict[str, float] = next((h for h in hidden if h), {})
        plain = {
            "name": self.name,
            "about": self.about,
            "workload": key(self.workload),
            "machine": list(self.machine),
            "knobs": {name: [row.get(name) for row in rows] for name in names},
            "runs_us": [[_short(run * 1e6) for run in entry.runs_s] for entry in self.entries],
            "failure": {str(i): entry.failure for i, entry in enumerate(self.entries) if entry.failure},
            "own": [int(entry.own) for entry in self.entries],
            "build_ms": [round(entry.build_s * 1e3) for entry in self.entries],
            "measure_ms": [round(entry.measure_s * 1e3) for entry in self.entries],
            "hidden": {name: [_short(h[name]) if h else None for h in hidden] for name in known},
        }
        text = json.dumps(plain, separators=(",", ":"))
        path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))

    @classmethod
    def load(cls, path: Path) -> Recorded:
        """Read a file."""
        plain: dict[str, Any] = json.loads(lzma.decompress(path.read_bytes()))
        entries = []
        for i, runs in enumerate(plain["runs_us"]):
            row = {name: values[i] for name, values in plain["knobs"].items()}
            hidden = {name: values[i] for name, values in plain["hidden"].items()}
            entries.append(
                Entry(
                    Candidate.of(**{name: value for name, value in row.items() if value is not None}),
                    tuple(run * 1e-6 for run in runs),
                    plain["failure"].get(str(i), ""),
                    bool(plain["own"][i]),
                    plain["build_ms"][i] / 1e3,
                    plain["measure_ms"][i] / 1e3,
                    None if not hidden or None in hidden.values() else hidden,
                )
            )
        workload = from_key(plain["workload"])
        return cls(plain["name"], plain["about"], workload, Machine(*plain["machine"]), tuple(entries))


def load_all(folder: Path) -> list[Recorded]:
    """Return the tables of a folder, by name."""
    return [Recorded.load(path) for path in sorted(folder.glob("*.json.xz"))]


def _short(value: float) -> float:
    short = float(f"{value:.4g}")
    return int(short) if short == int(short) else short
