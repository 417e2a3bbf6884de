"""How good the model of validity, V, is as a forecast: calibration and reasons, on recorded tables.

    python -m experiments.validity                                  the simulated accelerator (npu_tables.py)
    python -m experiments.validity --tables vela                    Ethos-U (vela_tables.py)

V learns from some programs of a layer, drawn at random, and is asked about all others of that layer; with `others` it
learns from 200 programs of each other layer instead, and has seen none of its own.  Printed, medians over layers and
seeds:

Brier       mean squared error of the probability to work; `base` is that of the share of working programs alone
gap         expected calibration error: how far probabilities are from shares, in ten bins
reason      how often the reason that V holds for the likeliest is the one, of those that fail
kept        of the programs that work, how many V lets pass at a probability of one half; `failed` of those that fail
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cprune.tuner.search import cost_model
from cprune.tuner.search.cost_model import Samples, Validity
from experiments.npu_tables import TEN, load
from experiments.tables import Recorded

SIZES = (25, 50, 100, 400)
OF_OTHERS = 200
BINS = 10


@dataclass(frozen=True)
class Quality:
    """What V is worth on programs that it has not seen; see the head of this file."""

    brier: float
    base: float
    gap: float
    reason: float
    kept: float
    failed: float


def all_samples(table: Recorded) -> Samples:
    """Return all programs of a table, features and what became of them."""
    records = [table.record(entry) for entry in table.entries]
    return cost_model.samples(table.workload, table.space, records, table.machine)


def quality(model: Validity, asked: Samples) -> Quality:
    """Compare what V says with what became of these programs."""
    outcomes = model.outcomes_of(asked.features)
    said, works = outcomes[:, 0].astype(np.float64), asked.valid
    bad = ~works
    likeliest = np.array([outcome for outcome in model.outcomes if outcome != 0])
    reason = likeliest[np.argmax(outcomes[bad][:, 1:], axis=1)] if bad.any() and len(likeliest) else np.array([])
    return Quality(
        float(np.mean((said - works) ** 2)),
        float(np.mean(works) * (1 - np.mean(works))),
        gap(said, works),
        float(np.mean(reason == asked.outcome[bad])) if len(reason) else float("nan"),
        float(np.mean(said[works] >= 0.5)) if works.any() else float("nan"),
        float(np.mean(said[bad] >= 0.5)) if bad.any() else float("nan"),
    )


def gap(said: NDArray[np.float64], works: NDArray[np.bool_]) -> float:
    """Return the expected calibration error over bins of equal width."""
    bins = np.minimum((said * BINS).astype(int), BINS - 1)
    return float(
        sum(
            (bins == b).mean() * abs(said[bins == b].mean() - works[bins == b].mean())
            for b in range(BINS)
            if (bins == b).any()
        )
    )


def learned(
    own: Samples, others: Sequence[Samples], size: int, rng: np.random.Generator
) -> tuple[Validity, Samples] | None:
    """Return V and the programs to ask about; it learns from `size` of its own, or with 0 from the others."""
    if size:
        order = rng.permutation(len(own))
        known, asked = own.rows(order[:size].tolist()), own.rows(order[size:].tolist())
    else:
        drawn = [other.rows(rng.permutation(len(other))[:OF_OTHERS].tolist()) for other in others]
        known, asked = cost_model.joined(drawn), own
    model = cost_model.validity(known, int(rng.integers(2**31)))
    return None if model is None else (model, asked)


def main() -> int:
    """Print a row for every number of programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=Path("experiments/npu_layers"))
    parser.add_argument("--preset", default="vta")
    parser.add_argument("--layers", nargs="*", default=TEN)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    samples = {layer: all_samples(load(args.tables, layer, args.preset)) for layer in args.layers}
    print(f"{'learned from':16}" + "".join(f"{name:>9}" for name in Quality.__annotations__) + f"{'silent':>9}")
    for size in (*SIZES, 0):
        found: list[Quality] = []
        silent = 0
        for layer, own in samples.items():
            others = [other for name, other in samples.items() if name != layer]
            for seed in range(args.seeds):
                pair = learned(own, others, size, np.random.default_rng(seed))
                if pair is None:
                    silent += 1
                    continue
                found.append(quality(*pair))
        columns = [[value for value in column if value == value] for column in zip(*map(astuple, found), strict=True)]
        cells = "".join(f"{statistics.median(column):9.3f}" for column in columns)
        print(f"{size if size else 'others':<16}{cells}{silent:9}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
