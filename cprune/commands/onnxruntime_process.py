"""ONNX Runtime in a process of its own: `python -m cprune.commands.onnxruntime_process FOLDER THREADS`.

PyTorch in the same process makes ONNX Runtime up to half as slow again (two thread pools), which its users do not have.
FOLDER holds `model.onnx` and the inputs `0.npy`, `1.npy`, …; the output goes to `output.npy`.  Every line on standard
input asks for one timing, answered by a line with seconds a call.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

RUN_S = 0.06
SETTLE_S = 0.3
"""A pause before every turn: the pool of TVM spins for a fifth of a second after its last kernel, others less; and the
scheduler forgets which processor the question came from (woken by a pipe, both threads may start on one)."""


def main() -> None:
    """Serve until standard input ends."""
    import onnxruntime

    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feed = {given.name: np.load(folder / f"{i}.npy") for i, given in enumerate(session.get_inputs())}
    np.save(folder / "output.npy", session.run(None, feed)[0])
    print("ready", flush=True)
    for _ in sys.stdin:
        time.sleep(SETTLE_S)
        print(seconds_a_call(lambda: session.run(None, feed)), flush=True)


def seconds_a_call(call: Any) -> float:
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
