"""Tuned TVM against ONNX Runtime, OpenVINO and PyTorch on eight networks: one table, from interleaved runs.

    python experiments/compare_runtimes.py --trials 64
    python experiments/compare_runtimes.py --trials 64 --int8     # in integers and in bf16 too

Batch 1, the same number of threads for all, random weights.  The outputs of all in fp32 are compared: a winner with a
wrong result ends the script.  What tuned TVM takes is a share of the other's time in the same precision.  The records
stay in --records, so that a second run only measures.  EfficientNet-Lite0 needs
`pip install --no-deps efficientnet-lite-pytorch`.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cprune.commands.bench import bench
from cprune.commands.request import Request
from cprune.method.settings import Settings
from cprune.models.source import Source
from cprune.progress import of_terminal
from cprune.targets.target import find
from cprune.tuner.records.store import Store

MODELS = (
    *("resnet20", "resnet56", "resnet18", "vgg16_bn"),
    *(f"experiments.networks:{name}" for name in ("mobilenetv2", "efficientnet_lite0", "resnet18", "mobilenetv1")),
)


def main() -> None:
    """Print the table; with --json also one line of JSON per model on standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--records", default="compare.sqlite")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for model in given.models:
        start = time.perf_counter()
        settings = Settings(trials=given.trials, seed=given.seed)
        request = Request(Source(model), find("local", given.threads), settings, given.records)
        benchmark = bench(request, given.rounds, of_terminal(), given.int8)
        if given.json:
            print(json.dumps(benchmark.to_dict()), flush=True)
        own = "  ".join(f"{name} {ms.median:.3f} ms" for name, ms in benchmark.latency_ms.items() if "tvm" in name)
        print(
            f"{model}: {own}, {benchmark.threads} threads, {benchmark.layouts['tvm']}, "
            f"{time.perf_counter() - start:.0f} s"
        )
        for runtime, ratio in benchmark.tvm_over.items():
            rows.setdefault(runtime, []).append(ratio.median)
            ms = benchmark.latency_ms[runtime].median
            print(
                f"  {runtime:18}{ms:8.3f} ms, tvm takes {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
                flush=True,
            )
    for runtime, ratios in rows.items():
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"geometric mean of tvm / {runtime} over {len(ratios)} networks: {mean:.3f}, worst {max(ratios):.2f}")
    with Store(given.records) as store:
        tried = store.all()
    wrong = sum(record.failure == "check" for record in tried)
    failed = sum(record.failure not in ("", "check") for record in tried)
    print(f"{len(tried)} programs tried, {failed} failed, {wrong} gave a wrong result and were dropped")
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ours, worker = (resource.getrusage(who).ru_maxrss / 2**20 for who in processes)
    print(f"peak memory: {ours:.2f} GB (with PyTorch and ONNX Runtime), measuring process {worker:.2f} GB")


if __name__ == "__main__":
    main()
