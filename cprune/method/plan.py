"""Which channels of which groups go next: tasks by impact, all groups of a task together (CPrune, algorithm 1).

Ours differs from the paper in three points.  Where a layer's output is made of several groups (a residual stream that
was widened by zero channels), the group to shrink is chosen among them.  A set of groups that cost too much accuracy
is excluded as a set: its halves are still tried, the one whose channels matter less first, then their halves, down to
single groups.  And a step that a layer is too narrow for is halved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cprune.channels.graph import Graph
from cprune.compiling.lowered import Task
from cprune.runs.events import GroupChange

Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Impact:
    """A task with its latency over the whole model and the channel step of its fastest program."""

    task: Task
    latency_s: float
    step: int

    @property
    def seconds(self) -> float:
        """Return latency x uses: what the task costs in one inference."""
        return self.latency_s * self.task.uses


@dataclass(frozen=True)
class Proposal:
    """How many channels of which groups to remove, and for the sake of which task."""

    task: Task
    step: int
    removed: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        """Return the groups that shrink: what is excluded, or rejected and tried again with more channels."""
        return " ".join(sorted(group for group, _ in self.removed))


@dataclass(frozen=True)
class Memory:
    """What earlier steps taught: excluded keys, and how often the gate rejected a key."""

    excluded: frozenset[str]
    rejected: Mapping[str, int]


def proposals(
    impacts: Sequence[Impact],
    graph: Graph,
    scores: Scores,
    first_widths: Mapping[str, int],
    memory: Memory,
    grain: int,
    max_sparsity: float = 0.8,
) -> Iterator[Proposal]:
    """Yield what may be tried, the task with the largest impact first.

    `first_widths` gives the output channels of every layer before pruning: none shrinks by more than `max_sparsity`.
    `grain` is the smallest number of channels that the layout tells apart; steps are halved down to it.
    """
    for impact in sorted(impacts, key=lambda i: -i.seconds):
        layers = [name for name in impact.task.layers if name in graph.layers]
        if not layers or impact.step < 1:
            continue
        for chosen in _halved(sorted(layers, key=lambda name: _matter(name, graph, impact.step, scores))):
            proposal = _fitting(impact, chosen, graph, scores, first_widths, memory, grain, max_sparsity)
            if proposal is not None:
                yield proposal


def _halved(layers: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the layers, then their two halves, then the quarters, down to each alone."""
    parts = [layers]
    while parts:
        yield from parts
        middles = [(part, (len(part) + 1) // 2) for part in parts if len(part) > 1]
        parts = [half for part, middle in middles for half in (part[:middle], part[middle:])]


def _matter(layer: str, graph: Graph, size: int, scores: Scores) -> float:
    """Return the mean score of the `size` channels that a layer would lose."""
    return min((_least(scores[g], size) for g in graph.groups_of(layer)), default=0.0)


def _least(scores: NDArray[np.float64], size: int) -> float:
    """Return the mean of the `size` lowest scores."""
    return float(np.sort(scores)[:size].mean())


def _fitting(
    impact: Impact,
    layers: Sequence[str],
    graph: Graph,
    scores: Scores,
    first_widths: Mapping[str, int],
    memory: Memory,
    grain: int,
    max_sparsity: float,
) -> Proposal | None:
    size = impact.step
    while size >= min(grain, impact.step):
        for start in _starts(layers, graph, size, scores):
            key = " ".join(sorted(start))
            if key in memory.excluded:
                continue
            count = size * (1 + memory.rejected.get(key, 0))
            removed = _removed(layers, graph, start, count)
            if _allowed(removed, graph, first_widths, max_sparsity):
                return Proposal(impact.task, size, tuple(sorted(removed.items())))
        if size % 2:
            return None
        size //= 2
    return None


def _starts(layers: Sequence[str], graph: Graph, size: int, scores: Scores) -> list[tuple[str, ...]]:
    """Return sets of groups that together narrow every layer: each alone where layers have one group, else a choice.

    A layer with several groups is narrowed by one of them, the one whose channels matter least first, or by equal
    parts of all.
    """
    options: list[list[tuple[str, ...]]] = []
    for layer in layers:
        groups = graph.groups_of(layer)
        if not groups:
            return []
        cheap = sorted(groups, key=lambda g: _least(scores[g], size))
        options.append([(g,) for g in cheap] + ([tuple(groups)] if len(groups) > 1 else []))
    most = max(len(choice) for choice in options)
    found = []
    for index in range(most):
        picked = [choice[min(index, len(choice) - 1)] for choice in options]
        found.append(tuple(sorted({group for part in picked for group in part})))
    return list(dict.fromkeys(found))


def _removed(layers: Sequence[str], graph: Graph, groups: Sequence[str], count: int) -> dict[str, int]:
    """Return channels per group so that every layer loses `count`, or the next number that its groups can share.

    A channel of a group may be several of a layer: a head, one place in every head, one channel of a shuffle.
    """
    removed: dict[str, int] = {}
    for layer in layers:
        mine = [g for g in groups if layer in graph.group(g).layers]
        for group in mine:
            each = len(graph.positions(group, layer)[0])
            removed[group] = max(removed.get(group, 0), -(-count // (len(mine) * each)))
    return removed


def _allowed(removed: Mapping[str, int], graph: Graph, first_widths: Mapping[str, int], max_sparsity: float) -> bool:
    lost: dict[str, int] = {}
    for group_id, count in removed.items():
        group = graph.group(group_id)
        if count >= group.channels:
            return False
        for layer in group.layers:
            lost[layer] = lost.get(layer, 0) + count * len(graph.positions(group_id, layer)[0])
    for layer, count in lost.items():
        info = graph.layers[layer]
        width = len(graph.axes[info.weight, info.out_axis])
        if width - count < max(1, (1 - max_sparsity) * first_widths.get(layer, width)):
            return False
    return True


def channels(proposal: Proposal, scores: Scores) -> dict[str, list[int]]:
    """Return the channels of every group of `proposal` to remove: those with the lowest scores, ascending."""
    return {
        group: sorted(int(i) for i in np.argsort(scores[group], kind="stable")[:count])
        for group, count in proposal.removed
    }


def widths(graph: Graph) -> dict[str, int]:
    """Return the output channels of every convolution and linear layer."""
    return {name: len(graph.axes[layer.weight, layer.out_axis]) for name, layer in graph.layers.items()}


def change(proposal: Proposal, graph: Graph) -> tuple[GroupChange, ...]:
    """Return the groups of `proposal` with their channels before and after, for the journal."""
    channels_before = {group: graph.group(group).channels for group, _ in proposal.removed}
    return tuple(
        GroupChange(group, channels_before[group], channels_before[group] - count) for group, count in proposal.removed
    )
