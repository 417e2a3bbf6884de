"""`cprune explain`: what cprune sees in a model before it prunes anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cprune.channels.branches import Branch, branches
from cprune.channels.graph import Frozen, Group
from cprune.channels.groups import analyse
from cprune.commands import graph_file
from cprune.commands.request import Request
from cprune.compiling.tuned import tune
from cprune.method.task_table import TaskRow, task_table
from cprune.network.shapes import sample
from cprune.progress import Progress
from cprune.targets.errors import UserError


@dataclass(frozen=True)
class BranchRow:
    """A residual branch that can go: its id, its layers, and their latency in one inference (0 without tasks)."""

    id: str
    layers: tuple[str, ...]
    latency_us: float


@dataclass(frozen=True)
class Explained:
    """Channel groups, branches, frozen channels and tuned tasks of a model; without tasks `problem` says why."""

    model: str
    target: str
    groups: tuple[Group, ...]
    branches: tuple[BranchRow, ...]
    frozen: tuple[Frozen, ...]
    tasks: tuple[TaskRow, ...]
    problem: str

    @property
    def prunable_latency_share(self) -> float:
        """Return the share of the latency, in [0, 1], that layers have from which channels can be removed."""
        free = {layer for group in self.groups for layer in group.layers}
        return self.share(sum(task.total_us for task in self.tasks if free.intersection(task.layers)))

    def share(self, latency_us: float) -> float:
        """Return what part of the latency of all tasks, in [0, 1], this is."""
        total_us = sum(task.total_us for task in self.tasks)
        return round(latency_us / total_us, 4) if total_us else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return what `cprune explain --json` prints."""
        return {
            "model": self.model,
            "target": self.target,
            "groups": [{"id": g.id, "channels": g.channels, "layers": g.layers} for g in self.groups],
            "branches": [asdict(branch) for branch in self.branches],
            "frozen": [{"layers": f.layers, "channels": f.channels, "reason": f.reason} for f in self.frozen],
            "tasks": [asdict(task) for task in self.tasks],
            "prunable_latency_share": self.prunable_latency_share,
            "problem": self.problem,
        }


def explain(request: Request, progress: Progress, graph_path: Path | None = None) -> Explained:
    """Return groups, branches, frozen channels and tasks of the model.

    All of it goes into `graph_path` as well, if there is one, as what is known of each operator (see
    `cprune.commands.graph_file`).
    """
    if graph_path is not None:
        graph_file.must_be_known(graph_path)
    settings, opened = request.settings, request.opened()
    network, example = opened.network, opened.example_inputs
    graph = analyse(network, example, settings.ignore, settings.whole_heads)
    if settings.strict:
        graph.must_be_free()
    tasks: list[TaskRow] = []
    programs: dict[str, list[TaskRow]] = {}
    problem = ""
    with request.tuner(progress) as (_, tuner):
        try:
            tuned = tune(network, example, tuner, settings.trials, progress)
            tasks = task_table(tuned, graph, settings.step_join, tuner.target.threads)
            programs = graph_file.programs_of(tuned.lowered, tasks)
        except UserError as error:
            problem = error.message
    if graph_path is not None:
        values = sample(network, example)
        graph_file.write(graph_file.network_graph(network, values, graph, programs), graph_path)
    found = branch_rows(branches(network, example, settings.ignore), tasks)
    return Explained(opened.name, request.target.name, graph.groups, found, graph.frozen, tuple(tasks), problem)


def branch_rows(found: Sequence[Branch], tasks: Sequence[TaskRow]) -> tuple[BranchRow, ...]:
    """Return the branches with the latencies of their layers; a task's is that of its layers in equal parts.

    What a branch has beside its layers (a gate, a pooling) has no part in it.
    """
    parts = [(layer, task.total_us / len(task.layers)) for task in tasks for layer in task.layers]
    return tuple(
        BranchRow(b.id, b.layers, round(sum(part_us for layer, part_us in parts if layer in b.layers), 3))
        for b in found
    )
