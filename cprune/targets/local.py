"""The session on this machine: a worker process with a deadline, replaced when it dies.

Nothing is exported or linked: the worker builds a program in its own memory and times it there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from cprune.targets.errors import BrokenWorld
from cprune.targets.process import MODEL_DEADLINE_S, START_DEADLINE_S, Process
from cprune.targets.session import Array, Built, Failure, Model, Program, Timed
from cprune.targets.target import Target


class LocalSession:
    """Session for the target `local`.  Models are loaded again by themselves when a worker had to be replaced."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._models: dict[str, Model] = {}
        threads = str(target.threads)
        environment = {"TVM_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        self._worker = Process("cprune.targets.worker", [threads], environment, self._greeted, self._load_again)
        self._ask = self._worker.ask
        self._handles = itertools.count()
        self._alive: dict[int, int] = {}  # by handle, the life of the worker it was built in

    def __enter__(self) -> LocalSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def worker_pid(self) -> int | None:
        """Return the process number of the living worker: what a test must kill to see another one take its place."""
        return self._worker.pid

    def _greeted(self, threads: int) -> str:
        return "" if threads == self.target.threads else f"got {threads} threads, not {self.target.threads}"

    def _load_again(self, worker: Process) -> None:
        for key, model in self._models.items():
            failed = worker.again("load", (key, model, self.target.compiler))
            if failed is not None:
                raise BrokenWorld(f"a model cannot be loaded again: {failed.reason}")

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
        self._alive[handle] = self._worker.lives
        return Built(handle, program, answer)

    def _absent(self, entries: Sequence[Built]) -> Failure | None:
        """Build again what went with a worker that had to be replaced; say what cannot be."""
        for built in entries:
            if self._worker.pid is None or self._alive.get(built.handle) != self._worker.lives:
                again = self._build_one(built.handle, built.program, False)
                if isinstance(again, Failure):
                    return again
        return None

    def time(self, entries: Sequence[Built], *, slow_s: float = float("inf")) -> list[Timed | Failure]:
        """See `Session.time`."""
        return [self._time(built, slow_s) for built in entries]

    def _time(self, built: Built, slow_s: float) -> Timed | Failure:
        timing = self.target.timing
        absent = self._absent([built])
        if absent is not None:
            return absent
        args = (built.handle, timing.repeats, timing.min_run_ms / 1e3, slow_s, timing.cooldown_s)
        answer = self._ask("time", args, timing.deadline_s)
        assert isinstance(answer, (Timed, Failure))
        return answer

    def race(self, entries: Sequence[Built], inputs: Sequence[Sequence[Array]], rounds: int) -> list[Timed | Failure]:
        """See `Session.race`.  If the worker dies of one program, each is run alone."""
        timing = self.target.timing
        answers: list[Timed | Failure] | Failure | None = self._absent(entries)
        if answers is None:
            args = (
                [b.handle for b in entries],
                [list(a) for a in inputs],
                rounds,
                timing.min_run_ms / 1e3,
                timing.cooldown_s,
            )
            answers = self._ask("race", args, timing.deadline_s * len(entries))
        if isinstance(answers, Failure):
            if len(entries) == 1:
                return [answers]
            return [self.race([b], [a], rounds)[0] for b, a in zip(entries, inputs, strict=True)]
        assert answers is not None
        return answers

    def load(self, key: str, model: Model) -> Failure | None:
        """See `Session.load`."""
        answer: Failure | None = self._ask("load", (key, model, self.target.compiler), MODEL_DEADLINE_S)
        if answer is None:
            self._models[key] = model
        return answer

    def run(self, key: str, inputs: Sequence[Array]) -> tuple[Array, ...] | Failure:
        """See `Session.run`."""
        answer: tuple[Array, ...] | Failure = self._ask("run", (key, list(inputs)), MODEL_DEADLINE_S)
        return answer

    def time_models(
        self, keys: Sequence[str], inputs: Sequence[Array], rounds: int, run_ms: float
    ) -> dict[str, tuple[float, ...]] | Failure:
        """See `Session.time_models`."""
        args = (list(keys), list(inputs), rounds, run_ms / 1e3, self.target.timing.cooldown_s)
        answer: dict[str, tuple[float, ...]] | Failure = self._ask("time_models", args, MODEL_DEADLINE_S)
        return answer

    def drop(self, key: str) -> None:
        """See `Session.drop`."""
        self._models.pop(key, None)
        if self._worker.pid is not None:
            self._ask("drop", (key,), START_DEADLINE_S)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()
