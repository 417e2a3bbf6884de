"""Other runtimes, each in a process of its own: `python -m cprune.commands.rivals RUNTIME FOLDER THREADS`.

PyTorch in the same process makes ONNX Runtime up to half as slow again (two thread pools), which its users do not have.
FOLDER holds `model.onnx` (and `int8.onnx`, with quantize-dequantize pairs) and the inputs `0.npy`, `1.npy`, …; the
output goes to `RUNTIME.npy`.  Every line on standard input asks for one timing, answered by a line with seconds a call.
Both sides of the pipe stand here.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cprune.targets.errors import BrokenWorld
from cprune.targets.session import Array

RUN_S = 0.06
SETTLE_S = 0.3
"""A pause before every turn: the pool of TVM spins for a fifth of a second after its last kernel, others less; and the
scheduler forgets which processor the question came from (woken by a pipe, both threads may start on one)."""


@dataclass(frozen=True)
class Rival:
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
def started(runtime: str, folder: Path, threads: int) -> Iterator[Rival]:
    """Run the model of `folder` in a process that ends with the block.  Raises BrokenWorld if it does not run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cprune.commands.rivals", runtime, str(folder), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        if _line_of(process) != "ready":
            raise BrokenWorld(f"{runtime} does not run the exported model")
        yield Rival(process, np.load(folder / f"{runtime}.npy"))
    finally:
        process.kill()
        process.wait()


def installed(package: str) -> bool:
    """Tell whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def _line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _onnxruntime(path: Path, threads: int, inputs: list[Array]) -> Callable[[], Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {declared.name: x for declared, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)[0]


def _openvino(path: Path, threads: int, inputs: list[Array], precision: str) -> Callable[[], Array]:
    import openvino

    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)[0]


OPENERS: dict[str, Callable[[Path, int, list[Array]], Callable[[], Array]]] = {
    "onnxruntime": lambda folder, threads, x: _onnxruntime(folder / "model.onnx", threads, x),
    "onnxruntime int8": lambda folder, threads, x: _onnxruntime(folder / "int8.onnx", threads, x),
    "openvino": lambda folder, threads, x: _openvino(folder / "model.onnx", threads, x, "f32"),
    "openvino bf16": lambda folder, threads, x: _openvino(folder / "model.onnx", threads, x, "bf16"),
    "openvino int8": lambda folder, threads, x: _openvino(folder / "int8.onnx", threads, x, "f32"),
}
"""How a model of a folder becomes a call without arguments, by runtime and precision."""


def write_int8(folder: Path) -> None:
    """Write `int8.onnx` from `model.onnx` as users of ONNX Runtime do: static, uint8 values, int8 weights a channel.

    Ranges come from the folder's own inputs: the latency does not depend on them.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Inputs(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, names: list[str]) -> None:
            self.left = [{name: np.load(folder / f"{i}.npy") for i, name in enumerate(names)}]

        def get_next(self) -> dict[str, Array] | None:
            return self.left.pop() if self.left else None

    import onnx

    quant_pre_process(str(folder / "model.onnx"), str(folder / "shaped.onnx"))
    names = [value.name for value in onnx.load(folder / "shaped.onnx").graph.input]
    quantization.quantize_static(
        str(folder / "shaped.onnx"),
        str(folder / "int8.onnx"),
        Inputs(names),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def main() -> None:
    """Serve until standard input ends."""
    runtime, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    inputs = [np.load(folder / f"{i}.npy") for i in range(len(list(folder.glob("[0-9]*.npy"))))]
    call = OPENERS[runtime](folder, threads, inputs)
    np.save(folder / f"{runtime}.npy", call())
    print("ready", flush=True)
    for _ in sys.stdin:
        time.sleep(SETTLE_S)
        print(seconds_a_call(call), flush=True)


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
