"""What this machine can do at best: GFLOP/s of a large matrix product, GB/s of a copy, both by PyTorch.

    python experiments/peak.py

A bound for the tuned programs of `against_metaschedule.py` and `compare_runtimes.py`.  The best of many runs counts: it
is a peak, and the two are measured one after the other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch


def fastest(call: Callable[[], object], seconds: float) -> float:
    """Return the seconds of the fastest call within `seconds`."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="for each")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    size = 1536
    a, b, c = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    product = fastest(lambda: torch.mm(a, b, out=c), given.seconds)
    source = torch.zeros(64 * 2**20)
    target = torch.empty_like(source)
    copy = fastest(lambda: target.copy_(source), given.seconds)
    print(
        f"{given.threads} threads: {2e-9 * size**3 / product:.0f} GFLOP/s (float32 product of {size} x {size}), "
        f"{2e-9 * source.nbytes / copy:.1f} GB/s read and written (copy of {source.nbytes / 2**20:.0f} MiB)"
    )


if __name__ == "__main__":
    main()
