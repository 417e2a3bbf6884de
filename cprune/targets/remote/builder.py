"""The process that builds for another machine: `python -m cprune.targets.remote.builder FD TRIPLE`.

Every program becomes a shared library in a folder, on all cores of this machine.  A compiler that crashes or hangs is
the parent's to notice (`libraries.py`).
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tvm

from cprune.targets.errors import type_and_first_line
from cprune.targets.link import export, linker
from cprune.targets.process import answer, begun, failure
from cprune.targets.session import Failure, Kernel, Program
from cprune.targets.target import cores


def main() -> None:
    """Serve until the parent closes the pipe."""
    connection, triple = begun(sys.argv[1]), sys.argv[2]
    try:
        builder = Builder(triple)
    except Exception as error:
        connection.send(type_and_first_line(error))
        return
    connection.send("")
    answer(connection, builder)


class Builder:
    """The requests, one method each."""

    def __init__(self, triple: str) -> None:
        self.triple = triple
        linker(triple)  # says what to install

    def build(self, paths: list[str], programs: list[Program], target: str, assembly: bool) -> list[str | Failure]:
        """Write a library for every program; return its assembly ("" where not asked for), or why there is none."""

        def one(path: str, program: Program) -> str | Failure:
            try:
                library = tvm.driver.build(tvm.ir.load_json(program.module), tvm.target.Target(json.loads(target)))
                export(library, Path(path), self.triple)
                return str(library.inspect_source("asm")) if assembly else ""
            except Exception as error:
                return failure("build", error)

        with ThreadPoolExecutor(cores()) as pool:
            return list(pool.map(one, paths, programs))

    def reference(self, path: str, target: str) -> Failure | None:
        """Write the library of a kernel that only computes, a million multiply-adds: what it takes is the clock's."""
        from tvm import te

        x = te.placeholder((4096,), name="x")
        k = te.reduce_axis((0, 256), "k")
        func = te.create_prim_func([x, te.compute((4096,), lambda i: te.sum(x[i] * x[k], axis=k), name="y")])
        try:
            module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
            export(tvm.driver.build(module, tvm.target.Target(json.loads(target))), Path(path), self.triple)
        except Exception as error:
            return failure("build", error)
        return None

    def model(self, path: str, module: str, kernels: tuple[Kernel, ...], target: str) -> Failure | None:
        """Write the library of a whole model."""
        try:
            whole = tvm.ir.load_json(module)
            for kernel in kernels:
                whole.update(tvm.ir.load_json(kernel.module))
            export(tvm.compile(whole, tvm.target.Target(json.loads(target))), Path(path), self.triple)
        except Exception as error:
            return failure("build", error)
        return None


if __name__ == "__main__":
    main()
