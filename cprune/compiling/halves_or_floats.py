"""A model in 16 bits whose layers stay in float32 where that is faster: there are Winograd programs for 3x3 layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cprune.compiling.tuned import NO_PROGRAMS, Tuned, layout_in, tune
from cprune.network.folding import folded
from cprune.network.halving import halved
from cprune.network.network import Network
from cprune.progress import Progress
from cprune.targets.measure import compare
from cprune.targets.session import Session
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Dense, HalfConv2d, Workload
from cprune.tuner.tune import Tuner

CLEARLY = 0.95  # of the latency in 16 bits: reading what a neighbour wrote in the other form costs something
ROUNDS, RUN_MS = 9, 10.0


@dataclass(frozen=True)
class Mixed:
    """The faster of a model all in 16 bits and one with some layers in float32; `floats` are those of the winner."""

    tuned: Tuned
    floats: tuple[str, ...] = ()


def fastest(
    network: Network,
    example: tuple[Tensor, ...],
    session: Session,
    tuner: Tuner,
    trials: int,
    progress: Progress,
    *,
    precision: str = "bf16",
    siblings: Mapping[str, Candidate] = NO_PROGRAMS,
    time_limit_s: float = float("inf"),
) -> Mixed:
    """Return the network in bf16 or fp16, each layer in the faster form, after at most `trials` trials a task.

    Both forms of every task are tuned; where layers are clearly faster in float32 the model with these so is timed in
    turns with the one that is all in 16 bits, so what lies between the forms counts.  Raises UserError where the
    target does not multiply such numbers, BrokenWorld if a model does not compute what PyTorch does.
    """
    layout = layout_in(precision, tuner.target)

    def tuned(model: Network, text: str) -> Tuned:
        return tune(
            model, example, tuner, trials, progress,
            layout=layout, siblings=siblings, text=text, time_limit_s=time_limit_s,
        )  # fmt: skip

    halves = tuned(halved(network, example, precision=precision), f"tuning, {precision}")
    floats = faster_in_float(halves, tuned(folded(network).eval(), "tuning, fp32 to compare"))
    if not floats:
        return Mixed(halves)
    some = tuned(halved(network, example, floats, precision), "tuning, some layers in fp32")
    for name, model in (("halves", halves), ("some", some)):
        model.load(session, name)
    faster = compare(session, "halves", "some", halves.arrays, ROUNDS, RUN_MS).ratio.median < 1
    for name in ("halves", "some"):
        session.drop(name)
    return Mixed(some, floats) if faster else Mixed(halves)


def faster_in_float(halves: Tuned, floats: Tuned) -> tuple[str, ...]:
    """Return the layers whose task in float32 takes CLEARLY less than the one in 16 bits."""
    mine, theirs = _latencies(halves, HalfConv2d), _latencies(floats, Conv2d, Dense)
    return tuple(sorted(layer for layer in mine if theirs.get(layer, float("inf")) < CLEARLY * mine[layer]))


def _latencies(tuned: Tuned, *kinds: type[Workload]) -> dict[str, float]:
    return {
        layer: tuned.best[task.key].latency_s
        for task in tuned.lowered.tasks()
        if isinstance(task.workload, kinds)
        for layer in task.layers
    }
