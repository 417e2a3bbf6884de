"""`cprune export` and `cprune verify`: the pruned model as a bundle for its device, and the proof that it works there.

A bundle is a compiled folder (`cprune.compiling.deploy`) with a small C++ runner that needs TVM's runtime only.  A
finished run keeps the program of every task in `programs.json`, so that it is exported without its device.
"""

from __future__ import annotations

import importlib.resources
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cprune.compiling import deploy
from cprune.compiling.lowered import Layout, Lowered
from cprune.compiling.lowering import lower
from cprune.compiling.relax_module import relax_model
from cprune.compiling.tuned import opened_tuner, tune
from cprune.method.settings import Settings
from cprune.network import saving as networks
from cprune.network.difference import COMPILED_TOLERANCE, difference
from cprune.network.network import Network
from cprune.network.node import tensors_of
from cprune.progress import Progress
from cprune.runs.folder import RunFolder
from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.interval import Interval, interval
from cprune.targets.session import Array, Failure, Model
from cprune.targets.target import Target, find, from_dict
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Shape

EXAMPLE_SEED = 0
ROUNDS, RUN_S = 20, 0.02
RUNNER = ("runner.cpp", "CMakeLists.txt", "README.md")


def example_of(network: Network, shapes: Sequence[Shape]) -> deploy.Example:
    """Return a random input and what PyTorch makes of it."""
    rng = np.random.default_rng(EXAMPLE_SEED)
    inputs = tuple(rng.standard_normal(shape, np.float32) for shape in shapes)
    with torch.no_grad():
        outputs = tensors_of(network.eval()(*(torch.from_numpy(x) for x in inputs)))
    return deploy.Example(inputs, tuple(output.numpy() for output in outputs))


def export(
    directory: Path, target: Target | None, out: Path, seed: int, records: str | None, progress: Progress
) -> dict[str, Any]:
    """Write the bundle of a finished run, or of what `cprune tune` wrote, into `out`; return what was written.

    Without a `target`, or with the one of the run, nothing is measured and no device is needed.  For another target the
    model is tuned there first.  Raises UserError where `out` holds something, or `directory` is neither.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty", "Give another folder with --out")
    if (directory / "run.json").exists():
        told = _of_run(directory, target, out, seed, records, progress)
    else:
        told = _of_compiled(directory, target, out)
    source = importlib.resources.files("cprune") / "commands" / "runner"
    for name in RUNNER:
        text = (source / name).read_text(encoding="utf-8")
        for word, value in (("@THREADS@", told["target"]["threads"]), ("@MODEL@", told["model"]),
                            ("@TARGET@", told["target"]["name"])):  # fmt: skip
            text = text.replace(word, str(value))
        (out / name).write_text(text, encoding="utf-8")
    return {"model": told["model"], "target": told["target"]["name"], "folder": str(out),
            "files": sorted(path.name for path in out.iterdir())}  # fmt: skip


def _of_run(
    directory: Path, target: Target | None, out: Path, seed: int, records: str | None, progress: Progress
) -> dict[str, Any]:
    folder = RunFolder.open(directory)
    if not folder.programs.exists():
        raise UserError(f"the run in {directory} is not finished", f"Go on with it: cprune resume {directory}")
    network, config = networks.load(folder.path), folder.config()
    stored = deploy.read_programs(folder.programs)
    where = _stored_target(stored["target"], str(folder.programs))
    shapes = [tuple(shape) for shape in stored["inputs"]]
    if target is None or target.name == where.name:
        lowered, model = _again(network, shapes, stored, folder.programs)
    else:
        examples = tuple(torch.zeros(shape) for shape in shapes)
        settings = Settings.from_dict(config["settings"])
        with opened_tuner(target, records or folder.records, seed, progress) as (_, tuner):
            tuned = tune(network, examples, tuner, settings.trials, progress)
            lowered, where, model = tuned.lowered, tuner.target, tuned.compiled()
    progress.say("compiling")
    deploy.write(out, config["model"], lowered, model, where, example_of(network, shapes), {"run": directory.name})
    return {"model": config["model"], "target": where.to_dict()}


def _again(network: Network, shapes: Sequence[Shape], stored: Mapping[str, Any], path: Path) -> tuple[Lowered, Model]:
    try:
        layout = Layout(int(stored["layout"]["block"]), tuple(map(int, stored["layout"]["narrow"])))
        lowered = lower(network, [torch.zeros(shape) for shape in shapes], layout)
        programs = {task: Candidate.parse(text) for task, text in stored["programs"].items()}
        return lowered, relax_model(lowered, {task.key: programs[task.key] for task in lowered.tasks()})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not fit the model beside it ({type(error).__name__}: {error})") from error


def _stored_target(stored: Any, where: str) -> Target:
    """Return the target as it was described, also if it was this machine: the code was made for that one."""
    if not isinstance(stored, dict):
        raise UserError(f"{where} is damaged: it does not say for which machine it is")
    return from_dict(stored, where)


def _of_compiled(directory: Path, target: Target | None, out: Path) -> dict[str, Any]:
    told, _ = deploy.read(directory)
    deploy.read_example(directory)
    if target is not None and target.name != told["target"]["name"]:
        raise UserError(
            f"{directory} was compiled for {told['target']['name']}, not for {target.name}",
            f"Tune it for that machine: cprune tune -m {told['model']} --target {target.name}",
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in ("model.so", "weights.safetensors", "model.json", "example.safetensors"):
        shutil.copy2(directory / name, out / name)
    return {"model": told["model"], "target": told["target"]}


# -- verify


def verify(bundle: Path, target: Target | None, tracker: str, progress: Progress) -> dict[str, Any]:
    """Run a bundle on its device, over the transport that tuned it, and compare with what PyTorch computed.

    Returns `ok`, the largest difference and the latency.  Raises UserError for a bundle that is damaged, BrokenWorld
    where the device cannot run it.
    """
    told, weights = deploy.read(bundle)
    example = deploy.read_example(bundle)
    stored = from_dict(told["target"], str(bundle / "model.json"))
    if target is not None and target.transport != stored.transport:
        raise UserError(f"{bundle} is for {stored.name}, not for {target.name}", f"Type --target {stored.name}")
    if target is not None:
        stored = replace(stored, tracker=target.tracker, key=target.key, device_timeout_s=target.device_timeout_s)
    stored = replace(stored, tracker=tracker or stored.tracker)
    if stored.transport == "local":
        outputs, latency, cpu = _here(bundle, stored, example)
    else:
        outputs, latency, cpu = _there(bundle, stored, weights, example, progress)
    apart = difference(outputs, example.outputs)
    return {
        "ok": apart <= COMPILED_TOLERANCE,
        "model": told["model"],
        "target": stored.name,
        "device": cpu,
        "max_difference": apart,
        "latency_ms": latency.to_dict(),
    }


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
