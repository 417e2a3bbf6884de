"""The process that builds and times: `python -m cprune.targets.worker FD THREADS`.

It answers requests on the pipe FD until the pipe closes.  It holds nothing that is worth keeping: when a kernel
crashes or hangs, the parent ends it and starts another (`local.py`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from cprune.targets.process import answer, begun, failure
from cprune.targets.session import Array, Failure, Model, Program, Timed, empty
from cprune.targets.target import cores
from cprune.targets.timing import Arguments, Prepare, models_in_turns, race, timed


def main() -> None:
    """Serve until the parent closes the pipe."""
    connection, threads = begun(sys.argv[1]), int(sys.argv[2])
    pool_threads = int(tvm.get_global_func("runtime.NumThreads")())
    connection.send(pool_threads)
    if pool_threads != threads:
        return
    answer(connection, Worker())


class Worker:
    """The requests, one method each.  Every answer is a value or a Failure."""

    def __init__(self) -> None:
        self.device = tvm.cpu()
        self.models: dict[str, tuple[Any, list[Any]]] = {}
        self.kernels: set[str] = set()
        self.uses: dict[str, set[str]] = {}  # the kernels of a held model
        self.programs: dict[int, tuple[Any, Program]] = {}
        self.arguments = Arguments(tvm.runtime.tensor)

    def build(
        self, handles: list[int], programs: list[Program], target: str, assembly: bool, keep: list[int] | None
    ) -> list[str | Failure]:
        """Build on all cores; return the assembly ("" where not asked for) of each, or why it failed.

        Of what was built before, only the handles in `keep` stay (None: all).
        """
        if keep is not None:
            self.programs = {handle: held for handle, held in self.programs.items() if handle in keep}

        def one(handle: int, program: Program) -> str | Failure:
            try:
                library = _built(program.module, "main", target)
                self.programs[handle] = (library, program)
                return str(library.inspect_source("asm")) if assembly else ""
            except Exception as error:
                return failure("build", error)

        with ThreadPoolExecutor(cores()) as pool:
            return list(pool.map(one, handles, programs))

    def time(
        self, handle: int, repeats: int, min_run_s: float, slow_s: float, cooldown_s: float = 0.0
    ) -> Timed | Failure:
        """Run once, then time."""
        library, program = self.programs[handle]
        try:
            args = self.arguments.of(program.forms)
            return Timed(tuple(timed(library, self.device, args, repeats, min_run_s, slow_s, cooldown_s)))
        except Exception as error:
            return failure("run", error)

    def race(
        self, handles: list[int], inputs: list[list[Array]], rounds: int, run_s: float, cooldown_s: float = 0.0
    ) -> list[Timed | Failure] | Failure:
        """Time programs in turns and return their outputs."""

        def entry(handle: int, arrays: list[Array]) -> Prepare:
            library, program = self.programs[handle]
            return lambda: (library, [*(tvm.runtime.tensor(a) for a in arrays), _zeros(program)])

        return race(list(map(entry, handles, inputs)), self.device, rounds, run_s, cooldown_s)

    def load(self, key: str, model: Model, target: str) -> Failure | None:
        """Build a whole model; its kernels on all cores."""
        new = [kernel for kernel in model.kernels if kernel.name not in self.kernels]
        try:
            with ThreadPoolExecutor(cores()) as pool:
                libraries = list(pool.map(lambda kernel: _built(kernel.module, kernel.name, target), new))
            for kernel, library in zip(new, libraries, strict=True):
                # The virtual machine finds kernels by name among TVM's functions; among many imported libraries
                # it would search for seconds.
                tvm.register_global_func(kernel.name, library[kernel.name], override=True)
            self.kernels.update(kernel.name for kernel in new)
            built = tvm.compile(tvm.ir.load_json(model.module), tvm.target.Target(json.loads(target)))
            machine = tvm.relax.VirtualMachine(built, self.device)
        except Exception as error:
            return failure("build", error)
        self.models[key] = (machine, [tvm.runtime.tensor(w) for w in model.weights])
        self.uses[key] = {kernel.name for kernel in model.kernels}
        return None

    def _caller(self, key: str, inputs: list[Array]) -> Callable[[], Any]:
        machine, weights = self.models[key]
        main = machine["main"]
        args = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in inputs] + weights
        return lambda: main(*args)

    def run(self, key: str, inputs: list[Array]) -> tuple[Array, ...] | Failure:
        """Run a held model once."""
        try:
            output = self._caller(key, inputs)()
            return tuple(part.numpy() for part in ((output,) if hasattr(output, "numpy") else output))
        except Exception as error:
            return failure("run", error)

    def time_models(
        self, keys: list[str], inputs: list[Array], rounds: int, run_s: float, cooldown_s: float = 0.0
    ) -> dict[str, tuple[float, ...]] | Failure:
        """Time the held models in turns."""
        try:
            callers: dict[str, Callable[[], Any]] = {}

            def move(key: str) -> None:
                machine, weights = self.models[key]
                self.models[key] = (machine, [tvm.runtime.tensor(w.numpy()) for w in weights])
                callers[key] = self._caller(key, inputs)

            def seconds(key: str, number: int) -> float:
                call = callers[key]
                call()
                start = time.perf_counter()
                for _ in range(number):
                    call()
                return (time.perf_counter() - start) / number

            return models_in_turns(keys, move, seconds, rounds, run_s, cooldown_s)
        except Exception as error:
            return failure("run", error)

    def drop(self, key: str) -> None:
        """Forget a held model, and the kernels that were its alone."""
        self.models.pop(key, None)
        self.uses.pop(key, None)
        unused = self.kernels.difference(*self.uses.values())
        for name in unused:
            tvm_ffi.registry.remove_global_func(name)
        self.kernels -= unused


def _built(module: str, name: str, target: str) -> Any:
    """Build a TIR module to machine code in memory."""
    library = tvm.driver.build(tvm.ir.load_json(module), tvm.target.Target(json.loads(target)))
    library[name]  # machine code is generated here, not at the first call
    return library


def _zeros(program: Program) -> Any:
    return tvm.runtime.tensor(empty(program.forms))


if __name__ == "__main__":
    main()
