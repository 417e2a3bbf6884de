"""How many measurements until the best of 96 ways to quantize a network: Quantune's search against simpler ones.

    python experiments/quantune.py --out quantune.json --weights-dir WEIGHTS --cifar cifar10jpeg.npz   # trained.py
    python experiments/quantune.py --out quantune.json --print

The space is that of Quantune (Lee et al., arXiv 2202.05048): calibration images, scheme, clipping (ours is by the least
squared error in place of the KL divergence), granularity, and whether the first and the last layer stay in fp32.  Every
configuration of every network is measured once, on `--images` of those that decide, into OUT; it may be stopped and
goes on.  The strategies are then replayed, `--seeds` times each:

    random, grid    in any order, in that of the list
    genetic         a population of 8, tournament selection, crossover and mutation
    xgboost         gradient-boosted trees over the configuration, from nothing
    quantune        the same trees, and counts of the network's operators, trained on the other networks first

A strategy has found the best when it measures a configuration that is as accurate as any (of the images that were
counted).  Printed is the median number of measurements until then, and the ratio to random's, geometric mean.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import xgboost

from cprune.network.folding import folded
from cprune.network.network import Network
from cprune.network.node import operator_name
from cprune.network.quantizing import Scheme, channel_means, quantized
from cprune.training.train import evaluate
from experiments.trained import NETWORKS, opened

IMAGES = (1, 64, 512)
STEPS = ("asymmetric", "symmetric", "symmetric-uint8", "power-of-two")
CLIPPING = ("none", "error")
SPACE = tuple(itertools.product(IMAGES, STEPS, CLIPPING, (False, True), (False, True)))
"""Calibration images, steps, clipping, a scale a channel, first and last layer in fp32."""
Config = tuple[int, str, str, bool, bool]
OPERATORS = ("conv2d", "linear", "batch_norm", "relu", "hardtanh", "relu6", "add", "cat", "max_pool2d", "mean")


@dataclass(frozen=True)
class Table:
    """Right answers of every configuration, the fp32 network's, and what is known of its graph."""

    right: Mapping[Config, int]
    whole: int
    graph: tuple[float, ...]

    @property
    def best(self) -> int:
        """Return the most right answers of any configuration."""
        return max(self.right.values())


# ----------------------------------------------------------------------------------------------------
# Measuring


def measure(given: argparse.Namespace, name: str, known: dict[str, dict[str, float]]) -> None:
    """Fill in what is not known of a network, and write it after every ten configurations."""
    subject = opened(name, given.weights_dir, given.cifar, given.seed)
    if subject is None:
        return
    split = subject.trainer.data.decide.take(slice(0, given.images))
    table = known.setdefault(name, {})
    table.setdefault("fp32", round(evaluate(subject.network.eval(), split) * len(split)))
    for number, value in enumerate(graph_of(subject.network)):
        table[f"graph{number}"] = value
    layers = list(channel_means(folded(subject.network).eval(), subject.trainer.samples(8, 0).inputs(8)[0]))
    began = time.perf_counter()
    for number, config in enumerate(SPACE):
        images, steps, clipping, by_channel, mixed = config
        if str(config) in table:
            continue
        shown = subject.trainer.samples(images, given.seed).inputs(64)
        scheme = Scheme(clipping, steps, by_channel, floats=(layers[0], layers[-1]) if mixed else ())
        network = quantized(subject.network, shown, scheme).eval()
        table[str(config)] = round(evaluate(network, split) * len(split))
        if number % 10 == 9 or number == len(SPACE) - 1:
            given.out.write_text(json.dumps(known, indent=1))
            print(f"{name}: {number + 1} of {len(SPACE)}, {time.perf_counter() - began:.0f} s", file=sys.stderr)


def graph_of(network: Network) -> list[float]:
    """Return what the trees see of a network: how many of every operator, parameters and widths, as logarithms."""
    counts = Counter(operator_name(node) for node in network.nodes)
    weights = [value for value in network.parameters() if value.dim() == 4]
    depthwise = sum(value.shape[1] == 1 for value in weights)
    numbers = [counts[name] for name in OPERATORS] + [depthwise, statistics.mean(len(value) for value in weights)]
    return [float(np.log1p(number)) for number in numbers]


def tables(known: Mapping[str, Mapping[str, float]]) -> dict[str, Table]:
    """Return the tables that are whole."""
    return {
        name: Table(
            {config: int(table[str(config)]) for config in SPACE},
            int(table["fp32"]),
            tuple(table[f"graph{i}"] for i in range(len(OPERATORS) + 2)),
        )
        for name, table in known.items()
        if all(str(config) in table for config in SPACE)
    }


# ----------------------------------------------------------------------------------------------------
# Strategies: each yields configurations, and is sent the right answers of the last one


def in_order(order: Sequence[Config]) -> Iterator[Config]:
    """Yield them as they come."""
    yield from order


def genetic(right: Callable[[Config], int], rng: random.Random) -> Iterator[Config]:
    """Yield a population of 8 and its children, none twice, until all are known."""
    population = rng.sample(SPACE, 8)
    seen = list(population)
    yield from population
    axes = [sorted({config[i] for config in SPACE}, key=str) for i in range(5)]
    while len(seen) < len(SPACE):
        parents = [max(rng.sample(population, 3), key=right) for _ in range(2)]
        child = tuple(rng.choice(axes[i]) if rng.random() < 0.15 else rng.choice(parents)[i] for i in range(5))
        if child in seen:  # a stranger instead
            child = rng.choice([config for config in SPACE if config not in seen])
        seen.append(child)  # type: ignore[arg-type]
        yield child  # type: ignore[misc]
        population = sorted([*population, child], key=right, reverse=True)[:8]  # type: ignore[list-item]


def features(config: Config, graph: Sequence[float]) -> list[float]:
    """Return a configuration as numbers, one for each word it may have."""
    images, steps, clipping, by_channel, mixed = config
    words = [float(steps == each) for each in STEPS]
    return [float(np.log(images)), *words, float(clipping == "error"), float(by_channel), float(mixed), *graph]


def by_trees(table: Table, others: Sequence[Table], rng: random.Random, first: int = 4) -> Iterator[Config]:
    """Yield what trees think is best, trained anew after every measurement; with no `others` some at random first.

    What is learned is the share of the fp32 network's right answers that are lost, on each network from its own best.
    """
    x = [features(config, other.graph) for other in others for config in SPACE]
    y = [(other.right[config] - other.best) / other.whole for other in others for config in SPACE]
    weight = [1.0] * len(x)
    measured: list[Config] = []
    if not others:
        measured = rng.sample(SPACE, first)
        yield from measured
    while len(measured) < len(SPACE):
        own = max((table.right[config] for config in measured), default=0)
        rows = x + [features(config, table.graph) for config in measured]
        goal = y + [(table.right[config] - own) / table.whole for config in measured]
        data = xgboost.DMatrix(np.array(rows), np.array(goal), weight=np.array(weight + [8.0] * len(measured)))
        model = xgboost.train({"max_depth": 4, "eta": 0.15, "nthread": 1, "seed": 0}, data, num_boost_round=60)
        left = [config for config in SPACE if config not in measured]
        rng.shuffle(left)
        said = model.inplace_predict(np.array([features(config, table.graph) for config in left]))
        chosen = left[int(np.argmax(said))]
        measured.append(chosen)
        yield chosen


def measurements(table: Table, order: Iterator[Config]) -> int:
    """Return after how many a strategy has measured one that is as good as any."""
    return next(number for number, config in enumerate(order, start=1) if table.right[config] == table.best)


def replayed(found: Mapping[str, Table], seeds: int) -> dict[str, dict[str, float]]:
    """Return the median measurements of every strategy on every network."""
    rows: dict[str, dict[str, float]] = {}
    for name, table in found.items():
        others = [other for each, other in found.items() if each != name]
        counts: dict[str, list[int]] = {}
        for seed in range(seeds):
            rng = random.Random(seed)
            orders = {
                "random": in_order(rng.sample(SPACE, len(SPACE))),
                "grid": in_order(SPACE),
                "genetic": genetic(lambda config, table=table: table.right[config], rng),  # type: ignore[misc]
                "xgboost": by_trees(table, [], rng),
                "quantune": by_trees(table, others, rng),
            }
            for strategy, order in orders.items():
                counts.setdefault(strategy, []).append(measurements(table, order))
        rows[name] = {strategy: statistics.median(each) for strategy, each in counts.items()}
    return rows


def main() -> None:
    """Measure what is missing, replay, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of all measurements")
    parser.add_argument("--weights-dir", type=Path, nargs="*", default=[], help="folders with weights of CIFAR models")
    parser.add_argument("--cifar", type=Path, help="their images, an .npz")
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=20, help="replays of every strategy")
    parser.add_argument("--print", action="store_true", help="measure nothing")
    given = parser.parse_args()
    known = json.loads(given.out.read_text()) if given.out.exists() else {}
    if not given.print:
        for name in given.networks:
            measure(given, name, known)
    found = tables(known)
    rows = replayed(found, given.seeds)
    strategies = ("random", "grid", "genetic", "xgboost", "quantune")
    print(
        f"{'network':16}{'fp32':>7}{'best':>7}{'worst':>7}{'default':>9}{'as good':>9}"
        + "".join(f"{s:>10}" for s in strategies)
    )
    default: Config = (512, "asymmetric", "error", True, False)
    for name, row in rows.items():
        table = found[name]
        share = [f"{100 * n / given.images:7.2f}" for n in (table.whole, table.best, min(table.right.values()))]
        good = sum(n == table.best for n in table.right.values())
        print(f"{name:16}{''.join(share)}{100 * table.right[default] / given.images:9.2f}{good:9}"
              + "".join(f"{row[s]:10.1f}" for s in strategies))  # fmt: skip
    for strategy in strategies[1:]:
        ratios = [row["random"] / row[strategy] for row in rows.values()]
        if ratios:
            print(f"{strategy}: {statistics.geometric_mean(ratios):.2f} times fewer than random")


if __name__ == "__main__":
    main()
