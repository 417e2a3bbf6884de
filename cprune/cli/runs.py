"""`cprune run`, `cprune resume`, `cprune report`: a run, what is told of it while it goes on, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cprune.cli import show
from cprune.cli.options import (
    BUILT_IN,
    DeviceTimeout,
    Ignore,
    Json,
    MaxLatency,
    ModelOptions,
    Speedup,
    Strict,
    Tracker,
    Trials,
    WholeHeads,
    about_a_model,
    count,
    duration,
    milliseconds,
    settings_of,
    times,
    toml_values,
)
from cprune.targets.errors import UserError

if TYPE_CHECKING:
    from cprune.runs.events import Step
    from cprune.runs.folder import RunFolder


MOST_GROUPS = 6
"""So many groups of a step are told; `cprune report` has all of them."""


@about_a_model
def run(
    options: ModelOptions,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="fashion-mnist, npz:FILE, folder:DIR or MODULE:FUNCTION; of the images that the model was "
            "not trained on 45 % decide, 20 % certify, 35 % are reported on",
        ),
    ] = None,
    min_acc: Annotated[
        str | None, typer.Option(help="accuracy to keep on the images of the report: 0.7 or 70%")
    ] = None,
    max_drop: Annotated[str | None, typer.Option(help="accuracy that may be lost: 1% (default) is one point")] = None,
    confidence: Annotated[
        str | None,
        typer.Option(
            help="95%: so sure that no more is lost on new images either; default: on the images there are, "
            "certified with a reserve"
        ),
    ] = None,
    max_latency: MaxLatency = None,
    speedup: Speedup = None,
    max_params: Annotated[
        str | None, typer.Option(metavar="COUNT", help="parameters of the model at most: 300k or 1.5M")
    ] = None,
    max_macs: Annotated[
        str | None, typer.Option(metavar="COUNT", help="multiply-adds of one inference at most: 300M or 1.5G")
    ] = None,
    trials: Trials = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="tables (default); cprune: Algorithm 1 of the paper, task by task; to compare with: uniform or fpgm "
            "(every width by one share), one-shot or one-shot-inner (half of every width at once), netadapt"
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="decide by estimated latencies and tune only models that are kept: for devices that are slow to reach",
        ),
    ] = False,
    train_time: Annotated[
        str | None, typer.Option(help="training in all, 20m say; default: what suits model, data and machine")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="of the pruned model: fp32, bf16, fp16, int8, or auto: the fastest that loses little"),
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(help="which channels matter: elimination, l1, l2, fpgm, taylor or random"),
    ] = None,
    ignore: Ignore = None,
    whole_heads: WholeHeads = False,
    strict: Strict = False,
    max_steps: Annotated[int | None, typer.Option(help="stop after so many tried steps")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; options given here win")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="run folder, default runs/MODEL-TIME")] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="train nothing: show what could be had, at which forecast loss, and how long it would take; "
            "`cprune resume DIR` goes on from there",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Prune a model: never slower, never below the accuracy asked for.

    Without any option the built-in model is pruned on the built-in data for this machine; it may lose one point of
    accuracy, and the fastest model that keeps it is looked for.  With --max-latency, --speedup, --max-params or
    --max-macs, alone or together, it is the most accurate model that meets them all; if none does and keeps the
    accuracy, the fastest that keeps it is delivered, with a note and exit code 1.  --plan says before any training
    what can be had.  Ctrl-C leaves a run that `cprune resume DIR` goes on with.
    """
    from cprune import api
    from cprune.method.settings import drop, share

    if min_acc is not None and max_drop is not None:
        raise UserError("--min-acc and --max-drop exclude each other", "Give one of them.")
    settings = settings_of(
        toml_values(config) if config else {},
        min_acc=share(min_acc) if min_acc is not None else None,
        max_drop=drop(max_drop) if max_drop is not None else None,
        confidence=share(confidence) if confidence is not None else None,
        max_latency_ms=milliseconds(max_latency) if max_latency is not None else None,
        speedup=times(speedup) if speedup is not None else None,
        max_params=count(max_params) if max_params is not None else None,
        max_macs=count(max_macs) if max_macs is not None else None,
        trials=trials,
        seed=options.seed,
        importance=importance,
        method=method,
        precision=precision,
        estimate=estimate,
        train_time_s=duration(train_time) if train_time is not None else None,
        max_steps=max_steps,
        ignore=ignore,
        whole_heads=whole_heads,
        strict=strict,
    )
    if data is None and options.source.spec != BUILT_IN:
        raise UserError(
            f"which data should {options.source.spec} be pruned on?", "Give --data, for example --data folder:DIR"
        )
    with show.progress() as progress:
        folder, result = api.run(
            source=options.source,
            data=data,
            target=options.target,
            out=out,
            records=options.records,
            settings=settings,
            progress=progress,
            on_step=_say_step,
            plan=plan,
        )
    if plan:
        _planned(folder, result, as_json)
    else:
        _finished(folder, result, as_json)


def resume(
    directory: Annotated[Path, typer.Argument(help="a run folder")],
    rpc_tracker: Tracker = None,
    device_timeout: DeviceTimeout = None,
    speedup: Speedup = None,
    max_latency: MaxLatency = None,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped, killed or cut off, or only planned; nothing measured is measured again.

    With --speedup or --max-latency one more model is trained when the run is over, at that speed, from the tables that
    it kept.  It is certified after all others and listed in front.json; `cprune export DIR --pick 2x` writes it.  The
    model that the run delivered stays what it is, and so do its settings.
    """
    from cprune import api
    from cprune.method.further import Wish

    if speedup is not None and max_latency is not None:
        raise UserError("--speedup and --max-latency exclude each other here", "Give one of them.")
    wish = Wish(
        times(speedup) if speedup is not None else None,
        milliseconds(max_latency) if max_latency is not None else None,
    )
    timeout_s = duration(device_timeout) if device_timeout is not None else None
    with show.progress() as progress:
        folder, result = api.resume(
            directory,
            tracker=rpc_tracker or "",
            device_timeout_s=timeout_s,
            progress=progress,
            on_step=_say_step,
            wish=wish,
        )
    _finished(folder, result, as_json)


def report(directory: Annotated[Path, typer.Argument(help="a run folder, finished or not")]) -> None:
    """Write report.html and report.md of a run again and say where they are."""
    from cprune.runs.folder import RunFolder
    from cprune.runs.report import write_report

    folder = RunFolder.open(directory)
    write_report(folder)
    typer.echo(folder.report_html)


def _say_step(step: Step) -> None:
    groups = ", ".join(f"{g.id} {g.before}→{g.after}" for g in step.groups[:MOST_GROUPS])
    if len(step.groups) > MOST_GROUPS:
        groups += f" and {len(step.groups) - MOST_GROUPS} groups more"
    latency = f"{step.latency_ms.median:.3f} ms" if step.latency_ms else "not timed"
    accuracy = f"{step.accuracy:.2%}" if step.accuracy is not None else "not trained"
    mark = {"accepted": "+", "rejected": "-", "excluded": "x"}[step.verdict]
    print(
        f"{mark} step {step.index:3}  {step.task}: {groups}  {latency}, {accuracy}  {step.verdict}: {step.reason}",
        file=sys.stderr,
        flush=True,
    )


def _planned(folder: RunFolder, plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.json_object(plan)
    else:
        show.plan(plan)
        typer.echo(f"to go on: cprune resume {folder.path}")
    if plan["missed"]:
        raise typer.Exit(1)


def _finished(folder: RunFolder, result: dict[str, Any], as_json: bool) -> None:
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        show.json_object(result)
    else:
        show.run_result(result)
        typer.echo(f"report  {folder.report_html}\nmodel   cprune.load({str(folder.path)!r})")
    limits = result.get("limits", ())
    kept = result["status"] != "unpruned" or bool(limits)  # the unpruned model may meet them
    if not kept or not all(limit["met"] for limit in limits):
        raise typer.Exit(1)
