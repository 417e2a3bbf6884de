"""How programs are timed, on this machine and on a device.

`serve.py` has the part that a device needs, because it is copied there alone.  On this machine a program is timed with
its weights in several places by turns, as it finds them in a model; over RPC with one set, trials and races alike.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cprune.targets.process import failure
from cprune.targets.serve import once, runs
from cprune.targets.session import Array, Failure, Forms, Timed, arguments, empty

ARGUMENTS_KEPT = 4
"""Forms whose arguments are kept: a task has two (direct and Winograd), the kernel that shows throttling its own."""


class Arguments:
    """Random arguments for timing.  Making them, and sending them to a device, takes longer than timing a program."""

    def __init__(self, tensor: Callable[[Array], Any]) -> None:
        self._tensor = tensor
        self._kept: dict[Forms, list[Any]] = {}

    def of(self, forms: Forms) -> list[Any]:
        """Return tensors of these shapes and types, the output last."""
        tensors = self._kept.pop(forms, None)
        if tensors is None:
            arrays = [*arguments(forms, 0), empty(forms)]
            tensors = [self._tensor(array) for array in arrays]
            if len(self._kept) == ARGUMENTS_KEPT:
                del self._kept[next(iter(self._kept))]
        self._kept[forms] = tensors  # the last one was used last
        return tensors


SPREAD_BYTES, MOST_SETS = 16 << 20, 16


def weight_sets(arguments: list[Any], spread_bytes: int = SPREAD_BYTES) -> list[list[Any]]:
    """Return the arguments of the calls to time in turn: every set has weights of its own, `spread_bytes` in all.

    There are two at least, MOST_SETS at most, and one where `spread_bytes` is 0 or there are no weights.

    In a model no kernel finds its weights where its last call left them: those of other layers came in between.  What
    a kernel reads first and what it writes are near in a model too, and the same in all sets.
    """
    weights = arguments[1:-1]
    size = sum(math.prod(weight.shape) * np.dtype(str(weight.dtype)).itemsize for weight in weights)
    more = max(2, min(MOST_SETS, -(-spread_bytes // size))) - 1 if size and spread_bytes else 0
    return [arguments, *([arguments[0], *(w.copyto(w.device) for w in weights), arguments[-1]] for _ in range(more))]


def runs_in_turns(
    library: Any, device: Any, sets: list[list[Any]], repeats: int, run_s: float, alone_s: float, cooldown_s: float
) -> list[float]:
    """Return what `serve.runs` does, the sets of arguments taking turns.

    The loop is Python's and adds 0.14 us to a call on a server's processor, where TVM's own loop adds 0.01 us.  TVM's
    is taken for a single set: over RPC every call of ours would be a round trip.
    """
    if len(sets) == 1:
        return runs(library, device, sets[0], repeats, run_s, alone_s, cooldown_s)
    number = max(1, min(2000, int(run_s / max(alone_s, 1e-7))))
    call, means = library["main"], []
    for _ in range(repeats):
        time.sleep(cooldown_s)
        turns = list(itertools.islice(itertools.cycle(sets), number))
        start = time.perf_counter()
        for each in turns:
            call(*each)
        means.append((time.perf_counter() - start) / number)
    return means


def timed(
    library: Any,
    device: Any,
    arguments: list[Any],
    repeats: int,
    run_s: float,
    slow_s: float,
    cooldown_s: float,
) -> list[float]:
    """Return what `serve.timed` does, with weights that lie elsewhere at every call."""
    alone_s = once(library, device, arguments)
    if alone_s > slow_s:
        return [alone_s]
    return runs_in_turns(library, device, weight_sets(arguments), repeats, run_s, alone_s, cooldown_s)


Prepare = Callable[[], tuple[Any, list[Any]]]
"""Returns a loaded library and its arguments, the output last.  What it raises is a Failure("load") or a bug."""


@dataclass
class _Racer:
    """A program that ran once: how long a call took alone, what it computed, and its runs so far."""

    library: Any
    sets: list[list[Any]]
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
    spread_bytes: int = SPREAD_BYTES,
) -> list[Timed | Failure] | Failure:
    """Time programs in turns and return their outputs.

    The order is reversed every other round, so that a drift hits all alike.  Every program has several sets of
    weights (`weight_sets`), but for 0 `spread_bytes`.  A `fatal` failure is that of all.
    """
    racers: list[_Racer | Failure] = []
    for prepare in entries:
        racer = _begun(prepare, device, spread_bytes)
        if isinstance(racer, Failure) and fatal(racer):
            return racer
        racers.append(racer)
    for index in range(rounds):
        for which in range(len(racers)) if index % 2 else reversed(range(len(racers))):
            racer = racers[which]
            if isinstance(racer, Failure):
                continue
            try:
                racer.runs_s += runs_in_turns(racer.library, device, racer.sets, 1, run_s, racer.alone_s, cooldown_s)
            except Exception as error:
                failed = racers[which] = failure("run", error)
                if fatal(failed):
                    return failed
    return [racer if isinstance(racer, Failure) else Timed(tuple(racer.runs_s), racer.output) for racer in racers]


def _begun(prepare: Prepare, device: Any, spread_bytes: int) -> _Racer | Failure:
    stage = "load"
    try:
        library, args = prepare()
        stage = "run"
        alone_s = once(library, device, args)
        return _Racer(library, weight_sets(args, spread_bytes), alone_s, args[-1].numpy().copy(), [])
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
