"""The process that talks to one device: `python -m cprune.targets.client FD HOST PORT KEY THREADS`.

It gets a session from the tracker, greets with what the device says of itself (or {"error": …}) and answers requests
until the pipe closes.  Every call into TVM's RPC may block for ever when a device freezes: that is why this is a
process of its own, which the parent ends at a deadline (`rpc.py`).  When it ends, the device's server ends the session.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from cprune.targets.device import broke
from cprune.targets.process import answer, begun, first_line
from cprune.targets.session import Failure, Timed, arguments

HELD = 64
"""Libraries that stay loaded on a device."""


def main() -> None:
    """Serve until the parent closes the pipe."""
    fd, host, port, key, threads = sys.argv[1:6]
    connection = begun(fd)
    try:
        client = Client(host, int(port), key, int(threads))
    except Exception as error:
        connection.send({"error": first_line(error)})
        return
    connection.send(client.device)
    answer(connection, client)


class Client:
    """The requests, one method each.  Every answer is a value or a Failure."""

    def __init__(self, host: str, port: int, key: str, threads: int) -> None:
        self.place, self.key, self.threads = (host, port), key, threads
        self.session: Any = None
        self.device = self.connect()

    def connect(self) -> Any:
        """Get a session, the first one or another one after that broke; return what the device says of itself."""
        from tvm import rpc

        self.loaded: dict[str, Any] = {}
        self.arguments: tuple[Any, list[Any]] = (None, [])
        self.models: dict[str, tuple[Any, list[Any]]] = {}
        start = time.perf_counter()
        self.session = rpc.connect_tracker(*self.place).request(self.key, session_timeout=0)
        self.cpu = self.session.cpu(0)
        try:
            told = json.loads(self.session.get_function("cprune.device")())
        except Exception:  # a stock server, or TVM's C++ one: it cannot tell
            told = {"cpu": "", "machine": "", "tvm": ""}
        if self.threads:  # 1: the pool prefers large cores
            self.session.get_function("runtime.config_threadpool")(1, self.threads)
        count = self.session.get_function("runtime.NumThreads")
        told["threads"] = int(count())
        told["connect_s"] = time.perf_counter() - start
        trips = []
        for _ in range(5):
            start = time.perf_counter()
            count()
            trips.append(time.perf_counter() - start)
        told["round_trip_ms"] = 1e3 * min(trips)
        return told

    def again(self) -> Any:
        """Get another session after the first one broke; a Failure if there is none."""
        try:
            return self.connect()
        except Exception as error:
            return Failure("run", first_line(error))

    def state(self) -> dict[str, Any] | Failure:
        """Return what the device says of itself now (clock, temperature)."""
        try:
            told: dict[str, Any] = json.loads(self.session.get_function("cprune.device")())
            return told
        except Exception as error:
            return Failure("run", first_line(error))

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

    def _tensor(self, array: Any) -> Any:
        import tvm

        return tvm.runtime.tensor(np.ascontiguousarray(array), self.cpu)

    def time(
        self, path: str, shapes: Any, repeats: int, min_run_s: float, slow_s: float, cooldown_s: float
    ) -> Timed | Failure:
        """Run once, then time, on random arguments that stay on the device for the programs of one task."""
        try:
            library = self._module(path)
        except Exception as error:
            return Failure("load", first_line(error))
        try:
            if self.arguments[0] != shapes:
                made = [*arguments(shapes, 0), np.zeros(shapes[-1], np.float32)]
                self.arguments = (shapes, [self._tensor(a) for a in made])
            args = self.arguments[1]
            once = float(library.time_evaluator("main", self.cpu, number=1, repeat=1)(*args).results[0])
            if once > slow_s:
                return Timed((once,))
            return Timed(self._runs(library, args, repeats, min_run_s, once, cooldown_s))
        except Exception as error:
            return Failure("run", first_line(error))

    def race(
        self, paths: list[str], given: list[list[Any]], shapes: list[Any], rounds: int, run_s: float, cooldown_s: float
    ) -> list[Timed | Failure] | Failure:
        """Time programs in turns and return their outputs; one Failure for all if the connection broke."""
        found: dict[str, Any] = {}
        for path, arrays, form in zip(paths, given, shapes, strict=True):
            try:
                library = self._module(path)
            except Exception as error:
                found[path] = Failure("load", first_line(error))
                if broke(found[path]):
                    return found[path]  # type: ignore[no-any-return]
                continue
            try:
                args = [*(self._tensor(a) for a in arrays), self._tensor(np.zeros(form[-1], np.float32))]
                once = float(library.time_evaluator("main", self.cpu, number=1, repeat=1)(*args).results[0])
                found[path] = (library, args, once, args[-1].numpy().copy(), [])
            except Exception as error:
                found[path] = Failure("run", first_line(error))
                if broke(found[path]):
                    return found[path]  # type: ignore[no-any-return]
        for index in range(rounds):
            for path in paths if index % 2 else reversed(paths):
                if isinstance(found[path], Failure):
                    continue
                library, args, once, _, runs = found[path]
                try:
                    runs += self._runs(library, args, 1, run_s, once, cooldown_s)
                except Exception as error:
                    found[path] = Failure("run", first_line(error))
                    if broke(found[path]):
                        return found[path]  # type: ignore[no-any-return]
        return [f if isinstance(f, Failure) else Timed(tuple(f[4]), f[3]) for f in (found[p] for p in paths)]

    def _runs(
        self, library: Any, args: list[Any], repeats: int, run_s: float, once: float, cooldown_s: float
    ) -> tuple[float, ...]:
        number = max(1, min(2000, int(run_s / max(once, 1e-7))))
        pause = int(1e3 * cooldown_s)
        evaluate = library.time_evaluator(
            "main", self.cpu, number=number, repeat=repeats, cooldown_interval_ms=pause, repeats_to_cooldown=1
        )
        return tuple(float(r) for r in evaluate(*args).results)

    def load(self, key: str, path: str, weights: tuple[Any, ...]) -> Failure | None:
        """Upload a whole model with its weights."""
        from tvm.runtime.vm import VirtualMachine

        try:
            machine = VirtualMachine(self._module(path), self.cpu)
            self.models[key] = (machine, [self._tensor(w) for w in weights])
        except Exception as error:
            return Failure("load", first_line(error))
        return None

    def run(self, key: str, inputs: list[Any]) -> Any:
        """Run a held model once."""
        machine, weights = self.models[key]
        try:
            machine.set_input("main", *(self._tensor(a) for a in inputs), *weights)
            machine.invoke_stateful("main")
            output = machine.get_outputs("main")
            return tuple(part.numpy() for part in ((output,) if hasattr(output, "numpy") else output))
        except Exception as error:
            return Failure("run", first_line(error))

    def time_models(self, keys: list[str], inputs: list[Any], rounds: int, run_s: float, cooldown_s: float) -> Any:
        """Time the held models in turns; the order is reversed every other round, so that a drift hits all alike."""
        try:
            numbers: dict[str, int] = {}
            for key in keys:
                machine, weights = self.models[key]
                machine.set_input("main", *(self._tensor(a) for a in inputs), *weights)
                machine.invoke_stateful("main")
                once = float(machine.time_evaluator("invoke_stateful", self.cpu, number=1)("main").results[0])
                numbers[key] = max(1, min(1000, int(run_s / max(once, 1e-7))))
            runs: dict[str, list[float]] = {key: [] for key in keys}
            for index in range(rounds + 1):
                for key in keys if index % 2 else reversed(keys):
                    time.sleep(cooldown_s)
                    machine = self.models[key][0]
                    found = machine.time_evaluator("invoke_stateful", self.cpu, number=numbers[key])("main").results
                    if index:  # the first round warms up
                        runs[key].append(float(found[0]))
            return {key: tuple(values) for key, values in runs.items()}
        except Exception as error:
            return Failure("run", first_line(error))

    def drop(self, key: str) -> None:
        """Forget a held model."""
        self.models.pop(key, None)


if __name__ == "__main__":
    main()
