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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Workload, from_key, key
from cprune.tuner.records.store import Record
from cprune.tuner.search.features import Floats, Machine, Table, aligned, unlike, visible, work

Objective = Literal["squared", "pairwise"]

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

    `group` numbers the task that a row belongs to; `weight` is how much a row counts.
    """

    features: Table
    rate: NDArray[np.float64]
    group: NDArray[np.int64]
    weight: NDArray[np.float64]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Tell which rows did not fail."""
        return np.isfinite(self.rate)

    def __len__(self) -> int:
        return len(self.rate)

    def first(self, n: int) -> Samples:
        """Return the first `n` rows."""
        return Samples(self.features.rows(range(n)), self.rate[:n], self.group[:n], self.weight[:n])


def joined(parts: Sequence[Samples]) -> Samples:
    """Return all rows under the columns of all parts; a column that a part lacks is NaN (see `aligned`)."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.features.names))
    return Samples(
        Table(names, np.vstack([aligned(part.features, names) for part in parts])),
        np.concatenate([part.rate for part in parts]),
        np.concatenate([part.group for part in parts]),
        np.concatenate([part.weight for part in parts]),
    )


@dataclass(frozen=True)
class Model:
    """A trained level: numbers for candidates, higher is better."""

    names: tuple[str, ...]
    booster: Any

    def __call__(self, features: Table) -> Floats:
        """Return one number a row: log(work / latency) of a P or A (its scale means nothing after "pairwise"), the
        probability of working of a V."""
        found: Floats = self.booster.inplace_predict(aligned(features, self.names), missing=np.nan)
        return found


def performance(
    samples: Samples,
    seed: int,
    threads: int = 1,
    objective: Objective = "squared",
    base: Model | None = None,
    rounds: int = ROUNDS,
) -> Model | None:
    """Return P (or A, if the features hold hidden columns); None for fewer than MIN_VALID valid rows.

    "squared" regresses the rate; "pairwise" learns the order within each group only.  With a `base`, whose columns
    have to be those of the samples, the trees of the new model are added to the base's, and any number of rows will do.
    """
    keep = np.flatnonzero(samples.valid)
    if len(keep) < (MIN_VALID if base is None else 1):
        return base
    keep = keep[np.argsort(samples.group[keep], kind="stable")]  # ranking wants its groups in one piece each
    names = samples.features.names if base is None else base.names
    values, rate = aligned(samples.features.rows(keep.tolist()), names), samples.rate[keep]
    if objective == "squared":
        more = {"weight": samples.weight[keep]}
        booster = _train("reg:squarederror", values, rate, seed, threads, rounds, base, **more)
    else:
        numbers = np.unique(samples.group[keep], return_inverse=True)[1]
        booster = _train("rank:pairwise", values, rate - rate.min(), seed, threads, rounds, base, qid=numbers)
    return Model(names, booster)


def validity(samples: Samples, seed: int, threads: int = 1) -> Model | None:
    """Return V; None (everything works) while at least V_SILENT of the rows are valid or there are few rows."""
    valid = samples.valid
    if len(samples) < MIN_VALID or valid.mean() >= V_SILENT or not valid.any():
        return None
    values, weight = samples.features.values, samples.weight
    booster = _train("binary:logistic", values, valid.astype(float), seed, threads, ROUNDS, None, weight=weight)
    return Model(samples.features.names, booster)


def _train(
    objective: str, values: Floats, label: Any, seed: int, threads: int, rounds: int, base: Model | None, **more: Any
) -> Any:
    import xgboost

    settings = {**SETTINGS, "objective": objective, "tree_method": "hist", "nthread": threads, "seed": seed}
    bins = SETTINGS["max_bin"]
    data = xgboost.QuantileDMatrix(values, label, missing=np.nan, nthread=threads, max_bin=bins, **more)
    before = base.booster if base is not None else None
    return xgboost.train({**settings, "verbosity": 0}, data, num_boost_round=rounds, xgb_model=before)


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
            part = self._of_task(task, other, len(parts) + 1)
            parts.append(part if len(part) <= room else part.first(room))
            room -= len(part)
        return joined(parts) if parts else None

    def _workload(self, task: str) -> Workload | None:
        if task not in self._workloads:
            try:
                self._workloads[task] = from_key(task)
            except (KeyError, TypeError, ValueError):  # a store of another version of the kinds
                self._workloads[task] = None
        return self._workloads[task]

    def _of_task(self, task: str, workload: Workload, group: int) -> Samples:
        found = self._samples.get(task)
        if found is None:
            records = list(self._records[task].values())
            candidates = [Candidate.parse(record.candidate) for record in records]
            found = self._samples[task] = samples(workload, candidates, records, self.machine)
        return replace(found, group=np.full(len(found), group))


def samples(
    workload: Workload, candidates: Sequence[Candidate], records: Sequence[Record], machine: Machine
) -> Samples:
    """Return the samples (group 0) of one task's records, whose candidates are given in the same order."""
    features = Table(*visible(workload, candidates, *machine))
    rate = rates(workload, [record.latency_s for record in records])
    return Samples(features, rate, np.zeros(len(rate), np.int64), np.ones(len(rate)))


def rates(workload: Workload, latencies_s: Sequence[float]) -> NDArray[np.float64]:
    """Return log(work / latency) for latencies in seconds; NaN for the infinite ones of failures."""
    latency = np.asarray(latencies_s, dtype=np.float64)
    return np.where(np.isfinite(latency), np.log(work(workload)) - np.log(latency), np.nan)
