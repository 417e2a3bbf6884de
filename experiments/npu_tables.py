"""Record what comes of every program of the simulated accelerator, for ten layers of ResNet-18.

    python -m experiments.npu_tables --out experiments/npu_layers

Every configuration is lowered, walked and simulated; those that need more than a memory holds are executed and compared
with numpy, and a few of the others as well (`CHECKED` of them): an address that stays within its memory cannot go
wrong.  That is done for every preset, whose memories differ and whose cycles do not.  One file a layer holds the first
preset with all hidden features, one for each other preset only what fails there.  `multilevel.py` searches them.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from cprune.targets.npu.cycles import DEADLOCK, FAULT, LIMIT, cycles_of
from cprune.targets.npu.lower import lowered
from cprune.targets.npu.machine import PRESETS, VTA, NpuMachine
from cprune.targets.npu.session import executed
from cprune.targets.npu.stream import Stream
from cprune.targets.npu.walk import stream_of
from cprune.targets.session import arguments, forms
from cprune.tuner.programs import space
from cprune.tuner.programs.program import module_of
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import QuantizedConv2d, dtypes
from cprune.tuner.search.features import Machine
from experiments.npu_against_rtl import LAYERS, workload
from experiments.tables import Entry, Recorded

TEN = tuple(name for name in LAYERS if name != "C2")
"""The layers of ML^2Tuner's evaluation (arXiv 2411.10764), by the names of `npu_against_rtl.py`."""
CHECKED = 0.02
SCALED = ("use_input", "use_weight", "use_sums", "use_result")
"""Hidden features that are shares of a memory."""
MACHINE = Machine(16, 32, 1)


@dataclass(frozen=True)
class Found:
    """What came of a configuration: its cycles, hidden features, seconds, and how it fails on every preset."""

    candidate: Candidate
    cycles: float
    hidden: dict[str, float]
    build_s: float
    execute_s: float
    failures: dict[str, str]


class Layer:
    """One layer with its arguments and what they must give."""

    def __init__(self, name: str) -> None:
        self.name, self.workload = name, workload(name)
        self.forms = forms(self.workload.arguments(), dtypes(self.workload))
        self.arguments = arguments(self.forms, 0)
        self.sums = expected_sums(self.workload, self.arguments)

    def found(self, candidate: Candidate) -> Found:
        """Return what comes of a configuration."""
        start = time.perf_counter()
        stream = stream_of(lowered(main_of(self.workload, candidate)), VTA)
        cycles = cycles_of(stream, replace(VTA, limit_cycles=10**12))
        build_s, execute_s = time.perf_counter() - start, 0.0
        failures = {}
        look = random.Random(f"{self.name} {candidate.text()}").random() < CHECKED
        for name, machine in PRESETS.items():
            if cycles.end in (DEADLOCK, FAULT):
                failures[name] = "run"
            elif cycles.end == LIMIT or cycles.cycles > machine.limit_cycles:
                failures[name] = "timeout"
            elif look or not fits(stream, machine):
                start = time.perf_counter()
                sums = executed(stream, machine, self.arguments, self.forms)
                execute_s = time.perf_counter() - start
                wrong = not np.array_equal(sums, self.sums)
                if wrong and fits(stream, machine):
                    raise AssertionError(f"{self.name} {candidate.text()} fits and is wrong")
                if wrong:
                    failures[name] = "check"
        return Found(candidate, cycles.cycles, stream.facts, build_s, execute_s, failures)


def main_of(w: QuantizedConv2d, candidate: Candidate) -> object:
    """Return the module of a configuration with its function for the accelerator alone."""
    import tvm

    return tvm.IRModule({"main": module_of(w, candidate)["main"]})


def fits(stream: Stream, machine: NpuMachine) -> bool:
    """Tell whether no address of a program goes beyond its memory, and no micro-operation beyond theirs."""
    share = VTA.input_bytes / machine.input_bytes  # memories are scaled together
    uops = max(1, int(stream.facts["gemm_uops"]))
    return max(stream.facts[name] for name in SCALED) * share <= 1 and uops <= machine.uops


def expected_sums(w: QuantizedConv2d, given: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sums of a convolution by numpy, in the layout of its output."""
    x, weight, zero = given[0].astype(np.int64), given[1].astype(np.int64), int(given[-1][0])
    top, left, bottom, right = w.pad
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right), (0, 0)), constant_values=zero)
    blocks = weight.transpose(0, 1, 2, 3, 4, 6, 5)  # … four, k, out
    blocks = blocks.reshape(*blocks.shape[:4], w.in_block, w.out_block)
    out = np.zeros(w.arguments()[-1], np.int64)
    (sh, sw), (kh, kw) = w.stride, w.kernel
    for r in range(kh):
        for c in range(kw):
            part = x[:, :, r : r + sh * w.out_height : sh, c : c + sw * w.out_width : sw]
            out += np.einsum("nihwk,oikb->nohwb", part, blocks[:, :, r, c], optimize=True)
    return out.astype(np.int32)


_LAYERS: dict[str, Layer] = {}


def found(job: tuple[str, Candidate]) -> Found:
    """Return what comes of one configuration of a layer; in a process of its own."""
    name, candidate = job
    if name not in _LAYERS:
        _LAYERS.clear()
        _LAYERS[name] = Layer(name)
    return _LAYERS[name].found(candidate)


def save(folder: Path, name: str, all_found: Sequence[Found]) -> None:
    """Write the files of a layer."""
    typical = float(np.median([one.execute_s for one in all_found if one.execute_s]))
    entries = []
    for one in all_found:
        failure = one.failures.get("vta", "")
        runs = () if failure else (one.cycles / VTA.clock_hz,)
        entries.append(Entry(one.candidate, runs, failure, True, one.build_s, one.execute_s or typical, one.hidden))
    about = "every program of the simulated accelerator"
    Recorded(name, about, workload(name), MACHINE, tuple(entries)).save(folder / f"{name}.json.xz")
    others = {
        preset: {str(i): one.failures[preset] for i, one in enumerate(all_found) if preset in one.failures}
        for preset in PRESETS
        if preset != "vta"
    }
    cycles = {str(i): one.cycles for i, one in enumerate(all_found) if "vta" in one.failures}
    text = json.dumps({"failures": others, "cycles": cycles}, separators=(",", ":"))
    (folder / f"{name}.others.xz").write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def load(folder: Path, name: str, preset: str = "vta") -> Recorded:
    """Return the table of a layer on a preset."""
    table = Recorded.load(folder / f"{name}.json.xz")
    if preset == "vta":
        return table
    others = json.loads(lzma.decompress((folder / f"{name}.others.xz").read_bytes()))
    failures, scale = others["failures"][preset], VTA.input_bytes / PRESETS[preset].input_bytes
    entries = []
    for i, entry in enumerate(table.entries):
        failure = failures.get(str(i), "")
        hidden = {k: v * scale if k in SCALED else v for k, v in (entry.hidden or {}).items()}
        runs = () if failure else entry.runs_s or (others["cycles"][str(i)] / VTA.clock_hz,)
        entries.append(replace(entry, failure=failure, runs_s=runs, hidden=hidden))
    return table.part(entries)


def main() -> int:
    """Record the layers that have no file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/npu_layers"))
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("names", nargs="*", help="only these layers")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for name in args.names or TEN:
            if (args.out / f"{name}.json.xz").exists():
                continue
            start = time.perf_counter()
            points = space.candidates(workload(name), *MACHINE)
            all_found = list(pool.map(found, [(name, point) for point in points], chunksize=16))
            save(args.out, name, all_found)
            shares = {p: sum(p in one.failures for one in all_found) / len(all_found) for p in PRESETS}
            said = ", ".join(f"{preset} {share:.0%}" for preset, share in shares.items())
            print(f"{name}: {len(points)} programs in {time.perf_counter() - start:.0f} s; fail: {said}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
