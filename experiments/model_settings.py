"""Settings of the tuner's models, compared on layers that nothing is reported of: C2 of ResNet-18 and made-up ones.

    python -m experiments.npu_tables C2 M1 M2 M3 M4 --out other_layers      # a minute or two
    python -m experiments.model_settings --tables other_layers

P and V learn from some programs of a layer, drawn at random, and are asked about all others.  Printed for each setting,
over layers, seeds and numbers of programs:

above     how much longer than the best of all the best of the BATCH takes that P x V would measure (geometric mean)
Brier     mean squared error of V's probability to work
ms        processor time of both fits and of asking them about all programs, median and the longest
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cprune.tuner.search import cost_model
from cprune.tuner.search.cost_model import Samples
from experiments.npu_against_rtl import MADE_UP
from experiments.npu_tables import load
from experiments.validity import all_samples

SIZES = (24, 50, 100)
BATCH = 4
LAYERS = ("C2", *MADE_UP)


@dataclass(frozen=True)
class Found:
    """What one pair of models was worth: latency over the best there is, Brier score, milliseconds."""

    above: float
    brier: float
    ms: float


def asked(samples: Samples, size: int, seed: int) -> Found | None:
    """Return what models are worth that learn from so many programs; None where one of them has nothing to say."""
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()
    known, rest = samples.rows(order[:size]), samples.rows(order[size:])
    start = time.process_time()
    p, v = cost_model.performance(known, seed), cost_model.validity(known, seed)
    if p is None or v is None:
        return None
    works = v(rest.features).astype(np.float64)
    score = p(rest.features) + np.log(np.maximum(works, 1e-6))
    ms = 1e3 * (time.process_time() - start)
    first = rest.rate[np.argsort(-score, kind="stable")[:BATCH]]
    best = max(np.nanmax(first) if np.isfinite(first).any() else -np.inf, np.nanmax(known.rate))
    brier = float(np.mean((works - rest.valid) ** 2))
    return Found(float(np.exp(np.nanmax(samples.rate) - best)), brier, ms)


def main() -> int:
    """Print a line for every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=Path("other_layers"))
    parser.add_argument("--rounds", nargs="*", type=int, default=[30, 60, 120])
    parser.add_argument("--eta", nargs="*", type=float, default=[0.1, 0.2, 0.3])
    parser.add_argument("--depth", nargs="*", type=int, default=[3, 6])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    samples: Sequence[Samples] = [all_samples(load(args.tables, layer)) for layer in LAYERS]
    print(f"{'rounds':>7}{'eta':>6}{'depth':>7}{'above':>8}{'Brier':>8}{'ms':>7}{'longest':>9}")
    for rounds, eta, depth in itertools.product(args.rounds, args.eta, args.depth):
        cost_model.ROUNDS, cost_model.SETTINGS = rounds, {**cost_model.SETTINGS, "eta": eta, "max_depth": depth}
        every = [asked(one, size, seed) for one in samples for size in SIZES for seed in range(args.seeds)]
        found = [one for one in every if one is not None]
        above = statistics.geometric_mean(one.above for one in found)
        brier, ms = statistics.mean(one.brier for one in found), [one.ms for one in found]
        print(
            f"{rounds:7}{eta:6}{depth:7}{above:8.3f}{brier:8.4f}{statistics.median(ms):7.0f}{max(ms):9.0f}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
