"""Latencies of tasks that can be compared, of a machine that has slow and fast minutes.

One program takes 20 to 40 % longer in one minute than in another, and the tasks of a model are tuned over many.  So
every narrower task is timed in turns with the whole-width task that it is cut from, and takes the ratio of the two
times what the whole one takes; and all whole ones are timed in turns with the one that takes most.  What a minute is
like goes out of both ratios.  The records in the store keep what was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from cprune.tuner.estimate import Entry
from cprune.tuner.programs.workload import key
from cprune.tuner.tune import Tunes

ROUNDS = 7
MOST = 8  # programs of one race: the weights of each lie in memory several times


def ratios(tuner: Tunes, reference: Entry, others: Sequence[Entry]) -> dict[str, float]:
    """Return how many times as long as `reference` each of the others takes, by task key.

    It is the median over rounds in which all took turns.  A task whose program does not run again has no ratio, and
    none has one where the reference does not.
    """
    found = {}
    for first in range(0, len(others), MOST - 1):
        some = [reference, *others[first : first + MOST - 1]]
        base, *runs = tuner.in_turns([(entry.workload, entry.candidate) for entry in some], ROUNDS)
        for entry, mine in zip(some[1:], runs, strict=True):
            if base and mine:
                found[key(entry.workload)] = statistics.median(a / b for a, b in zip(mine, base, strict=True))
    return found


def whole_seconds(tuner: Tunes, tasks: Sequence[Entry], uses: Mapping[str, int]) -> dict[str, float]:
    """Return what the tasks of a whole model take, by key: in turns, and together as long as they were known to take.

    `uses` says how often the model calls each.  A task that was not compared keeps its number.
    """
    anchor = max(tasks, key=lambda entry: entry.seconds * uses[key(entry.workload)])
    others = [entry for entry in tasks if entry is not anchor]
    compared = {key(anchor.workload): 1.0, **ratios(tuner, anchor, others)}
    known = {key(entry.workload): entry.seconds for entry in tasks}
    each = sum(known[task] * uses[task] for task in compared) / sum(n * uses[task] for task, n in compared.items())
    return {task: compared[task] * each if task in compared else seconds for task, seconds in known.items()}
