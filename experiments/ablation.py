"""Compare search strategies on recorded tables: trials and seconds until within 2 % of the best.

    python experiments/ablation.py                       levels, on the tasks of tests/tables
    python experiments/ablation.py --part fail           the same where tiles that exceed the registers "fail"
    python experiments/ablation.py --part transfer       with records of other tasks, and on pruned widths

A trial is one measured candidate; failures count.  Seconds are modelled: what building took (two at a time) of all that
was built, what measuring took of all that was measured, both from the table, plus the strategy's own processor time.
A search that does not get there within LIMIT trials counts as LIMIT.  Medians over seeds, geometric means over tables.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cprune.tuner.programs.space import Candidate
from cprune.tuner.records.record import Record
from cprune.tuner.search.cost_model import Memory
from cprune.tuner.search.evolutionary import Evolutionary
from cprune.tuner.search.features import Table, visible
from cprune.tuner.search.points import Strategy
from cprune.tuner.search.strategy import DEFAULT, strategy
from experiments.tables import Recorded, load_all

LIMIT, BATCH, NEAR = 100, 4, 1.02
FULL_TRIALS = 64
WARM_TRIALS = 24  # a warm search on a pruned width that needs more is ended, and counts as FULL_TRIALS
LEVELS = ("before", "random", "evolutionary", "P", "P+V", "P+A", "P+V+A")


@dataclass(frozen=True)
class Trace:
    """One search: the best latency so far after every trial, and the modelled seconds up to then."""

    best_s: tuple[float, ...]
    seconds: tuple[float, ...]
    built: tuple[int, ...]
    failed: tuple[int, ...]
    records: tuple[Record, ...]

    def trials(self, goal_s: float) -> int | None:
        """Return after how many trials `goal_s` was reached."""
        return next((i + 1 for i, best in enumerate(self.best_s) if best <= goal_s), None)


class Before(Evolutionary):
    """What cprune did before: half of the trials at random, then the nearest fresh neighbours of the three best."""

    def _next(self) -> int | None:
        if int((~self.fresh).sum()) >= self.trials * (0.125 if self.fill < self.trials / 8 else 0.5):
            for leader in self.leaders[:3]:
                near = sorted(range(len(self.space)), key=self._distances(leader).__getitem__)[1:13]
                found = next((i for i in near if self.fresh[i]), None)
                if found is not None:
                    return found
        return self._random()


def replay(
    table: Recorded,
    name: str,
    seed: int,
    limit: int = LIMIT,
    goal_s: float = 0.0,
    start: Sequence[Candidate] = (),
    history: Sequence[Record] = (),
    trials: int = FULL_TRIALS,
) -> Trace:
    """Search a table; ends after `limit` trials, at `goal_s`, or with the space."""
    entries = {entry.candidate: entry for entry in table.entries}
    rng = random.Random(f"{seed} {table.name}")
    spent = time.process_time()
    search: Strategy
    if name == "before":
        search = Before(table.space, rng, trials, start)
    else:
        search = strategy(
            name, table.workload, table.space, rng, trials, table.machine, start, Memory(table.machine, history)
        )
    best, seconds, built, failed, records = [], [], [], [], list[Record]()
    total, made = time.process_time() - spent, 0
    while len(records) < limit:
        spent = time.process_time()
        asked = search.ask(min(BATCH, limit - len(records)))
        total += time.process_time() - spent
        if not asked:
            break
        made += len(asked)
        total += sum(entries[c].build_s for c in asked) / 2
        ready = [c for c in asked if entries[c].failure not in ("lower", "build")]
        spent = time.process_time()
        features = [(c, entries[c].hidden if search.needs_hidden else None) for c in ready]
        chosen = search.choose(features, min(BATCH, limit - len(records)))
        total += time.process_time() - spent
        fresh = []
        for c in [*chosen, *(c for c in asked if c not in ready)]:
            total += entries[c].measure_s
            fresh.append(table.record(entries[c]))
            best.append(min(entries[c].latency_s, best[-1] if best else math.inf))
            seconds.append(total)
            built.append(made)
            failed.append(int(bool(entries[c].failure)) + (failed[-1] if failed else 0))
        records += fresh
        spent = time.process_time()
        search.tell(fresh)
        total += time.process_time() - spent
        if best and best[-1] <= goal_s:
            break
    return Trace(tuple(best), tuple(seconds), tuple(built), tuple(failed), tuple(records))


def failing(table: Recorded) -> Recorded:
    """Return the table as if every tile that does not fit the registers failed: an invented rule, to try V on."""
    features = Table(*visible(table.workload, table.space, *table.machine))
    column = features.values[:, features.names.index("accumulators")]
    return table.part(
        [
            replace(entry, runs_s=(), failure="run") if share >= 1 else entry
            for entry, share in zip(table.entries, column, strict=True)
        ]
    )


@lru_cache(maxsize=1)
def tables(folder: Path, part: str) -> dict[str, Recorded]:
    """Return the tables that a part of the comparison is run on."""
    found = load_all(folder)
    if part == "own":
        found = [table.own() for table in found]
    if part == "fail":
        found = [failing(table) for table in found]
    return {table.name: table for table in found}


@dataclass(frozen=True)
class Job:
    """One search to run."""

    folder: Path
    part: str
    table: str
    strategy: str
    seed: int
    goal_s: float = 0.0


def level(job: Job) -> Trace:
    """Search one table from nothing."""
    table = tables(job.folder, job.part)[job.table]
    return replay(table, job.strategy, job.seed, goal_s=NEAR * table.best_s)


def compare(folder: Path, part: str, strategies: Sequence[str], seeds: int, jobs: int) -> None:
    """Print one block: strategies on the tables of `part`."""
    found = tables(folder, part)
    todo = [Job(folder, part, table, s, seed) for s in strategies for table in found for seed in range(seeds)]
    with ProcessPoolExecutor(jobs) as pool:
        traces = dict(zip(todo, pool.map(level, todo, chunksize=5), strict=True))
    sizes = ", ".join(f"{name} {len(table.entries)}" for name, table in found.items())
    print(f"\n{part}: {sizes}; {seeds} seeds")
    print(f"{'':14}{'trials to 2 %, by table':42}{'mean':>7}{'<=10':>6}{'<=20':>6}{'<=50':>6}", end="")
    print(f"{'built':>8}{'failed':>8}{'seconds':>9}")
    for s in strategies:
        medians, seconds, built, failed, all_trials = [], [], [], [], list[int]()
        for name, table in found.items():
            runs = [traces[Job(folder, part, name, s, seed)] for seed in range(seeds)]
            trials = [run.trials(NEAR * table.best_s) or LIMIT for run in runs]
            ends = [min(t, len(run.best_s)) - 1 for t, run in zip(trials, runs, strict=True)]
            all_trials += trials
            medians.append(statistics.median(trials))
            seconds.append(statistics.median(run.seconds[end] for run, end in zip(runs, ends, strict=True)))
            built.append(statistics.mean(run.built[end] for run, end in zip(runs, ends, strict=True)))
            failed.append(statistics.mean(run.failed[end] for run, end in zip(runs, ends, strict=True)))
        within = "".join(f"{sum(t <= n for t in all_trials) / len(all_trials):6.0%}" for n in (10, 20, 50))
        each = " ".join(f"{m:5.1f}" for m in medians)
        print(f"{s:14}{each:42}{geometric(medians):7.1f}{within}{geometric(built):8.1f}", end="")
        print(f"{statistics.mean(failed):8.1f}{geometric(seconds):9.2f}")


# --- transfer --------------------------------------------------------------------------------------------------

WAYS = ("scratch", "start", "history", "both", "evolutionary+start", "before+start")


@lru_cache(maxsize=64)
def earlier(folder: Path, name: str, seed: int) -> tuple[Record, ...]:
    """Return the records of a full search of one table."""
    return replay(tables(folder, "own")[name], DEFAULT, seed, FULL_TRIALS).records


def left_out(job: Job) -> int:
    """Return the trials to 2 % of one table with a full search of every other table as history."""
    table = tables(job.folder, "own")[job.table]
    others = [name for name in tables(job.folder, "own") if name != job.table]
    history = [r for name in others for r in earlier(job.folder, name, job.seed)] if job.strategy == "history" else []
    trace = replay(table, DEFAULT, job.seed, goal_s=NEAR * table.best_s, history=history)
    return trace.trials(NEAR * table.best_s) or LIMIT


def family(name: str) -> str:
    """Return what all widths of one task share in their names."""
    return name.rsplit("-", 2)[0]


def full_width(names: Iterable[str]) -> dict[str, str]:
    """Return for each family its widest task."""
    found: dict[str, str] = {}
    for name in names:
        size = math.prod(map(int, name.rsplit("-", 2)[1:]))
        if family(name) not in found or size > math.prod(map(int, found[family(name)].rsplit("-", 2)[1:])):
            found[family(name)] = name
    return found


def full_search(job: Job) -> float:
    """Return the latency that a full search from nothing ends with."""
    return replay(tables(job.folder, "own")[job.table], DEFAULT, 1000 + job.seed, FULL_TRIALS).best_s[-1]


def narrower(job: Job) -> tuple[int, float]:
    """Return the trials of one narrower width to 2 % of a full search, and how near 8 trials come."""
    found = tables(job.folder, "own")
    widest = full_width(found)
    table = found[job.table]
    history = [r for name in widest.values() for r in earlier(job.folder, name, job.seed)]
    sibling = [r for r in earlier(job.folder, widest[family(job.table)], job.seed) if not r.failure]
    start = [Candidate.parse(r.candidate) for r in sorted(sibling, key=lambda r: r.latency_s)[:3]]
    name, _, _ = job.strategy.partition("+")
    trace = replay(
        table,
        name if name in ("evolutionary", "before") else DEFAULT,
        job.seed,
        FULL_TRIALS if job.strategy == "scratch" else WARM_TRIALS,
        start=() if job.strategy in ("scratch", "history") else start,
        history=history if job.strategy in ("history", "both") else (),
        trials=FULL_TRIALS if job.strategy == "scratch" else 8,
    )
    return trace.trials(NEAR * job.goal_s) or FULL_TRIALS, trace.best_s[min(8, len(trace.best_s)) - 1] / job.goal_s


def transfer(folder: Path, seeds: int, jobs: int) -> None:
    """Print what records of other tasks are worth."""
    with ProcessPoolExecutor(jobs) as pool:
        found = tables(folder, "own")
        print(f"\nleave one task out, own spaces, {seeds} seeds: median trials to 2 %")
        for way in ("scratch", "history"):
            medians = []
            for name in found:
                todo = [Job(folder, "own", name, way, seed) for seed in range(seeds)]
                medians.append(statistics.median(pool.map(left_out, todo)))
            print(f"{way:20}{' '.join(f'{m:5.1f}' for m in medians)}   mean {geometric(medians):5.1f}")
        folder = folder / "widths"
        names = [table.name for table in load_all(folder)]
        narrow = [name for name in names if name not in full_width(names).values()]
        print(
            f"\n{len(narrow)} pruned widths, {seeds} seeds: trials to 2 % of a {FULL_TRIALS}-trial search from nothing"
        )
        print(f"{'':20}{'median':>8}{'worst width':>13}{'<=4':>6}{'<=8':>6}{'<=16':>6}{'after 8, mean':>15}")
        todo = [Job(folder, "own", name, "", seed) for name in narrow for seed in range(3)]
        ends_s = list(pool.map(full_search, todo))
        goal_s = {name: statistics.median(ends_s[3 * i : 3 * i + 3]) for i, name in enumerate(narrow)}
        for way in WAYS:
            todo = [Job(folder, "own", name, way, seed, goal_s[name]) for name in narrow for seed in range(seeds)]
            ends = list(pool.map(narrower, todo, chunksize=seeds))
            trials = [t for t, _ in ends]
            each = [statistics.median(trials[i : i + seeds]) for i in range(0, len(trials), seeds)]
            within = "".join(f"{sum(t <= n for t in trials) / len(trials):6.0%}" for n in (4, 8, 16))
            print(
                f"{way:20}{statistics.median(each):8.1f}{max(each):13.1f}{within}{geometric(e for _, e in ends):15.3f}"
            )


def geometric(values: Iterable[float]) -> float:
    """Return the geometric mean."""
    return statistics.geometric_mean(list(values))


def main() -> None:
    """Read the command line, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=Path("tests/tables"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--part", choices=("own", "wide", "fail", "transfer"), action="append")
    parser.add_argument("--strategies", nargs="*", default=LEVELS)
    args = parser.parse_args()
    for part in args.part or ("own", "wide", "fail", "transfer"):
        if part == "transfer":
            transfer(args.tables, args.seeds, args.jobs)
        else:
            compare(args.tables, part, args.strategies, args.seeds, args.jobs)


if __name__ == "__main__":
    main()
