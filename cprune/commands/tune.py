"""`cprune tune`: tune a model as it is, compile it, and write it to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cprune.commands.export import example_of
from cprune.compiling import deploy
from cprune.compiling.tuned import opened_tuner
from cprune.compiling.tuned import tune as tuned_model
from cprune.method.settings import Settings
from cprune.models.source import Source
from cprune.progress import Progress
from cprune.targets.errors import UserError
from cprune.targets.measure import compare
from cprune.targets.target import Target, find
from cprune.tuner.records.place import default_records


def tune(
    source: Source,
    target: str | Target,
    threads: int | None,
    settings: Settings,
    records: str | None,
    spaces: str,
    search: str | None,
    time_limit_s: float,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Write the compiled model into `out` and return what was found: latency with interval, trials, tasks.

    Raises UserError where `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty", "Give another folder with --out")
    loaded = source.opened(settings.seed)
    if not loaded.trained:
        progress.say(f"{loaded.name} has random weights: its latency is right, its answers are not")
    network = loaded.network
    where = find(target, threads)
    with opened_tuner(where, records or default_records(where.name), settings.seed, progress, spaces, search) as (
        session,
        tuner,
    ):
        tuned = tuned_model(network, loaded.example_inputs, tuner, settings.trials, progress, time_limit_s=time_limit_s)
        tuned.load(session, "model")
        latency = compare(session, "model", "model", tuned.arrays, settings.rounds, settings.run_ms).old_ms
        facts = {
            "latency_ms": latency.to_dict(),
            "tasks": len(tuned.best),
            "trials": tuned.trials,
            "seconds": {name: round(value, 1) for name, value in vars(tuner.clock).items()},
        }
        progress.say("compiling")
        example = example_of(network, [tuple(x.shape) for x in loaded.example_inputs])
        deploy.write(out, loaded.name, tuned.lowered, tuned.compiled(), tuner.target, example, facts)
    return {"model": loaded.name, "target": where.name, "threads": where.threads, "folder": str(out), **facts}
