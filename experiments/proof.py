"""Every method on every model with equal seconds of training and equal trials: what each gives at one point of loss.

    python experiments/proof.py --out proof --weights-dir WEIGHTS --cifar cifar10jpeg.npz      # hours; may be stopped
    python experiments/proof.py --out proof --models resnet20 --methods tables one-shot --seeds 0 1 --train-time 10m
    python experiments/proof.py --out quick --quick                                            # below a minute

A run is `cprune run` in a folder of its own, OUT/MODEL.METHOD.SEED.  One that has a result is not run again, one that
was stopped is resumed; so the script can be killed at any time, and prints the table of what is there with `--print`.
`WEIGHTS` holds MODEL.safetensors (`experiments/train_cifar.py` writes them; of the two published ResNets
resnet20_cifar10jpeg.safetensors will do as well), `cifar10jpeg.npz` is made by `experiments/prepare_cifar.py`.  Models
without weights there are left out.  Torch-Pruning (`pip install torch-pruning`) runs through
`experiments/torch_pruning_peer.py`.  EfficientNet-Lite0 on its photographs is `photographs.py`.

How to read the table: speed-up and its 95 % interval are the unpruned over the pruned model, both tuned with equal
trials, timed in turns; accuracy is on the images of the report, which no decision saw.  "Elsewhere" is the share of the
training seconds in models that are not delivered; the forecast's error is the median of |measured / forecast - 1|.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cprune.cli.options import duration  # noqa: E402 (the folder above is on the path now)
from cprune.targets.errors import UserError  # noqa: E402 (the folder above is on the path now)
from experiments.proof_table import Row, row_of, told  # noqa: E402 (the folder above is on the path now)

if TYPE_CHECKING:
    from cprune.training.data import Data

PEERS = ("torch-pruning-norm", "torch-pruning-isomorphic")
METHODS = ("tables", "cprune", "uniform", "fpgm", "one-shot", "one-shot-inner", "netadapt", *PEERS)


@dataclass(frozen=True)
class Model:
    """What `-m` says, files with its weights (the first that is there counts), and minutes of training."""

    spec: str
    weights: tuple[str, ...]
    minutes: float

    @property
    def is_cifar(self) -> bool:
        """Tell whether it needs the images and the weights of this machine."""
        return bool(self.weights)


MODELS = {
    "built-in": Model("resnet-fashion", (), 5),
    "resnet20": Model("resnet20", ("resnet20_cifar10jpeg.safetensors", "resnet20.safetensors"), 15),
    "resnet56": Model("resnet56", ("resnet56_cifar10jpeg.safetensors", "resnet56.safetensors"), 25),
    "mobilenetv2": Model("mobilenetv2", ("mobilenetv2.safetensors",), 20),
    "vgg16": Model("vgg16_bn", ("vgg16.safetensors", "vgg16_bn.safetensors"), 20),
    "resnet18": Model("resnet18", ("resnet18.safetensors",), 30),
    "resnet32-wide": Model("experiments.train_cifar:resnet32_wide_model", ("resnet32-wide.safetensors",), 20),
}
CIFAR_STEPS = ROOT / "experiments" / "cifar.toml"
"""Algorithm 1 needs to be told that an epoch is long there; the others are run as they are."""

QUICK = """
trials = 1
loop_trials = 1
rounds = 3
run_ms = 0.5
beta = 1.0
max_drop = 1.0
ignore = ["conv1", "layer1.*", "layer2.*", "layer3.0.*", "linear"]
"""
QUICK_IMAGES, QUICK_SECONDS, QUICK_METHODS = 400, "2s", ("tables", "one-shot-inner")


def few() -> Data:
    """Return a few of the built-in images, for `-d experiments.proof:few`."""
    from cprune.training.data import load_data

    data, some = load_data("fashion-mnist", 0), slice(0, QUICK_IMAGES)
    parts = {part: getattr(data, part).take(some) for part in ("train", "decide", "certify", "report")}
    return replace(data, **parts)


@dataclass(frozen=True)
class Job:
    """One run: a method on a model with a seed, and what is typed for it."""

    model: str
    method: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    def command(self) -> list[str]:
        """Return what is typed: a new run, or the rest of one that was stopped."""
        peer = [str(ROOT / "experiments" / "torch_pruning_peer.py")]
        program = [sys.executable, *(peer if self.method in PEERS else ["-m", "cprune.cli"])]
        if (self.folder / "run.json").exists():
            return [*program, "resume", str(self.folder)]
        return [*program, "run", *self.arguments, "--out", str(self.folder)]

    def run(self) -> int:
        """Run it to its end, with what it prints in a file beside its folder; return its exit code."""
        paths = [str(ROOT), str(ROOT / "experiments"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.run(
                self.command(), cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            ).returncode

    @property
    def log(self) -> Path:
        """Return the file with what the run printed."""
        return self.folder.with_name(f"{self.folder.name}.log")


def jobs(given: argparse.Namespace) -> list[Job]:
    """Return all runs, one seed of everything before the next; what cannot be run is told on standard error."""
    found, out = [], given.out.resolve()
    for seed in given.seeds:
        for name in given.models:
            typed = _typed(name, given)
            if typed is None:
                continue
            for method in given.methods:
                steps = ("--config", str(CIFAR_STEPS)) if method == "cprune" and MODELS[name].is_cifar else ()
                arguments = (*typed, "--method", method, "--seed", str(seed), *steps)
                found.append(Job(name, method, seed, out / f"{name}.{method}.{seed}", arguments))
    return found


def _typed(name: str, given: argparse.Namespace) -> tuple[str, ...] | None:
    """Return what every method on a model is given; None where something is missing."""
    model = MODELS[name]
    typed = ["-m", model.spec, "--train-time", given.train_time or f"{model.minutes:g}m", "--precision", "fp32"]
    if given.threads:
        typed += ["--threads", str(given.threads)]
    if given.quick:
        config = given.out.resolve() / "quick.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(QUICK)
        return (*typed, "-d", "experiments.proof:few", "--config", str(config))
    if not model.is_cifar:
        return tuple(typed)
    folder = given.weights_dir
    weights = [folder / file for file in model.weights if (folder / file).exists()] if folder else []
    if not weights or given.cifar is None:
        print(f"{name} is left out: --weights-dir with {model.weights[0]} and --cifar are needed", file=sys.stderr)
        return None
    return (*typed, "--weights", str(weights[0].resolve()), "-d", f"npz:{given.cifar.resolve()}")


def rows(all_jobs: Iterable[Job]) -> list[Row]:
    """Return what the finished runs gave."""
    return [
        row_of(job.model, job.method, job.seed, job.folder) for job in all_jobs if (job.folder / "result.json").exists()
    ]


def run_all(all_jobs: Sequence[Job]) -> None:
    """Run what has no result yet, one after the other; a run that fails is told of, and the next one begins."""
    left = [job for job in all_jobs if not (job.folder / "result.json").exists()]
    for number, job in enumerate(left, start=1):
        print(f"{number} of {len(left)}: {job.folder.name}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        code = job.run()
        minutes = (time.perf_counter() - began) / 60
        what = "done" if code in (0, 1) else f"failed with exit code {code}, see {job.log}"
        print(f"  {what} after {minutes:.1f} min", file=sys.stderr, flush=True)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what was typed, with what `--quick` and a missing Torch-Pruning make of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-time", help="of every run, 20m say; default: by model, 5 to 30 minutes")
    parser.add_argument("--weights-dir", type=Path, help="folder with trained weights of the CIFAR models")
    parser.add_argument("--cifar", type=Path, help="their images, an .npz")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--print", action="store_true", help="run nothing, print the table of what is there")
    parser.add_argument("--quick", action="store_true", help="the built-in model, few images and seconds: to try it")
    given = parser.parse_args(arguments)
    given.methods = given.methods or list(QUICK_METHODS if given.quick else METHODS)
    if given.quick:
        given.models, given.seeds, given.train_time = ["built-in"], given.seeds[:1], given.train_time or QUICK_SECONDS
    if given.train_time is not None:
        try:
            duration(given.train_time)
        except UserError as error:
            parser.error(str(error))
    if not given.print and importlib.util.find_spec("torch_pruning") is None and set(PEERS) & set(given.methods):
        print("Torch-Pruning is not installed (pip install torch-pruning): left out", file=sys.stderr)
        given.methods = [method for method in given.methods if method not in PEERS]
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    given = parsed(arguments)
    all_jobs = jobs(given)
    if not given.print:
        run_all(all_jobs)
    found = rows(all_jobs)
    print(told(found))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    main()
