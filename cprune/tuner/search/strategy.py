"""The strategies by name: ask(n) / choose(built, n) / tell(records).  A strategy never measures.

============  ====================================================================================================
random        points in random order
evolutionary  neighbours and crossings of the fastest points
P             a model of speed on visible features proposes what to measure
P+A           P proposes twice as many; they are compiled, and a model that sees their assembly picks half
P+V, P+V+A    the same without points that a model of validity expects to fail
============  ====================================================================================================

Every strategy asks for the refitted programs of a sibling (`start`) first.  The models are in `cost_model.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cprune.targets.errors import unknown
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Workload
from cprune.tuner.search.cost_model import Memory
from cprune.tuner.search.evolutionary import Evolutionary
from cprune.tuner.search.features import Machine
from cprune.tuner.search.multilevel import MultiLevel
from cprune.tuner.search.points import Random, Strategy

STRATEGIES = ("random", "evolutionary", "P", "P+A", "P+V", "P+V+A")
DEFAULT = "P+V"
"""V says nothing where nine of ten candidates work, as on CPUs, and leaves less than half of the failures where most do
not; A has paid nowhere yet (`experiments/README.md`), and doubles what is built."""


def strategy(
    name: str,
    workload: Workload,
    space: Sequence[Candidate],
    rng: random.Random,
    trials: int,
    machine: Machine,
    start: Sequence[Candidate] = (),
    history: Memory | None = None,
    threads: int = 1,
    prior_s: Sequence[float] | None = None,
) -> Strategy:
    """Return the strategy of this name for one task.

    `trials` is how long the search will be, earlier trials included.  `start` are fast programs of a sibling of
    another width.  `history` is what other tasks taught on the same target; it may grow while the strategy is used.
    What is known of this task itself has to be told.  `threads` is how many threads training a model may use.
    `prior_s` is about how long each point takes where that follows from the target's description, infinite for what
    cannot work there; strategies without a model do without.
    Raises UserError for an unknown name.
    """
    if name == "random":
        return Random(space, rng, trials, start)
    if name == "evolutionary":
        return Evolutionary(space, rng, trials, start)
    if name in STRATEGIES:
        return MultiLevel(workload, space, rng, trials, machine, name, start, history, threads, prior_s)
    raise unknown("strategy", name, STRATEGIES)
