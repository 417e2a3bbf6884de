"""Which programs of TVM's space for CUDA does the compiler refuse, and who knows it before: TVM's verifier, or V?

    python -m experiments.cuda_validity --out cuda            records, hours; resumable (needs nvcc, and no GPU)
    python -m experiments.cuda_validity --out cuda --print    the tables of what is there

For some layers of ResNet-18 programs are drawn at random from MetaSchedule's space for CUDA, its verifier of GPU code
left out, and every one is compiled by nvcc for `--arch`.  `ptxas` refuses what needs more shared memory or threads in a
block than there are; of the rest it says registers, shared memory and spills.  TVM's verifier is a rule that people
wrote: it counts shared memory, threads and vectors in the lowered program.  V is the model of `cprune.tuner`; it learns
from some programs of the layer and sees what was decided in them, the sizes of tiles and the like, and nothing lowered.

right       share of the other programs that are told apart rightly
forbidden   of those that compile, how many are called bad
missed      of those that do not, how many are called good
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cprune.tuner.programs.metaschedule import drawn as points_of
from cprune.tuner.programs.space import Candidate
from cprune.tuner.search import cost_model
from cprune.tuner.search.cost_model import Samples
from cprune.tuner.search.features import knobs
from experiments.npu_against_rtl import workload

LAYERS = ("C1", "C4", "C5", "C8", "C11")
"""By the names of `npu_against_rtl.py`."""
REASONS = ("", "shared memory", "threads", "timeout", "other")
TIMEOUT_S = 60.0
SIZES = (25, 50, 100)
TARGET = {
    "kind": "cuda",
    "arch": "sm_80",
    "max_threads_per_block": 1024,
    "max_shared_memory_per_block": 49152,
    "thread_warp_size": 32,
    "registers_per_block": 65536,
}


@dataclass(frozen=True)
class Drawn:
    """A program: its trace, what TVM's verifier says, why nvcc refused it, and what ptxas says of it."""

    trace: str
    verified: bool
    reason: str
    registers: int = 0
    shared: int = 0
    spilled: int = 0
    seconds: float = 0.0


# ----------------------------------------------------------------------------------------------------
# Recording


def computation(layer: str) -> Any:
    """Return the float32 convolution of a layer, plain, as TVM's operator has it."""
    import tvm
    from tvm import te, topi

    w = workload(layer)
    x = te.placeholder((w.batch, w.in_channels, w.height, w.width), name="x")
    weight = te.placeholder((w.out_channels, w.in_channels, *w.kernel), name="weight")
    out = topi.nn.conv2d_nchw(x, weight, w.stride, w.pad, w.dilation)
    return tvm.IRModule({"main": te.create_prim_func([x, weight, out])})


def cuda_of(module: Any) -> str:
    """Return the CUDA source that TVM makes of a scheduled module; nothing is compiled, and no GPU needed."""
    import tvm

    built = tvm.driver.build(module, target=tvm.target.Target(TARGET, host="llvm"))
    return str(built.imports[0].inspect_source())


def judged(source: str, arch: str) -> dict[str, Any]:
    """Return what nvcc says of a source: reason, registers, shared memory, spills."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cu"
        path.write_text(source)
        command = ["nvcc", "-cubin", f"-arch={arch}", "-Xptxas", "-v", "-o", f"{folder}/kernel.cubin", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return {"reason": "timeout"}
    said = done.stdout + done.stderr
    if done.returncode:
        return {"reason": reason_of(said)}
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
    shared, registers = re.search(r"(\d+) bytes smem", said), re.search(r"Used (\d+) registers", said)
    return {
        "reason": "",
        "registers": int(registers[1]) if registers else 0,
        "shared": int(shared[1]) if shared else 0,
        "spilled": sum(spills),
    }


def reason_of(said: str) -> str:
    """Return why a source was refused, one of REASONS."""
    if "too much shared data" in said:
        return "shared memory"
    return "threads" if "launch" in said.lower() or "maxntid" in said or "threads" in said else "other"


def record(folder: Path, layer: str, count: int, seed: int, arch: str) -> None:
    """Compile programs of a layer until there are so many; the file grows line by line."""
    import tvm

    path = folder / f"{layer}.jsonl"
    known = len(path.read_text().splitlines()) if path.exists() else 0
    with path.open("a") as out:
        kind = tvm.target.Target(TARGET)
        points = points_of(computation(layer), kind, "cuda", seed, count, apart="VerifyGPUCode")
        for number, (trace, module, verified) in enumerate(points):
            if number >= count:
                return
            if number < known:
                continue
            start = time.perf_counter()
            try:
                said = judged(cuda_of(module), arch)
            except Exception as error:  # a program for which TVM makes no source fails as well
                said = {"reason": "other"}
                print(f"{layer} {number}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
            drawn = Drawn(trace, verified, seconds=round(time.perf_counter() - start, 3), **said)
            out.write(json.dumps(asdict(drawn)) + "\n")
            out.flush()


# ----------------------------------------------------------------------------------------------------
# Judging


def judgement(good: np.ndarray, called: np.ndarray) -> tuple[float, float, float]:
    """Return the shares of this file's head."""
    return (
        float(np.mean(good == called)),
        float(np.mean(~called[good])) if good.any() else float("nan"),
        float(np.mean(called[~good])) if (~good).any() else float("nan"),
    )


def of_v(drawn: Sequence[Drawn], size: int, seeds: int) -> list[tuple[float, float, float]]:
    """Return what V, which learnt from `size` programs, says of the others."""
    table = knobs([Candidate.of(trace=one.trace) for one in drawn])
    stage = np.array([REASONS.index(one.reason) for one in drawn])
    known = Samples(table, np.where(stage == 0, 0.0, np.nan), np.ones(len(drawn)), stage)
    found = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(drawn)).tolist()
        rest = order[size:]
        model = cost_model.validity(known.rows(order[:size]), seed)
        called = np.ones(len(rest), bool) if model is None else model(table.rows(rest)) >= 0.5
        found.append(judgement(stage[rest] == 0, called))
    return found


def report(folder: Path, seeds: int) -> None:
    """Print a line a layer and a judge."""
    print(f"{'layer':6}{'judge':18}{'programs':>10}{'refused':>9}{'right':>8}{'forbidden':>11}{'missed':>8}")
    for layer in LAYERS:
        path = folder / f"{layer}.jsonl"
        if not path.exists():
            continue
        drawn = [Drawn(**json.loads(line)) for line in path.read_text().splitlines()]
        good = np.array([not one.reason for one in drawn])
        rows = [("verifier", [judgement(good, np.array([one.verified for one in drawn]))])]
        rows += [(f"V after {size}", of_v(drawn, size, seeds)) for size in SIZES if size < len(drawn) / 1.5]
        for name, found in rows:
            right, forbidden, missed = (
                statistics.mean([v for v in column if v == v] or [float("nan")]) for column in zip(*found, strict=True)
            )
            print(f"{layer:6}{name:18}{len(drawn):10}{1 - good.mean():9.0%}{right:8.1%}{forbidden:11.1%}{missed:8.1%}")
        fine = [one for one in drawn if not one.reason]
        if fine:
            registers = statistics.median(one.registers for one in fine)
            why = {reason: sum(one.reason == reason for one in drawn) for reason in REASONS[1:]}
            print(
                f"      {registers:.0f} registers in the median of those that compile, "
                f"{sum(one.spilled > 0 for one in fine)} spill; refused for {why}; "
                f"{statistics.median(one.seconds for one in drawn):.1f} s a program"
            )


def main() -> int:
    """Record what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cuda"))
    parser.add_argument("--layers", nargs="*", default=LAYERS, choices=LAYERS)
    parser.add_argument("--count", type=int, default=200, help="programs of a layer")
    parser.add_argument("--arch", default="sm_80")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=10, help="of what V learns from")
    parser.add_argument("--print", action="store_true", help="compile nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for layer in () if args.print else args.layers:
        record(args.out, layer, args.count, args.seed, args.arch)
    report(args.out, args.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
