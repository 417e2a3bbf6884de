"""One run in its folder, from what is known of it already to its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from cprune.compiling import deploy
from cprune.compiling.tuned import Tuned, say_if_strange
from cprune.compiling.workbench import SessionWorkbench
from cprune.files import read_json, write_json
from cprune.method.ending import finish
from cprune.method.forecast import forecast
from cprune.method.front import front_of, network_of
from cprune.method.further import NO_WISH, Wish, asked_for, one_more, retreated
from cprune.method.kept import FolderKeeper
from cprune.method.loop import Loop
from cprune.method.netadapt import NetAdapt
from cprune.method.one_shot import OneShot
from cprune.method.result import analysis, result_of
from cprune.method.rounds import Rounds
from cprune.method.settings import Settings
from cprune.method.state import RunState, Version
from cprune.method.subject import Subject
from cprune.method.tables import Tables
from cprune.method.uniform import Uniform
from cprune.network import saving
from cprune.network.network import Network
from cprune.network.precision import precision
from cprune.network.recentring import has_norms, recentred
from cprune.progress import Progress
from cprune.runs.events import Step
from cprune.runs.folder import RunFolder
from cprune.runs.front import Front, read_front, write_front
from cprune.runs.report import write_report
from cprune.targets.errors import UserError
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
RECENTRED_IMAGES, RECENTRED_BATCH = 512, 32


def whole_run(
    folder: RunFolder,
    subject: Subject,
    session: Session,
    target: Target,
    settings: Settings,
    progress: Progress,
    on_step: Callable[[Step], object],
    wish: Wish = NO_WISH,
    method: Method | None = None,
) -> tuple[dict[str, Any], Network]:
    """Go on with the run in `folder` to its end; return what `result.json` holds, and the final network.

    `target` is what the session found; `method` one that the settings do not know.  With a `wish` one more model is
    trained then; of a run that is finished nothing else is done.  Holds the folder's lock; UserError if another process
    does, or if no model can be as wished.
    """
    with _opened(folder, subject, session, target, settings, progress) as run:
        loop = method(run) if method is not None else _method(run)
        loop.begin()
        if wish != NO_WISH:
            if not isinstance(loop, Tables):
                raise UserError("one more model is taken from the tables of the method tables; this run has none")
            asked_for(run, wish)
        result, front = read_json(folder.result), read_front(folder.front)
        if result is None or front is None or not run.history.asked:
            write_json(folder.analysis, analysis(loop.before, loop.before, settings, run.bench.threads))
            for step in loop.steps():
                on_step(step)  # nothing is drawn while a run measures: `cprune report` does at any time
            if isinstance(loop, Tables):
                retreated(run, loop)
            result, front = _ended(folder, run, loop.current, target)
        if isinstance(loop, Tables):
            front = _with_wishes(folder, run, loop, front, target)
        write_front(folder.front, front)
        write_report(folder)
        return result, saving.load(folder.path)


def _ended(folder: RunFolder, run: RunState, current: Version, target: Target) -> tuple[dict[str, Any], Front]:
    """Write the model of a run, its programs and its result; return that, and the front."""
    outcome = finish(run, current)
    saving.save(outcome.network, folder.path)
    after = outcome.after.tuned
    deploy.keep_programs(folder.programs, after.lowered, after.programs, target)
    write_json(folder.analysis, analysis(outcome.before, outcome.after, run.settings, run.bench.threads))
    result = result_of(outcome, folder.config())
    write_json(folder.result, result)
    front = front_of(run, outcome)
    for point in front.points:
        if point.step is not None and not point.delivered:  # in the records already, so nothing is tried for it
            text, network = "programs of the front", network_of(run, point.step)
            tuned = run.tune(network, run.layout, run.settings.loop_trials, text=text).tuned
            _keep(folder, point.step, tuned, target)
    return result, front


def _keep(folder: RunFolder, step: int, tuned: Tuned, target: Target) -> None:
    """Keep what `cprune export --pick` compiles: the programs of a model, and that itself if it has fewer bits."""
    deploy.keep_programs(folder.programs_of(step), tuned.lowered, tuned.programs, target)
    if precision(tuned.network) != "fp32":
        saving.save(tuned.network, folder.rounded_dir(step))


def _with_wishes(folder: RunFolder, run: RunState, tables: Tables, front: Front, target: Target) -> Front:
    """Return the front with the models that were asked for; those that are not there yet are trained."""
    for asked in run.history.asked:
        made = None if asked.safer else one_more(run, tables, asked)
        if made is not None:
            point, version = made
            assert point.step is not None
            _keep(folder, point.step, version.tuned, target)
            front = front.with_point(point)
            run.progress.say(
                f"one more model: {point.speedup:.2f}x, {100 * point.loss:.2f} points lost, {point.status}; "
                f"to export it: cprune export {folder.path} --pick {point.speedup:.2f}x"
            )
    return front


def only_plan(
    folder: RunFolder, subject: Subject, session: Session, target: Target, settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Begin the run in `folder` and stop where it is planned; return what `cprune run --plan --json` prints.

    Raises UserError where the method plans nothing.
    """
    with _opened(folder, subject, session, target, settings, progress) as run:
        if not _plans(run):
            raise UserError(
                "--plan shows the tables of the method tables, and this run has none",
                "Leave --method out, and give --data that cprune can read.",
            )
        tables = Tables(run)
        tables.begin()
        write_json(folder.analysis, analysis(tables.before, tables.before, settings, run.bench.threads))
        found = forecast(run, tables.before, tables.share_of)
        write_front(folder.front, found.front)
        write_report(folder)
        return {"folder": str(folder.path), **found.to_dict()}


@contextmanager
def _opened(
    folder: RunFolder, subject: Subject, session: Session, target: Target, settings: Settings, progress: Progress
) -> Iterator[RunState]:
    """Hold the folder's lock and its records, and yield what is known of the run."""
    config = folder.config()
    with folder.lock(), Store(config["records"] or folder.records) as store:
        say_if_strange(store, target, progress)
        bench = SessionWorkbench(session, Tuner(session, store, target, settings.seed), subject.example)
        network = _recentred(subject, settings.seed, progress)
        yield RunState(network, subject.example, subject.trainer, bench, settings, FolderKeeper(folder), progress)


def _recentred(subject: Subject, seed: int, progress: Progress) -> Network:
    """Return the network with BatchNorms that have the statistics of training images, where some can be seen."""
    images = subject.trainer.samples(RECENTRED_IMAGES, seed)
    if images is None or not has_norms(subject.network):
        return subject.network

    batches = images.inputs(RECENTRED_BATCH)
    return recentred(subject.network, progress.each("looking at BatchNorm", batches))


def _method(run: RunState) -> Rounds | Loop:
    """Return the method that the settings name; where the training images cannot be seen, Algorithm 1."""
    name = run.settings.method
    if name in METHODS and run.trainer.samples(1, 0) is not None:
        return METHODS[name](run)
    if name not in ("cprune", "tables"):
        run.progress.say(f"the method {name} needs training images that it can see: Algorithm 1 runs instead")
    return Loop(run)


def _plans(run: RunState) -> bool:
    """Tell whether the method is that of tables; where the training images cannot be seen it is Algorithm 1."""
    return run.settings.method == "tables" and run.trainer.samples(1, 0) is not None
