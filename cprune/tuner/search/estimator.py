"""A learned estimate of tasks that were not measured (RB-CPrune: a predictor in place of tuning in the loop).

Nothing but the abstract of RB-CPrune (10.1109/tmc.2025.3631673) can be had, so features and form are ours: from every
pair of measured tasks of one operator, wider and narrower, boosted trees learn the logarithm of the ratio of their
latencies.  The columns are the sizes of both, their work (`cprune.tuner.estimate.work`), what the operator is, and what
the wider one's program is like; the ratio never falls when the narrower one gets more input or output channels.  What a
task takes is the smallest number that any wider entry promises, kept between the measured entries on both sides.

Whether that beats the plain estimate is found out by leaving out: `fitted` returns what is better on the entries that
it did not see.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cprune.tuner.estimate import Entry, bounded, covers, estimate, family, size, work
from cprune.tuner.programs.workload import Conv2d, Dense, Workload

MIN_ENTRIES = 24
FOLDS = 5
MOST_PAIRS = 20_000
ROUNDS = 150
SETTINGS = {"eta": 0.1, "max_depth": 4, "subsample": 0.8, "min_child_weight": 3, "max_bin": 64}
MONOTONE = (1, 1, 1)
"""The first columns: input channels, output channels and work of the task that is asked for."""

Estimate = Callable[[Workload, Sequence[Entry]], float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """The median of |log(estimated / measured)| over entries that were left out: about the relative error."""

    plain: float
    learned: float


def fitted(entries: Sequence[Entry], threads: int, vector: int, seed: int = 0) -> tuple[Estimate, Errors | None]:
    """Return the better estimate for a machine, and the errors of both; the plain one and None for few entries."""

    def plain(workload: Workload, known: Sequence[Entry]) -> float:
        return estimate(workload, known, threads, vector)

    families = _families(entries)
    if sum(len(members) for members in families.values() if len(members) > 1) < MIN_ENTRIES:
        return plain, None
    apart: dict[str, list[float]] = {"plain": [], "learned": []}
    for fold in range(FOLDS):
        seen = [e for i, e in enumerate(entries) if i % FOLDS != fold]
        learned = learned_from(seen, threads, vector, seed)
        known = _families(seen)
        for entry in entries[fold::FOLDS]:
            others = known.get(family(entry.workload), [])
            if learned is None or not _wider(entry.workload, others):
                continue
            for name, one in (("plain", plain), ("learned", learned)):
                apart[name].append(abs(math.log(one(entry.workload, others) / entry.seconds)))
    if not apart["plain"]:
        return plain, None
    errors = Errors(statistics.median(apart["plain"]), statistics.median(apart["learned"]))
    learned = learned_from(entries, threads, vector, seed) if errors.learned < errors.plain else None
    return learned or plain, errors


def _families(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    families: dict[str, list[Entry]] = {}
    for entry in entries:
        families.setdefault(family(entry.workload), []).append(entry)
    return families


def _wider(workload: Workload, entries: Sequence[Entry]) -> list[Entry]:
    return [e for e in entries if covers(size(e.workload), size(workload))]


def learned_from(entries: Sequence[Entry], threads: int, vector: int, seed: int) -> Estimate | None:
    """Return the estimate that the pairs among `entries` teach, MOST_PAIRS of them; None where there are no pairs."""
    import xgboost

    pairs = [
        (wide, narrow)
        for members in _families(entries).values()
        for narrow in members
        for wide in _wider(narrow.workload, members)
        if wide is not narrow
    ]
    if not pairs:
        return None
    if len(pairs) > MOST_PAIRS:  # the store of a year has many, and learning must not take longer than measuring
        pairs = random.Random(seed).sample(pairs, MOST_PAIRS)
    rows = np.array([_columns(wide, narrow.workload, threads, vector) for wide, narrow in pairs])
    label = np.array([math.log(narrow.seconds / wide.seconds) for wide, narrow in pairs])
    monotone = (*MONOTONE, *[0] * (rows.shape[1] - len(MONOTONE)))
    settings = {**SETTINGS, "tree_method": "hist", "nthread": 1, "seed": seed, "monotone_constraints": monotone}
    booster: Any = xgboost.train(settings, xgboost.DMatrix(rows, label, nthread=1), ROUNDS)

    def learned(workload: Workload, known: Sequence[Entry]) -> float:
        wider = _wider(workload, known)
        if not wider:
            return estimate(workload, known, threads, vector)
        asked = np.array([_columns(wide, workload, threads, vector) for wide in wider])
        ratios: Floats = np.exp(booster.inplace_predict(asked))
        least = min(wide.seconds * float(ratio) for wide, ratio in zip(wider, ratios, strict=True))
        return bounded(least, workload, known)

    return learned


def _columns(wide: Entry, narrow: Workload, threads: int, vector: int) -> list[float]:
    """Return what the ratio of two latencies is learnt from; see MONOTONE."""
    before, after = size(wide.workload), size(narrow)
    works = [work(w, wide.candidate, threads, vector) for w in (narrow, wide.workload)]
    knobs = dict(wide.candidate.knobs)
    return [
        math.log(after[0] / before[0]),
        math.log(after[1] / before[1]),
        math.log(works[0] / works[1]),
        math.log(before[0]),
        math.log(before[1]),
        math.log(wide.seconds),
        *_operator(narrow),
        float(knobs.get("winograd", 0)),
        {"none": 0.0, "rows": 1.0, "channels": 2.0, "both": 3.0, "outer": 4.0}.get(str(knobs.get("parallel")), -1.0),
        float(knobs.get("oc_tile", 0)),
    ]


def _operator(w: Workload) -> tuple[float, float, float, float]:
    """Return taps (of a depthwise one twice as many), stride, log of the plane and residual; of others the kind."""
    if isinstance(w, Conv2d):
        taps = w.kernel[0] * w.kernel[1] * (1 + w.depthwise)
        return taps, w.stride[0], math.log(w.out_height * w.out_width), w.residual
    return (-1.0 if isinstance(w, Dense) else -2.0), 0.0, 0.0, 0.0
