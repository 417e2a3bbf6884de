"""How many channels must go at once, so that the fastest program of a task keeps its structure (CPrune, section 3).

The output-channel axis of a program is split into loops.  Taking one iteration away from the largest loop leaves
every other split (register tile, vector, cache tile) as it is: for extents F of product C the step is C / max(F).

============  =========================  ==========================  =============================================
              paper (handed down)        released code               here
============  =========================  ==========================  =============================================
two stages    least common multiple      maximum                     LCM by default, maximum as `join="max"`
which loop    the largest                the largest                 the largest that is not the vector: a narrower
                                                                     vector would be another program
depthwise     -                          no step, the run dies       has a step like any other convolution
============  =========================  ==========================  =============================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def channel_step(splits: Sequence[Sequence[int]], join: str = "lcm") -> int:
    """Return the smallest number of output channels whose removal keeps the program's structure.

    `splits` holds, per stage, the loop extents of the output-channel axis, outermost first, the vector last
    (`cprune.tuner.programs.space.channel_splits`).  Returns 0 for a program without an output-channel axis.
    """
    steps = [math.prod(split) // max(split[:-1], default=1) for split in splits if split]
    if not steps:
        return 0
    return math.lcm(*steps) if join == "lcm" else max(steps)
