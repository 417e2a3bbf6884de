"""`cprune tune`: tune a model as it is, compile it, and write it to a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cprune.commands.export import example_of, must_be_new
from cprune.commands.request import Request
from cprune.commands.rounded import Answers, given, in_integers
from cprune.compiling import deploy, halves_or_floats
from cprune.compiling.tuned import MULTIPLIED
from cprune.compiling.tuned import tune as tuned_model
from cprune.network.halving import HALVES
from cprune.network.precision import precision
from cprune.progress import Progress
from cprune.targets.errors import unknown
from cprune.targets.interval import Interval
from cprune.targets.measure import compare

PRECISIONS = ("fp32", *MULTIPLIED)


@dataclass(frozen=True)
class Options:
    """The folder to write; which space is searched and who proposes (None: the default), for how long at most.

    `precision` is one of PRECISIONS; int8 takes the range of every value from the images that `data` names, and bf16
    and fp16 have their accuracy looked at with them.  With `learn_rounding` it is learnt how int8 weights are rounded.
    """

    out: Path
    space: str = "sketch"
    search: str | None = None
    time_limit_s: float = float("inf")
    precision: str = "fp32"
    data: str | None = None
    learn_rounding: bool = False


@dataclass(frozen=True)
class Compiled:
    """What was written: latency with interval, tasks, new trials, and the seconds that each stage took.

    `answers` says what accuracy fewer bits cost; None for a model as it came, and where no data was given.  `floats`
    are the layers of a model in bf16 or fp16 that are faster in fp32, and stay in it.
    """

    model: str
    target: str
    threads: int
    folder: Path
    latency_ms: Interval
    tasks: int
    trials: int
    seconds: Mapping[str, float]
    answers: Answers | None = None
    precision: str = "fp32"
    floats: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the folder's `model.json` tells of it."""
        return {
            "precision": self.precision,
            **({"floats": list(self.floats)} if self.floats else {}),
            **({} if self.answers is None else {"accuracy": dict(self.answers.to_dict())}),
            "latency_ms": self.latency_ms.to_dict(),
            "tasks": self.tasks,
            "trials": self.trials,
            "seconds": dict(self.seconds),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what `cprune tune --json` prints."""
        folder = str(self.folder)
        return {"model": self.model, "target": self.target, "threads": self.threads, "folder": folder, **self.facts}


def tune(request: Request, options: Options, progress: Progress) -> Compiled:
    """Write the compiled model into a folder and return what was found; of a simulated machine only its programs.

    Raises UserError where the folder holds something already, and see `cprune.commands.rounded.given`.
    """
    must_be_new(options.out)
    if options.precision not in PRECISIONS:
        raise unknown("precision", options.precision, PRECISIONS)
    settings = request.settings
    fewer = None if options.precision == "fp32" else given(request, options.precision, options.data)
    if fewer is not None:
        name, network, inputs, trained = fewer.name, fewer.network, fewer.example, fewer.trained
    else:
        opened = request.opened()
        name, network, inputs, trained = opened.name, opened.network, opened.example_inputs, opened.trained
    if not trained:
        progress.say(f"{name} has random weights: its latency is right, its answers are not")
    if fewer is not None and options.precision == "int8":
        network = in_integers(fewer, settings.seed, progress, options.learn_rounding)
    with request.tuner(progress, options.space, options.search) as (session, tuner):
        limit_s = options.time_limit_s
        floats: tuple[str, ...] = ()
        if options.precision in HALVES:
            found = halves_or_floats.fastest(
                network, inputs, session, tuner, settings.trials, progress,
                precision=options.precision, time_limit_s=limit_s,
            )  # fmt: skip
            tuned, floats, network = found.tuned, found.floats, found.tuned.network
        else:
            tuned = tuned_model(network, inputs, tuner, settings.trials, progress, time_limit_s=limit_s)
        tuned.load(session, "model")
        compiled = Compiled(
            name,
            request.target.name,
            request.target.threads,
            options.out,
            compare(session, "model", "model", tuned.arrays, settings.rounds, settings.run_ms).old_ms,
            len(tuned.best),
            tuned.trials,
            {stage: round(seconds, 1) for stage, seconds in vars(tuner.clock).items()},
            None if fewer is None else fewer.answers(network),
            precision(network),
            floats,
        )
        if tuner.target.simulated:
            options.out.mkdir(parents=True, exist_ok=True)
            deploy.keep_programs(options.out / "programs.json", tuned.lowered, tuned.programs, tuner.target)
            progress.say(f"{tuner.target.name} is simulated: the programs were written, there is nothing to compile")
            return compiled
        progress.say("compiling")
        example = example_of(network, [tuple(x.shape) for x in inputs])
        deploy.write(options.out, name, tuned.lowered, tuned.compiled(), tuner.target, example, compiled.facts)
    return compiled
