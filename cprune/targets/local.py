"""The session on this machine: a worker process with a deadline, replaced when it dies.

Nothing is exported or linked: the worker builds a program in its own memory and times it there.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from cprune.targets.errors import BrokenWorld
from cprune.targets.session import Array, Built, Failure, Model, Program, Timed
from cprune.targets.target import Target

START_DEADLINE_S = 120.0
MODEL_DEADLINE_S = 300.0


class LocalSession:
    """Session for the target `local`.  Models are loaded again by themselves when a worker had to be replaced."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._models: dict[str, Model] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._handles = itertools.count()
        self._life = 0  # counts workers: what was built in an earlier one is gone
        self._alive: dict[int, int] = {}

    def __enter__(self) -> LocalSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def worker_pid(self) -> int | None:
        """Return the process number of the living worker."""
        return self._process.pid if self._process else None

    def build(
        self, programs: Sequence[Program], *, assembly: bool = False, keep: Sequence[Built] = ()
    ) -> list[Built | Failure]:
        """See `Session.build`.  If the worker dies of one program or hangs in it, all are built one by one."""
        handles = [next(self._handles) for _ in programs]
        self._alive = {b.handle: self._alive[b.handle] for b in keep if b.handle in self._alive}
        args = (handles, list(programs), self.target.compiler, assembly, list(self._alive))
        answers = self._ask("build", args, self.target.timing.deadline_s * max(1, len(programs)))
        if isinstance(answers, Failure):
            if len(programs) == 1:
                return [Failure("timeout" if answers.stage == "timeout" else "build", answers.reason)]
            return [self._build_one(h, p, assembly) for h, p in zip(handles, programs, strict=True)]
        return [self._built(h, p, a) for h, p, a in zip(handles, programs, answers, strict=True)]

    def _build_one(self, handle: int, program: Program, assembly: bool) -> Built | Failure:
        args = ([handle], [program], self.target.compiler, assembly, None)
        answers = self._ask("build", args, self.target.timing.deadline_s)
        if isinstance(answers, Failure):
            return Failure("timeout" if answers.stage == "timeout" else "build", answers.reason)
        return self._built(handle, program, answers[0])

    def _built(self, handle: int, program: Program, answer: str | Failure) -> Built | Failure:
        if isinstance(answer, Failure):
            return answer
        self._alive[handle] = self._life
        return Built(handle, program, answer)

    def _absent(self, entries: Sequence[Built]) -> Failure | None:
        """Build again what went with a worker that had to be replaced; say what cannot be."""
        for built in entries:
            if self._process is None or self._alive.get(built.handle) != self._life:
                again = self._build_one(built.handle, built.program, False)
                if isinstance(again, Failure):
                    return again
        return None

    def time(self, built: Built, *, slow_s: float = float("inf")) -> Timed | Failure:
        """See `Session.time`."""
        timing = self.target.timing
        absent = self._absent([built])
        if absent is not None:
            return absent
        answer = self._ask("time", (built.handle, timing.repeats, timing.min_run_ms / 1e3, slow_s), timing.deadline_s)
        assert isinstance(answer, (Timed, Failure))
        return answer

    def race(self, entries: Sequence[Built], given: Sequence[Sequence[Array]], rounds: int) -> list[Timed | Failure]:
        """See `Session.race`.  If the worker dies of one program, each is run alone."""
        timing = self.target.timing
        answers: Any = self._absent(entries)
        if answers is None:
            args = ([b.handle for b in entries], [list(a) for a in given], rounds, timing.min_run_ms / 1e3)
            answers = self._ask("race", args, timing.deadline_s * len(entries))
        if isinstance(answers, Failure):
            if len(entries) == 1:
                return [answers]
            return [self.race([b], [a], rounds)[0] for b, a in zip(entries, given, strict=True)]
        found: list[Timed | Failure] = answers
        return found

    def load(self, key: str, model: Model) -> Failure | None:
        """See `Session.load`."""
        answer: Failure | None = self._ask("load", (key, model, self.target.compiler), MODEL_DEADLINE_S)
        if answer is None:
            self._models[key] = model
        return answer

    def run(self, key: str, inputs: Sequence[Array]) -> Array | Failure:
        """See `Session.run`."""
        answer: Array | Failure = self._ask("run", (key, list(inputs)), MODEL_DEADLINE_S)
        return answer

    def time_models(
        self, keys: Sequence[str], inputs: Sequence[Array], rounds: int, run_ms: float
    ) -> dict[str, tuple[float, ...]] | Failure:
        """See `Session.time_models`."""
        args = (list(keys), list(inputs), rounds, run_ms / 1e3)
        answer: dict[str, tuple[float, ...]] | Failure = self._ask("time_models", args, MODEL_DEADLINE_S)
        return answer

    def drop(self, key: str) -> None:
        """See `Session.drop`."""
        self._models.pop(key, None)
        if self._process is not None:
            self._ask("drop", (key,), START_DEADLINE_S)

    def close(self) -> None:
        """End the worker."""
        with self._lock:
            self._end()

    def _ask(self, name: str, args: tuple[Any, ...], deadline_s: float) -> Any:
        with self._lock:
            connection = self._started()
            try:
                connection.send((name, args))
                if connection.poll(deadline_s):
                    return connection.recv()
            except (EOFError, OSError):
                return Failure("run", f"the worker ended: {self._end()}")
            except BaseException:  # Ctrl-C between question and answer: the pipe is out of step
                self._end()
                raise
            self._end()
            return Failure("timeout", f"no answer within {deadline_s:g} s")

    def _started(self) -> Connection:
        if self._connection is not None:
            return self._connection
        ours, theirs = Pipe()
        # The package's parent folder leads the path, so that the worker finds the same cprune as we are.
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        environment = {
            **os.environ,
            "TVM_NUM_THREADS": str(self.target.threads),
            "OMP_NUM_THREADS": str(self.target.threads),
            "PYTHONPATH": path,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cprune.targets.worker", str(theirs.fileno()), str(self.target.threads)],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._connection = ours
        self._life += 1
        try:
            found = ours.recv() if ours.poll(START_DEADLINE_S) else None
        except (EOFError, OSError):
            found = None
        if found != self.target.threads:
            said = "did not start" if found is None else f"got {found} threads, not {self.target.threads}"
            self._end()
            raise BrokenWorld(f"the measuring process {said}. Try: python -m cprune.targets.worker")
        for key, model in self._models.items():
            ours.send(("load", (key, model, self.target.compiler)))
            ours.recv()
        return ours

    def _end(self) -> str:
        """End the worker and return how it ended."""
        process, self._process = self._process, None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if process is None:
            return "not running"
        try:
            code = process.wait(0.2)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
