"""cprune's tuner against stock MetaSchedule on the same layers: trials a second, and trials to the same quality.

    python experiments/against_metaschedule.py --trials 64 --stock-trials 128

Both tune the same convolution with bias and ReLU (ours in its blocked layout, the stock one in the plain layout that
PyTorch's importer gives it), with the same threads and the same measuring time a trial (5 runs of at least 2 ms).  In
the end both winners are timed in turns in one process.  "Trials to the same quality" is the first of our trials whose
program was as fast as the stock winner, by the least of three: what the stock search measured, what the race measured,
and our winner's latency times the race's ratio; a dash: none of them was.  The goal of cprune is at most 123 trials
against 1,000 stock ones, which take 20 minutes a layer.  Starting the processes and importing TVM is not counted on
either side.  Run nothing beside it: the stock builder gives up a program after 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cprune.targets.local import LocalSession
from cprune.targets.session import Built, Program, Timed, arguments
from cprune.targets.target import find
from cprune.tuner.programs import program as programs
from cprune.tuner.programs.describing import describe
from cprune.tuner.programs.workload import Conv2d, key
from cprune.tuner.records.store import Store
from cprune.tuner.tune import Tuner


def layer(inputs: int, plane: int, outputs: int, stride: int = 1, kernel: int = 3, depthwise: bool = False) -> Conv2d:
    """Return a convolution with bias and ReLU in blocks of 16."""
    sizes = (1, inputs, plane, plane, outputs, (kernel, kernel), (stride, stride), (kernel // 2,) * 4, (1, 1))
    return Conv2d(*sizes, outputs if depthwise else 1, False, "relu", 16, 16)  # type: ignore[arg-type]


LAYERS = (
    layer(64, 56, 64),
    layer(128, 28, 256, stride=2),
    layer(512, 7, 512),
    layer(192, 28, 192, depthwise=True),
)
"""Three layers of ResNet-18 and a depthwise one of MobileNetV2's kind."""


def plain_module(w: Conv2d) -> Any:
    """Return the layer as TVM's importer has it: NCHW, padding, convolution, bias, ReLU."""
    import tvm
    from tvm import te, topi

    x = te.placeholder((w.batch, w.in_channels, w.height, w.width), name="x")
    weight = te.placeholder((w.out_channels, 1 if w.depthwise else w.in_channels, *w.kernel), name="weight")
    bias = te.placeholder((1, w.out_channels, 1, 1), name="bias")
    if w.depthwise:
        y = topi.nn.depthwise_conv2d_nchw(x, weight, w.stride, w.pad, w.dilation)
    else:
        y = topi.nn.conv2d_nchw(x, weight, w.stride, w.pad, w.dilation)
    func = te.create_prim_func([x, weight, bias, topi.nn.relu(topi.add(y, bias))])
    return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})


def stock(w: Conv2d, target: Any, trials: int, seed: int) -> tuple[Any, float, float]:
    """Return the module of MetaSchedule's winner, its latency as the search measured it, and the search's seconds."""
    import tvm
    import tvm.s_tir.tensor_intrin  # takes half a minute, which is not counted
    from tvm.s_tir import meta_schedule as ms

    module, kind = plain_module(w), tvm.target.Target(json.loads(target.compiler))
    timing = target.timing
    evaluator = ms.runner.EvaluatorConfig(number=1, repeat=timing.repeats, min_repeat_ms=int(timing.min_run_ms))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        database = ms.tune_tir(
            module,
            kind,
            folder,
            max_trials_global=trials,
            num_trials_per_iter=min(64, trials),
            runner=ms.runner.LocalRunner(evaluator_config=evaluator),
            seed=seed,
        )
        spent = time.perf_counter() - start
        runs = [record.run_secs for record in database.get_all_tuning_records() if record.run_secs]
        best_s = min(statistics.mean(float(second) for second in seconds) for seconds in runs)
        return ms.tir_integration.compile_tir(database, module, kind).mod, best_s, spent


def main() -> None:
    """Print one line a layer, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64, help="ours")
    parser.add_argument("--stock-trials", type=int, default=128)
    parser.add_argument("--layers", type=int, nargs="+", default=list(range(len(LAYERS))))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    target = find("local")
    os.environ["TVM_NUM_THREADS"] = str(target.threads)
    import tvm

    rates = []
    for w in (LAYERS[i] for i in given.layers):
        with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "r.sqlite") as store:
            with LocalSession(target) as session:
                tuner = Tuner(session, store, target, given.seed)
                session.build([])  # the process that measures has started
                start = time.perf_counter()
                best = tuner.tune(w, given.trials)
                ours_s = time.perf_counter() - start
            module, searched_s, stock_s = stock(w, target, given.stock_trials, given.seed)
            plain = [
                (w.batch, w.in_channels, w.height, w.width),
                (w.out_channels, 1 if w.depthwise else w.in_channels, *w.kernel),
                (1, w.out_channels, 1, 1),
                (w.batch, w.out_channels, w.out_height, w.out_width),
            ]
            entries = [programs.program(w, best.candidate), Program(tvm.ir.save_json(module), tuple(plain))]
            with LocalSession(target) as session:
                built = session.build(entries)
                ready = [b for b in built if isinstance(b, Built)]
                timed = session.race(ready, [arguments(e.forms, 0) for e in entries], 21)
            ours, theirs = (statistics.median(t.runs_s) for t in timed if isinstance(t, Timed))
            order = store.of_task(key(w), target.fingerprint)
            goal = min(theirs, searched_s, best.latency_s * theirs / ours)
            reached = next((i + 1 for i, r in enumerate(order) if r.latency_s <= goal), None)
            rate = (best.measured / ours_s) / (given.stock_trials / stock_s)
            rates.append(rate)
            print(
                f"{describe(w):32} ours {ours * 1e6:8.1f} us ({2e-9 * w.macs / ours:.0f} GFLOP/s) after "
                f"{best.measured} trials in {ours_s:.1f} s   stock "
                f"{theirs * 1e6:8.1f} us after {given.stock_trials} in {stock_s:.0f} s   ours/stock {ours / theirs:.2f}"
                f"   trials to the same quality {reached or '-'}   trials a second: {rate:.1f}x",
                flush=True,
            )
    print(f"trials a second, ours over stock: median {statistics.median(rates):.1f}x; {target.threads} threads")


if __name__ == "__main__":
    main()
