"""The layout of a whole model, chosen by measured cost.

First the block (channels of a vector, or half of that) in which the heaviest convolutions run fastest.  Then, for every
width that is no multiple of it, whether values of that width are stored in half blocks: the tasks that this changes are
tuned both ways, layout changes included, and the model's sum of latencies decides.  One width after the other, the
widest first, each seen with what was decided before it (coordinate descent; a path over layouts would have to take
residual connections apart, which tie the layouts of distant operators).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from cprune.compiling.lowered import Layout, Lowered, Task
from cprune.compiling.lowering import lower
from cprune.network.network import Network
from cprune.progress import Progress
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d
from cprune.tuner.tune import Job, Tuner

HEAVY_TASKS, HEAVY_TRIALS = 3, 12
WIDTH_TRIALS = 12
CLEARLY = 0.9  # a few trials of a few tasks stand for the whole model
WORTH = 0.99  # a half block must bring the sum of latencies below this share


def choose_block(network: Network, example: Sequence[Tensor], tuner: Tuner, trials: int, progress: Progress) -> int:
    """Return the block in which the heaviest convolutions run fastest: the vector, or (if clearly) half of it.

    Each of them gets HEAVY_TRIALS trials, or `trials` if that is less.
    """
    trials = min(HEAVY_TRIALS, trials)
    vector = tuner.target.vector
    options = [b for b in (vector, vector // 2) if b >= 4]
    heavy: dict[int, list[Task]] = {}
    for block in options:
        tasks = [t for t in lower(network, example, block).tasks() if isinstance(t.workload, Conv2d)]
        heavy[block] = sorted(tasks, key=lambda t: -t.workload.macs * t.uses)[:HEAVY_TASKS]
    if len(options) < 2 or not all(heavy.values()):
        return options[0]
    total = sum(tuner.left(t.workload, trials) for tasks in heavy.values() for t in tasks)
    if total:
        progress.start("choosing the layout", total)
    cost = {}
    for block, tasks in heavy.items():
        tuned = [(tuner.tune(t.workload, trials, on_trial=progress.advance), t) for t in tasks]
        # Seconds per multiplication: the two layouts may cut the model into different tasks.
        cost[block] = sum(best.latency_s * t.uses for best, t in tuned) / sum(t.workload.macs * t.uses for t in tasks)
    progress.done()
    wide, half = options
    return half if cost[half] < CLEARLY * cost[wide] else wide


def choose_widths(
    network: Network,
    example: Sequence[Tensor],
    layout: Layout,
    tuner: Tuner,
    trials: int,
    siblings: Mapping[str, Candidate],
    progress: Progress,
) -> Layout:
    """Return `layout` with half blocks for the widths where they make the model faster.

    Each task gets WIDTH_TRIALS trials, or `trials` if that is less.
    """
    lowered = lower(network, example, layout)
    for width in sorted(_open_widths(lowered), reverse=True):
        other = lower(network, example, lowered.layout.toggled(width))
        cost = _costs(
            (lowered, other),
            tuner,
            min(WIDTH_TRIALS, trials),
            siblings,
            progress,
            f"choosing the layout of {width} channels",
        )
        narrow = other if width in other.layout.narrow else lowered
        wide = lowered if narrow is other else other
        lowered = narrow if cost[narrow.layout] < WORTH * cost[wide.layout] else wide
    return lowered.layout


def jobs(tasks: Iterable[Task], siblings: Mapping[str, Candidate]) -> list[Job]:
    """Return the tasks for the tuner, each to start from the programs that `siblings` has for its layers."""
    return [
        Job(t.workload, t.uses, tuple(dict.fromkeys(siblings[name] for name in t.layers if name in siblings)))
        for t in tasks
    ]


def _open_widths(lowered: Lowered) -> set[int]:
    return {width for width in lowered.widths if lowered.layout.open(width)}


def _costs(
    options: Sequence[Lowered],
    tuner: Tuner,
    trials: int,
    siblings: Mapping[str, Candidate],
    progress: Progress,
    text: str,
) -> dict[Layout, float]:
    """Return the sum of latencies of the tasks in which the options differ."""
    counted = [{t.key: t for t in option.tasks()} for option in options]
    same = {key for key in counted[0] if key in counted[1] and counted[0][key].uses == counted[1][key].uses}
    differing = [{key: t for key, t in tasks.items() if key not in same} for tasks in counted]
    left: Callable[[Task], int] = lambda t: tuner.left(t.workload, trials)  # noqa: E731
    total = sum(left(t) for t in {**differing[0], **differing[1]}.values())
    if total:
        progress.start(text, total)
    cost = {}
    for option, tasks in zip(options, differing, strict=True):
        best = tuner.tune_all(jobs(tasks.values(), siblings), trials, on_trial=progress.advance)
        cost[option.layout] = sum(best[t.key].latency_s * t.uses for t in tasks.values())
    progress.done()
    return cost
