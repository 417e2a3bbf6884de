"""ML^2Tuner on the simulated accelerator: how soon, and with how many measurements that fail, the best is found.

    python -m experiments.multilevel --tables experiments/npu_layers
    python -m experiments.multilevel --presets vta vta-half vta-quarter --plot levels.png

Every strategy searches the recorded tables of `npu_tables.py` (all programs of ten layers of ResNet-18), 20 seeds,
LIMIT trials each.  A trial is a program that is measured; one that fails there counts, one that was only compiled does
not.

=============  =======================================================================================================
random         programs in random order
largest        those that fit by the formula of their tiles, the largest tile first: one line, no model
failed=0       one XGBoost in which a failed program has the throughput 0, as AutoTVM does; random at first, 5 % later
start          as P, but the first programs are random ones that fit
P              a model of speed that learns from what worked
P+V            the same, and a model of validity
P+A, P+V+A     twice as many are compiled as are measured, and a model that sees the compilation picks
after others   P+V that knows what it measured of the nine other layers, 100 trials each
ours           the default of `cprune tune`: P+V with what the machine's description says (`cprune.tuner.search.npu`)
description    the order of that alone, no model
P in what fits P in the part of the space that fits by the formula: what V could be at best, where limits are known
=============  =======================================================================================================

Printed are medians over the seeds with their interval (quartiles), by layer, and geometric means over the layers.
"batch" is what a strategy itself takes for four trials in the median, and at most.
Seconds are modelled: what building took of all that was built and measuring of all that was measured, both as recorded,
plus the strategy's own processor time.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import xgboost  # noqa: F401 (half a second that no search is to pay)

from cprune.targets.npu.machine import PRESETS, NpuMachine
from cprune.tuner.programs.space import Candidate
from cprune.tuner.records.record import Record
from cprune.tuner.search import cost_model
from cprune.tuner.search.features import Table, visible
from cprune.tuner.search.npu import expected_s
from cprune.tuner.search.points import Points, Random, Strategy
from cprune.tuner.search.strategy import DEFAULT, strategy
from experiments.npu_tables import TEN, load
from experiments.tables import Recorded

LIMIT, BATCH, NEAR = 100, 4, 1.02
FIRST = 12  # programs before a model is asked, where a strategy has no rule of its own
LEVELS = (
    *("random", "largest", "failed=0", "start", "P", "P+V", "P+A", "P+V+A", "after others"),
    *("ours", "description", "P in what fits"),
)


@dataclass(frozen=True)
class Trace:
    """One search: after every trial the best latency, how many failed and were built, the seconds; and all records."""

    best_s: tuple[float, ...]
    failed: tuple[int, ...]
    built: tuple[int, ...]
    seconds: tuple[float, ...]
    asking_s: tuple[float, ...]  # what the strategy took for every batch, of a processor
    records: tuple[Record, ...] = ()

    def trials(self, goal_s: float) -> int:
        """Return after how many trials `goal_s` was reached; one more than there were if it was not."""
        return next((i + 1 for i, best in enumerate(self.best_s) if best <= goal_s), len(self.best_s) + 1)


class FailedIsZero(Points):
    """One regression of throughput in which what failed has none (AutoTVM, Chen et al. 2018, as its code has it)."""

    def __init__(self, table: Recorded, rng: random.Random, trials: int) -> None:
        super().__init__(table.space, rng, trials)
        self.table = table
        self.features = Table(*visible(table.workload, table.space, *table.machine))
        self.ranking: list[int] = []

    def ask(self, n: int) -> list[Candidate]:
        """See `Strategy`."""
        self.ranking = self._ranked() if len(self.latency_s) >= FIRST else []
        return super().ask(n)

    def _next(self) -> int | None:
        if not self.ranking or self.rng.random() < 0.05:
            return self._random()
        return next((i for i in self.ranking if self.fresh[i]), None)

    def _ranked(self) -> list[int]:
        points = list(self.latency_s)
        rate = np.array([1.0 / self.latency_s[i] for i in points])  # 0 for what failed
        rate = rate / max(rate.max(), 1e-30)
        known = cost_model.Samples(self.features.rows(points), rate, np.ones(len(points)))
        model = cost_model.performance(known, 0)
        return [] if model is None else np.argsort(-model(self.features), kind="stable").tolist()


class Largest(Points):
    """What fits by the formula, the largest tile first; then the rest at random."""

    def __init__(self, table: Recorded, rng: random.Random, trials: int, machine: NpuMachine) -> None:
        super().__init__(table.space, rng, trials)
        good = fitting(table, machine)
        size = [math.prod(int(v) for name, v in c.knobs if name.startswith("tile")) for c in table.space]
        order = sorted(range(len(size)), key=lambda i: (-size[i], rng.random()))
        self.order = iter([i for i in order if good[i]])

    def _next(self) -> int | None:
        i = next((i for i in self.order if self.fresh[i]), None)
        return self._random() if i is None else i


class Described(Points):
    """What the machine's description says, the fastest first; then the rest at random."""

    def __init__(self, table: Recorded, rng: random.Random, trials: int, machine: NpuMachine) -> None:
        super().__init__(table.space, rng, trials)
        prior = expected_s(table.workload, table.space, machine)
        self.order = iter([i for i in np.argsort(prior, kind="stable").tolist() if np.isfinite(prior[i])])

    def _next(self) -> int | None:
        i = next((i for i in self.order if self.fresh[i]), None)
        return self._random() if i is None else i


def fitting(table: Recorded, machine: NpuMachine) -> np.ndarray:
    """Return which programs fit into the memories by the formula of their tiles, threads dealt out evenly."""
    features = Table(*visible(table.workload, table.space, *table.machine))
    column = {name: features.values[:, i] for i, name in enumerate(features.names)}
    limits = {
        "inputs": machine.input_vectors,
        "weights": machine.weight_blocks,
        "sums": machine.sums_vectors,
        "uops": machine.uops,
    }
    good = column["uneven"] == 0
    for name, limit in limits.items():
        good &= column[name] <= math.log2(limit) + 1e-6
    return good


def search_of(
    name: str, table: Recorded, machine: NpuMachine, seed: int, history: cost_model.Memory | None = None
) -> Strategy:
    """Return a strategy for a table; `history` is what it knows of others."""
    rng = random.Random(f"{seed} {table.name}")
    if name == "random":
        return Random(table.space, rng, LIMIT)
    if name == "largest":
        return Largest(table, rng, LIMIT, machine)
    if name == "failed=0":
        return FailedIsZero(table, rng, LIMIT)
    if name == "description":
        return Described(table, rng, LIMIT, machine)
    start: Sequence[Candidate] = ()
    if name == "start":
        good = np.flatnonzero(fitting(table, machine)).tolist()
        start = [table.space[i] for i in rng.sample(good, min(FIRST, len(good)))]
    level = {"ours": DEFAULT, "start": "P", "P in what fits": "P", "after others": "P+V"}.get(name, name)
    prior = expected_s(table.workload, table.space, machine).tolist() if name == "ours" else None
    return strategy(level, table.workload, table.space, rng, LIMIT, table.machine, start, history, prior_s=prior)


def searched(table: Recorded, make: Callable[[], Strategy]) -> Trace:
    """Search a table for LIMIT trials."""
    entries = {entry.candidate: entry for entry in table.entries}
    spent = time.process_time()
    search = make()
    total, made, asking = time.process_time() - spent, 0, list[float]()
    best: list[float] = []
    seconds, built, failed, known = list[float](), list[int](), list[int](), list[Record]()
    while len(best) < LIMIT:
        spent = time.process_time()
        asked = search.ask(min(BATCH, LIMIT - len(best)))
        own = time.process_time() - spent
        if not asked:
            break
        made += len(asked)
        total += sum(entries[c].build_s for c in asked)
        spent = time.process_time()
        features = [(c, entries[c].hidden if search.needs_hidden else None) for c in asked]
        chosen = search.choose(features, min(BATCH, LIMIT - len(best)))
        own += time.process_time() - spent
        records: list[Record] = []
        for c in chosen:
            total += entries[c].measure_s
            records.append(table.record(entries[c]))
            best.append(min(entries[c].latency_s, best[-1] if best else math.inf))
            failed.append(int(bool(entries[c].failure)) + (failed[-1] if failed else 0))
            seconds.append(total)
            built.append(made)
        known += records
        spent = time.process_time()
        search.tell(records)
        own += time.process_time() - spent
        total += own
        asking.append(own)
    return Trace(tuple(best), tuple(failed), tuple(built), tuple(seconds), tuple(asking), tuple(known))


@lru_cache(maxsize=16)
def table_of(folder: Path, layer: str, preset: str) -> Recorded:
    """Return a table, read once in a process."""
    return load(folder, layer, preset)


@dataclass(frozen=True)
class Job:
    """One search to run."""

    folder: Path
    layer: str
    preset: str
    strategy: str
    seed: int


def run(job: Job) -> Trace:
    """Run one search."""
    table, machine = table_of(job.folder, job.layer, job.preset), PRESETS[job.preset]
    if job.strategy == "P in what fits":
        good = fitting(table, machine)
        table = table.part([entry for entry, fits in zip(table.entries, good, strict=True) if fits])
    history = None
    if job.strategy == "after others":
        others = [layer for layer in TEN if layer != job.layer]
        known = [earlier(job.folder, layer, job.preset, job.seed) for layer in others]
        history = cost_model.Memory(table.machine, [record for records in known for record in records])
    found = searched(table, lambda: search_of(job.strategy, table, machine, job.seed, history))
    return replace(found, records=())


@lru_cache(maxsize=256)
def earlier(folder: Path, layer: str, preset: str, seed: int) -> tuple[Record, ...]:
    """Return what P+V measured of a layer, searched once in a process."""
    table, machine = table_of(folder, layer, preset), PRESETS[preset]
    return searched(table, lambda: search_of("P+V", table, machine, seed)).records


@dataclass(frozen=True)
class Result:
    """The searches of one strategy on all layers: by layer the traces of all seeds."""

    goals_s: dict[str, float]
    traces: dict[str, list[Trace]]

    def trials(self, layer: str) -> list[int]:
        """Return after how many trials every seed was within 2 % of the best."""
        return [trace.trials(NEAR * self.goals_s[layer]) for trace in self.traces[layer]]

    def invalid(self, layer: str, upto: int = LIMIT) -> float:
        """Return how many of the first trials failed, in the mean over seeds."""
        return statistics.mean(trace.failed[min(upto, len(trace.failed)) - 1] for trace in self.traces[layer])

    def seconds(self, layer: str) -> list[float]:
        """Return the seconds until then."""
        goal = NEAR * self.goals_s[layer]
        return [trace.seconds[min(trace.trials(goal), len(trace.seconds)) - 1] for trace in self.traces[layer]]


def samples_for(ours: Result, baseline: Result, layer: str) -> float:
    """Return the share of the baseline's LIMIT trials after which ours is as good as it was in the end.

    Median over seeds of the trials that ours needs to the median of the baseline's final latency.
    """
    final = statistics.median(trace.best_s[-1] for trace in baseline.traces[layer])
    return statistics.median(trace.trials(final) for trace in ours.traces[layer]) / LIMIT


def report(results: dict[str, Result], layers: Sequence[str]) -> list[str]:
    """Return the tables of a preset."""
    lines = [f"{'':16}" + "".join(f"{layer:>12}" for layer in layers) + f"{'mean':>8}{'<=10':>6}{'<=20':>6}{'<=50':>6}"]
    lines[0] += f"{'invalid':>9}{'seconds':>9}{'batch, longest':>15}"
    for name, result in results.items():
        cells, medians, every = [], [], list[int]()
        for layer in layers:
            trials = sorted(result.trials(layer))
            every += trials
            low, middle, high = statistics.quantiles(trials, n=4) if len(trials) > 1 else trials * 3
            medians.append(middle)
            cells.append(f"{middle:.0f} ({low:.0f}-{high:.0f})")
        within = "".join(f"{sum(t <= n for t in every) / len(every):6.0%}" for n in (10, 20, 50))
        invalid = statistics.mean(result.invalid(layer) for layer in layers)
        seconds = geometric([statistics.median(result.seconds(layer)) for layer in layers])
        batches = [own for layer in layers for trace in result.traces[layer] for own in trace.asking_s]
        lines.append(
            f"{name:16}" + "".join(f"{cell:>12}" for cell in cells) + f"{geometric(medians):8.1f}{within}"
            f"{invalid:9.1f}{seconds:9.2f}{1e3 * statistics.median(batches):6.0f}{1e3 * max(batches):5.0f}ms"
        )
    return lines


def claims(results: dict[str, Result], layers: Sequence[str]) -> list[str]:
    """Return what the paper claims, against both baselines."""
    lines = []
    for name in ("P+V+A", "ours"):
        if name not in results:
            continue
        for baseline in ("failed=0", "P"):
            if baseline not in results:
                continue
            share = [samples_for(results[name], results[baseline], layer) for layer in layers]
            fewer = [1 - results[name].invalid(layer) / max(results[baseline].invalid(layer), 1e-9) for layer in layers]
            lines.append(
                f"{name} against {baseline}: {100 * statistics.mean(share):.1f} % of the samples for its final quality "
                f"(paper 12.3 %), {100 * statistics.mean(fewer):.1f} % fewer invalid measurements (paper 60.8 %)"
            )
    return lines


def geometric(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return statistics.geometric_mean(list(values))


def plot(results: dict[str, Result], layers: Sequence[str], path: Path) -> None:
    """Draw how far above the best each strategy is after every trial: the geometric mean over layers of medians."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, result in results.items():
        curve = []
        for i in range(LIMIT):
            above = [
                statistics.median(min(trace.best_s[min(i, len(trace.best_s) - 1)] / result.goals_s[layer], 100.0)
                                  for trace in result.traces[layer])
                for layer in layers
            ]  # fmt: skip
            curve.append(geometric(above))
        axes.plot(range(1, LIMIT + 1), curve, label=name)
    axes.set(xlabel="measured programs", ylabel="latency / best latency", yscale="log", xscale="log")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> int:
    """Run all searches and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=Path("experiments/npu_layers"))
    parser.add_argument("--presets", nargs="*", default=["vta"])
    parser.add_argument("--strategies", nargs="*", default=LEVELS)
    parser.add_argument("--layers", nargs="*", default=TEN)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--plot", type=Path, help="draw the curves of the last preset into this file")
    args = parser.parse_args()
    for preset in args.presets:
        goals = {layer: load(args.tables, layer, preset).best_s for layer in args.layers}
        jobs = [
            Job(args.tables, layer, preset, name, seed)
            for layer in args.layers
            for name in args.strategies
            for seed in range(args.seeds)
        ]
        with ProcessPoolExecutor(args.jobs) as pool:
            traces = dict(zip(jobs, pool.map(run, jobs, chunksize=8), strict=True))
        results = {
            name: Result(
                goals,
                {
                    layer: [traces[Job(args.tables, layer, preset, name, seed)] for seed in range(args.seeds)]
                    for layer in args.layers
                },
            )
            for name in args.strategies
        }
        print(f"\n{preset}: trials until within 2 % of the best, median (quartiles) of {args.seeds} seeds")
        print("\n".join([*report(results, args.layers), *claims(results, args.layers)]), flush=True)
        if args.plot:
            plot(results, args.layers, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
