"""The commands.  Heavy imports stand inside them, so that `--help` answers at once.

Standard output carries results (one JSON object with --json), standard error everything else.  Exit codes: 0 done,
1 done but no pruned model keeps the promise, 2 an error that the message explains, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cprune import __version__
from cprune.cli import devices as cli_devices
from cprune.cli import records as cli_records
from cprune.cli.options import DeviceTimeout, Json, TargetName, Tracker, machine
from cprune.targets.errors import CpruneError, UserError

if TYPE_CHECKING:
    from cprune.method.settings import Settings
    from cprune.models.source import Source
    from cprune.runs.events import Step

BUILT_IN = "resnet-fashion"
INTERRUPTED = 130  # what shells expect of a command ended by Ctrl-C

app = typer.Typer(
    name="cprune",
    help="Prune a trained CNN until its compiled code is faster on your device, at the accuracy you ask for.",
    epilog="Start with: cprune run",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_records.app, name="records")
app.add_typer(cli_devices.app, name="devices")
app.command("tracker")(cli_devices.tracker_command)
app.command("doctor")(cli_devices.doctor_command)
app.command("export")(cli_devices.export_command)
app.command("verify")(cli_devices.verify_command)

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help=f"a name from `cprune models` (default: {BUILT_IN}), a .pt2 or .onnx file, MODULE:FUNCTION (an nn.Module) "
        "or a run folder (its pruned model)",
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help="MODEL, as an option")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]N,C,H,W",
        help="an input's shape; NAME:=1.5 fixes its value; may be repeated",
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB|TYPE", help="layers whose output channels stay: 'head.*' or Linear; may be repeated"),
]
Strict = Annotated[bool, typer.Option("--strict", help="stop if there are channels that cannot be pruned")]
WholeHeads = Annotated[
    bool, typer.Option("--whole-heads", help="of attention remove whole heads, not the width of all heads")
]
Weights = Annotated[Path | None, typer.Option(help="trained weights: .safetensors, .pth, .pt or .th")]
DataSpec = Annotated[
    str | None,
    typer.Option("--data", "-d", help="fashion-mnist, npz:FILE, folder:DIR, cifar10:DIR or MODULE:FUNCTION"),
]
Threads = Annotated[int | None, typer.Option(help="threads of the compiled model; default: all cores")]
Trials = Annotated[int | None, typer.Option(help="programs tried per task, default 32")]
Seed = Annotated[int | None, typer.Option(help="everything random follows from it, default 0")]
Records = Annotated[
    str | None, typer.Option(help="tuning records: a file or a database URL; default: in the run folder")
]


@app.command("run")
def run_command(
    model: Model = None,
    model_option: ModelOption = None,
    weights: Weights = None,
    inputs: Inputs = None,
    data: DataSpec = None,
    target: TargetName = "local",
    rpc_tracker: Tracker = None,
    device_timeout: DeviceTimeout = None,
    min_acc: Annotated[str | None, typer.Option(help="accuracy to keep on the test set: 0.7 or 70%")] = None,
    max_drop: Annotated[str | None, typer.Option(help="accuracy that may be lost, default 1%")] = None,
    trials: Trials = None,
    seed: Seed = None,
    threads: Threads = None,
    importance: Annotated[
        str | None, typer.Option(help="which channels matter: l1 (default), l2, fpgm, taylor or random")
    ] = None,
    ignore: Ignore = None,
    whole_heads: WholeHeads = False,
    strict: Strict = False,
    max_steps: Annotated[int | None, typer.Option(help="stop after so many tried steps")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; options given here win")] = None,
    records: Records = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="run folder, default runs/MODEL-TIME")] = None,
    as_json: Json = False,
) -> None:
    """Prune a model: never slower, never below the accuracy asked for.

    Without any option the built-in model is pruned on the built-in data for this machine; it may lose one point of
    accuracy.  Ctrl-C leaves a run that `cprune resume DIR` goes on with.
    """
    from cprune import api
    from cprune.method.settings import share

    values: dict[str, Any] = _toml(config) if config else {}
    given = {
        "min_acc": share(min_acc) if min_acc is not None else None,
        "max_drop": share(max_drop) if max_drop is not None else None,
        "trials": trials,
        "seed": seed,
        "importance": importance,
        "max_steps": max_steps,
        "ignore": ignore,
        "whole_heads": whole_heads,
        "strict": strict,
    }
    if min_acc is not None and max_drop is not None:
        raise UserError("--min-acc and --max-drop exclude each other", "Give one of them.")
    settings = _settings(values, **given)
    source = _source(model, model_option, weights, inputs)
    if data is None and source.spec != api.DEFAULT_MODEL.spec:
        raise UserError(f"which data should {source.spec} be pruned on?", "Give --data, for example --data folder:DIR")
    folder, result = api.run(
        source=source,
        data=data,
        target=machine(target, rpc_tracker, device_timeout),
        threads=threads,
        out=out,
        records=records,
        settings=settings,
        progress=_progress(),
        on_step=_say_step,
    )
    _finished(folder.path, result, as_json)


@app.command()
def resume(
    directory: Annotated[Path, typer.Argument(help="a run folder")],
    rpc_tracker: Tracker = None,
    device_timeout: DeviceTimeout = None,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped, killed or cut off; nothing measured is measured again."""
    from cprune import api
    from cprune.method.settings import duration

    timeout_s = duration(device_timeout) if device_timeout is not None else None
    folder, result = api.resume(
        directory,
        tracker=rpc_tracker or "",
        device_timeout_s=timeout_s,
        progress=_progress(),
        on_step=_say_step,
    )
    _finished(folder.path, result, as_json)


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="a run folder, finished or not")]) -> None:
    """Write report.html and report.md of a run again and say where they are."""
    from cprune.runs.folder import RunFolder
    from cprune.runs.report.sections import write_report

    folder = RunFolder.open(directory)
    write_report(folder)
    typer.echo(folder.report_html)


@app.command()
def explain(
    model: Model = None,
    model_option: ModelOption = None,
    weights: Weights = None,
    inputs: Inputs = None,
    target: TargetName = "local",
    rpc_tracker: Tracker = None,
    device_timeout: DeviceTimeout = None,
    trials: Trials = None,
    threads: Threads = None,
    seed: Seed = None,
    ignore: Ignore = None,
    whole_heads: WholeHeads = False,
    strict: Strict = False,
    records: Records = None,
    graph: Annotated[
        Path | None,
        typer.Option(help="also write the network with all this in it: .graphml, .dot (Graphviz) or .json (node-link)"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show channel groups, what is frozen and why, tasks with their latency and channel step."""
    from cprune.commands import explain as inspect_model

    settings = _settings(trials=trials, seed=seed, ignore=ignore, whole_heads=whole_heads, strict=strict)
    where = machine(target, rpc_tracker, device_timeout)
    source = _source(model, model_option, weights, inputs)
    told = inspect_model.explain(source, where, threads, settings, records, _progress(), graph)
    if as_json:
        typer.echo(json.dumps(told))
    else:
        inspect_model.show(told)
    if graph is not None:
        print(f"graph in {graph}", file=sys.stderr)


@app.command()
def check(
    model: Model = None,
    model_option: ModelOption = None,
    weights: Weights = None,
    inputs: Inputs = None,
    target: TargetName = "local",
    rpc_tracker: Tracker = None,
    device_timeout: DeviceTimeout = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="also compare the compiled code")] = True,
    threads: Threads = None,
    seed: Seed = None,
    ignore: Ignore = None,
    whole_heads: WholeHeads = False,
    strict: Strict = False,
    records: Records = None,
    as_json: Json = False,
) -> None:
    """Prove on this model that pruning is right: every group pruned equals masked, compiled code equals PyTorch.

    Exit code 1 if something differs.
    """
    from cprune.commands import check as checking

    settings = _settings(trials=1, seed=seed, ignore=ignore, whole_heads=whole_heads, strict=strict)
    where = machine(target, rpc_tracker, device_timeout)
    source = _source(model, model_option, weights, inputs)
    told = checking.check(source, where, threads, settings, records, compiled, _progress())
    if as_json:
        typer.echo(json.dumps(told))
    else:
        checking.show(told)
    if told["failed"]:
        raise typer.Exit(1)


@app.command()
def bench(
    model: Model = None,
    model_option: ModelOption = None,
    weights: Weights = None,
    inputs: Inputs = None,
    target: TargetName = "local",
    rpc_tracker: Tracker = None,
    device_timeout: DeviceTimeout = None,
    trials: Trials = None,
    threads: Threads = None,
    seed: Seed = None,
    records: Records = None,
    rounds: Annotated[int, typer.Option(help="interleaved rounds")] = 30,
    as_json: Json = False,
) -> None:
    """Time the tuned model against ONNX Runtime and PyTorch: in turns, same threads, with intervals.

    MODEL may be a run folder: then the pruned model is timed.
    """
    from cprune.commands import bench as benchmark

    settings = _settings(trials=trials, seed=seed)
    where = machine(target, rpc_tracker, device_timeout)
    source = _source(model, model_option, weights, inputs)
    told = benchmark.bench(source, where, threads, settings, records, rounds, _progress())
    if as_json:
        typer.echo(json.dumps(told))
    else:
        benchmark.show(told)


@app.command()
def tune(
    model: Model = None,
    model_option: ModelOption = None,
    weights: Weights = None,
    inputs: Inputs = None,
    target: TargetName = "local",
    rpc_tracker: Tracker = None,
    device_timeout: DeviceTimeout = None,
    trials: Trials = None,
    time_limit: Annotated[
        str | None, typer.Option(help="propose nothing new after so long: 90, 90s, 5m or 1h; default: no limit")
    ] = None,
    space: Annotated[str, typer.Option(help="sketch, or metaschedule for TVM's generic space")] = "sketch",
    search: Annotated[
        str | None, typer.Option(help="who proposes: random, evolutionary, P (default), P+A, P+V or P+V+A")
    ] = None,
    threads: Threads = None,
    seed: Seed = None,
    records: Records = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder to write, default compiled/MODEL")] = None,
    as_json: Json = False,
) -> None:
    """Tune a model as it is and write it compiled: model.so, its weights, and what it was compiled for.

    In Python: model = cprune.open_compiled(DIR); model(image).  Nothing is pruned.
    """
    from cprune.commands import tune as tune_model
    from cprune.method.settings import duration

    settings = _settings(trials=trials, seed=seed)
    limit = duration(time_limit) if time_limit is not None else float("inf")
    where = machine(target, rpc_tracker, device_timeout)
    source = _source(model, model_option, weights, inputs)
    folder = out or Path("compiled") / source.spec.replace(":", "-").replace("/", "-")
    told = tune_model.tune(source, where, threads, settings, records, space, search, limit, folder, _progress())
    if as_json:
        typer.echo(json.dumps(told))
        return
    ms = told["latency_ms"]
    typer.echo(
        f"{told['model']}: {ms['median']:.3f} ms [{ms['low']:.3f}, {ms['high']:.3f}], {told['threads']} threads, "
        f"{told['tasks']} tasks, {told['trials']} new trials\nwritten to {told['folder']}"
    )


@app.command()
def profile(
    model: Model = None,
    model_option: ModelOption = None,
    weights: Weights = None,
    inputs: Inputs = None,
    target: TargetName = "local",
    rpc_tracker: Tracker = None,
    device_timeout: DeviceTimeout = None,
    trials: Trials = None,
    widths: Annotated[int, typer.Option(min=1, help="widths of every task, at most")] = 12,
    width_trials: Annotated[int, typer.Option(min=1, help="programs tried per narrower width")] = 12,
    threads: Threads = None,
    seed: Seed = None,
    records: Records = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="also write profile.json, latency.csv and an SVG per task here")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how latency falls with the width of every layer: the staircase, with the step that keeps the program."""
    from cprune.commands import profile as profiling

    settings = _settings(trials=trials, seed=seed)
    options = profiling.Options(widths, width_trials)
    where = machine(target, rpc_tracker, device_timeout)
    source = _source(model, model_option, weights, inputs)
    told = profiling.profile(source, where, threads, settings, records, options, _progress())
    if as_json:
        typer.echo(json.dumps(told))
    else:
        profiling.show(told)
    if out is not None:
        written = profiling.write(told, out)
        print(f"{len(written)} files in {out}", file=sys.stderr)


@app.command("models")
def models_command(as_json: Json = False) -> None:
    """List the models that cprune knows by name."""
    from cprune.models import zoo

    rows = [
        {"name": m.name, "input": list(m.input_shape), "weights": m.weights, "description": m.description}
        for m in zoo.models()
    ]
    if as_json:
        typer.echo(json.dumps({"models": rows}))
        return
    table = _table("name", "input", "weights", "what it is")
    for row in rows:
        size = "x".join(str(n) for n in row["input"])  # type: ignore[attr-defined]
        table.add_row(str(row["name"]), size, "built in" if row["weights"] else "--weights", str(row["description"]))
    _print(table)


@app.command("targets")
def targets_command(as_json: Json = False) -> None:
    """List the machines that can be pruned for, and what this one is."""
    from cprune.targets.presets import CPUS, KINDS, no_cuda
    from cprune.targets.target import find, names

    rows = [find(name).to_dict() for name in names()]
    if as_json:
        processors = {kind: list(made.cpus) for kind, made in KINDS.items()}
        typer.echo(json.dumps({"targets": rows, "processors": processors, "missing": {"cuda": no_cuda()}}))
        return
    table = _table("name", "reached", "processor", "threads", "float lanes")
    for row in rows:
        how = "here" if row["transport"] == "local" else f"tracker, key {row['key']}"
        table.add_row(row["name"], how, row["cpu"], str(row["threads"]), str(row["vector"]))
    table.add_row("cuda", "not at all", no_cuda(), "", "")
    _print(table)
    table = _table("processor", "threads", "what it is")
    for name, cpu in CPUS.items():
        table.add_row(name, str(cpu.cores), cpu.about)
    _print(table)
    typer.echo("With a processor: --target android-arm64:cortex-a76. A TOML file for your own: docs/devices.md")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cprune {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    pass


# --- what the commands share -----------------------------------------------------------------------------------


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return values
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error


def _source(model: str | None, model_option: str | None, weights: Path | None, inputs: list[str] | None) -> Source:
    """Return the source of the model that is named as an argument or with --model."""
    from cprune.models.source import Source, parsed

    if model is not None and model_option is not None and model != model_option:
        raise UserError(f"two models: {model} and --model {model_option}", "Give one of them.")
    spec = next((named for named in (model, model_option) if named is not None), BUILT_IN)
    return Source(spec, weights, *parsed(inputs or ()))


def _settings(values: dict[str, Any] | None = None, **given: Any) -> Settings:
    """Return the settings of a file, with what was given on the command line (None: nothing) in their place.

    A flag that was not given says nothing either: the file may have it.
    """
    from cprune.method.settings import Settings

    return Settings.from_dict(
        {**(values or {}), **{k: v for k, v in given.items() if v is not None and v is not False}}
    )


_shown: list[Any] = []  # the progress of this command, so that its bar is gone before the last message


def _progress() -> Any:
    from cprune.progress import of_terminal

    _shown[:] = [of_terminal()]
    return _shown[0]


def _say_step(step: Step) -> None:
    groups = ", ".join(f"{g.id} {g.before}→{g.after}" for g in step.groups)
    latency = f"{step.latency_ms.median:.3f} ms" if step.latency_ms else "not timed"
    accuracy = f"{step.accuracy:.2%}" if step.accuracy is not None else "not trained"
    mark = {"accepted": "+", "rejected": "-", "excluded": "x"}[step.verdict]
    print(
        f"{mark} step {step.index:3}  {step.task}: {groups}  {latency}, {accuracy}  {step.verdict}: {step.reason}",
        file=sys.stderr,
        flush=True,
    )


def _finished(folder: Path, result: dict[str, Any], as_json: bool) -> None:
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        from cprune.runs.report.sections import table as rows_of

        table = _table("", "before", "after")
        for row in rows_of(result):
            table.add_row(*row)
        _print(table)
        typer.echo(f"report  {folder / 'report.html'}\nmodel   cprune.load({str(folder)!r})")
    if result["status"] == "unpruned":
        raise typer.Exit(1)


def _table(*columns: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column)
    return table


def _print(what: Any) -> None:
    from rich.console import Console

    Console().print(what)


def main() -> None:
    """Run the command line; the entry point of the package."""
    code = _main(sys.argv[1:])
    sys.stdout.flush()
    sys.exit(code)


def _main(arguments: list[str]) -> int:
    try:
        code = _called(arguments)
    except CpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or 'a file of the run'}", file=sys.stderr)
        return 2
    except Exception as error:
        # A usage error of the parser: it knows how to show itself (which option, and the nearest one).  Its class is
        # not public in all versions of typer, what it can do is.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return 2
    if code == INTERRUPTED:  # some versions of typer return it, others raise
        print("\nstopped; nothing measured is lost. Go on with: cprune resume DIR", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _called(arguments: list[str]) -> Any:
    try:
        return app(arguments, prog_name="cprune", standalone_mode=False)
    finally:
        while _shown:
            _shown.pop().done()
