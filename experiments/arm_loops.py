"""Inner loops for Arm processors that nobody here has, held against the processor's peak by llvm-mca.

    python experiments/arm_loops.py --network resnet18 --candidates 24

Every distinct 3x3 and 1x1 convolution is compiled for each processor, in int8, bf16, fp16 and fp32, with candidates
drawn from its space. llvm-mca (Debian's package `llvm`) simulates the loop of each that holds most multiply-adds,
all loads hitting the cache; the fewest cycles a multiply-add stand in the table, as a share of the peak: the same
instruction alone, with 16 independent sums.  That is a statement about code and LLVM's model of a processor.  It is no
latency: memory, the loops around, threads and everything between layers are not in it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tvm

from cprune.compiling.lowered import Layout
from cprune.compiling.lowering import lower
from cprune.models.source import Source
from cprune.network.folding import folded
from cprune.network.halving import halved
from cprune.network.quantizing import quantized
from cprune.targets.target import Target, find
from cprune.tuner.programs import dots, program, space
from cprune.tuner.programs.describing import describe
from cprune.tuner.programs.workload import FMLA, Conv2d

CPUS = ("cortex-a55", "cortex-a76", "cortex-x1", "neoverse-n1", "neoverse-v1")
NETWORKS = {"resnet18": "experiments.networks:resnet18", "mobilenetv2": "experiments.networks:mobilenetv2"}
MULTIPLIES = {"fmla": 4, "fmul": 4, "sdot": 16, "usdot": 16, "bfdot": 8, FMLA: 8}
"""Multiply-adds of one instruction on a register of 128 bits."""
SUMS = 16
INSTRUCTION = re.compile(r"^\s+([a-z][a-z0-9.]*)\s*(.*?)\s*(?://.*)?$")


@dataclass(frozen=True)
class Loop:
    """The lines of a loop without another one inside, and its multiply-adds an iteration."""

    lines: tuple[str, ...]
    macs: int


def loops(assembly: str) -> Iterator[Loop]:
    """Yield every innermost loop of an assembly listing: from a label to a branch back to it, no label between."""
    label, body = "", list[str]()
    for line in assembly.splitlines():
        if line.startswith(".L") and ":" in line:
            label, body = line.split(":")[0], []
            continue
        found = INSTRUCTION.match(line)
        if not found or line.lstrip().startswith("."):
            continue
        body.append(f"{found[1]} {found[2]}")
        if found[1].startswith(("b.", "cbnz", "cbz", "tbnz", "tbz")) and found[2].split(",")[-1].strip() == label:
            yield Loop(tuple(body), sum(map(multiplied, body)))


def multiplied(line: str) -> int:
    """Return the multiply-adds of a line of assembly; whole registers only."""
    name, sums = line.replace(",", "").split()[:2] if " " in line.strip() else (line, "")
    if sums.endswith(".8h"):
        return MULTIPLIES[FMLA] if name in ("fmla", "fmul") else 0
    return MULTIPLIES.get(name, 0) if sums.endswith(".4s") else 0


def cycles(lines: Sequence[str], mcpu: str, attributes: str) -> float:
    """Return llvm-mca's cycles an iteration."""
    command = ["llvm-mca", "-mtriple=aarch64", f"-mcpu={mcpu}", f"-mattr={attributes}", "-iterations=200", "-json"]
    told = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    (region,) = json.loads(told)["CodeRegions"]
    return float(region["SummaryView"]["TotalCycles"]) / 200


def peak(instruction: str, mcpu: str, attributes: str) -> float:
    """Return the cycles a multiply-add of an instruction alone."""
    factors = {4: "v16.4s, v17.4s", 8: "v16.8h, v17.8h", 16: "v16.16b, v17.16b"}[MULTIPLIES[instruction]]
    name, sums = ("fmla", "8h") if instruction == FMLA else (instruction, "4s")
    lines = [f"{name} v{i}.{sums}, {factors}" for i in range(SUMS)]
    return cycles(lines, mcpu, attributes) / (SUMS * MULTIPLIES[instruction])


def best(workload: Conv2d, target: Target, mcpu: str, attributes: str, candidates: int, seed: int) -> float:
    """Return the fewest cycles a multiply-add over some candidates of a workload's space."""
    known = [each for each in space.of_target(workload, target) if not program.filtering(each)]
    drawn = random.Random(seed).sample(known, min(candidates, len(known)))
    found = []
    for candidate in drawn:
        module = program.module_of(workload, candidate)
        library = tvm.driver.build(module, tvm.target.Target(json.loads(target.compiler)))
        inner = max(loops(library.inspect_source("asm")), key=lambda loop: loop.macs, default=None)
        if inner is not None and inner.macs:
            found.append(cycles(inner.lines, mcpu, attributes) / inner.macs)
    return min(found, default=float("nan"))


def main() -> None:
    """Print a table a network: shares of the peak, a line a layer, a column a processor and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet18")
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--cpus", nargs="+", default=list(CPUS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if shutil.which("llvm-mca") is None:
        raise SystemExit("llvm-mca is not there: apt install llvm")
    opened = Source(NETWORKS[given.network]).opened(given.seed)
    networks = {
        "fp32": folded(opened.network),
        "bf16": halved(opened.network, opened.example_inputs),
        "fp16": halved(opened.network, opened.example_inputs, precision="fp16"),
        "int8": quantized(opened.network, [opened.example_inputs]),
    }
    columns: dict[tuple[str, str], dict[str, float]] = {}
    for mcpu in given.cpus:
        target = find(f"linux-arm64:{mcpu}")
        for precision, network in networks.items():
            dot = dots.of_target(target, precision)
            if precision != "fp32" and not dot:
                continue
            attributes = "+neon" + (f",+{dots.DOTS[dot].features[0]}" if dot else "")
            most = peak(dot or "fmla", mcpu, attributes)
            calls = lower(network, opened.example_inputs, Layout(max(8, target.vector), dot=dot)).calls
            column = columns.setdefault((mcpu, f"{precision} {dot}".strip()), {"peak, macs a cycle": 1 / most})
            for call in calls:
                w = call.workload
                if isinstance(w, Conv2d) and not w.depthwise and w.in_channels > 4:
                    text = re.sub(r" (int8|bf16|fp16)| \+ residual", "", describe(w))
                    if text not in column:
                        column[text] = most / best(w, target, mcpu, attributes, given.candidates, given.seed)
            shares = [share for name, share in column.items() if not name.startswith("peak")]
            print(f"{mcpu:12} {precision:5} {dot:6} {1 / most:5.1f} multiply-adds a cycle at most, shares: median "
                  f"{statistics.median(shares):.2f}, lowest {min(shares):.2f}", flush=True)  # fmt: skip
    print()
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    print(
        f"{given.network + ', share of the peak':34}"
        + "".join(f"{mcpu[-6:] + ' ' + what:>16}" for mcpu, what in columns)
    )
    for name in names:
        print(f"{name:34}" + "".join(f"{column.get(name, float('nan')):16.2f}" for column in columns.values()))


if __name__ == "__main__":
    main()
