"""What a command prints: one JSON object on standard output, or tables and lines for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from cprune.commands.bench import Benchmark
    from cprune.commands.check import Checked
    from cprune.commands.explain import Explained
    from cprune.commands.export import Bundle, Verified
    from cprune.commands.profile import Staircases
    from cprune.commands.tune import Compiled
    from cprune.progress import Progress


class Result(Protocol):
    """What a command found."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as --json prints it."""


R = TypeVar("R", bound=Result)


@contextmanager
def progress() -> Iterator[Progress]:
    """Show bars on a terminal, else plain lines; a bar is gone when the block ends, before the last message."""
    from cprune.progress import of_terminal

    bars = of_terminal()
    try:
        yield bars
    finally:
        bars.done()


def answer(result: R, for_people: Callable[[R], None], as_json: bool) -> None:
    """Print what a command found, as one JSON object or for people."""
    if as_json:
        json_object(result.to_dict())
    else:
        for_people(result)


def json_object(values: Mapping[str, Any]) -> None:
    """Print one JSON object in a line."""
    typer.echo(json.dumps(values))


def table(*columns: str, title: str | None = None) -> Table:
    """Return a table with these columns and no row yet."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD)


def on_output(*parts: RenderableType) -> None:
    """Print tables as they are, and texts without colours that they do not ask for."""
    from rich.console import Console

    console = Console()
    for part in parts:
        console.print(part, highlight=False)


# --- one function a result -------------------------------------------------------------------------------------


def run_result(values: Mapping[str, Any]) -> None:
    """Print the table that sums up a `result.json`."""
    from cprune.runs.report.headline import table as rows_of
    from cprune.runs.report.run import read_result

    summary = table("", "before", "after")
    for row in rows_of(read_result(values)):
        summary.add_row(*row)
    on_output(summary)


def plan(values: Mapping[str, Any]) -> None:
    """Print what `cprune run --plan` found: a table of the front, slowest first, and how long the rest takes."""
    from cprune.runs.report.numbers import count, duration

    whole, limited = values["unpruned"], any(point["meets"] is not None for point in values["points"])
    rows = table(
        *("latency ms", "speed-up", "parameters", "multiply-adds", "branches gone", "damage (KL)", "points lost"),
        *(("meets the limits",) if limited else ()),
        title="the predicted front: nothing is trained yet",
    )
    rows.add_row(
        *(f"{whole['latency_ms']['median']:.4g}", "1x", count(whole["params"]), count(whole["macs"]), "0", "0", "0")
    )
    for point in values["points"]:
        rows.add_row(
            *(f"{point['latency_ms']:.4g}", f"{point['speedup']:.2f}x", count(point["params"]), count(point["macs"])),
            *(str(point["gone"]), f"{point['damage']:.3g}", f"about {100 * point['loss']:.2g}"),
            *(("yes" if point["meets"] else "no",) if limited else ()),
        )
    seconds = values["seconds"]
    lines = [
        values["estimate"],
        f"the rest takes {duration(seconds['training'])} of training (--train-time) and about "
        f"{duration(seconds['others'])} of everything else",
    ]
    on_output(rows, *lines, *([values["missed"]] if values["missed"] else []))


def explained(result: Explained) -> None:
    """Print what `cprune explain` found as tables."""
    groups = table("group", "channels", "layers", title="channel groups: what shrinks together")
    for group in result.groups:
        groups.add_row(group.id, str(group.channels), ", ".join(group.layers))
    frozen = table("layers", "channels", "they stay because", title="frozen: channels that stay")
    for stay in result.frozen:
        frozen.add_row(", ".join(stay.layers), str(stay.channels), stay.reason)
    on_output(groups, frozen)
    if result.branches:
        branches = table("branch", "us", "of the latency", "layers", title="residual branches: what can go as a whole")
        for branch in result.branches:
            cost = (
                (f"{branch.latency_us:.1f}", f"{result.share(branch.latency_us):.0%}") if result.tasks else ("-", "-")
            )
            branches.add_row(branch.id, *cost, ", ".join(branch.layers))
        on_output(branches)
    if result.problem:
        on_output(f"no latencies: {result.problem}")
        return
    tasks = table("task", "us", "uses", "channel step", "layers", title="tasks, tuned")
    for task in sorted(result.tasks, key=lambda task: -task.total_us):
        step = str(task.step or "-")
        tasks.add_row(task.id, f"{task.latency_us:.1f}", str(task.uses), step, ", ".join(task.layers))
    on_output(tasks, f"{result.prunable_latency_share:.0%} of the latency can be pruned")


def checked(result: Checked) -> None:
    """Print what `cprune check` found: a line for every comparison that failed, or one that says that none did."""
    for failure in result.failures:
        apart = "" if failure.max_difference is None else f" by {failure.max_difference:.3g} of its magnitude"
        print(f"BAD  {failure.group or result.model}: {failure.what}{apart}")
    what = "compiled code equals PyTorch" if result.compiled else "not compiled (--no-compile)"
    if not result.failures:
        print(f"ok   {result.model}: pruned equals masked in each of {result.groups} groups; {what}")
        if result.branches:
            print(f"     without each of {result.branches} residual branches it computes what it does with zeros there")
        if result.integers:
            print(f"     in int8, whole and pruned, {result.integers} values in bytes equal PyTorch's to one step")
        if result.halves:
            print(f"     in 16 bits {result.halves} values equal PyTorch's to one step")
    if not result.groups:
        print("     no channel can be pruned: cprune explain says why")


def benchmark(result: Benchmark) -> None:
    """Print what `cprune bench` measured as a table."""
    rows = table("runtime", "precision", "layout", "median ms", "95 % interval", "tuned TVM takes")
    for runtime, ms in result.latency_ms.items():
        name, _, bits = runtime.partition(" ")
        over = f"{result.tvm_over[runtime].median:.2f}" if runtime in result.tvm_over else ""
        interval = f"{ms.low:.3f} – {ms.high:.3f}"
        rows.add_row(name, bits or "fp32", result.layouts[runtime], f"{ms.median:.3f}", interval, over)
    ratio, load = result.tvm_over["onnxruntime"], result.tvm_under_load
    on_output(
        rows,
        f"{result.model}, batch {result.batch}, {result.threads} threads: tuned TVM takes {ratio.median:.2f} "
        f"[{ratio.low:.2f}, {ratio.high:.2f}] of ONNX Runtime's time",
        f"under load, tuned TVM: {load.peak_ms:.3f} ms at first, {load.sustained_ms:.3f} ms after {load.seconds:g} s",
    )


def compiled(result: Compiled) -> None:
    """Print what `cprune tune` wrote."""
    ms, answers = result.latency_ms, result.answers
    if result.floats:
        typer.echo(f"{len(result.floats)} layers are faster in fp32 and stay in it: {', '.join(result.floats)}")
    if answers is not None:
        lost = answers.loss
        typer.echo(
            f"accuracy {answers.before:.2%} → {answers.after:.2%} in {result.precision} on {lost.images:,} images "
            f"({100 * lost.loss:+.2f} points lost, standard error {100 * lost.se:.2f})"
        )
    typer.echo(
        f"{result.model}: {ms.median:.3f} ms [{ms.low:.3f}, {ms.high:.3f}], {result.threads} threads, "
        f"{result.tasks} tasks, {result.trials} new trials\nwritten to {result.folder}"
    )


def staircases(result: Staircases) -> None:
    """Print one line a width with a bar; the widths that keep the structure of the fastest program are marked."""
    from rich.console import Console

    console = Console()
    for task in result.tasks:
        console.print(f"\n{task.id}  ({task.uses}x: {', '.join(task.layers)})", highlight=False)
        full_us = max(width.median_us for width in task.widths)
        widest = task.widths[-1].channels
        for width in task.widths:
            bar = "█" * max(1, round(40 * width.median_us / full_us))
            mark = "step" if task.step and (widest - width.channels) % task.step == 0 else ""
            sure = "estimated" if width.estimated else f"[{width.low_us:.2f}, {width.high_us:.2f}]"
            console.print(
                f"  {width.channels:5} {mark:4} {width.median_us:9.2f} us {sure} {bar}",
                highlight=False,
                markup=False,
            )
    if result.estimate_error is not None:
        typer.echo(f"\nestimates of known tasks that were left out: median error {result.estimate_error:.1%}")


def bundle(result: Bundle) -> None:
    """Print which files `cprune export` wrote."""
    typer.echo(f"{result.folder}: {', '.join(result.files)}")


def verified(result: Verified) -> None:
    """Print what `cprune verify` found in a line."""
    ms = result.latency_ms
    typer.echo(
        f"{'ok ' if result.ok else 'BAD'} {result.model} on {result.target} ({result.device}): largest "
        f"difference from PyTorch {result.max_difference:.2g}, {ms.median:.3f} ms [{ms.low:.3f}, {ms.high:.3f}]"
    )
