"""How many models of torchvision and timm can be pruned, and whether pruning computes what masking does.

    python experiments/zoo_coverage.py --libraries DIR --zoo torchvision --json torchvision.jsonl
    python experiments/zoo_coverage.py --libraries DIR --zoo timm --json timm.jsonl

DIR holds both libraries (`pip install --no-deps --target DIR torchvision timm pillow huggingface_hub safetensors
pyyaml`); it comes last on the search path, so torch stays the one cprune uses.  No weights are loaded: they are drawn,
batch normalisation gets statistics of its own, and scales that start at zero are moved away from it.

Of torchvision: all classifiers and segmentation models, and the backbones of all detection models.  Of timm: `--count`
models drawn with `--seed` from `timm.list_models()`.  Each runs in a process of its own with limits on time and memory;
a model that is in the JSON file already is not run again.  Inputs have the native size; a model that takes any size and
is natively larger than 300 gets 224.

A row says `pruned` if groups were found and one pruning of a random 30 % of every group computes what masking does;
`wrong` if it computes something else; `no groups`; `refused` (a UserError); `exception`; `time`, `memory`: the limits;
`not built`: the library itself cannot make it here.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import fnmatch
import importlib
import json
import random
import resource
import subprocess
import sys
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

LARGEST, SMALLER = 300, 224
FLOAT_TOLERANCE, DOUBLE_TOLERANCE = 1e-4, 1e-8


def main() -> None:
    """Run the models that are not in the JSON file yet, one line each, and print the counts of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", required=True, help="folder with torchvision and timm")
    parser.add_argument("--zoo", required=True, choices=("torchvision", "timm"))
    parser.add_argument("--models", default="*", metavar="GLOB", help="several by commas, in that order")
    parser.add_argument("--count", type=int, default=100, help="timm models to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no model after so many")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds per model")
    parser.add_argument("--memory-limit", type=float, default=16, help="GB of address space per model")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch and of the compiled model")
    parser.add_argument("--captured", type=Path, default=None, help="folder to keep captured networks in")
    parser.add_argument("--compile", action="store_true", help="also compile the pruned network; slow")
    parser.add_argument("--integers", action="store_true", help="compile it in int8")
    parser.add_argument("--again", default="", help="statuses to run again, by commas")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        limit = int(given.memory_limit * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print(json.dumps(examine(given)))
        return
    drop(given.json, given.again.split(","))
    done = {row["model"] for row in rows_of(given.json)}
    globs = given.models.split(",")
    names = [name for glob in globs for name in names_of(given) if fnmatch.fnmatch(name, glob)]
    start = time.perf_counter()
    for name in names:
        if name in done or time.perf_counter() - start > given.seconds:
            continue
        row = in_a_child(given, name)
        done.add(name)
        with given.json.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(line(row), flush=True)
    print(table(rows_of(given.json), len(names_of(given))))


def in_a_child(given: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return the row of one model, examined in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
    start = time.perf_counter()
    row: dict[str, Any] = {"model": name, "kind": name.partition(":")[0] if ":" in name else "classifier"}
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=given.time_limit)
        found = last_row(child.stdout)
        if found:
            row |= found
        else:
            end = (child.stderr.strip().splitlines() or [""])[-1]
            row |= {"status": "memory" if "emory" in end or child.returncode < 0 else "exception", "detail": end}
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        row |= last_row(said) or {"status": "time", "detail": f"longer than {given.time_limit:.0f} s"}
    return row | {"total_s": round(time.perf_counter() - start, 1)}


def last_row(said: str) -> dict[str, Any]:
    """Return the last row that a child printed, {} if there is none."""
    found = [text for text in said.splitlines() if text.startswith("{") and text.endswith("}")]
    return dict(json.loads(found[-1])) if found else {}


# ----------------------------------------------------------------------------------------------------
# One model


def examine(given: argparse.Namespace) -> dict[str, Any]:
    """Return what came of one model: the status and what led to it."""
    import torch

    from cprune.targets.errors import UserError

    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    row: dict[str, Any] = {}
    try:
        model, size = built(given.zoo, given.one, given.libraries)
    except Exception as error:
        return {"status": "not built", "detail": f"{type(error).__name__}: {error}"[:300]}
    try:
        row |= {"size": size, "parameters": sum(p.numel() for p in model.parameters())}
        return row | pruned(given, model, (torch.randn(1, 3, size, size),), row)
    except UserError as error:
        return row | {"status": "refused", "detail": error.message[:300]}
    except MemoryError:
        return row | {"status": "memory", "detail": "MemoryError"}
    except Exception as error:
        if "alloc" in str(error) and "memory" in str(error):
            return row | {"status": "memory", "detail": str(error)[:100]}
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(where.filename).name}:{where.lineno}"
        return row | {"status": "exception", "detail": f"{type(error).__name__} at {at}: {error}"[:300]}


def pruned(given: argparse.Namespace, model: Any, inputs: tuple[Any, ...], about: dict[str, Any]) -> dict[str, Any]:
    """Return what became of a model: groups, frozen share, seconds, the difference between pruned and masked."""
    import torch

    from cprune.channels.groups import analyse
    from cprune.channels.surgery import prune

    clock = Clock()
    network = captured(given, model, inputs)
    seconds = {"capture": clock.lap()}
    graph = analyse(network, inputs)
    seconds["analyse"] = clock.lap()
    chosen = random.Random(zlib.crc32(given.one.encode()) + given.seed)
    removed = {
        group.id: chosen.sample(range(group.channels), min(group.channels - 1, max(1, round(0.3 * group.channels))))
        for group in graph.groups
    }
    smaller = prune(network, graph, removed)
    seconds["prune"] = clock.lap()
    row = {"groups": len(graph.groups), "layers": len(graph.layers), "seconds": seconds, **shares(graph)}
    if not graph.groups:
        return {**row, "status": "no groups"}
    error, effect = difference(network, smaller, graph, removed, inputs)
    if error > FLOAT_TOLERANCE:  # rounding or a mistake?  Doubles tell
        doubles = tuple(x.double() for x in inputs)
        error, effect = difference(network.double(), smaller.double(), graph, removed, doubles)
        row["doubles"] = True
    seconds["check"] = clock.lap()
    fine = error <= (DOUBLE_TOLERANCE if "doubles" in row else FLOAT_TOLERANCE)
    after = sum(p.numel() for p in smaller.parameters())
    row |= {"status": "pruned" if fine else "wrong", "error": error, "effect": effect, "parameters_after": after}
    if given.compile and fine:
        smaller.float()
        # What is known by now is not lost if compiling takes too long.
        print(json.dumps({**about, **row, "compiled": "not within the limits"}), flush=True)
        with torch.no_grad():
            row["compiled"] = compiled(smaller, inputs, given.threads, given.integers)
        seconds["compile"] = clock.lap()
    return row


def captured(given: argparse.Namespace, model: Any, inputs: tuple[Any, ...]) -> Any:
    """Return the model as a Network; with --captured, from the file that an earlier run left."""
    from cprune.network.capture import capture
    from cprune.network.saving import load, save

    if given.captured is None:
        return capture(model, inputs)
    folder = given.captured / given.one.replace(":", "_")
    if (folder / "model.json").exists():
        return load(folder)
    network = capture(model, inputs)
    save(network, folder)
    return network


def difference(network: Any, smaller: Any, graph: Any, removed: Any, inputs: Any) -> tuple[float, float]:
    """Return how far pruned is from masked, and masked from whole: largest difference over largest magnitude."""
    import torch
    from torch.utils._pytree import tree_leaves

    from cprune.channels.surgery import masked

    with torch.no_grad():
        found, wanted, whole = (
            [leaf.double() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
            for output in (smaller(*inputs), masked(network, graph, removed, *inputs), network(*inputs))
        )

    def furthest(a: list[Any], b: list[Any]) -> float:
        return max(
            float("inf") if one.shape != two.shape or not one.isfinite().all() or not two.abs().max() > 0
            else float((one - two).abs().max() / two.abs().max())
            for one, two in zip(a, b, strict=True)
        )  # fmt: skip

    return furthest(found, wanted), furthest(whole, wanted)


def shares(graph: Any) -> dict[str, Any]:
    """Return how many output channels there are, how many of them are frozen, and the most frequent reasons."""
    import numpy as np

    free = np.concatenate([*graph.classes.values(), np.zeros(0, dtype=np.int64)])
    along = [graph.axes[layer.weight, layer.out_axis] for layer in graph.layers.values()]
    channels = sum(map(len, along))
    frozen = sum(int((~np.isin(labels, free)).sum()) for labels in along)
    why: collections.Counter[str] = collections.Counter()
    for one in graph.frozen:
        why[one.reason] += len(one.layers)
    return {"channels": channels, "frozen": frozen, "reasons": why.most_common(5)}


def compiled(network: Any, inputs: tuple[Any, ...], threads: int, integers: bool) -> str:
    """Return "equal", or how TVM's result differs or why there is none.

    Every task gets a program with a large tile for its vectors, untuned: this is about results, not about speed.  With
    `integers` the network is made one of integers before, with ranges from the input.
    """
    from cprune.compiling.lowered import Layout
    from cprune.compiling.lowering import lower
    from cprune.compiling.relax_module import relax_model
    from cprune.compiling.tuned import layout_in
    from cprune.network.difference import difference
    from cprune.network.precision import tolerance
    from cprune.network.quantizing import quantized
    from cprune.targets.errors import UserError
    from cprune.targets.local import LocalSession
    from cprune.targets.session import Failure
    from cprune.targets.target import Timing, find
    from cprune.tuner.programs import metaschedule, space
    from cprune.tuner.programs.workload import Tir

    target = dataclasses.replace(find("local", threads), timing=Timing(repeats=2, min_run_ms=0.2, deadline_s=120))
    if integers:
        network = quantized(network, [inputs]).eval()
    try:
        lowered = lower(network, inputs, layout_in("int8", target) if integers else Layout(target.vector))
    except UserError as error:
        return f"refused: {error.message}"[:200]
    programs = {}
    for task in lowered.tasks():
        foreign = isinstance(task.workload, Tir)
        made = (
            metaschedule.candidates(task.workload, target, 0, 0) if foreign else space.of_target(task.workload, target)
        )
        programs[task.key] = made[len(made) // 2]
    with LocalSession(target) as session:
        failed = session.load("model", relax_model(lowered, programs))
        output = failed or session.run("model", [x.numpy() for x in inputs])
    if isinstance(output, Failure):
        return f"failed: {output.stage}: {output.reason}"[:200]
    apart = difference(output, network.eval()(*inputs))
    return "equal" if apart <= tolerance(network) else f"differs by {apart:.1e}"


class Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last call, or since it was made."""
        before, self.last = self.last, time.perf_counter()
        return round(self.last - before, 2)


# ----------------------------------------------------------------------------------------------------
# The zoos


def names_of(given: argparse.Namespace) -> list[str]:
    """Return the zoo's models: torchvision's segmentation and detection models have their kind before the name."""
    import_libraries(given.libraries)
    if given.zoo == "timm":
        import timm

        return sorted(random.Random(given.seed).sample(sorted(timm.list_models()), given.count))
    from torchvision import models

    return [
        *models.list_models(module=models),
        *(f"segmentation:{name}" for name in models.list_models(module=models.segmentation)),
        *(f"backbone:{name}" for name in models.list_models(module=models.detection)),
    ]


def import_libraries(folder: str) -> None:
    """Put the libraries last on the path; without torchvision's compiled operators, declare the two it describes.

    Those belong to detection heads, which are not run here; torchvision does not import without them.
    """
    import torch

    if folder not in sys.path:
        sys.path.append(folder)
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


def built(zoo: str, name: str, folder: str) -> tuple[Any, int]:
    """Return a model of the zoo with weights that show, and the side of its input."""
    import_libraries(folder)
    model, size = of_timm(name) if zoo == "timm" else of_torchvision(name)
    settle(model.eval(), size)
    return model, size


def of_timm(name: str) -> tuple[Any, int]:
    """Return a timm model and the side of its input."""
    import timm

    model = timm.create_model(name, pretrained=False)
    config = model.pretrained_cfg
    native = int(config["input_size"][1])
    if native <= LARGEST or config.get("fixed_input_size"):
        return model, native
    return model, SMALLER


def of_torchvision(name: str) -> tuple[Any, int]:
    """Return a torchvision model, or the backbone of a detection model, and the side of its input."""
    from torchvision import models

    kind, _, bare = name.rpartition(":")
    more = {} if kind == "" else {"weights_backbone": None}
    if bare in ("googlenet", "inception_v3"):
        more = {"init_weights": True}
    model = models.get_model(bare, weights=None, **more)
    if kind:  # the last maps of SSD300's backbone are smaller than their kernels for smaller images
        return (model.backbone if kind == "backbone" else model), LARGEST if bare == "ssd300_vgg16" else SMALLER
    weights = models.get_model_weights(bare)
    native = next(iter(weights)).transforms().crop_size[0]
    return model, native if native <= LARGEST else SMALLER


def settle(model: Any, size: int) -> None:
    """Give weights that start at zero or next to it a size that shows, and batch normalisations statistics to fit."""
    import torch
    from torch import nn

    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point() or p.numel() == 0:
                continue
            if name.endswith("bias"):
                p.add_(0.1 * torch.randn_like(p))
            elif p.numel() == max(p.shape, default=1):  # a scale
                p.copy_(torch.rand_like(p) + 0.5)
            elif float(p.abs().max()) < 1e-3:
                p.copy_(0.02 * torch.randn_like(p))
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        try:
            model(torch.randn(2, 3, size, size))
        finally:
            model.eval()
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                if norm.running_var is None:
                    continue
                norm.running_var.clamp_(min=1e-2).mul_(torch.rand_like(norm.running_var) + 0.5)
                norm.running_mean.add_(0.1 * torch.randn_like(norm.running_mean))


# ----------------------------------------------------------------------------------------------------
# The table


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON file, none if it is not there."""
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def drop(path: Path, statuses: list[str]) -> None:
    """Take the rows with these statuses out of a JSON file."""
    rows = rows_of(path)
    kept = [row for row in rows if row["status"] not in statuses]
    if len(kept) < len(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))


def line(row: dict[str, Any]) -> str:
    """Return one row for people."""
    text = f"{row['model']:44} {row['status']:10}"
    if "groups" in row:
        share = row["frozen"] / max(1, row["channels"])
        seconds = row["seconds"]
        text += f" {row['size']:4} {row['groups']:4} groups {share:4.0%} frozen  "
        text += f"capture {seconds['capture']:5.1f} s  analyse+prune {seconds['analyse'] + seconds['prune']:5.1f} s"
    if "error" in row:
        text += f"  error {row['error']:.0e} effect {row['effect']:.0e}"
    return f"{text}  {row.get('compiled', '')} {row.get('detail', '')}".rstrip()


def table(rows: list[dict[str, Any]], wanted: int) -> str:
    """Return the counts for every kind of model, in Markdown."""
    counted = ("pruned", "wrong", "exception", "no groups", "refused", "time", "memory", "not built")
    lines = [
        f"{len(rows)} of {wanted} models",
        f"| kind | models | exported | with groups | {' | '.join(counted)} |",
        "|---" * (4 + len(counted)) + "|",
    ]
    for kind in sorted({row["kind"] for row in rows}):
        its = [row for row in rows if row["kind"] == kind]
        counts = [len(its), sum("groups" in row for row in its), sum(row.get("groups", 0) > 0 for row in its)]
        counts += [sum(row["status"] == status for row in its) for status in counted]
        lines.append(f"| {kind} | {' | '.join(map(str, counts))} |")
    told = [row["compiled"] for row in rows if "compiled" in row]
    if told:
        kinds = collections.Counter(text.partition(":")[0].partition(" by ")[0] for text in told)
        lines.append(f"pruned and compiled: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
