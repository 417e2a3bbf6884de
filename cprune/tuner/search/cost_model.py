"""The levels of ML^2Tuner (arXiv 2411.10764): V says whether a candidate works, P and A how fast it is.

P learns from visible features, A from visible and hidden ones: one class, other columns.  Trees are grown by xgboost
with the settings of an earlier tuner of the same group (eta 0.1, depth 6, subsample 0.79, colsample 0.9).  Ours:

* The target is log(work / latency): multiply-adds per second, bytes per second where nothing is multiplied.  Records
  of many shapes and tasks train one model.
* A failed candidate never enters a regression; V alone learns from it.
* V is silent while at least nine of ten candidates work: it would only forbid good ones.
* Fewer than MIN_VALID rows train nothing: the caller has to do without.

Nothing is saved: a model is trained again from the records in a fraction of a second.  Equal data, seed and threads
give equal models.  xgboost is imported on the first fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cprune.targets.session import STAGES
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Workload, from_key, key
from cprune.tuner.records.record import Record
from cprune.tuner.search.features import Floats, Machine, Table, aligned, unlike, visible, work

SETTINGS = {"eta": 0.1, "max_depth": 6, "subsample": 0.79, "colsample_bytree": 0.9, "max_bin": 64}
ROUNDS = 60
MIN_VALID = 12
HISTORY = 2000
"""How many rows of other tasks are looked at: a fit stays below half a second."""
V_SILENT = 0.9
"""The share of working candidates from which V says that all of them work."""


@dataclass(frozen=True)
class Samples:
    """What was learnt about candidates: features, `rate` = log(work / latency), NaN where the candidate failed.

    `weight` is how much a row counts.  `stage` says how it failed, as a number of STAGES from 1; 0 where it worked, and
    without it every failure is of one kind.
    """

    features: Table
    rate: NDArray[np.float64]
    weight: NDArray[np.float64]
    stage: NDArray[np.int64] | None = None

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Tell which rows did not fail."""
        return np.isfinite(self.rate)

    @property
    def outcome(self) -> NDArray[np.int64]:
        """Return what came of every row: 0 for one that worked, else how it failed."""
        return (~self.valid).astype(np.int64) if self.stage is None else self.stage

    def __len__(self) -> int:
        return len(self.rate)

    def rows(self, indices: Sequence[int]) -> Samples:
        """Return these rows, in this order."""
        index = np.asarray(indices, dtype=np.intp)
        return Samples(self.features.rows(index.tolist()), self.rate[index], self.weight[index], self.outcome[index])


def joined(parts: Sequence[Samples]) -> Samples:
    """Return all rows under the columns of all parts; a column that a part lacks is NaN (see `aligned`)."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.features.names))
    return Samples(
        Table(names, np.vstack([aligned(part.features, names) for part in parts])),
        np.concatenate([part.rate for part in parts]),
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.outcome for part in parts]),
    )


@dataclass(frozen=True)
class Model:
    """A trained P or A: numbers for candidates, higher is better."""

    names: tuple[str, ...]
    booster: Any

    def __call__(self, features: Table) -> Floats:
        """Return log(work / latency) of every row."""
        numbers: Floats = self.booster.inplace_predict(aligned(features, self.names), missing=np.nan)
        return numbers


@dataclass(frozen=True)
class Validity:
    """A trained V: how probable it is that candidates work, and of every reason why they may not.

    `outcomes` are the classes that it knows, 0 (working) first; others are numbers of STAGES from 1.
    """

    model: Model
    outcomes: tuple[int, ...]

    def __call__(self, features: Table) -> Floats:
        """Return the probability that each row works."""
        return self.outcomes_of(features)[:, 0]

    def outcomes_of(self, features: Table) -> Floats:
        """Return the probability of every outcome, [rows, outcomes]."""
        return self.model(features).reshape(len(features), len(self.outcomes))


def performance(samples: Samples, seed: int, threads: int = 1) -> Model | None:
    """Return P (or A, if the features hold hidden columns); None for fewer than MIN_VALID valid rows."""
    keep = np.flatnonzero(samples.valid)
    if len(keep) < MIN_VALID:
        return None
    features = samples.features.rows(keep.tolist())
    return _train("reg:squarederror", features, samples.rate[keep], samples.weight[keep], seed, threads)


def validity(samples: Samples, seed: int, threads: int = 1) -> Validity | None:
    """Return V; None (everything works) while at least V_SILENT of the rows are valid or there are few rows."""
    valid = samples.valid
    if len(samples) < MIN_VALID or valid.mean() >= V_SILENT or not valid.any():
        return None
    outcomes, label = np.unique(samples.outcome, return_inverse=True)
    kinds = {"num_class": len(outcomes)}
    model = _train("multi:softprob", samples.features, label.astype(float), samples.weight, seed, threads, kinds)
    return Validity(model, tuple(map(int, outcomes)))


def _train(
    objective: str,
    features: Table,
    label: NDArray[np.float64],
    weight: NDArray[np.float64],
    seed: int,
    threads: int,
    more: Mapping[str, int] = MappingProxyType({}),
) -> Model:
    import xgboost

    features = _varying(features)
    settings = {**SETTINGS, **more, "objective": objective, "tree_method": "hist", "nthread": threads, "seed": seed}
    bins = SETTINGS["max_bin"]
    data = xgboost.QuantileDMatrix(features.values, label, missing=np.nan, nthread=threads, max_bin=bins, weight=weight)
    return Model(features.names, xgboost.train({**settings, "verbosity": 0}, data, num_boost_round=ROUNDS))


def _varying(features: Table) -> Table:
    """Return the columns that tell rows apart, one at least: of the others trees would draw some, and split on none."""
    values, missing = features.values, np.isnan(features.values)
    differ = np.fmin.reduce(values, axis=0) < np.fmax.reduce(values, axis=0)
    kept = np.flatnonzero(differ | (missing.any(axis=0) & ~missing.all(axis=0))).tolist() or [0]
    return Table(tuple(features.names[i] for i in kept), np.ascontiguousarray(values[:, kept]))


class Memory:
    """What every task of one target taught, as samples that are made once: the models' knowledge of other tasks."""

    def __init__(self, machine: Machine, records: Sequence[Record] = ()) -> None:
        self.machine = machine
        self._records: dict[str, dict[str, Record]] = {}
        self._workloads: dict[str, Workload | None] = {}
        self._samples: dict[str, Samples] = {}
        self.add(records)

    def __len__(self) -> int:
        return sum(map(len, self._records.values()))

    def add(self, records: Sequence[Record]) -> None:
        """Take note of records of any tasks; a newer record of a candidate replaces the older one."""
        for record in records:
            self._records.setdefault(record.task, {})[record.candidate] = record
            self._samples.pop(record.task, None)

    def recall(self, workload: Workload, limit: int = HISTORY) -> Samples | None:
        """Return what other tasks teach about `workload`; None if there is none of its kind.

        Whole tasks are taken, those of the most similar shape first, until `limit` rows are full.  What is known of
        the workload itself is left out: a strategy is told that by itself.
        """
        mine = key(workload)
        kind = mine.partition(",")[0]
        others = [(task, self._workload(task)) for task in self._records if task != mine and task.startswith(kind)]
        known = [(unlike(workload, other), task, other) for task, other in others if other is not None]
        parts: list[Samples] = []
        room = limit
        for _, task, other in sorted(known, key=lambda one: one[:2]):
            if room <= 0:
                break
            part = self._of_task(task, other)
            parts.append(part if len(part) <= room else part.rows(range(room)))
            room -= len(part)
        return joined(parts) if parts else None

    def _workload(self, task: str) -> Workload | None:
        if task not in self._workloads:
            try:
                self._workloads[task] = from_key(task)
            except (KeyError, TypeError, ValueError):  # a store of another version of the kinds
                self._workloads[task] = None
        return self._workloads[task]

    def _of_task(self, task: str, workload: Workload) -> Samples:
        if task not in self._samples:
            records = list(self._records[task].values())
            candidates = [Candidate.parse(record.candidate) for record in records]
            self._samples[task] = samples(workload, candidates, records, self.machine)
        return self._samples[task]


def samples(
    workload: Workload, candidates: Sequence[Candidate], records: Sequence[Record], machine: Machine
) -> Samples:
    """Return the samples of one task's records, whose candidates are given in the same order."""
    features = Table(*visible(workload, candidates, *machine))
    rate = rates(workload, [record.latency_s for record in records])
    stage = np.array([outcome(record.failure) for record in records], dtype=np.int64)
    return Samples(features, rate, np.ones(len(rate)), stage)


def outcome(failure: str) -> int:
    """Return a number for what came of a candidate: 0 where it worked, else its stage's in STAGES from 1."""
    return STAGES.index(failure) + 1 if failure else 0


def rates(workload: Workload, latencies_s: Sequence[float]) -> NDArray[np.float64]:
    """Return log(work / latency) for latencies in seconds; NaN for the infinite ones of failures."""
    latency = np.asarray(latencies_s, dtype=np.float64)
    return np.where(np.isfinite(latency), np.log(work(workload)) - np.log(latency), np.nan)
