"""How programs are timed, on this machine and on a device: the same lines for both.

`serve.py` has the part that a device needs, because it is copied there alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
        found = self._kept.pop(shapes, None)
        if found is None:
            made = [*arguments(shapes, 0), np.zeros(shapes[-1], np.float32)]
            found = [self._tensor(array) for array in made]
            if len(self._kept) == ARGUMENTS_KEPT:
                del self._kept[next(iter(self._kept))]
        self._kept[shapes] = found  # the last one was used last
        return found


Prepare = Callable[[], tuple[Any, list[Any]]]
"""Returns a loaded library and its arguments, the output last.  What it raises is a Failure("load") or a bug."""


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
    found: list[Any] = []
    for prepare in entries:
        try:
            stage = "load"
            library, args = prepare()
            stage = "run"
            alone = once(library, device, args)
            found.append((library, args, alone, args[-1].numpy().copy(), []))
        except Exception as error:
            found.append(failure(stage, error))
            if fatal(found[-1]):
                return found[-1]  # type: ignore[no-any-return]
    for index in range(rounds):
        for which in range(len(found)) if index % 2 else reversed(range(len(found))):
            if isinstance(found[which], Failure):
                continue
            library, args, alone, _, seconds = found[which]
            try:
                seconds += runs(library, device, args, 1, run_s, alone, cooldown_s)
            except Exception as error:
                found[which] = failure("run", error)
                if fatal(found[which]):
                    return found[which]  # type: ignore[no-any-return]
    return [f if isinstance(f, Failure) else Timed(tuple(f[4]), f[3]) for f in found]


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
    found: dict[str, list[float]] = {key: [] for key in keys}
    for index in range(rounds + 1):
        order = keys if index % 2 else keys[::-1]
        if index and index % ROUNDS_IN_PLACE == 0:
            for key in order:
                move(key)
        for key in order:
            time.sleep(cooldown_s)
            spent = seconds(key, numbers[key])
            if index:
                found[key].append(spent)
    return {key: tuple(values) for key, values in found.items()}
