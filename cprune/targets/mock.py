"""A session answered by a function: recorded tables and scripted failures for tests of everything above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cprune.targets.session import Array, Failure, Model, Program, Timed

Answer = Callable[[Program, "int | None"], "Timed | Failure"]


class MockSession:
    """Session whose timings are `answer(program, seed)`; `asked` counts them.  It holds no models."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.asked, self.closed = answer, 0, False

    def time(self, program: Program, *, seed: int | None = None, slow_s: float = float("inf")) -> Timed | Failure:
        """Return what the function says."""
        self.asked += 1
        return self.answer(program, seed)

    def load(self, key: str, model: Model) -> Failure | None:
        """Return a failure: a table cannot run a model."""
        return Failure("load", "a mock session holds no models")

    def run(self, key: str, inputs: Sequence[Array]) -> Array | Failure:
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
