"""`cprune bench`: the tuned model against ONNX Runtime and PyTorch, in turns, with the same number of threads.

ONNX Runtime runs as its users run it: the exported graph, all graph optimisations (its default), its own layouts,
`intra_op_num_threads` set.  PyTorch runs in evaluation mode under `inference_mode`, traced and frozen.  Every runtime
gets the same input and is called from Python; the runtimes take turns round by round and each is warmed up in every
round, because one's spinning threads would otherwise disturb the next.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cprune.api import load, opened_tuner
from cprune.compile import relax_model
from cprune.config import Settings
from cprune.inspect_model import default_records
from cprune.journal import RunFolder
from cprune.loop import Loop
from cprune.measure import interval
from cprune.network import Network, capture
from cprune.progress import Progress
from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.session import Failure
from cprune.targets.target import find
from cprune.zoo import load_model

RUN_S = 0.03
SETTLE_S = 0.02


def bench(
    model: str,
    weights: Path | None,
    target: str,
    threads: int | None,
    settings: Settings,
    records: str | None,
    rounds: int,
    progress: Progress,
) -> dict[str, Any]:
    """Return the contract's object: a row per runtime, and tuned TVM's latency over ONNX Runtime's."""
    where = find(target, threads)
    name, network, inputs = _opened(model, weights, settings.seed)
    torch.set_num_threads(where.threads)
    callers: dict[str, Callable[[], Any]] = {
        "onnxruntime": _onnxruntime(network, inputs, where.threads),
        "pytorch": _pytorch(network, inputs),
    }
    store = records or _records_of(model) or default_records(where)
    with opened_tuner(where, store, settings.seed) as (session, tuner):
        tuned = Loop.only_tuning(network, inputs, session, tuner, settings, progress)
        programs = {task: best.candidate for task, best in tuned.best.items()}
        arrays = [x.numpy() for x in inputs]
        failed = session.load("model", relax_model(tuned.lowered, programs))
        output = failed or session.run("model", arrays)
        if isinstance(output, Failure):
            raise BrokenWorld(f"the compiled model does not work ({output.stage}): {output.reason}")
        _same(callers, output)
        runs: dict[str, list[float]] = {"tvm": [], **{runtime: [] for runtime in callers}}
        progress.start("timing in turns", rounds)
        for index in range(rounds):
            order = list(runs) if index % 2 else list(reversed(runs))
            for runtime in order:
                time.sleep(SETTLE_S)  # lets the spinning threads of the last runtime go to sleep
                if runtime == "tvm":
                    timed = session.time_models(("model",), arrays, 1, 1e3 * RUN_S)
                    if isinstance(timed, Failure):
                        raise BrokenWorld(f"the compiled model stopped running: {timed.reason}")
                    runs["tvm"].append(timed["model"][-1])
                else:
                    runs[runtime].append(_timed(callers[runtime]))
            progress.advance()
        progress.done()
    rows = []
    for runtime, seconds in runs.items():
        found = interval([1e3 * s for s in seconds])
        rows.append({"runtime": runtime, "median_ms": found.median, "low_ms": found.low, "high_ms": found.high})
    ratio = interval([t / o for t, o in zip(runs["tvm"], runs["onnxruntime"], strict=True)])
    return {
        "model": name,
        "target": where.name,
        "threads": where.threads,
        "layouts": {"tvm": f"NCHW{tuned.lowered.block}c", "onnxruntime": "its own", "pytorch": "NCHW"},
        "batch": int(inputs[0].shape[0]),
        "rounds": rounds,
        "rows": rows,
        "tvm_over_onnxruntime": ratio.to_dict(),
    }


def _opened(model: str, weights: Path | None, seed: int) -> tuple[str, Network, tuple[Tensor, ...]]:
    if Path(model).is_dir():
        config = RunFolder.open(model).config()
        network = load(model)
        assert isinstance(network, Network)
        original = load_model(config["model_spec"], None, None, seed)
        return f"{config['model']} pruned in {model}", network, original.example_inputs
    loaded = load_model(model, weights, None, seed)
    return loaded.name, capture(loaded.model, loaded.example_inputs), loaded.example_inputs


def _records_of(model: str) -> Path | None:
    return RunFolder(Path(model)).records if Path(model).is_dir() else None


def _onnxruntime(network: Network, inputs: tuple[Tensor, ...], threads: int) -> Callable[[], Any]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx.export needs it)
    except ImportError as error:
        raise UserError(f"cprune bench needs {error.name}", "Type: pip install 'cprune[bench]'") from error
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(network.eval(), inputs, path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)[0]


def _pytorch(network: Network, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.freeze(torch.jit.trace(network.eval(), inputs, check_trace=False))  # type: ignore[no-untyped-call]

    def call() -> Any:
        with torch.inference_mode():
            return traced(*inputs).numpy()

    return call


def _same(callers: dict[str, Callable[[], Any]], output: Any) -> None:
    for runtime, call in callers.items():
        other = call()
        error = float(np.abs(other - output).max())
        if not error <= 1e-3 * max(1.0, float(np.abs(other).max())):
            raise BrokenWorld(f"tuned TVM and {runtime} differ by {error:.3g}")


def _timed(call: Callable[[], Any]) -> float:
    """Return seconds a call over about RUN_S seconds, after half of that as warm-up."""
    start = time.perf_counter()
    count = 0
    while time.perf_counter() - start < RUN_S / 2:
        call()
        count += 1
    number = max(1, 2 * count)
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


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
