"""Latencies with intervals: every decision of cprune is made on these, never on one number.

Two models are timed in turns (one block of calls each, the order reversed every round), so that a machine that slows
down slows both.  What is compared is the ratio within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cprune.targets.errors import BrokenWorld
from cprune.targets.interval import Comparison, interval, one_level
from cprune.targets.session import Array, Failure, Session

LOOKS = 4


def compare(
    session: Session,
    old: str,
    new: str,
    inputs: Sequence[Array],
    rounds: int,
    run_ms: float,
    beta: float | None = None,
) -> Comparison:
    """Time two held models in turns: `rounds` of them, and more while the machine is too noisy to tell.

    Every further look doubles the number of rounds and counts all of them, so that a small gain is seen in noise, at
    most LOOKS times (8 times `rounds` in all).  With `beta` the question is whether `new` is faster, else the answer
    only has to be believable.  Where the machine changed its speed on the way, as the rounds of `old` tell, only those
    at the speed that it had longer count, and `rounds` of them are waited for.  What is still no answer after the last
    look is returned as it is: see `Comparison.believable`.  (Four looks at an interval of 95 % take a model without any
    gain for a faster one more often than one look, but its median would have to be below `beta` as well.)

    Raises BrokenWorld if a model that was checked before fails to run.
    """
    pool: dict[str, list[float]] = {old: [], new: []}
    for look in range(LOOKS):
        runs = session.time_models((old, new), inputs, rounds * 2 ** max(0, look - 1), run_ms)
        if isinstance(runs, Failure):
            raise BrokenWorld(f"a compiled model stopped running ({runs.stage}): {runs.reason}")
        for key in pool:
            pool[key] += runs[key]
        level = one_level(pool[old])
        pairs = [(pool[old][i], pool[new][i]) for i in level]
        comparison = Comparison(
            interval([1e3 * a for a, _ in pairs]),
            interval([1e3 * b for _, b in pairs]),
            interval([b / a for a, b in pairs]),
            len(pool[old]) - len(level),
        )
        clear = beta is None or comparison.faster(beta) or comparison.ratio.low > beta
        if clear and comparison.believable and len(level) >= rounds:
            break
    return comparison


@dataclass(frozen=True)
class Sustained:
    """One model under load without a pause: its latency at first and after `seconds`.

    Where the second is clearly larger the processor slows down under load, and short timings promise too much.
    """

    seconds: float
    peak_ms: float
    sustained_ms: float


def sustained(session: Session, key: str, inputs: Sequence[Array], seconds: float = 3.0) -> Sustained:
    """Run a held model for about `seconds`: the first quarter's median is the peak, the last half's is sustained."""
    windows = 12
    runs = session.time_models((key,), inputs, windows, 1e3 * seconds / windows)
    if isinstance(runs, Failure):
        raise BrokenWorld(f"a compiled model stopped running ({runs.stage}): {runs.reason}")
    ms = [1e3 * s for s in runs[key]]
    first, last = statistics.median(ms[: windows // 4]), statistics.median(ms[-windows // 2 :])
    return Sustained(seconds, float(f"{first:.6g}"), float(f"{last:.6g}"))
