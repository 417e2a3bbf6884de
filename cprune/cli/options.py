"""What is typed, as values: the options that several commands share, and what they ask for.

Light: what a value is made with is imported when it is made.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cprune.targets.errors import UserError

if TYPE_CHECKING:
    from cprune.commands.request import Request
    from cprune.method.settings import Settings
    from cprune.models.source import Source
    from cprune.targets.target import Target

BUILT_IN = "resnet-fashion"

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help=f"a name from `cprune models` (default: {BUILT_IN}), a .pt2 or .onnx file, MODULE:FUNCTION (an nn.Module) "
        "or a run folder (its pruned model)",
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help="MODEL, as an option")]
Weights = Annotated[Path | None, typer.Option(help="trained weights: .safetensors, .pth, .pt or .th")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]N,C,H,W",
        help="an input's shape; NAME:=1.5 fixes its value; may be repeated",
    ),
]
TargetName = Annotated[
    str, typer.Option("--target", "-t", help="the machine to be fast on: a name from `cprune targets`, or a TOML file")
]
Tracker = Annotated[
    str | None,
    typer.Option(
        "--rpc-tracker",
        metavar="HOST:PORT",
        help="the tracker that knows the device; default: the target's, TVM_TRACKER_HOST and _PORT, or 127.0.0.1:9190",
    ),
]
DeviceTimeout = Annotated[
    str | None, typer.Option(help="how long to wait for a device that is gone: 90s or 10m; default 10m")
]
Threads = Annotated[int | None, typer.Option(help="threads of the compiled model; default: all cores")]
Seed = Annotated[int | None, typer.Option(help="everything random follows from it, default 0")]
Records = Annotated[
    str | None, typer.Option(help="tuning records: a file or a database URL; default: in the run folder")
]
Trials = Annotated[int | None, typer.Option(help="programs tried per task, default 32")]
Ignore = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB|TYPE", help="layers whose output channels stay: 'head.*' or Linear; may be repeated"),
]
WholeHeads = Annotated[
    bool, typer.Option("--whole-heads", help="of attention remove whole heads, not the width of all heads")
]
Strict = Annotated[bool, typer.Option("--strict", help="stop if there are channels that cannot be pruned")]
MaxLatency = Annotated[
    str | None, typer.Option(metavar="TIME", help="latency of the model at most: 3ms, 800us or 0.02s")
]
Speedup = Annotated[
    str | None, typer.Option(metavar="TIMES", help="how many times as fast as the model as it is, tuned: 2x or 2")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]


@dataclass(frozen=True)
class ModelOptions:
    """What every command about a model is told: the model, the machine, and what is random and recorded.

    `seed` and `records` are None where they were not given.
    """

    source: Source
    target: Target
    seed: int | None
    records: str | None

    def request(self, **settings: object) -> Request:
        """Return what a command is asked, with these settings; one that is None or False was not given."""
        from cprune.commands.request import Request

        return Request(self.source, self.target, settings_of({}, seed=self.seed, **settings), self.records)


def model_options(
    model: Model = None,
    model_option: ModelOption = None,
    weights: Weights = None,
    inputs: Inputs = None,
    target: TargetName = "local",
    rpc_tracker: Tracker = None,
    device_timeout: DeviceTimeout = None,
    threads: Threads = None,
    seed: Seed = None,
    records: Records = None,
) -> ModelOptions:
    """Return what these options say.  They are those of every command that `about_a_model` stands before."""
    from cprune.models.source import Source

    where = machine(target, rpc_tracker, device_timeout, threads)
    if model is not None and model_option is not None and model != model_option:
        raise UserError(f"two models: {model} and --model {model_option}", "Give one of them.")
    spec = next((name for name in (model, model_option) if name is not None), BUILT_IN)
    return ModelOptions(Source(spec, weights, *input_values(inputs or ())), where, seed, records)


def about_a_model(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the options of `model_options` before its own; it gets their value as first argument."""
    shared = inspect.signature(model_options, eval_str=True).parameters
    _, *own = inspect.signature(command, eval_str=True).parameters.values()

    @wraps(command)
    def called(**options: Any) -> None:
        command(model_options(**{name: options.pop(name) for name in shared}), **options)

    # What typer reads: the signature, and the annotations beside it.
    parameters = [*shared.values(), *own]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def machine(
    name: str, rpc_tracker: str | None = None, device_timeout: str | None = None, threads: int | None = None
) -> Target:
    """Return the target with what the options say of the way to it.  UserError where this machine needs no way."""
    from cprune.targets.target import find

    target = find(name, threads)
    if target.transport != "rpc":
        if rpc_tracker is not None or device_timeout is not None:
            option = "--rpc-tracker" if rpc_tracker is not None else "--device-timeout"
            raise UserError(f"{option} is about another machine", "Say which with --target; see: cprune targets")
        return target
    if rpc_tracker is not None:
        target = replace(target, tracker=rpc_tracker)
    if device_timeout is not None:
        target = replace(target, device_timeout_s=duration(device_timeout))
    return target


def other_machine(name: str | None, rpc_tracker: str | None) -> Target | None:
    """Return the target of the options, None where they leave it to what is on disk."""
    if name is not None:
        return machine(name, rpc_tracker)
    if rpc_tracker is not None:
        raise UserError("--rpc-tracker is about another machine", "Say which with --target")
    return None


def settings_of(values: Mapping[str, object], **options: object) -> Settings:
    """Return the settings of a file's `values`, with the options in their place that were given.

    An option that is None was not, and a flag that is False says nothing either: the file may have it.
    """
    from cprune.method.settings import Settings

    given = {name: value for name, value in options.items() if value is not None and value is not False}
    return Settings.from_dict({**values, **given})


def toml_values(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.  Raises UserError."""
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


def duration(text: str) -> float:
    """Return seconds for "90", "90s", "5m" or "1.5h".  Raises UserError for anything else."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{text!r} is no length of time", "Type 90, 90s, 5m or 1h.")
    return seconds


def milliseconds(text: str) -> float:
    """Return milliseconds for "3ms", "800us" or "0.02s".  Raises UserError for anything else."""
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    unit = next((name for name in units if text.endswith(name)), "")
    value = _number(text.removesuffix(unit)) if unit else None
    if value is None:
        raise UserError(f"{text!r} is no latency", "Type 3ms, 800us or 0.02s.")
    return value * units[unit]


def times(text: str) -> float:
    """Return 2.0 for "2x" and for "2".  Raises UserError for what is no number above 1."""
    value = _number(text.removesuffix("x"))
    if value is None or value <= 1:
        raise UserError(f"{text!r} is no speed-up", "Type 2x: twice as fast as the model as it is, tuned.")
    return value


def count(text: str) -> int:
    """Return 1500000 for "1.5M", by k, M and G for thousands, millions and billions.  Raises UserError."""
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    value = _number(text[:-1]) if text[-1:] in units else _number(text)
    if value is None:
        raise UserError(f"{text!r} is no count", "Type 300k, 1.5M or 2G.")
    return round(value * units.get(text[-1:], 1))


def _number(text: str) -> float | None:
    """Return a number above nothing, None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def input_values(texts: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, float]]:
    """Return the shapes that `--input NAME=1,3,32,32` (or without a name) says, and the values of `--input NAME:=1.5`.

    Raises UserError.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    fixed: dict[str, float] = {}
    for text in texts:
        if ":=" in text:
            name, _, value = text.partition(":=")
            try:
                fixed[name] = float(value) if "." in value or "e" in value else int(value)
            except ValueError:
                raise UserError(f"--input {text}: no number", "Type --input NAME:=16000") from None
            continue
        name, _, sizes = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise UserError(f"--input {text}: no shape", "Type --input 1,3,32,32 or --input NAME=1,3,32,32")
        if name in shapes:
            raise UserError(f"--input {text}: that input has a shape already")
        shapes[name] = shape
    return shapes, fixed
