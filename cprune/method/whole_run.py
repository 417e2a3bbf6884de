"""One run in its folder, from what is known of it already to its result."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from cprune.compiling import deploy
from cprune.compiling.tuned import say_if_strange
from cprune.compiling.workbench import SessionWorkbench
from cprune.files import write_json
from cprune.method.ending import finish
from cprune.method.kept import FolderKeeper
from cprune.method.loop import Loop
from cprune.method.netadapt import NetAdapt
from cprune.method.one_shot import OneShot
from cprune.method.result import analysis, result_of
from cprune.method.rounds import Rounds
from cprune.method.settings import Settings
from cprune.method.state import RunState
from cprune.method.subject import Subject
from cprune.method.tables import Tables
from cprune.method.uniform import Uniform
from cprune.network import saving
from cprune.network.network import Network
from cprune.progress import Progress
from cprune.runs.events import Step
from cprune.runs.folder import RunFolder
from cprune.runs.report import write_report
from cprune.targets.session import Session
from cprune.targets.target import Target
from cprune.tuner.records.store import Store
from cprune.tuner.tune import Tuner

Method: TypeAlias = Callable[[RunState], Rounds | Loop]

METHODS: dict[str, Method] = {
    "tables": Tables,
    "uniform": Uniform,
    "fpgm": partial(Uniform, importance="fpgm"),
    "one-shot": OneShot,
    "one-shot-inner": partial(OneShot, inner=True),
    "netadapt": NetAdapt,
}
"""The methods that look at training images; Algorithm 1 need not.  An experiment may add others."""


def whole_run(
    folder: RunFolder,
    subject: Subject,
    session: Session,
    target: Target,
    settings: Settings,
    progress: Progress,
    on_step: Callable[[Step], object],
) -> tuple[dict[str, Any], Network]:
    """Go on with the run in `folder` to its end; return what `result.json` holds, and the final network.

    `target` is what the session found.  Holds the folder's lock; UserError if another process does.
    """
    config = folder.config()
    with folder.lock(), Store(config["records"] or folder.records) as store:
        say_if_strange(store, target, progress)
        bench = SessionWorkbench(session, Tuner(session, store, target, settings.seed), subject.example)
        run = RunState(
            subject.network, subject.example, subject.trainer, bench, settings, FolderKeeper(folder), progress
        )
        loop = _method(run)
        loop.begin()
        write_json(folder.analysis, analysis(loop.before, loop.before, settings, bench.threads))
        for step in loop.steps():
            on_step(step)  # nothing is drawn while a run measures: `cprune report` does at any time
        outcome = finish(run, loop.current)
        saving.save(outcome.network, folder.path)
        after = outcome.after.tuned
        deploy.keep_programs(folder.programs, after.lowered, after.programs, target)
        write_json(folder.analysis, analysis(outcome.before, outcome.after, settings, bench.threads))
        result = result_of(outcome, config)
        write_json(folder.result, result)
        write_report(folder)
        return result, outcome.network


def _method(run: RunState) -> Rounds | Loop:
    """Return the method that the settings name; where the training images cannot be seen, Algorithm 1."""
    name = run.settings.method
    if name in METHODS and run.trainer.samples(1, 0) is not None:
        return METHODS[name](run)
    if name not in ("cprune", "tables"):
        run.progress.say(f"the method {name} needs training images that it can see: Algorithm 1 runs instead")
    return Loop(run)
