"""Which layers to leave in fp32: QuantuneV2's order, from two inferences, against simpler ones; accuracy and latency.

    python experiments/mixed_precision.py --weights-dir WEIGHTS --cifar cifar10jpeg.npz

A network in integers, with 0, 1, 2 and a quarter of its layers back in fp32.  Which ones, by

    sqnr     QuantuneV2 (arXiv 2501.07161): the layers in which the ratio of signal to rounding noise falls most,
             between what the layer reads and what it writes; one inference of the network in fp32 and one of it in
             integers, on the same images.  Differences, since noise adds up along the depth.
    alone    the layers that in integers alone move the answers most (KL of the answers): one inference a layer
    ends     the first and the last layer, then those next to them
    random   drawn, the mean of three draws (latency of the first)

The integers are those of a run (a scale a channel) and, with `--by-tensor`, one scale a weight, which loses more.
Printed: how far the answers are from fp32's (nats an image, images that decide), accuracy, and the latency of the tuned
model over that of fp32, both timed in turns; and what mixing gains over all int8, at which price.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from cprune.compiling.tuned import layout_in, opened_tuner
from cprune.compiling.workbench import SessionWorkbench
from cprune.method.subject import Subject
from cprune.network.folding import folded
from cprune.network.network import Network
from cprune.network.quantizing import Scheme, channel_means, quantized
from cprune.progress import Progress, of_terminal
from cprune.targets.target import find
from cprune.training.accuracy import kl
from cprune.training.data import Split
from cprune.training.train import logits
from experiments.trained import NETWORKS, opened

CALIBRATION, METRIC_IMAGES, BATCH = 256, 64, 64
NO_NOISE = 60.0
"""Decibels that stand for a value without any noise: the network's input."""
ORDERS = ("sqnr", "alone", "ends", "random")
DRAWS = 3


@dataclass(frozen=True)
class Row:
    """A network with some layers in fp32: nats an image, accuracy, latency over fp32's."""

    network: str
    scales: str
    order: str
    floats: int
    layers: int
    nats: float
    accuracy: float
    latency: float


class Mixing:
    """A trained network, quantized with any of its layers left in fp32, and what that costs on images that decide."""

    def __init__(self, subject: Subject, by_channel: bool, images: int, seed: int) -> None:
        self.subject, self.by_channel, self.seed = subject, by_channel, seed
        self.split: Split = subject.trainer.data.decide.take(slice(0, images))  # type: ignore[attr-defined]
        self.shown = subject.trainer.samples(CALIBRATION, seed).inputs(BATCH)  # type: ignore[union-attr]
        self.plain = folded(subject.network).eval()
        self.layers = list(channel_means(self.plain, self.shown[0]))
        self.wanted = logits(self.plain, self.split)
        self._looks: dict[tuple[str, ...], tuple[float, float]] = {}

    def network(self, floats: Sequence[str]) -> Network:
        """Return the network in integers but for these layers."""
        scheme = Scheme(by_channel=self.by_channel, floats=tuple(floats))
        return quantized(self.subject.network, self.shown, scheme).eval()

    def look(self, floats: Sequence[str]) -> tuple[float, float]:
        """Return nats an image and accuracy with these layers in fp32."""
        key = tuple(sorted(floats))
        if key not in self._looks:
            self._looks[key] = self._looked(self.network(key))
        return self._looks[key]

    def _looked(self, network: Network) -> tuple[float, float]:
        answers = logits(network, self.split)
        return kl(self.wanted, answers), float((answers.argmax(1) == self.split.labels).float().mean())

    # -- orders: the layers, the one to leave in fp32 first

    def by_sqnr(self) -> list[str]:
        """Return the layers by how much the signal-to-noise ratio falls in them."""
        images = self.shown[0][0][:METRIC_IMAGES]
        exact, noisy = self.plain.values(images), self.network(()).values(images)
        reads = {node.name: node.args[0].name for node in self.plain.nodes if node.name in self.layers}

        def ratio(name: str) -> float:
            return decibels(exact[name], noisy[name])

        fall = {name: ratio(reads[name]) - ratio(name) for name in self.layers}
        return sorted(self.layers, key=lambda name: -fall[name])

    def by_each_alone(self) -> list[str]:
        """Return the layers by what the answers move with that layer alone in integers, on few images."""
        few = self.split.take(slice(0, 512))
        wanted = logits(self.plain, few)
        moved = {
            name: kl(wanted, logits(self.network([other for other in self.layers if other != name]), few))
            for name in self.layers
        }
        return sorted(self.layers, key=lambda name: -moved[name])

    def from_the_ends(self) -> list[str]:
        """Return first, last, second, last but one, …"""
        ends = [self.layers[i // 2 if i % 2 == 0 else -1 - i // 2] for i in range(len(self.layers))]
        return list(dict.fromkeys(ends))

    def drawn(self, number: int) -> list[str]:
        """Return the layers in an order that a seed drew."""
        return random.Random(1000 * self.seed + number).sample(self.layers, len(self.layers))


def decibels(exact: Tensor, noisy: Tensor) -> float:
    """Return 10 log10 of the signal's power over that of its difference, at most NO_NOISE."""
    noise = float((exact - noisy).double().square().sum())
    signal = float(exact.double().square().sum())
    return NO_NOISE if noise == 0 else min(NO_NOISE, 10 * math.log10(max(signal, 1e-30) / noise))


def counts(layers: int) -> list[int]:
    """Return how many layers are left in fp32: 1, 2, and a quarter of them."""
    return sorted({1, 2, max(1, layers // 4)})


class Clock:
    """Tunes networks of one kind and says what each takes, over fp32's time."""

    def __init__(self, bench: SessionWorkbench, plain: Network, trials: int, rounds: int, progress: Progress) -> None:
        self.bench, self.trials, self.rounds, self.progress = bench, trials, rounds, progress
        layout = bench.choose_layout(plain, trials, progress)
        self.bench.load("fp32", bench.tune(plain, layout, trials, progress, text="tuning fp32"))
        self._known: dict[tuple[str, ...], float] = {}

    def share(self, floats: Sequence[str], network: Callable[[], Network]) -> float:
        """Return the latency over that of fp32, timed in turns."""
        key = tuple(sorted(floats))
        if key not in self._known:
            layout = layout_in("int8", self.bench.tuner.target)
            tuned = self.bench.tune(network(), layout, self.trials, self.progress, text="tuning")
            self.bench.load("mixed", tuned)
            self._known[key] = self.bench.compare("fp32", "mixed", self.rounds, 2.0).ratio.median
            self.bench.drop("mixed")
        return self._known[key]


def rows_of(name: str, scales: str, mixing: Mixing, clock: Clock) -> list[Row]:
    """Return all rows of a network: all in integers, then every order and count."""
    layers = len(mixing.layers)

    def row(order: str, floats: Sequence[str], looks: Sequence[tuple[float, float]]) -> Row:
        nats, accuracy = (statistics.mean(each) for each in zip(*looks, strict=True))
        latency = clock.share(floats, lambda: mixing.network(floats))
        found = Row(name, scales, order, len(floats), layers, nats, accuracy, latency)
        print(line(found), flush=True)
        return found

    rows = [row("int8", (), [mixing.look(())])]
    orders: Mapping[str, list[str]] = {
        "sqnr": mixing.by_sqnr(), "alone": mixing.by_each_alone(), "ends": mixing.from_the_ends(),
    }  # fmt: skip
    for count in counts(layers):
        for order, of_order in orders.items():
            rows.append(row(order, of_order[:count], [mixing.look(of_order[:count])]))
        draws = [mixing.drawn(number)[:count] for number in range(DRAWS)]
        rows.append(row("random", draws[0], [mixing.look(draw) for draw in draws]))
    return rows


def line(row: Row) -> str:
    """Return a row of the table, in Markdown."""
    return (
        f"| {row.network} | {row.scales} | {row.order} | {row.floats} of {row.layers} | {row.nats:.5f} "
        f"| {100 * row.accuracy:.2f} % | {row.latency:.3f} |"
    )


def summary(rows: Sequence[Row]) -> list[str]:
    """Return what each order gains over all int8, per network and scheme: the share of the nats that are left."""
    found = []
    for order in ORDERS:
        left, price = [], []
        for row in rows:
            base = next(r for r in rows if (r.network, r.scales, r.order) == (row.network, row.scales, "int8"))
            if row.order == order and base.nats > 0:
                left.append(row.nats / base.nats)
                price.append(row.latency / base.latency)
        if left:
            found.append(
                f"{order}: {statistics.geometric_mean(left):.2f} of the nats of all int8, "
                f"{statistics.geometric_mean(price):.2f} of its latency, {len(left)} rows"
            )
    return found


def main() -> None:
    """Print the table, row by row, and the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-dir", type=Path, nargs="*", default=[], help="folders with weights; see trained.py")
    parser.add_argument("--cifar", type=Path, help="the images of the CIFAR models, an .npz")
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--by-tensor", action="store_true", help="one scale a weight as well")
    parser.add_argument("--images", type=int, default=4500)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--records", default="mixed.sqlite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    progress, rows = of_terminal(), []
    print("| network | scales | order | in fp32 | nats | accuracy | latency / fp32 |\n|---|---|---|---|--:|--:|--:|")
    for name in given.networks:
        subject = opened(name, given.weights_dir, given.cifar, given.seed)
        if subject is None:
            continue
        with opened_tuner(find("local", given.threads), given.records, given.seed, progress) as (session, tuner):
            bench = SessionWorkbench(session, tuner, subject.example)
            clock = Clock(bench, subject.network, given.trials, given.rounds, progress)
            for scales in ("channel", "tensor") if given.by_tensor else ("channel",):
                mixing = Mixing(subject, scales == "channel", given.images, given.seed)
                with torch.no_grad():
                    rows += rows_of(name, scales, mixing, clock)
    print("\n".join(summary(rows)))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
