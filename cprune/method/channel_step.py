"""How many channels must go at once, so that the fastest program of a task keeps its structure (CPrune, section 3).

The output-channel axis of a program is split into loops.  Taking one iteration away from the largest loop leaves
every other split (register tile, vector, cache tile) as it is: for extents F of product C the step is C / max(F).
Where that loop runs in parallel, one iteration less may change nothing: three pieces keep two threads busy as long as
four do.  The step is then as many iterations as the busiest thread needs to lose one of its pieces.

=============  =========================  ==========================  =============================================
               paper (handed down)        released code               here
=============  =========================  ==========================  =============================================
two stages     least common multiple      maximum                     LCM by default, maximum as `join="max"`
which loop     the largest                the largest                 the largest that is not the vector: a narrower
                                                                      vector would be another program
parallel loop  one iteration              one iteration               until ceil(pieces / threads) falls; one where
                                                                      every piece has a thread of its own, since the
                                                                      narrower layer is tuned to another program then
depthwise      -                          no step, the run dies       has a step like any other convolution
=============  =========================  ==========================  =============================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cprune.tuner.programs.space import Candidate, channel_pieces, channel_splits
from cprune.tuner.programs.workload import Workload


def step_of(workload: Workload, candidate: Candidate, threads: int, join: str = "lcm") -> int:
    """Return the channel step of a task whose fastest program is `candidate` on so many threads."""
    return channel_step(channel_splits(workload, candidate), join, channel_pieces(workload, candidate), threads)


def channel_step(splits: Sequence[Sequence[int]], join: str = "lcm", pieces: int = 0, threads: int = 1) -> int:
    """Return the smallest number of output channels whose removal keeps the program's structure and makes it faster.

    `splits` holds, per stage, the loop extents of the output-channel axis, outermost first, the vector last
    (`cprune.tuner.programs.space.channel_splits`).  Every iteration of the outermost loop is made of `pieces` that
    `threads` share, 0 where it does not run in parallel.  Returns 0 for a program without an output-channel axis.
    """
    steps = [_step(split, pieces, threads) for split in splits if split]
    if not steps:
        return 0
    return math.lcm(*steps) if join == "lcm" else max(steps)


def _step(split: Sequence[int], pieces: int, threads: int) -> int:
    loops = split[:-1]
    largest = max(loops, default=1)
    each = math.prod(split) // largest
    if not loops or largest > loops[0]:
        return each
    busiest = -(-largest * pieces // threads)
    if busiest <= 1:
        return each
    fewer = (threads * (busiest - 1)) // pieces  # so many iterations leave the busiest thread a piece less
    return each * (largest - fewer) if fewer else each
