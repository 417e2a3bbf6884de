"""The tasks of a tuned model as a table for people: what, which layers, how long, how often, in which channel step."""

from __future__ import annotations

from dataclasses import dataclass

from cprune.channels.graph import Graph
from cprune.compiling.tuned import Tuned
from cprune.method.channel_step import step_of
from cprune.tuner.programs.describing import describe


@dataclass(frozen=True)
class TaskRow:
    """One task: its description, the layers that run it, latency of one use, uses, channel step (0: none), macs."""

    id: str
    layers: tuple[str, ...]
    latency_us: float
    uses: int
    step: int
    macs: int

    @property
    def total_us(self) -> float:
        """Return what the task costs in one inference."""
        return self.latency_us * self.uses


def task_table(tuned: Tuned, graph: Graph, join: str, threads: int) -> list[TaskRow]:
    """Return a row for every task of `tuned` on so many threads; `join` is that of `channel_step`."""
    rows = []
    for task in tuned.lowered.tasks():
        best = tuned.best[task.key]
        rows.append(
            TaskRow(
                describe(task.workload),
                tuple(name for name in task.layers if name in graph.layers),
                round(best.latency_s * 1e6, 3),
                task.uses,
                step_of(task.workload, best.candidate, threads, join),
                task.workload.macs,
            )
        )
    return rows
