"""`cprune bench`: the tuned model against ONNX Runtime, OpenVINO and PyTorch, in turns, with as many threads.

Each runs as its users run it.  ONNX Runtime: the exported graph, all graph optimisations (its default), its own
layouts, `intra_op_num_threads` set, in a process without PyTorch; int8 as its own static quantization writes it.
OpenVINO, where it is installed: the same two files, the hint for latency, `INFERENCE_NUM_THREADS` set, in a process of
its own.  PyTorch runs traced and frozen, under `inference_mode`.  Every runtime gets the same input and is called from
Python; they take turns round by round with a pause between them and a warm-up in every turn, because one's spinning
threads would otherwise disturb the next.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cprune.commands import rivals
from cprune.commands.request import Request
from cprune.commands.rivals import RUN_S, SETTLE_S, Rival, seconds_a_call
from cprune.compiling import halves_or_floats
from cprune.compiling.tuned import multiplies, tune
from cprune.network.halving import HALVES
from cprune.network.network import Network
from cprune.network.precision import tolerance
from cprune.network.quantizing import quantized
from cprune.progress import Progress
from cprune.runs.folder import RunFolder
from cprune.targets.difference import apart
from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.interval import Interval, interval
from cprune.targets.measure import Sustained, sustained
from cprune.targets.session import Array, Failure, Session


@dataclass(frozen=True)
class Benchmark:
    """Latency and layout by runtime, tuned TVM's latency over each other's of its precision, and TVM's under load.

    A runtime that computes in something else than fp32 is called with it: "tvm int8", "openvino bf16".
    """

    model: str
    target: str
    threads: int
    layouts: Mapping[str, str]
    batch: int
    rounds: int
    latency_ms: Mapping[str, Interval]
    tvm_over: Mapping[str, Interval]
    tvm_under_load: Sustained

    def to_dict(self) -> dict[str, Any]:
        """Return what `cprune bench --json` prints."""
        rows = [
            {"runtime": name, "precision": bits or "fp32", "median_ms": ms.median, "low_ms": ms.low, "high_ms": ms.high}
            for runtime, ms in self.latency_ms.items()
            for name, _, bits in (runtime.partition(" "),)
        ]
        return {
            "model": self.model,
            "target": self.target,
            "threads": self.threads,
            "layouts": dict(self.layouts),
            "batch": self.batch,
            "rounds": self.rounds,
            "rows": rows,
            "tvm_over_onnxruntime": self.tvm_over["onnxruntime"].to_dict(),
            "tvm_over": {runtime: ratio.to_dict() for runtime, ratio in self.tvm_over.items()},
            "tvm_under_load": asdict(self.tvm_under_load),
        }


def bench(request: Request, rounds: int, progress: Progress, int8: bool = False) -> Benchmark:
    """Time the tuned model and its rivals in turns, `rounds` of them; with `int8` also in integers and 16 bits.

    The pruned model of a run is tuned with the run's own records.  Integers are calibrated on the example input: the
    latency does not depend on it.  Raises UserError for another machine than this one, BrokenWorld where a runtime does
    not run the model or computes something else.
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
    with _rivals(network, inputs, target.threads, int8) as others, request.tuner(progress) as (session, tuner):
        models = {"tvm": network, **({"tvm int8": quantized(network, [inputs])} if int8 else {})}
        tuned = {name: tune(each, inputs, tuner, request.settings.trials, progress) for name, each in models.items()}
        for half in HALVES if int8 else ():
            if multiplies(tuner.target, half):
                tuned[f"tvm {half}"] = halves_or_floats.fastest(
                    network, inputs, session, tuner, request.settings.trials, progress, precision=half
                ).tuned
        outputs = {name: each.load(session, name)[0] for name, each in tuned.items()}
        pytorch = _pytorch(network, inputs)
        for name, rival in others.items():
            if name in ("onnxruntime", "openvino"):
                _must_agree(name, rival.output, outputs["tvm"], network)
        _must_agree("PyTorch", pytorch(), outputs["tvm"], network)
        timers: dict[str, Callable[[], float]] = {
            **{name: partial(_tvm_seconds, session, name, tuned[name].arrays) for name in tuned},
            **{name: rival.timed for name, rival in others.items()},
            "pytorch": lambda: seconds_a_call(pytorch),
        }
        seconds = _in_turns(timers, rounds, progress)
        load = sustained(session, "tvm", tuned["tvm"].arrays)
    blocks = {name: f"NCHW{each.lowered.layout.block}c" for name, each in tuned.items()}
    return Benchmark(
        opened.name,
        target.name,
        target.threads,
        {**dict.fromkeys(others, "its own"), **blocks, "pytorch": "NCHW"},
        int(inputs[0].shape[0]),
        rounds,
        {runtime: interval([1e3 * s for s in runs]) for runtime, runs in seconds.items()},
        {
            name: interval([t / o for t, o in zip(seconds[own], seconds[name], strict=True)])
            for name in (*others, "pytorch")
            for own in (_own(name, tuned),)
        },
        load,
    )


def _own(rival: str, models: Collection[str]) -> str:
    """Return which of our models is of the precision of a rival; fp32 where there is none."""
    same = f"tvm {rival.partition(' ')[2]}"
    return same if same in models else "tvm"


def _in_turns(timers: Mapping[str, Callable[[], float]], rounds: int, progress: Progress) -> dict[str, list[float]]:
    """Return seconds a call of each runtime, one a round; the order is reversed every round."""
    runs: dict[str, list[float]] = {runtime: [] for runtime in timers}
    progress.start("timing in turns", rounds)
    for index in range(rounds):
        for runtime in list(timers) if index % 2 else list(reversed(list(timers))):
            if runtime.startswith(("tvm", "pytorch")):  # the others pause by themselves
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
def _rivals(network: Network, inputs: tuple[Tensor, ...], threads: int, int8: bool) -> Iterator[dict[str, Rival]]:
    """Export the model and run it in the other runtimes until the block ends."""
    missing = [name for name in ("onnxruntime", "onnx", "onnxscript") if not rivals.installed(name)]
    if missing:
        raise UserError(f"cprune bench needs {', '.join(missing)}", "Type: pip install 'cprune[bench]'")
    known = [name for name in rivals.OPENERS if rivals.installed(name.partition(" ")[0])]
    with tempfile.TemporaryDirectory(prefix="cprune-bench-") as name, ExitStack() as running:
        folder = Path(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(network.eval(), inputs, folder / "model.onnx", dynamo=True, verbose=False)
        for index, x in enumerate(inputs):
            np.save(folder / f"{index}.npy", x.numpy())
        if int8:
            logging.getLogger().setLevel(logging.ERROR)
            rivals.write_int8(folder)
        yield {
            runtime: running.enter_context(rivals.started(runtime, folder, threads))
            for runtime in known
            if int8 or " " not in runtime
        }


def _pytorch(network: Network, inputs: tuple[Tensor, ...]) -> Callable[[], Array]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.freeze(torch.jit.trace(network.eval(), inputs, check_trace=False))  # type: ignore[no-untyped-call]

    def call() -> Array:
        with torch.inference_mode():
            output: Array = traced(*inputs).numpy()
            return output

    return call


def _must_agree(runtime: str, theirs: Array, output: Array, network: Network) -> None:
    share = apart(output, theirs)
    if share > tolerance(network):
        raise BrokenWorld(f"tuned TVM and {runtime} differ by {share:.3g} of the output's magnitude")
