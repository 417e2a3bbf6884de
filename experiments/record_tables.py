"""Record tables of tasks, to compare search strategies on without a device: `ablation.py`, tests/tables.

    python experiments/record_tables.py --out tests/tables                  the tasks
    python experiments/record_tables.py --out tests/tables/widths --widths  20 pruned widths of five tasks

Of each task all points of the tool's own space are built and timed (at most OWN random ones), and random points of a
wider one without the hand-written limits (tiles of few accumulators, tiles that do not fit the registers, the whole
kernel unrolled) up to POINTS in all.  Every output is compared with the first one's.  What somebody else disturbed is
timed again: a table is what strategies are judged by.  `--minutes` stops early; the next call goes on.

Two builds run at a time, while nothing is timed.  Take a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cprune.targets.session import arguments
from cprune.targets.target import find
from cprune.tuner.programs import space
from cprune.tuner.programs.space import Candidate, divisors
from cprune.tuner.programs.workload import Conv2d, Dense, Workload, key
from cprune.tuner.search.assembly import hidden
from cprune.tuner.search.features import Machine
from experiments.tables import Entry, Recorded

POINTS, OWN, WIDTH_POINTS = 400, 300, 160
BATCH = 8
REPEATS, RUN_S = 7, 3e-3
QUIET, VISITS = 0.03, 4
DEADLINE_S = 120.0


def conv(side: int, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Conv2d:
    """Return a convolution with ReLU on a square plane, in blocks of 16."""
    pad = (kernel // 2,) * 4
    return Conv2d(
        batch=1,
        in_channels=inputs,
        height=side,
        width=side,
        out_channels=outputs,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pad=pad,
        dilation=(1, 1),
        groups=groups,
        residual=False,
        activation="relu",
        in_block=16,
        out_block=16,
    )


TASKS: dict[str, Workload] = {
    "conv3x3-16-at-32": conv(32, 16, 16, 3),
    "conv3x3-32-at-16": conv(16, 32, 32, 3),
    "conv3x3-64-at-8": conv(8, 64, 64, 3),
    "conv3x3s2-64-128-at-56": conv(56, 64, 128, 3, 2),
    "conv1x1-256-512-at-14": conv(14, 256, 512, 1),
    "depthwise3x3-192-at-14": conv(14, 192, 192, 3, groups=192),
    "dense-512-1000": Dense(1, 512, 1000, "none", 16),
}


def widths(seed: int = 0) -> dict[str, Workload]:
    """Return five tasks in full width, and four random narrower widths of each."""
    rng = random.Random(seed)
    found: dict[str, Workload] = {}

    def narrower(channels: int) -> int:
        return 16 * rng.randint(max(1, channels // 64), channels // 16)

    for name, (side, inputs, outputs, kernel, stride, depthwise) in {
        "plain3x3-at-16": (16, 64, 64, 3, 1, False),
        "plain3x3-at-8": (8, 128, 128, 3, 1, False),
        "strided3x3-at-28": (28, 96, 192, 3, 2, False),
        "pointwise-at-14": (14, 256, 384, 1, 1, False),
        "depthwise3x3-at-28": (28, 256, 256, 3, 1, True),
    }.items():
        made: dict[str, Workload] = {}
        full = f"{name}-{inputs}-{outputs}"
        made[full] = conv(side, inputs, outputs, kernel, stride, inputs if depthwise else 1)
        while len(made) < 5:
            o = narrower(outputs)
            i = o if depthwise else narrower(inputs)
            made.setdefault(f"{name}-{i}-{o}", conv(side, i, o, kernel, stride, i if depthwise else 1))
        found |= made
    return found


def wide(w: Workload, machine: Machine) -> Iterator[Candidate]:
    """Yield the points of the sketch without the limits of `space.py`."""
    if isinstance(w, Dense):
        for oc in (d for d in (1, 2, 3, 7, 9, 21, 63) if -(-w.out_features // w.block) % d == 0):
            for k in (d for d in (1, 2, 4, 8, 16, 32) if w.in_features % d == 0):
                for way in ("none", "outer"):
                    yield Candidate.of(oc_tile=oc, n_tile=1, k_tile=k, parallel=way)
        return
    assert isinstance(w, Conv2d)
    blocks = w.out_channels // w.out_block
    pads = ("inside", "separate") if any(w.pad) else ("none",)
    for oc in (d for d in (1, 2, 4, 8) if blocks % d == 0 and not (w.depthwise and d > 1)):
        for th in divisors(w.out_height):
            for tw in divisors(w.out_width):
                if oc * th * tw > 2 * machine.registers:
                    continue
                bands = w.out_height // th
                ways = [("none", bands), *(("rows", r) for r in divisors(bands) if r < bands)]
                if blocks > oc:
                    ways += [("channels", bands), *(("both", r) for r in divisors(bands) if r < bands)]
                for parallel, rows in ways:
                    for pad in pads:
                        for unroll in (0, 1, 2) if w.kernel[0] > 1 else (0,):
                            yield Candidate.of(
                                oc_tile=oc, oh_tile=th, ow_tile=tw, rows=rows, parallel=parallel, pad=pad, unroll=unroll
                            )


def points(w: Workload, machine: Machine, everything: bool) -> dict[Candidate, bool]:
    """Return the points to record, shuffled, and whether each is of the tool's own space."""
    rng = random.Random(key(w))
    own = list(space.candidates(w, *machine))
    rng.shuffle(own)
    if not everything:
        return dict.fromkeys(own[:WIDTH_POINTS], True)
    other = sorted(set(wide(w, machine)) - set(own), key=Candidate.text)
    rng.shuffle(other)
    chosen = [*dict.fromkeys(own[:OWN], True).items()]
    chosen += [(candidate, False) for candidate in other[: POINTS - len(chosen)]]
    rng.shuffle(chosen)
    return dict(chosen)


# --- the process that builds and times -------------------------------------------------------------------------


class Worker:
    """Builds and times the candidates of one task with TVM, in a process of its own."""

    def __init__(self, w: Workload, compiler: str, keep_hidden: bool) -> None:
        import json

        import numpy as np
        import tvm

        self.tvm, self.np, self.w, self.keep_hidden = tvm, np, w, keep_hidden
        self.target = tvm.target.Target(json.loads(compiler))
        self.plain = arguments(w.arguments(), 0)
        self.expected: Any = None

    def build(self, candidate: Candidate) -> tuple[Any, float, str]:
        """Return the library, the seconds it took, and the stage that failed or ""."""
        from cprune.tuner.programs import program as programs

        start, stage = time.perf_counter(), "lower"
        try:
            module = programs.module_of(self.w, candidate)
            stage = "build"
            library = self.tvm.driver.build(module, self.target)
            library["main"]
            return library, time.perf_counter() - start, ""
        except Exception:
            return None, time.perf_counter() - start, stage

    def batch(self, candidates: Sequence[Candidate]) -> list[tuple[tuple[float, ...], str, float, float, Any]]:
        """Return (runs_s, failure, build_s, measure_s, hidden) of each."""
        with ThreadPoolExecutor(2) as pool:
            built = list(pool.map(self.build, candidates))
        return [self.timed(candidate, *one) for candidate, one in zip(candidates, built, strict=True)]

    def timed(
        self, candidate: Candidate, library: Any, build_s: float, failure: str
    ) -> tuple[tuple[float, ...], str, float, float, Any]:
        """Run once, compare, time."""
        from cprune.tuner.programs import program as programs

        if failure:
            return (), failure, build_s, 0.0, None
        features = hidden(library.inspect_source("asm")) if self.keep_hidden else None
        start = time.perf_counter()
        try:
            given = [self.tvm.runtime.tensor(a) for a in programs.inputs_of(self.w, candidate, self.plain)]
            out = self.tvm.runtime.tensor(self.np.zeros(self.w.arguments()[-1], self.np.float32))
            library["main"](*given, out)
            found = out.numpy()
            self.expected = found.copy() if self.expected is None else self.expected
            if not self.np.allclose(found, self.expected, rtol=1e-3, atol=1e-3 * self.np.abs(self.expected).max()):
                return (), "check", build_s, time.perf_counter() - start, features
            runs = self.runs(library, [*given, out])
            for _ in range(VISITS - 1):
                if spread(runs) < QUIET:
                    break
                runs = min(runs, self.runs(library, [*given, out]), key=spread)
        except Exception:
            return (), "run", build_s, time.perf_counter() - start, features
        return runs, "", build_s, time.perf_counter() - start, features

    def runs(self, library: Any, args: list[Any]) -> tuple[float, ...]:
        """Return REPEATS timing runs of about RUN_S each."""
        # The first calls find cold caches and sleeping threads: one of them says little about how long a call takes.
        few = library.time_evaluator("main", self.tvm.cpu(), number=5, repeat=2)
        once = min(few(*args).results)
        number = max(1, min(5000, int(RUN_S / max(once, 1e-7))))
        timer = library.time_evaluator("main", self.tvm.cpu(), number=number, repeat=REPEATS)
        return tuple(float(run) for run in timer(*args).results)


def spread(runs: Sequence[float]) -> float:
    """Return how far the middle runs lie apart, as a share of the median."""
    ordered = sorted(runs)
    return (ordered[-2] - ordered[1]) / ordered[len(ordered) // 2]


def serve(connection: Connection, w: Workload, compiler: str, keep_hidden: bool) -> None:
    """Answer batches of candidates until the pipe closes."""
    worker = Worker(w, compiler, keep_hidden)
    while True:
        try:
            candidates = connection.recv()
        except EOFError:
            return
        connection.send(worker.batch(candidates))


class Remote:
    """A worker that may crash or hang."""

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.process: Any = None

    def ask(self, candidates: Sequence[Candidate]) -> Any:
        """Return the answer; None if the worker died or did not answer in time."""
        if self.process is None:
            context = get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs, *self.given), daemon=True)
            self.process.start()
            theirs.close()
        try:
            self.pipe.send(list(candidates))
            if self.pipe.poll(DEADLINE_S):
                return self.pipe.recv()
        except (EOFError, OSError):
            pass
        self.close()
        return None

    def close(self) -> None:
        """End the worker."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def record(name: str, w: Workload, args: argparse.Namespace, deadline: float) -> bool:
    """Record one task, or go on with it; False if time ran out before it was done."""
    path = args.out / f"{name}.json.xz"
    target = find("local", threads=2)
    machine = Machine(target.vector, target.vector_registers, target.threads)
    about = f"2 threads of a server CPU with {32 * machine.vector}-bit vectors, TVM 0.27, LLVM 22"
    table = Recorded.load(path) if path.exists() else Recorded(name, about, w, machine, ())
    wanted = points(w, machine, not args.widths)
    todo = [candidate for candidate in wanted if candidate not in set(table.space)]
    if not todo:
        return True
    entries = list(table.entries)
    remote = Remote(w, target.compiler, not args.widths)
    while todo and time.monotonic() < deadline:
        asked, todo = todo[:BATCH], todo[BATCH:]
        answers = remote.ask(asked)
        if answers is None:  # one of them kills or hangs: each by itself
            answers = [(remote.ask([c]) or [((), "run", 0.0, 0.0, None)])[0] for c in asked]
        for candidate, (runs, failure, build_s, measure_s, features) in zip(asked, answers, strict=True):
            entries.append(Entry(candidate, runs, failure, wanted[candidate], build_s, measure_s, features))
    entries.sort(key=lambda entry: entry.candidate.text())
    remote.close()
    table.part(entries).save(path)
    failed = sum(bool(entry.failure) for entry in entries)
    best = min((entry.latency_s for entry in entries), default=float("inf"))
    print(
        f"{name}: {len(entries)} of {len(wanted)} points, {failed} failed, best {best * 1e6:.1f} us, "
        f"{path.stat().st_size / 1e3:.1f} kB{', not done' if todo else ''}",
        flush=True,
    )
    return not todo


def main() -> None:
    """Read the command line and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tests/tables"))
    parser.add_argument("--widths", action="store_true", help="record pruned widths instead, without hidden features")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("names", nargs="*", help="only these tasks")
    args = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = "2"
    args.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    for name, w in (widths() if args.widths else TASKS).items():
        if (not args.names or name in args.names) and not record(name, w, args, deadline):
            break


if __name__ == "__main__":
    main()
