"""`cprune bench`: the tuned model against ONNX Runtime and PyTorch, in turns, with the same number of threads.

ONNX Runtime runs as its users run it: the exported graph, all graph optimisations (its default), its own layouts,
`intra_op_num_threads` set, in a process without PyTorch.  PyTorch runs traced and frozen, under `inference_mode`.
Every runtime gets the same input and is called from Python; they take turns round by round with a pause between them
and a warm-up in every turn, because one's spinning threads would otherwise disturb the next.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cprune.commands import onnxruntime_process
from cprune.commands.onnxruntime_process import RUN_S, SETTLE_S, OnnxRuntime, seconds_a_call
from cprune.commands.request import Request
from cprune.compiling.tuned import tune
from cprune.network.difference import COMPILED_TOLERANCE
from cprune.network.network import Network
from cprune.progress import Progress
from cprune.runs.folder import RunFolder
from cprune.targets.difference import apart
from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.interval import Interval, interval
from cprune.targets.measure import Sustained, sustained
from cprune.targets.session import Array, Failure, Session


@dataclass(frozen=True)
class Benchmark:
    """Latency and layout by runtime, tuned TVM's latency over ONNX Runtime's, and TVM's under load."""

    model: str
    target: str
    threads: int
    layouts: Mapping[str, str]
    batch: int
    rounds: int
    latency_ms: Mapping[str, Interval]
    tvm_over_onnxruntime: Interval
    tvm_under_load: Sustained

    def to_dict(self) -> dict[str, Any]:
        """Return what `cprune bench --json` prints."""
        rows = [
            {"runtime": runtime, "median_ms": ms.median, "low_ms": ms.low, "high_ms": ms.high}
            for runtime, ms in self.latency_ms.items()
        ]
        return {
            "model": self.model,
            "target": self.target,
            "threads": self.threads,
            "layouts": dict(self.layouts),
            "batch": self.batch,
            "rounds": self.rounds,
            "rows": rows,
            "tvm_over_onnxruntime": self.tvm_over_onnxruntime.to_dict(),
            "tvm_under_load": asdict(self.tvm_under_load),
        }


def bench(request: Request, rounds: int, progress: Progress) -> Benchmark:
    """Time the tuned model and its two rivals in turns, `rounds` of them.

    The pruned model of a run is tuned with the run's own records.  Raises UserError for another machine than this one,
    BrokenWorld where a runtime does not run the model or computes something else.
    """
    target = request.target
    if target.transport != "local":
        raise UserError(
            "cprune bench compares runtimes on this machine",
            f"For a latency on {target.name}: cprune tune --target {target.name}, and cprune verify of what it wrote.",
        )
    if request.records is None and request.source.is_run:
        request = replace(request, records=RunFolder(Path(request.source.spec)).records)
    opened = request.opened()
    network, inputs = opened.network, opened.example_inputs
    torch.set_num_threads(target.threads)
    with _onnxruntime(network, inputs, target.threads) as onnxruntime, request.tuner(progress) as (session, tuner):
        tuned = tune(network, inputs, tuner, request.settings.trials, progress)
        output = tuned.load(session, "model")[0]
        pytorch = _pytorch(network, inputs)
        _must_agree("ONNX Runtime", onnxruntime.output, output)
        _must_agree("PyTorch", pytorch(), output)
        timers = {
            "tvm": lambda: _tvm_seconds(session, "model", tuned.arrays),
            "onnxruntime": onnxruntime.timed,
            "pytorch": lambda: seconds_a_call(pytorch),
        }
        seconds = _in_turns(timers, rounds, progress)
        load = sustained(session, "model", tuned.arrays)
    return Benchmark(
        opened.name,
        target.name,
        target.threads,
        {"tvm": f"NCHW{tuned.lowered.layout.block}c", "onnxruntime": "its own", "pytorch": "NCHW"},
        int(inputs[0].shape[0]),
        rounds,
        {runtime: interval([1e3 * s for s in runs]) for runtime, runs in seconds.items()},
        interval([t / o for t, o in zip(seconds["tvm"], seconds["onnxruntime"], strict=True)]),
        load,
    )


def _in_turns(timers: Mapping[str, Callable[[], float]], rounds: int, progress: Progress) -> dict[str, list[float]]:
    """Return seconds a call of each runtime, one a round; the order is reversed every round."""
    runs: dict[str, list[float]] = {runtime: [] for runtime in timers}
    progress.start("timing in turns", rounds)
    for index in range(rounds):
        for runtime in list(timers) if index % 2 else list(reversed(list(timers))):
            if runtime != "onnxruntime":  # it pauses by itself
                time.sleep(SETTLE_S)
            runs[runtime].append(timers[runtime]())
        progress.advance()
    progress.done()
    return runs


def _tvm_seconds(session: Session, key: str, arrays: list[Array]) -> float:
    timed = session.time_models((key,), arrays, 1, 1e3 * RUN_S)
    if isinstance(timed, Failure):
        raise BrokenWorld(f"the compiled model stopped running: {timed.reason}")
    return timed[key][-1]


@contextmanager
def _onnxruntime(network: Network, inputs: tuple[Tensor, ...], threads: int) -> Iterator[OnnxRuntime]:
    """Export the model and run it in ONNX Runtime until the block ends."""
    missing = [name for name in ("onnxruntime", "onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"cprune bench needs {', '.join(missing)}", "Type: pip install 'cprune[bench]'")
    with tempfile.TemporaryDirectory(prefix="cprune-bench-") as name:
        folder = Path(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(network.eval(), inputs, folder / "model.onnx", dynamo=True, verbose=False)
        for index, x in enumerate(inputs):
            np.save(folder / f"{index}.npy", x.numpy())
        with onnxruntime_process.started(folder, threads) as running:
            yield running


def _pytorch(network: Network, inputs: tuple[Tensor, ...]) -> Callable[[], Array]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.freeze(torch.jit.trace(network.eval(), inputs, check_trace=False))  # type: ignore[no-untyped-call]

    def call() -> Array:
        with torch.inference_mode():
            output: Array = traced(*inputs).numpy()
            return output

    return call


def _must_agree(runtime: str, theirs: Array, output: Array) -> None:
    share = apart(output, theirs)
    if share > COMPILED_TOLERANCE:
        raise BrokenWorld(f"tuned TVM and {runtime} differ by {share:.3g} of the output's magnitude")
