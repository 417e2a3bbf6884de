"""What is built here for devices: shared libraries in a folder, written by a process of their own (`builder.py`)."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cprune.targets.errors import BrokenWorld
from cprune.targets.process import MODEL_DEADLINE_S, Process
from cprune.targets.session import Built, Failure, Model, Program
from cprune.targets.target import Target


class Libraries:
    """The libraries of a session, until `close`.  The process that builds starts with the first of them."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.builder = Process("cprune.targets.remote.builder", [target.triple], {}, str)
        self._folder = Path(tempfile.mkdtemp(prefix="cprune-rpc-"))
        self._handles = itertools.count()

    def path(self, handle: int) -> str:
        """Return where the library of a built program is."""
        return str(self._folder / f"p{handle}.so")

    def build(self, programs: Sequence[Program], assembly: bool, keep: Sequence[Built]) -> list[Built | Failure]:
        """See `Session.build`.  If the builder dies of one program or hangs in it, all are built one by one."""
        kept = {built.handle for built in keep}
        for library in self._folder.glob("p*.so"):
            if int(library.stem[1:]) not in kept:
                library.unlink(missing_ok=True)
        handles = [next(self._handles) for _ in programs]
        answers = self._ask_builder(handles, programs, assembly)
        if isinstance(answers, Failure):
            answers = [self._build_one(h, p, assembly) for h, p in zip(handles, programs, strict=True)]
        return [
            answer if isinstance(answer, Failure) else Built(handle, program, answer)
            for handle, program, answer in zip(handles, programs, answers, strict=True)
        ]

    def _build_one(self, handle: int, program: Program, assembly: bool) -> str | Failure:
        answers = self._ask_builder([handle], [program], assembly)
        if isinstance(answers, Failure):
            return Failure("timeout" if answers.stage == "timeout" else "build", answers.reason)
        return answers[0]

    def _ask_builder(
        self, handles: Sequence[int], programs: Sequence[Program], assembly: bool
    ) -> list[str | Failure] | Failure:
        """Return the assembly of each, or why there is none; one Failure if the builder ended or hung."""
        args = ([self.path(handle) for handle in handles], list(programs), self.target.compiler, assembly)
        deadline_s = self.target.timing.deadline_s * max(1, len(programs))
        answers: list[str | Failure] | Failure = self.builder.ask("build", args, deadline_s)
        return answers

    def build_model(self, model: Model) -> Path | Failure:
        """Return the library of a whole model, without its weights."""
        path = self._folder / f"m{next(self._handles)}.so"
        args = (str(path), model.module, model.kernels, self.target.compiler)
        failed: Failure | None = self.builder.ask("model", args, MODEL_DEADLINE_S)
        return failed or path

    def build_reference(self) -> str:
        """Return the path of the library of our own small kernel.  Raises BrokenWorld if it cannot be built."""
        path = str(self._folder / "reference.so")
        failed: Failure | None = self.builder.ask("reference", (path, self.target.compiler), MODEL_DEADLINE_S)
        if failed is not None:
            raise BrokenWorld(f"cannot build for {self.target.name}: {failed.reason}")
        return path

    def remove(self, library: Path) -> None:
        """Remove the library of a model, unless somebody else brought it."""
        if library.parent == self._folder:
            library.unlink(missing_ok=True)

    def close(self) -> None:
        """End the builder and remove all libraries."""
        self.builder.close()
        shutil.rmtree(self._folder, ignore_errors=True)
