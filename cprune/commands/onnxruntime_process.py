"""ONNX Runtime in a process of its own: `python -m cprune.commands.onnxruntime_process FOLDER THREADS`.

PyTorch in the same process makes ONNX Runtime up to half as slow again (two thread pools), which its users do not have.
FOLDER holds `model.onnx` and the inputs `0.npy`, `1.npy`, …; the output goes to `output.npy`.  Every line on standard
input asks for one timing, answered by a line with seconds a call.  Both sides of the pipe stand here.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cprune.targets.errors import BrokenWorld
from cprune.targets.session import Array

RUN_S = 0.06
SETTLE_S = 0.3
"""A pause before every turn: the pool of TVM spins for a fifth of a second after its last kernel, others less; and the
scheduler forgets which processor the question came from (woken by a pipe, both threads may start on one)."""


@dataclass(frozen=True)
class OnnxRuntime:
    """The process as bench sees it: what it computed, and one timing after the other."""

    process: subprocess.Popen[str]
    output: Array

    def timed(self) -> float:
        """Return seconds a call, nan if the process is gone."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(_line_of(self.process) or "nan")


@contextmanager
def started(folder: Path, threads: int) -> Iterator[OnnxRuntime]:
    """Run the model of `folder` in a process that ends with the block.  Raises BrokenWorld if it does not run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cprune.commands.onnxruntime_process", str(folder), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        if _line_of(process) != "ready":
            raise BrokenWorld("ONNX Runtime does not run the exported model")
        yield OnnxRuntime(process, np.load(folder / "output.npy"))
    finally:
        process.kill()
        process.wait()


def _line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def main() -> None:
    """Serve until standard input ends."""
    import onnxruntime

    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feed = {declared.name: np.load(folder / f"{i}.npy") for i, declared in enumerate(session.get_inputs())}
    np.save(folder / "output.npy", session.run(None, feed)[0])
    print("ready", flush=True)
    for _ in sys.stdin:
        time.sleep(SETTLE_S)
        print(seconds_a_call(lambda: session.run(None, feed)), flush=True)


def seconds_a_call(call: Callable[[], object]) -> float:
    """Return seconds a call over about RUN_S seconds, after half of that as warm-up."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < RUN_S / 2:
        call()
        count += 1
    number = max(1, 2 * count)
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


if __name__ == "__main__":
    main()
