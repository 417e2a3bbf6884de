"""The front door: `prune` and `load` for Python, `run` and `resume` for the command line.

All of them go through `cprune.method.whole_run`, and write one run folder (see `cprune.runs.folder`).
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cprune.method.further import NO_WISH, Wish
from cprune.method.result import versions
from cprune.method.settings import Settings
from cprune.method.subject import Subject, subject_of
from cprune.method.whole_run import only_plan, whole_run
from cprune.models.source import Source
from cprune.network import saving
from cprune.network.capture import capture
from cprune.progress import Progress
from cprune.runs.events import Step
from cprune.runs.folder import RunFolder
from cprune.targets.connect import connect
from cprune.targets.errors import BrokenWorld, UserError, front_door
from cprune.targets.interval import Interval
from cprune.targets.target import Target, find, from_dict
from cprune.training.trainer import CallableTrainer

__all__ = ["Result", "load", "prune", "resume", "run"]

DEFAULT_MODEL, DEFAULT_DATA = Source("resnet-fashion"), "fashion-mnist"
DEFAULTS = Settings()


@dataclass(frozen=True)
class Result:
    """What `prune` returns: the smaller model (a copy; yours is untouched), `result.json` as a dict, the folder."""

    model: nn.Module
    result: Mapping[str, Any]
    folder: Path | None

    @property
    def speedup(self) -> Interval:
        """Return unpruned latency / pruned latency, both tuned with equal trials and measured in turns."""
        return Interval.from_dict(self.result["speedup"])


@front_door
def load(folder: str | Path) -> nn.Module:
    """Return the pruned model of the run in `folder`, in evaluation mode.  Nothing is unpickled.

    Raises UserError if the folder is no run, the run has no model yet, or a file is damaged.
    """
    where = RunFolder.open(folder)
    if not where.model_json.exists():
        raise where.unfinished()
    return saving.load(where.path).eval()


@front_door
def prune(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    evaluate: Callable[[nn.Module], float],
    train: Callable[[nn.Module], object] | None = None,
    test: Callable[[nn.Module], float] | None = None,
    calibrate: Callable[[nn.Module], object] | None = None,
    target: str | Target = "local",
    threads: int | None = None,
    min_acc: float | str | None = None,
    out: str | Path | None = None,
    records: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Prune `model` until the accuracy limit and return the faster model with the measurements that prove it.

    `evaluate(model)` returns the accuracy that decisions are made on, in [0, 1], with images that the model was not
    trained on; `test(model)` the one that is promised and reported (default: the same).  `train(model)` fine-tunes in
    place: one call for a step that is fast enough and one at the end.  `example_inputs` is what one inference gets; its
    shape is what is tuned and timed.
    `min_acc` is the accuracy to keep, 0.7 or "70%"; without it one point may be lost (`max_drop`).  `out` keeps the
    run in a folder that `cprune report` reads; `settings` are those of `cprune.method.settings.Settings`.

    Raises UserError for arguments that make no sense and for a model that cannot be exported.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    chosen = Settings.from_dict({**settings, "min_acc": min_acc})
    if chosen.importance == "taylor":
        raise UserError('importance="taylor" needs gradients', "Use the command with --data, or another importance.")
    where = find(target, threads)
    trainer = CallableTrainer(evaluate, train, test, calibrate)
    network = capture(model, inputs)
    shown = progress or Progress()
    with tempfile.TemporaryDirectory(prefix="cprune-") as scratch, connect(where, shown.wait, shown.say) as machine:
        config = _config(type(model).__name__, "functions", Source(""), machine[1], chosen, records)
        folder = RunFolder.create(out if out is not None else Path(scratch) / "run", config)
        subject = Subject(config["model"], network, inputs, trainer)
        result, pruned = whole_run(folder, subject, *machine, chosen, shown, lambda _: None)
        return Result(pruned, result, folder.path if out is not None else None)


@front_door
def run(
    *,
    source: Source = DEFAULT_MODEL,
    data: str | None = None,
    target: str | Target = "local",
    threads: int | None = None,
    out: Path | None = None,
    records: str | None = None,
    settings: Settings = DEFAULTS,
    progress: Progress | None = None,
    on_step: Callable[[Step], None] = lambda _: None,
    plan: bool = False,
) -> tuple[RunFolder, dict[str, Any]]:
    """Start a run in a new folder and return the folder and its `result.json`.

    With `plan` it stops where the first round is planned, and what it plans is returned; `resume` goes on.
    """
    where = find(target, threads)
    spec = data or DEFAULT_DATA
    subject = subject_of(source, spec, where, settings)
    shown = progress or Progress()
    with connect(where, shown.wait, shown.say) as machine:
        config = _config(subject.name, spec, source, machine[1], settings, records)
        config["names"] = [list(subject.input_names), list(subject.output_names)]
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        folder = RunFolder.create(out or Path("runs") / f"{subject.name.replace(':', '.')}-{stamp}", config)
        shown.say(f"run folder {folder.path}")
        try:
            if plan:
                return folder, only_plan(folder, subject, *machine, settings, shown)
            result, _ = whole_run(folder, subject, *machine, settings, shown, on_step)
        except UserError:
            if not folder.journal.exists():  # nothing was measured: the folder may be used again
                shutil.rmtree(folder.path)
            raise
        except BrokenWorld as error:
            raise BrokenWorld(f"{error}\nWhat was measured is kept. Go on with: cprune resume {folder.path}") from error
    return folder, result


@front_door
def resume(
    path: Path,
    *,
    tracker: str = "",
    device_timeout_s: float | None = None,
    progress: Progress | None = None,
    on_step: Callable[[Step], None] = lambda _: None,
    wish: Wish = NO_WISH,
) -> tuple[RunFolder, dict[str, Any]]:
    """Go on with the run in `path`: nothing that was accepted or measured is done again.

    With a `wish` one more model is trained when the run is over, a point more of its `front.json`.  `tracker` and
    `device_timeout_s` replace what the run was started with.
    """
    folder = RunFolder.open(path)
    config = folder.config()
    try:
        settings = Settings.from_dict(config["settings"])
        stored, data, source = config["target"], config["data"], Source.from_dict(config)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder.run_json} is no configuration of a run ({error} is missing)") from error
    if data == "functions":
        raise UserError(f"{path} was started from Python; its functions are not stored", "Call cprune.prune again.")
    where = _stored_target(stored, folder)
    where = replace(
        where, tracker=tracker or where.tracker, device_timeout_s=device_timeout_s or where.device_timeout_s
    )
    if where.transport != "rpc":
        _must_be(where, stored, path)
    subject = subject_of(source, data, where, settings)
    shown = progress or Progress()
    with connect(where, shown.wait, shown.say) as machine:
        _must_be(machine[1], stored, path)
        result, _ = whole_run(folder, subject, *machine, settings, shown, on_step, wish)
    return folder, result


def _must_be(found: Target, stored: Mapping[str, Any], path: Path) -> None:
    """Raise UserError if this is not the machine that a run was measured on."""
    if found.fingerprint == stored["fingerprint"]:
        return
    here = f"the device under the key {found.key!r}" if found.transport == "rpc" else "this machine"
    raise UserError(
        f"{here} is not the one that {path} was measured on ({stored['cpu']}, {stored['threads']} threads); "
        f"it is {found.cpu}",
        "Resume it there, or start a new run here.",
    )


def _stored_target(stored: Any, folder: RunFolder) -> Target:
    """Return the target of a `run.json`: this machine is looked at again, another one is taken as it was described."""
    try:
        if stored.get("transport", "local") != "rpc":
            return find(stored["name"], stored["threads"])
        return from_dict(stored, str(folder.run_json))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder.run_json} is no configuration of a run (its target is damaged: {error})") from error


def _config(
    name: str,
    data: str,
    source: Source,
    target: Target,
    settings: Settings,
    records: str | Path | None,
) -> dict[str, Any]:
    return {
        "model": name,
        **source.to_dict(),
        "data": data,
        "target": target.to_dict(),
        "records": str(records) if records else None,
        "settings": settings.to_dict(),
        "seed": settings.seed,
        "versions": versions(),
    }
