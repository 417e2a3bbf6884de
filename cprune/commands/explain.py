"""`cprune explain`: what cprune sees in a model before it prunes anything."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from cprune.channels.groups import analyse, sample
from cprune.commands import model_graph
from cprune.compiling.tuned import opened_tuner, tune
from cprune.method.settings import Settings
from cprune.method.task_table import TaskRow, task_table
from cprune.models.source import Source
from cprune.progress import Progress
from cprune.targets.errors import UserError
from cprune.targets.target import Target, find
from cprune.tuner.records.place import default_records


def explain(
    source: Source,
    target: str | Target,
    threads: int | None,
    settings: Settings,
    records: str | None,
    progress: Progress,
    graph_file: Path | None = None,
) -> dict[str, Any]:
    """Return groups, frozen channels and tasks of the model as `cprune explain --json` prints them.

    For a model that cannot be compiled `problem` says why, and there are no tasks.  All of it goes into `graph_file` as
    well, if there is one, as what is known of each operator (see `cprune.commands.model_graph`).
    """
    if graph_file is not None:
        model_graph.must_be_known(graph_file)
    loaded = source.opened(settings.seed)
    network = loaded.network
    graph = analyse(network, loaded.example_inputs, settings.ignore, settings.whole_heads)
    if settings.strict:
        graph.must_be_free()
    where = find(target, threads)
    tasks: list[TaskRow] = []
    programs: dict[str, list[TaskRow]] = {}
    problem = ""
    with opened_tuner(where, records or default_records(where.name), settings.seed, progress) as (_, tuner):
        try:
            tuned = tune(network, loaded.example_inputs, tuner, settings.trials, progress)
            tasks = task_table(tuned, graph, settings.step_join)
            programs = model_graph.programs_of(tuned.lowered, tasks)
        except UserError as error:
            problem = error.message
    if graph_file is not None:
        values = sample(network, loaded.example_inputs)
        model_graph.write(model_graph.network_graph(network, values, graph, programs), graph_file)
    free = {layer for group in graph.groups for layer in group.layers}
    total_us = sum(task.total_us for task in tasks)
    prunable_us = sum(task.total_us for task in tasks if free.intersection(task.layers))
    return {
        "model": loaded.name,
        "target": where.name,
        "groups": [{"id": g.id, "channels": g.channels, "layers": list(g.layers)} for g in graph.groups],
        "frozen": [{"layers": list(f.layers), "channels": f.channels, "reason": f.reason} for f in graph.frozen],
        "tasks": [asdict(task) for task in tasks],
        "prunable_latency_share": round(prunable_us / total_us, 4) if total_us else 0.0,
        "problem": problem,
    }


def show(told: dict[str, Any]) -> None:
    """Print what `explain` returned as tables."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        for column in columns:
            made.add_column(column)
        return made

    groups = table("channel groups: what shrinks together", "group", "channels", "layers")
    for g in told["groups"]:
        groups.add_row(g["id"], str(g["channels"]), ", ".join(g["layers"]))
    console.print(groups)
    frozen = table("frozen: channels that stay", "layers", "channels", "they stay because")
    for f in told["frozen"]:
        frozen.add_row(", ".join(f["layers"]), str(f["channels"]), f["reason"])
    console.print(frozen)
    if told["problem"]:
        console.print(f"no latencies: {told['problem']}", highlight=False)
        return
    tasks = table("tasks, tuned", "task", "us", "uses", "channel step", "layers")
    for t in sorted(told["tasks"], key=lambda t: -t["latency_us"] * t["uses"]):
        step = str(t["step"] or "-")
        tasks.add_row(t["id"], f"{t['latency_us']:.1f}", str(t["uses"]), step, ", ".join(t["layers"]))
    console.print(tasks)
    console.print(f"{told['prunable_latency_share']:.0%} of the latency can be pruned", highlight=False)
