"""`cprune export` and `cprune verify`: the pruned model as a bundle for its device, and the proof that it works there.

A bundle is a compiled folder (`cprune.compiling.deploy`) with a small C++ runner that needs TVM's runtime only.  A
finished run keeps the program of every task in `programs.json`, so that it is exported without its device.
"""

from __future__ import annotations

import importlib.resources
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cprune.commands.picking import Pick, Picked, delivered, picked
from cprune.compiling import deploy
from cprune.compiling.lowered import Layout, Lowered
from cprune.compiling.lowering import lower
from cprune.compiling.relax_module import relax_model
from cprune.compiling.tuned import opened_tuner, tune
from cprune.method.settings import Settings
from cprune.models.formats.write import save
from cprune.models.source import of_run
from cprune.network import saving
from cprune.network.difference import COMPILED_TOLERANCE, difference
from cprune.network.network import Network
from cprune.network.node import tensors_of
from cprune.network.precision import TOLERANCES, precision
from cprune.progress import Progress
from cprune.runs.folder import RunFolder, read_programs
from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.interval import Interval, interval
from cprune.targets.session import Array, Failure, Model
from cprune.targets.target import Target, find, from_dict
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Shape

EXAMPLE_SEED = 0
ROUNDS, RUN_S = 20, 0.02
RUNNER = ("runner.cpp", "CMakeLists.txt", "README.md")


@dataclass(frozen=True)
class Tuning:
    """How a model is tuned for another machine: from which seed, and where its records are (None: the run's own)."""

    seed: int = 0
    records: str | None = None


@dataclass(frozen=True)
class Bundle:
    """What was written: the files of `folder` by name."""

    model: str
    target: str
    folder: Path
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what `cprune export --json` prints."""
        return {"model": self.model, "target": self.target, "folder": str(self.folder), "files": self.files}


def export(
    directory: Path, out: Path, target: Target | None, tuning: Tuning, progress: Progress, pick: Pick | None = None
) -> Bundle:
    """Write the bundle of a finished run, or of what `cprune tune` wrote, into `out`.

    With a `pick` it is another model of the run's front than the one that it delivered.

    Without a `target`, or with the one of the run, nothing is measured and no device is needed.  For another target the
    model is tuned there first.  Raises UserError where `out` holds something, or `directory` is neither.
    """
    must_be_new(out)
    if (directory / "run.json").exists():
        run = RunFolder.open(directory)
        model, device = _of_run(run, _chosen(run, pick, progress), target, out, tuning, progress)
    elif pick is not None:
        raise UserError(f"{directory} is no run folder", "--pick is about the models of a run of cprune run.")
    else:
        model, device = _of_compiled(directory, target, out)
    runner = importlib.resources.files("cprune") / "commands" / "runner"
    for name in RUNNER:
        text = (runner / name).read_text(encoding="utf-8")
        for word, value in (("@THREADS@", str(device.threads)), ("@MODEL@", model), ("@TARGET@", device.name)):
            text = text.replace(word, value)
        (out / name).write_text(text, encoding="utf-8")
    return Bundle(model, device.name, out, tuple(sorted(path.name for path in out.iterdir())))


def must_be_new(out: Path) -> None:
    """Raise UserError where a folder to write holds something already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty", "Give another folder with --out")


def example_of(network: Network, shapes: Sequence[Shape]) -> deploy.Example:
    """Return a random input and what PyTorch makes of it."""
    rng = np.random.default_rng(EXAMPLE_SEED)
    inputs = tuple(rng.standard_normal(shape, np.float32) for shape in shapes)
    with torch.no_grad():
        outputs = tensors_of(network.eval()(*(torch.from_numpy(x) for x in inputs)))
    return deploy.Example(inputs, tuple(output.numpy() for output in outputs))


def write_model(directory: Path, out: Path, pick: Pick | None = None, progress: Progress | None = None) -> float:
    """Write the pruned model of a run, not compiled, into a `.pt2` or `.onnx` file; return its largest difference.

    With a `pick` it is another model of the run's front than the one that it delivered.

    Raises UserError where `directory` is no finished run, or see `cprune.models.formats.write.save`.
    """
    if not (directory / "run.json").exists():
        raise UserError(f"{directory} is no run folder", f"A {out.suffix} file is written from a run of cprune run.")
    opened = of_run(directory)
    if pick is not None:
        chosen = picked(RunFolder.open(directory), pick)
        _warn(chosen, progress or Progress())
        opened = replace(opened, model=saving.load(chosen.folder))
    return save(opened.network, opened.example_inputs, out, opened.input_names, opened.output_names)


def _chosen(run: RunFolder, pick: Pick | None, progress: Progress) -> Picked:
    chosen = delivered(run) if pick is None else picked(run, pick)
    _warn(chosen, progress)
    return chosen


def _warn(chosen: Picked, progress: Progress) -> None:
    if chosen.warning:
        progress.say(f"warning: {chosen.warning}")


def _of_run(
    run: RunFolder, chosen: Picked, target: Target | None, out: Path, tuning: Tuning, progress: Progress
) -> tuple[str, Target]:
    """Write a compiled model of a run; return its name and the machine that it is for."""
    network, config = saving.load(chosen.folder), run.config()
    stored = read_programs(chosen.programs)
    if not isinstance(stored["target"], dict):
        raise UserError(f"{chosen.programs} is damaged: it does not say for which machine it is")
    # The machine as it was described, also if it was this one: the programs were made for that one.
    device = from_dict(stored["target"], str(chosen.programs))
    shapes = [tuple(shape) for shape in stored["inputs"]]
    if target is None or target.name == device.name:
        lowered, model = _again(network, shapes, stored, chosen.programs)
    else:
        example = tuple(torch.zeros(shape) for shape in shapes)
        settings = Settings.from_dict(config["settings"])
        with opened_tuner(target, tuning.records or run.records, tuning.seed, progress) as (_, tuner):
            tuned = tune(network, example, tuner, settings.trials, progress)
            lowered, device, model = tuned.lowered, tuner.target, tuned.compiled()
    progress.say("compiling")
    about = {"run": run.path.name, "precision": precision(network)}
    deploy.write(out, config["model"], lowered, model, device, example_of(network, shapes), about)
    return config["model"], device


def _again(network: Network, shapes: Sequence[Shape], stored: Mapping[str, Any], path: Path) -> tuple[Lowered, Model]:
    try:
        said = stored["layout"]
        layout = Layout(int(said["block"]), tuple(map(int, said["narrow"])), str(said.get("dot", "")))
        lowered = lower(network, [torch.zeros(shape) for shape in shapes], layout)
        programs = {task: Candidate.parse(text) for task, text in stored["programs"].items()}
        return lowered, relax_model(lowered, {task.key: programs[task.key] for task in lowered.tasks()})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not fit the model beside it ({type(error).__name__}: {error})") from error


def _of_compiled(directory: Path, target: Target | None, out: Path) -> tuple[str, Target]:
    """Copy a compiled folder; return the model's name and the machine that it is for."""
    facts, _ = deploy.read(directory)
    deploy.read_example(directory)
    device = from_dict(facts["target"], str(directory / "model.json"))
    if target is not None and target.name != device.name:
        raise UserError(
            f"{directory} was compiled for {device.name}, not for {target.name}",
            f"Tune it for that machine: cprune tune -m {facts['model']} --target {target.name}",
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in ("model.so", "weights.safetensors", "model.json", "example.safetensors"):
        shutil.copy2(directory / name, out / name)
    return facts["model"], device


# -- verify


@dataclass(frozen=True)
class Verified:
    """Whether a bundle computes what PyTorch did, on which processor it ran, and how fast."""

    ok: bool
    model: str
    target: str
    device: str
    max_difference: float
    latency_ms: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return what `cprune verify --json` prints."""
        return {
            "ok": self.ok,
            "model": self.model,
            "target": self.target,
            "device": self.device,
            "max_difference": self.max_difference,
            "latency_ms": self.latency_ms.to_dict(),
        }


def verify(bundle: Path, target: Target | None, tracker: str, progress: Progress) -> Verified:
    """Run a bundle on its device, over the transport that tuned it, and compare with what PyTorch computed.

    Raises UserError for a bundle that is damaged, BrokenWorld where the device cannot run it.
    """
    facts, weights = deploy.read(bundle)
    example = deploy.read_example(bundle)
    device = from_dict(facts["target"], str(bundle / "model.json"))
    if target is not None and target.transport != device.transport:
        raise UserError(f"{bundle} is for {device.name}, not for {target.name}", f"Type --target {device.name}")
    if target is not None:
        device = replace(device, tracker=target.tracker, key=target.key, device_timeout_s=target.device_timeout_s)
    device = replace(device, tracker=tracker or device.tracker)
    if device.transport == "local":
        outputs, latency_ms, cpu = _here(bundle, device, example)
    else:
        outputs, latency_ms, cpu = _there(bundle, device, weights, example, progress)
    apart = difference(outputs, example.outputs)
    tolerance = TOLERANCES.get(str(facts.get("precision")), COMPILED_TOLERANCE)
    return Verified(apart <= tolerance, facts["model"], device.name, cpu, apart, latency_ms)


def _here(bundle: Path, target: Target, example: deploy.Example) -> tuple[Sequence[Array], Interval, str]:
    here = find("local", target.threads)
    if here.fingerprint != target.fingerprint:
        raise UserError(f"{bundle} was compiled for another machine ({target.cpu}), this one is {here.cpu}")
    model = deploy.open_compiled(bundle)
    outputs = model(*example.inputs)
    runs = []
    for _ in range(ROUNDS):
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < RUN_S:
            model(*example.inputs)
            calls += 1
        runs.append(1e3 * (time.perf_counter() - start) / calls)
    return outputs, interval(runs), here.cpu


def _there(
    bundle: Path, target: Target, weights: tuple[Array, ...], example: deploy.Example, progress: Progress
) -> tuple[Sequence[Array], Interval, str]:
    from cprune.targets.remote.rpc import RpcSession

    with RpcSession(target, progress.wait, progress.say) as session:
        failed = session.hold("model", bundle / "model.so", weights)
        output = failed or session.run("model", example.inputs)
        runs = (
            {} if isinstance(output, Failure) else session.time_models(("model",), example.inputs, ROUNDS, 1e3 * RUN_S)
        )
        for answer in (output, runs):
            if isinstance(answer, Failure):
                raise BrokenWorld(f"the model does not work on {target.name} ({answer.stage}): {answer.reason}")
        assert not isinstance(output, Failure)
        assert not isinstance(runs, Failure)
        return list(output), interval([1e3 * run for run in runs["model"]]), session.target.cpu
