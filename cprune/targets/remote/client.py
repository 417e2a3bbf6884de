"""The process that talks to one device: `python -m cprune.targets.remote.client FD HOST PORT KEY THREADS`.

It gets a session from the tracker, greets with what the device says of itself (or {"error": …}) and answers requests
until the pipe closes.  Every call into TVM's RPC may block for ever when a device freezes: that is why this is a
process of its own, which the parent ends at a deadline (`device.py`).  When it ends, the device's server ends the
session.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from cprune.targets.errors import type_and_first_line
from cprune.targets.process import answer, begun, failure
from cprune.targets.remote.device import broke
from cprune.targets.serve import timed
from cprune.targets.session import Array, Failure, Forms, Timed, empty
from cprune.targets.timing import Arguments, Prepare, models_in_turns, race

HELD = 64
"""Libraries that stay loaded on a device."""
GONE = Failure("load", "the model went with the session that held it")
"""What is answered when a request is sent once more after the connection broke (`device.py`)."""


def main() -> None:
    """Serve until the parent closes the pipe."""
    fd, host, port, key, threads = sys.argv[1:6]
    connection = begun(fd)
    try:
        client = Client(host, int(port), key, int(threads))
    except Exception as error:
        connection.send({"error": type_and_first_line(error)})
        return
    connection.send(client.device)
    answer(connection, client)


class Client:
    """The requests, one method each.  Every answer is a value or a Failure."""

    def __init__(self, host: str, port: int, key: str, threads: int) -> None:
        self.place, self.key, self.threads = (host, port), key, threads
        self.session: Any = None
        self.device = self.connect()

    def connect(self) -> dict[str, Any]:
        """Get a session, the first one or another one after that broke; return what the device says of itself."""
        from tvm import rpc

        self.loaded: dict[str, Any] = {}
        self.arguments = Arguments(self._tensor)
        self.models: dict[str, tuple[Any, list[Any]]] = {}
        start = time.perf_counter()
        self.session = rpc.connect_tracker(*self.place).request(self.key, session_timeout=0)
        self.cpu = self.session.cpu(0)
        tell, self.measure = self._ours("cprune.device"), self._ours("cprune.time")
        facts: dict[str, Any] = json.loads(tell()) if tell is not None else {"cpu": "", "machine": "", "tvm": ""}
        if self.threads:  # 1: the pool prefers large cores
            self.session.get_function("runtime.config_threadpool")(1, self.threads)
        count = self.session.get_function("runtime.NumThreads")
        facts["threads"] = int(count())
        facts["connect_s"] = time.perf_counter() - start
        trips = []
        for _ in range(5):
            start = time.perf_counter()
            count()
            trips.append(time.perf_counter() - start)
        facts["round_trip_ms"] = 1e3 * min(trips)
        return facts

    def _ours(self, name: str) -> Any:
        """Return a function of our server; None where a stock one runs there, or TVM's in C++."""
        try:
            return self.session.get_function(name)
        except Exception:
            return None

    def again(self) -> dict[str, Any] | Failure:
        """Get another session after the first one broke; a Failure if there is none."""
        try:
            return self.connect()
        except Exception as error:
            return failure("run", error)

    def state(self) -> dict[str, Any] | Failure:
        """Return what the device says of itself now (clock, temperature)."""
        try:
            facts: dict[str, Any] = json.loads(self.session.get_function("cprune.device")())
            return facts
        except Exception as error:
            return failure("run", error)

    def _module(self, path: str) -> Any:
        """Upload a library once, and load it."""
        if path not in self.loaded:
            name = os.path.basename(path)
            self.session.upload(path, name)
            self.loaded[path] = self.session.load_module(name)
            self.session.remove(name)
            if len(self.loaded) > HELD:
                del self.loaded[next(iter(self.loaded))]
        return self.loaded[path]

    def _tensor(self, array: Array) -> Any:
        import tvm

        return tvm.runtime.tensor(np.ascontiguousarray(array), self.cpu)

    def time(
        self, path: str, forms: Forms, repeats: int, min_run_s: float, slow_s: float, cooldown_s: float
    ) -> Timed | Failure:
        """Run once, then time, on random arguments that stay on the device.

        Two calls where the server knows how (`serve.measured`), some ten where it is a stock one.
        """
        numbers = (repeats, min_run_s, slow_s, cooldown_s)
        try:
            stage = "load"
            args = self.arguments.of(forms)
            if self.measure is None:
                library = self._module(path)
                stage = "run"
                return Timed(tuple(timed(library, self.cpu, args, *numbers)))
            name = os.path.basename(path)
            self.session.upload(path, name)
            stage = "run"
            answered = json.loads(self.measure(name, *numbers, *args))
        except Exception as error:
            return failure(stage, error)
        return Failure(*answered) if answered[0] in ("load", "run") else Timed(tuple(answered))

    def race(
        self,
        paths: list[str],
        inputs: list[list[Array]],
        forms: list[Forms],
        rounds: int,
        run_s: float,
        cooldown_s: float,
    ) -> list[Timed | Failure] | Failure:
        """Time programs in turns and return their outputs; one Failure for all if the connection broke."""

        def entry(path: str, arrays: list[Array], form: Forms) -> Prepare:
            def prepare() -> tuple[Any, list[Any]]:
                return self._module(path), [self._tensor(a) for a in (*arrays, empty(form))]

            return prepare

        return race(list(map(entry, paths, inputs, forms)), self.cpu, rounds, run_s, cooldown_s, broke, 0)

    def load(self, key: str, path: str, weights: tuple[Array, ...]) -> Failure | None:
        """Upload a whole model with its weights."""
        from tvm.runtime.vm import VirtualMachine

        try:
            machine = VirtualMachine(self._module(path), self.cpu)
            self.models[key] = (machine, [self._tensor(w) for w in weights])
        except Exception as error:
            return failure("load", error)
        return None

    def run(self, key: str, inputs: list[Array]) -> tuple[Array, ...] | Failure:
        """Run a held model once."""
        if key not in self.models:
            return GONE
        try:
            machine, weights = self.models[key]
            machine.set_input("main", *(self._tensor(a) for a in inputs), *weights)
            machine.invoke_stateful("main")
            output = machine.get_outputs("main")
            return tuple(part.numpy() for part in ((output,) if hasattr(output, "numpy") else output))
        except Exception as error:
            return failure("run", error)

    def time_models(
        self, keys: list[str], inputs: list[Array], rounds: int, run_s: float, cooldown_s: float
    ) -> dict[str, tuple[float, ...]] | Failure:
        """Time the held models in turns."""
        if not self.models.keys() >= set(keys):
            return GONE
        try:
            tensors = [self._tensor(a) for a in inputs]  # sent once, however often the weights move

            def move(key: str) -> None:
                machine, weights = self.models[key]
                weights = [w.copyto(self.cpu) for w in weights]
                self.models[key] = (machine, weights)
                machine.set_input("main", *tensors, *weights)
                machine.invoke_stateful("main")

            def seconds(key: str, number: int) -> float:
                evaluate = self.models[key][0].time_evaluator("invoke_stateful", self.cpu, number=number)
                return float(evaluate("main").results[0])

            return models_in_turns(keys, move, seconds, rounds, run_s, cooldown_s)
        except Exception as error:
            return failure("run", error)

    def drop(self, key: str) -> None:
        """Forget a held model."""
        self.models.pop(key, None)


if __name__ == "__main__":
    main()
