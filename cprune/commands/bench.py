"""`cprune bench`: the tuned model against ONNX Runtime and PyTorch, in turns, with the same number of threads.

ONNX Runtime runs as its users run it: the exported graph, all graph optimisations (its default), its own layouts,
`intra_op_num_threads` set, in a process without PyTorch.  PyTorch runs traced and frozen, under `inference_mode`.
Every runtime gets the same input and is called from Python; they take turns round by round with a pause between them
and a warm-up in every turn, because one's spinning threads would otherwise disturb the next.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cprune.commands.onnxruntime_process import RUN_S, SETTLE_S, seconds_a_call
from cprune.compiling.tuned import opened_tuner, tune
from cprune.method.settings import Settings
from cprune.models.source import Source
from cprune.network.difference import COMPILED_TOLERANCE
from cprune.network.network import Network
from cprune.progress import Progress
from cprune.runs.folder import RunFolder
from cprune.targets.difference import apart
from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.interval import interval
from cprune.targets.measure import sustained
from cprune.targets.session import Array, Failure
from cprune.targets.target import Target, find
from cprune.tuner.records.place import default_records


def bench(
    source: Source,
    target: str | Target,
    threads: int | None,
    settings: Settings,
    records: str | None,
    rounds: int,
    progress: Progress,
) -> dict[str, Any]:
    """Return the contract's object: a row per runtime, and tuned TVM's latency over ONNX Runtime's."""
    where = find(target, threads)
    if where.transport != "local":
        raise UserError(
            "cprune bench compares runtimes on this machine",
            f"For a latency on {where.name}: cprune tune --target {where.name}, and cprune verify of what it wrote.",
        )
    opened = source.opened(settings.seed)
    network, inputs = opened.network, opened.example_inputs
    torch.set_num_threads(where.threads)
    own = RunFolder(Path(source.spec)).records if source.is_run else None
    store = records or own or default_records(where.name)
    with (
        closing(_OnnxRuntime(network, inputs, where.threads)) as onnxruntime,
        opened_tuner(where, store, settings.seed, progress) as (session, tuner),
    ):
        tuned = tune(network, inputs, tuner, settings.trials, progress)
        arrays = tuned.arrays
        output = tuned.load(session, "model")
        pytorch = _pytorch(network, inputs)
        _same("ONNX Runtime", onnxruntime.output, output[0])
        _same("PyTorch", pytorch(), output[0])

        def tvm() -> float:
            timed = session.time_models(("model",), arrays, 1, 1e3 * RUN_S)
            if isinstance(timed, Failure):
                raise BrokenWorld(f"the compiled model stopped running: {timed.reason}")
            return timed["model"][-1]

        timers: dict[str, Callable[[], float]] = {
            "tvm": tvm,
            "onnxruntime": onnxruntime.timed,
            "pytorch": lambda: seconds_a_call(pytorch),
        }
        runs: dict[str, list[float]] = {runtime: [] for runtime in timers}
        progress.start("timing in turns", rounds)
        for index in range(rounds):
            for runtime in list(timers) if index % 2 else list(reversed(timers)):
                if runtime != "onnxruntime":  # it pauses by itself
                    time.sleep(SETTLE_S)
                runs[runtime].append(timers[runtime]())
            progress.advance()
        progress.done()
        load = sustained(session, "model", arrays)
    rows = []
    for runtime, seconds in runs.items():
        found = interval([1e3 * s for s in seconds])
        rows.append({"runtime": runtime, "median_ms": found.median, "low_ms": found.low, "high_ms": found.high})
    ratio = interval([t / o for t, o in zip(runs["tvm"], runs["onnxruntime"], strict=True)])
    return {
        "model": opened.name,
        "target": where.name,
        "threads": where.threads,
        "layouts": {"tvm": f"NCHW{tuned.lowered.layout.block}c", "onnxruntime": "its own", "pytorch": "NCHW"},
        "batch": int(inputs[0].shape[0]),
        "rounds": rounds,
        "rows": rows,
        "tvm_over_onnxruntime": ratio.to_dict(),
        "tvm_under_load": asdict(load),
    }


class _OnnxRuntime:
    """ONNX Runtime in a process of its own (see `cprune.commands.onnxruntime_process`)."""

    def __init__(self, network: Network, inputs: tuple[Tensor, ...], threads: int) -> None:
        missing = [name for name in ("onnxruntime", "onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"cprune bench needs {', '.join(missing)}", "Type: pip install 'cprune[bench]'")
        self.folder = tempfile.TemporaryDirectory(prefix="cprune-bench-")
        where = Path(self.folder.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(network.eval(), inputs, where / "model.onnx", dynamo=True, verbose=False)
        for index, x in enumerate(inputs):
            np.save(where / f"{index}.npy", x.numpy())
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cprune.commands.onnxruntime_process", str(where), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._line() != "ready":
            raise BrokenWorld("ONNX Runtime does not run the exported model")
        self.output = np.load(where / "output.npy")

    def timed(self) -> float:
        """Return seconds a call."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line() or "nan")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def _pytorch(network: Network, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.freeze(torch.jit.trace(network.eval(), inputs, check_trace=False))  # type: ignore[no-untyped-call]

    def call() -> Any:
        with torch.inference_mode():
            return traced(*inputs).numpy()

    return call


def _same(runtime: str, theirs: Array, output: Array) -> None:
    share = apart(output, theirs)
    if share > COMPILED_TOLERANCE:
        raise BrokenWorld(f"tuned TVM and {runtime} differ by {share:.3g} of the output's magnitude")


def show(told: dict[str, Any]) -> None:
    """Print what `bench` returned as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for column in ("runtime", "layout", "median ms", "95 % interval"):
        table.add_column(column)
    for row in told["rows"]:
        layout = told["layouts"][row["runtime"]]
        span = f"{row['low_ms']:.3f} – {row['high_ms']:.3f}"
        table.add_row(row["runtime"], layout, f"{row['median_ms']:.3f}", span)
    console = Console()
    console.print(table)
    r = told["tvm_over_onnxruntime"]
    console.print(
        f"{told['model']}, batch {told['batch']}, {told['threads']} threads: tuned TVM takes {r['median']:.2f} "
        f"[{r['low']:.2f}, {r['high']:.2f}] of ONNX Runtime's time",
        highlight=False,
    )
    load = told["tvm_under_load"]
    console.print(
        f"under load, tuned TVM: {load['peak_ms']:.3f} ms at first, {load['sustained_ms']:.3f} ms after "
        f"{load['seconds']:g} s",
        highlight=False,
    )
