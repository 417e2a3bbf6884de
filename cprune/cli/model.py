"""`cprune explain`, `check`, `bench`, `tune`, `profile`: what is asked of a model that is not pruned yet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cprune.cli import show
from cprune.cli.options import (
    Ignore,
    Json,
    ModelOptions,
    Strict,
    Trials,
    WholeHeads,
    about_a_model,
    duration,
)


@about_a_model
def explain(
    options: ModelOptions,
    trials: Trials = None,
    ignore: Ignore = None,
    whole_heads: WholeHeads = False,
    strict: Strict = False,
    graph: Annotated[
        Path | None,
        typer.Option(help="also write the network with all this in it: .graphml, .dot (Graphviz) or .json (node-link)"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show channel groups, residual branches, what is frozen and why, tasks with their latency and channel step."""
    from cprune.commands import explain

    request = options.request(trials=trials, ignore=ignore, whole_heads=whole_heads, strict=strict)
    with show.progress() as progress:
        explained = explain.explain(request, progress, graph)
    show.answer(explained, show.explained, as_json)
    if graph is not None:
        print(f"graph in {graph}", file=sys.stderr)


@about_a_model
def check(
    options: ModelOptions,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="also compare the compiled code")] = True,
    ignore: Ignore = None,
    whole_heads: WholeHeads = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Prove on this model that pruning is right: every group pruned equals masked, compiled code equals PyTorch.

    Likewise every residual branch removed and with its value at zero.  Exit code 1 if something differs.
    """
    from cprune.commands import check

    request = options.request(trials=1, ignore=ignore, whole_heads=whole_heads, strict=strict)
    with show.progress() as progress:
        checked = check.check(request, compiled, progress)
    show.answer(checked, show.checked, as_json)
    if checked.failures:
        raise typer.Exit(1)


@about_a_model
def bench(
    options: ModelOptions,
    trials: Trials = None,
    rounds: Annotated[int, typer.Option(help="interleaved rounds")] = 30,
    int8: Annotated[bool, typer.Option("--int8", help="also in 8-bit integers and 16 bits")] = False,
    as_json: Json = False,
) -> None:
    """Time the tuned model against ONNX Runtime, PyTorch and, where it is installed, OpenVINO.

    They take turns with the same number of threads; medians have intervals.

    MODEL may be a run folder: then the pruned model is timed.
    """
    from cprune.commands import bench

    with show.progress() as progress:
        benchmark = bench.bench(options.request(trials=trials), rounds, progress, int8)
    show.answer(benchmark, show.benchmark, as_json)


@about_a_model
def tune(
    options: ModelOptions,
    trials: Trials = None,
    time_limit: Annotated[
        str | None, typer.Option(help="propose nothing new after so long: 90, 90s, 5m or 1h; default: no limit")
    ] = None,
    space: Annotated[str, typer.Option(help="sketch, or metaschedule for TVM's generic space")] = "sketch",
    search: Annotated[
        str | None, typer.Option(help="who proposes: random, evolutionary, P, P+A, P+V (default) or P+V+A")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16 (Arm), or int8: integers, calibrated on training images of --data")
    ] = "fp32",
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="for fewer bits: fashion-mnist, npz:FILE, folder:DIR or MODULE:FUNCTION"),
    ] = None,
    learn_rounding: Annotated[
        bool, typer.Option("--learn-rounding", help="int8: learn which neighbour each weight is rounded to (FlexRound)")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder to write, default compiled/MODEL")] = None,
    as_json: Json = False,
) -> None:
    """Tune a model as it is and write it compiled: model.so, its weights, and what it was compiled for.

    In Python: model = cprune.open_compiled(DIR); model(image).  Nothing is pruned.  With --precision int8 it is
    compiled in integers, and the accuracy that this costs is said; with bf16 or fp16 in 16 bits, which needs no data,
    each layer in these or in fp32, whichever is faster.
    """
    from cprune.commands import tune

    limit_s = duration(time_limit) if time_limit is not None else float("inf")
    folder = out or Path("compiled") / options.source.spec.replace(":", "-").replace("/", "-")
    asked = tune.Options(folder, space, search, limit_s, precision, data, learn_rounding)
    with show.progress() as progress:
        compiled = tune.tune(options.request(trials=trials), asked, progress)
    show.answer(compiled, show.compiled, as_json)


@about_a_model
def profile(
    options: ModelOptions,
    trials: Trials = None,
    widths: Annotated[int, typer.Option(min=1, help="widths of every task, at most")] = 12,
    width_trials: Annotated[int, typer.Option(min=1, help="programs tried per narrower width")] = 12,
    both_axes: Annotated[
        bool, typer.Option("--both-axes", help="fewer input channels too: up to WIDTHS x WIDTHS entries a task")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="tune only the whole widths; what the records lack is estimated")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="also write profile.json, latency.csv and an SVG per task here")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how latency falls with the width of every layer: the staircase, with the step that keeps the program."""
    from cprune.commands import profile

    with show.progress() as progress:
        asked = profile.Options(widths, width_trials, both_axes, estimate)
        staircases = profile.profile(options.request(trials=trials), asked, progress)
    show.answer(staircases, show.staircases, as_json)
    if out is not None:
        paths = profile.write(staircases, out)
        print(f"{len(paths)} files in {out}", file=sys.stderr)
