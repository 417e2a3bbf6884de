"""A session answered by a function: recorded tables and scripted failures for tests of everything above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cprune.targets.session import Array, Built, Failure, Model, Program, Timed

Answer = Callable[[Program, "Sequence[Array] | None"], "Timed | Failure"]


class MockSession:
    """Session whose timings are `answer(program, arguments)`; `asked` counts those without arguments.

    Every program's assembly is `assembly`.  It holds no models.
    """

    def __init__(self, answer: Answer, assembly: str = "") -> None:
        self.answer, self.assembly, self.asked, self.closed = answer, assembly, 0, False

    def build(
        self, programs: Sequence[Program], *, assembly: bool = False, keep: Sequence[Built] = ()
    ) -> list[Built | Failure]:
        """Return every program as it is: a table needs no building."""
        return [Built(index, program, self.assembly if assembly else "") for index, program in enumerate(programs)]

    def time(self, entries: Sequence[Built], *, slow_s: float = float("inf")) -> list[Timed | Failure]:
        """Return what the function says of each."""
        self.asked += len(entries)
        return [self.answer(built.program, None) for built in entries]

    def race(self, entries: Sequence[Built], given: Sequence[Sequence[Array]], rounds: int) -> list[Timed | Failure]:
        """Return what the function says of each, output included."""
        return [self.answer(built.program, args) for built, args in zip(entries, given, strict=True)]

    def load(self, key: str, model: Model) -> Failure | None:
        """Return a failure: a table cannot run a model."""
        return Failure("load", "a mock session holds no models")

    def run(self, key: str, inputs: Sequence[Array]) -> tuple[Array, ...] | Failure:
        """Return a failure."""
        return Failure("run", "a mock session holds no models")

    def time_models(
        self, keys: Sequence[str], inputs: Sequence[Array], rounds: int, run_ms: float
    ) -> dict[str, tuple[float, ...]] | Failure:
        """Return a failure."""
        return Failure("run", "a mock session holds no models")

    def drop(self, key: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True
