"""A session answered by functions: recorded tables and scripted failures for tests of everything above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cprune.targets.session import Array, Built, Failure, Model, Program, Timed

Answer = Callable[[Program, "Sequence[Array] | None"], "Timed | Failure"]
Outputs = Callable[[Model, Sequence[Array]], "tuple[Array, ...] | Failure"]


def _no_program(program: Program, inputs: Sequence[Array] | None) -> Timed | Failure:
    return Failure("run", "this mock session was not told what a program takes")


def _no_latency(model: Model) -> float | Failure:
    return Failure("run", "this mock session was not told what a model takes")


def _no_outputs(model: Model, inputs: Sequence[Array]) -> tuple[Array, ...] | Failure:
    return Failure("run", "this mock session was not told what a model computes")


class MockSession:
    """Session whose timings are `answer(program, arguments)`; `asked` counts those without arguments.

    Every program's assembly is `assembly`.  A held model takes `latency_s(model)` seconds, asked for anew in every
    round, and computes `outputs(model, inputs)`.
    """

    def __init__(
        self,
        answer: Answer = _no_program,
        assembly: str = "",
        *,
        latency_s: Callable[[Model], float | Failure] = _no_latency,
        outputs: Outputs = _no_outputs,
    ) -> None:
        self.answer, self.assembly, self.latency_s, self.outputs = answer, assembly, latency_s, outputs
        self.asked, self.closed = 0, False
        self.models: dict[str, Model] = {}

    def build(
        self, programs: Sequence[Program], *, assembly: bool = False, keep: Sequence[Built] = ()
    ) -> list[Built | Failure]:
        """Return every program as it is: a table needs no building."""
        return [Built(index, program, self.assembly if assembly else "") for index, program in enumerate(programs)]

    def time(self, entries: Sequence[Built], *, slow_s: float = float("inf")) -> list[Timed | Failure]:
        """Return what the function says of each."""
        self.asked += len(entries)
        return [self.answer(built.program, None) for built in entries]

    def race(self, entries: Sequence[Built], inputs: Sequence[Sequence[Array]], rounds: int) -> list[Timed | Failure]:
        """Return what the function says of each, output included."""
        return [self.answer(built.program, args) for built, args in zip(entries, inputs, strict=True)]

    def load(self, key: str, model: Model) -> Failure | None:
        """Hold the model: a function needs no building."""
        self.models[key] = model
        return None

    def run(self, key: str, inputs: Sequence[Array]) -> tuple[Array, ...] | Failure:
        """Return what the function says of a held model."""
        return self._absent([key]) or self.outputs(self.models[key], inputs)

    def time_models(
        self, keys: Sequence[str], inputs: Sequence[Array], rounds: int, run_ms: float
    ) -> dict[str, tuple[float, ...]] | Failure:
        """Return what the function says of each held model in each round."""
        absent = self._absent(keys)
        if absent is not None:
            return absent
        seconds: dict[str, list[float]] = {key: [] for key in keys}
        for _ in range(rounds):
            for key in keys:
                latency_s = self.latency_s(self.models[key])
                if isinstance(latency_s, Failure):
                    return latency_s
                seconds[key].append(latency_s)
        return {key: tuple(values) for key, values in seconds.items()}

    def _absent(self, keys: Sequence[str]) -> Failure | None:
        return next((Failure("run", f"no model {key!r} is held") for key in keys if key not in self.models), None)

    def drop(self, key: str) -> None:
        """Forget the held model."""
        self.models.pop(key, None)

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True
