"""How programs are timed, on this machine and on a device: the same lines for both.

`serve.py` has the part that a device needs, because it is copied there alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cprune.targets.process import failure
from cprune.targets.serve import once, runs
from cprune.targets.session import Array, Failure, Shapes, Timed, arguments

ARGUMENTS_KEPT = 4
"""Shapes whose arguments are kept: a task has two (direct and Winograd), the kernel that shows throttling its own."""


class Arguments:
    """Random arguments for timing.  Making them, and sending them to a device, takes longer than timing a program."""

    def __init__(self, tensor: Callable[[Array], Any]) -> None:
        self._tensor = tensor
        self._kept: dict[Shapes, list[Any]] = {}

    def of(self, shapes: Shapes) -> list[Any]:
        """Return tensors of these shapes, the output last."""
        tensors = self._kept.pop(shapes, None)
        if tensors is None:
            arrays = [*arguments(shapes, 0), np.zeros(shapes[-1], np.float32)]
            tensors = [self._tensor(array) for array in arrays]
            if len(self._kept) == ARGUMENTS_KEPT:
                del self._kept[next(iter(self._kept))]
        self._kept[shapes] = tensors  # the last one was used last
        return tensors


Prepare = Callable[[], tuple[Any, list[Any]]]
"""Returns a loaded library and its arguments, the output last.  What it raises is a Failure("load") or a bug."""


@dataclass
class _Racer:
    """A program that ran once: how long a call took alone, what it computed, and its runs so far."""

    library: Any
    args: list[Any]
    alone_s: float
    output: Array
    runs_s: list[float]


def race(
    entries: Sequence[Prepare],
    device: Any,
    rounds: int,
    run_s: float,
    cooldown_s: float,
    fatal: Callable[[Failure], bool] = lambda _: False,
) -> list[Timed | Failure] | Failure:
    """Time programs in turns and return their outputs.

    The order is reversed every other round, so that a drift hits all alike.  A `fatal` failure is that of all.
    """
    racers: list[_Racer | Failure] = []
    for prepare in entries:
        racer = _begun(prepare, device)
        if isinstance(racer, Failure) and fatal(racer):
            return racer
        racers.append(racer)
    for index in range(rounds):
        for which in range(len(racers)) if index % 2 else reversed(range(len(racers))):
            racer = racers[which]
            if isinstance(racer, Failure):
                continue
            try:
                racer.runs_s += runs(racer.library, device, racer.args, 1, run_s, racer.alone_s, cooldown_s)
            except Exception as error:
                failed = racers[which] = failure("run", error)
                if fatal(failed):
                    return failed
    return [racer if isinstance(racer, Failure) else Timed(tuple(racer.runs_s), racer.output) for racer in racers]


def _begun(prepare: Prepare, device: Any) -> _Racer | Failure:
    stage = "load"
    try:
        library, args = prepare()
        stage = "run"
        alone_s = once(library, device, args)
        return _Racer(library, args, alone_s, args[-1].numpy().copy(), [])
    except Exception as error:
        return failure(stage, error)


ROUNDS_IN_PLACE = 5
"""Rounds until all weights move: where they lie decides over 1 to 2 % (pages, cache sets), and a model that was loaded
into a fresh process kept that advantage over every later one."""


def models_in_turns(
    keys: Sequence[str],
    move: Callable[[str], None],
    seconds: Callable[[str, int], float],
    rounds: int,
    run_s: float,
    cooldown_s: float,
) -> dict[str, tuple[float, ...]]:
    """Return the seconds of an inference of each model, one number a round.

    `move(key)` copies a model's weights to other memory, which is done with all models now and then.  `seconds(key,
    number)` calls a model once to bring its weights back into the caches, then `number` times, and returns the mean of
    those; a run takes about `run_s`.  The order is reversed every other round; the first one warms up.
    """
    for key in keys:
        move(key)
    numbers = {key: max(1, min(1000, int(run_s / max(seconds(key, 1), 1e-7)))) for key in keys}
    rounds_s: dict[str, list[float]] = {key: [] for key in keys}
    for index in range(rounds + 1):
        order = keys if index % 2 else keys[::-1]
        if index and index % ROUNDS_IN_PLACE == 0:
            for key in order:
                move(key)
        for key in order:
            time.sleep(cooldown_s)
            spent_s = seconds(key, numbers[key])
            if index:
                rounds_s[key].append(spent_s)
    return {key: tuple(values) for key, values in rounds_s.items()}
