"""Convolutions in int8 against fp32, layer by layer, and how near to the processor's peak they come.

    python experiments/int8_layers.py --network resnet18 --trials 24

Every distinct convolution of the network (224x224, batch 1) is tuned in both, with as many trials; the two winners take
turns, each with weights that lie elsewhere at every call, as in a model.  The peak is a loop of the instruction that
multiplies bytes, on all threads at once.  Every int8 winner was compared with PyTorch, byte by byte.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cprune.compiling.lowered import Layout
from cprune.compiling.lowering import lower
from cprune.compiling.tuned import layout_in, opened_tuner
from cprune.models.source import Source
from cprune.network.folding import folded
from cprune.network.quantizing import quantized
from cprune.progress import of_terminal
from cprune.targets.session import Built, Program, Session, Timed
from cprune.targets.target import Target, find
from cprune.tuner.programs import dots
from cprune.tuner.programs.describing import describe
from cprune.tuner.programs.workload import QuantizedConv2d
from cprune.tuner.turns import in_turns

NETWORKS = {"resnet18": "experiments.networks:resnet18", "mobilenetv2": "experiments.networks:mobilenetv2"}
SUMS, TURNS = 16, 200_000
"""Independent sums of the peak's loop, and its iterations."""


def peak(session: Session, target: Target) -> float:
    """Return the multiply-adds a second of the instruction alone, on all threads."""
    import tvm
    from tvm.script import tirx as T

    dot, threads = dots.DOTS[dots.of_target(target, "int8")], target.threads
    text = peak_text(dot)

    @T.prim_func(s_tir=True)
    def main(a: T.handle, b: T.handle) -> None:
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        A = T.match_buffer(a, (threads,), "float32")
        B = T.match_buffer(b, (threads,), "float32")
        with T.attr(0, "pragma_import_llvm", text):
            for i in T.parallel(threads):
                B[i] = T.Cast("float32", T.call_extern("int32", "cprune_peak", T.Cast("int32", A[i]), TURNS))

    program = Program(tvm.ir.save_json(tvm.IRModule({"main": main})), ((threads,), (threads,)))
    (built,) = session.build([program])
    assert isinstance(built, Built), built
    (timed,) = session.time([built])
    assert isinstance(timed, Timed), timed
    return 4 * dot.lanes * SUMS * TURNS * threads / statistics.median(timed.runs_s)


def peak_text(dot: dots.Dot) -> str:
    """Return LLVM's text of a loop that does nothing but multiply, with SUMS independent sums."""
    words, factor = f"<{dot.lanes} x i32>", f"<{4 * dot.lanes} x i8>"
    kind = factor if dot.bytes_typed else words
    vector = f"insertelement {words} poison, i32 %a, i64 0"
    lines = [
        f"declare {words} @{dot.intrinsic}({words}, {kind}, {kind})",
        "define linkonce_odr i32 @cprune_peak(i32 %a, i32 %n) noinline nounwind {",
        "entry:",
        f"  %v0 = {vector}",
        f"  %v = shufflevector {words} %v0, {words} poison, {words} zeroinitializer",
        f"  %x = bitcast {words} %v to {kind}",
        "  br label %loop",
        "loop:",
        "  %i = phi i32 [ 0, %entry ], [ %next, %loop ]",
        *(f"  %c{k} = phi {words} [ %v, %entry ], [ %r{k}, %loop ]" for k in range(SUMS)),
        *(f"  %r{k} = call {words} @{dot.intrinsic}({words} %c{k}, {kind} %x, {kind} %x)" for k in range(SUMS)),
        "  %next = add i32 %i, 1",
        "  %more = icmp slt i32 %next, %n",
        "  br i1 %more, label %loop, label %end",
        "end:",
        f"  %s0 = add {words} %r0, %r0",
        *(f"  %s{k} = add {words} %s{k - 1}, %r{k}" for k in range(1, SUMS)),
        f"  %e = extractelement {words} %s{SUMS - 1}, i64 0",
        "  ret i32 %e",
        "}",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Print one line a layer, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet18")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--records", default="int8.sqlite")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    opened = Source(NETWORKS[given.network]).opened(given.seed)
    target, progress = find("local", given.threads), of_terminal()
    plain, integers = folded(opened.network), quantized(opened.network, [opened.example_inputs])
    with opened_tuner(target, given.records, given.seed, progress) as (session, tuner):
        most = peak(session, target)
        print(f"{given.network}, {target.threads} threads, peak {most / 1e9:.0f} G multiply-adds a second")
        floats = lower(plain, opened.example_inputs, Layout(target.vector))
        whole = lower(integers, opened.example_inputs, layout_in("int8", target))
        by_layer = {call.layers[0]: call.workload for call in floats.calls if call.layers}
        rows: dict[QuantizedConv2d, tuple[Any, int]] = {}
        for call in whole.calls:
            if isinstance(call.workload, QuantizedConv2d) and call.workload.output == "uint8":
                rows[call.workload] = (by_layer[call.layers[0]], rows.get(call.workload, (None, 0))[1] + 1)
        shares, totals = [], [0.0, 0.0]
        print(f"{'layer':46}{'uses':>5}{'fp32 us':>9}{'int8 us':>9}{'ratio':>7}{'of peak':>9}")
        for w, (other, uses) in rows.items():
            best = [tuner.tune(each, given.trials) for each in (other, w)]
            pair = [(each, one.candidate) for each, one in zip((other, w), best, strict=True)]
            runs = in_turns(session, session.build, pair, given.rounds)
            fp32, int8 = (1e6 * statistics.median(one) for one in runs)
            share = w.macs / (int8 * 1e-6) / most
            totals = [totals[0] + uses * fp32, totals[1] + uses * int8]
            if not w.depthwise:
                shares.append(share)
            text = describe(w).replace(" int8", "")
            print(f"{text:46}{uses:5}{fp32:9.1f}{int8:9.1f}{fp32 / int8:7.2f}{share:9.2f}", flush=True)
    print(f"sum {totals[0]:.0f} us in fp32, {totals[1]:.0f} in int8: {totals[0] / totals[1]:.2f}; "
          f"median share of the peak {statistics.median(shares):.2f} (depthwise left out)")  # fmt: skip


if __name__ == "__main__":
    main()
