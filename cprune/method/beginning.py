"""What every method begins with: a look at the accuracy, the unpruned model tuned, checked and timed."""

from __future__ import annotations

from collections.abc import Mapping

from cprune.channels.groups import analyse
from cprune.compiling.halves_or_floats import faster_in_float
from cprune.compiling.tuned import MULTIPLIED, multiplies
from cprune.method.promise import Promise, promised
from cprune.method.state import ROUNDED, RunState, Version
from cprune.network.folding import folded
from cprune.network.halving import HALVES
from cprune.runs.events import Start
from cprune.targets.errors import CpruneError
from cprune.tuner.programs.space import Candidate

WORTH = 0.8  # of the latency in fp32, at most
MOST_LOST = 0.5  # of what may be lost
TIMED_ROUNDS = 5


def begin(run: RunState) -> Version:
    """Return the unpruned model, tuned and held by the workbench as "before".

    In a run in fewer bits it is tuned in that too, held as ROUNDED, and that is returned.  Where the precision is
    open the model as it is decides: how much faster fewer bits make it, and what it loses.

    Raises UserError if the accuracy asked for is more than the model has, the confidence more than there can be, or
    fewer bits were asked for where nothing multiplies these, or int8 where no images are seen.
    """
    settings = run.settings
    if settings.strict:
        analyse(run.first, run.example, settings.ignore, settings.whole_heads).must_be_free()
    if settings.precision in MULTIPLIED:  # what would be in its way is said before anything is tuned
        run.layout_in(settings.precision)
    if settings.precision == "int8":
        run.bits.shown()
    known = run.history.start
    promise = Promise.of(known) if known else promised(run)
    for line in promise.told():
        run.progress.say(line)
    layout = run.first_layout if known else run.choose_layout(run.first)
    version = run.tune(run.first, layout, settings.trials, text="tuning the model as it is", phase="before")
    run.load("before", version)
    whole, lost, precision = version, 0.0, run.precision
    if precision != "fp32":
        whole, lost = _rounded(run, version, precision)
    elif known is None:
        for each in possible(run):
            whole, lost = _worthwhile(run, version, promise, each)
            if whole is not version:
                precision = each
                break
    fewer = whole is not version
    if known is None:
        comparison = run.compare("before", ROUNDED if fewer else "before", settings.rounds)
        so_far = run.cost.so_far()
        run.happened(
            Start(
                report=promise.report,
                decide=promise.decide,
                certify=promise.certify,
                images=promise.images,
                required=promise.required,
                floor=promise.floor,
                memorised=promise.memorised,
                block=layout.block,
                trials=so_far.trials["before"],
                latency_ms=comparison.old_ms,
                narrow=layout.narrow,
                share=comparison.ratio.median if fewer else 1.0,
                precision=precision,
                integers_lose=lost,
                floats=run.bits.floats,
                seconds=so_far.seconds,
            )
        )
    latency = run.start.latency_ms
    run.progress.say(
        f"tuned: {latency.median:.3f} ms [{latency.low:.3f}, {latency.high:.3f}], "
        f"{len(version.tuned.lowered.tasks())} tasks, blocks of {layout.block} channels, {run.start.trials} trials"
    )
    if fewer:
        run.progress.say(f"{precision} alone: {run.start.whole_ms:.3f} ms, {1 / run.start.share:.2f}x as fast")
    return whole


def possible(run: RunState) -> list[str]:
    """Return the precisions of fewer bits that a run may choose where the settings leave that open, the fastest first.

    One that multiplies bytes needs training images that can be seen.
    """
    settings, target = run.settings, run.bench.tuner.target
    if settings.precision != "auto" or settings.method != "tables" or run.trainer.samples(1, 0) is None:
        return []
    return [precision for precision in MULTIPLIED if multiplies(target, precision)]


def _rounded(run: RunState, version: Version, precision: str) -> tuple[Version, float]:
    """Return the unpruned model tuned in fewer bits, held, and what it loses on the images that decide."""
    siblings, text = version.tuned.layer_programs, f"tuning the model as it is, {precision}"
    whole = run.tune(run.first, run.layout_in(precision), run.settings.trials, siblings, text, "before")
    run.load(ROUNDED, whole)
    if precision in HALVES and run.history.start is None:
        whole = _with_floats(run, whole, siblings)
    with run.cost.spent("evaluate"):
        look = run.trainer.look(whole.tuned.network, "decide")
    return whole, run.loss(look, "decide").loss


def _with_floats(run: RunState, whole: Version, siblings: Mapping[str, Candidate]) -> Version:
    """Return the unpruned model with the layers in fp32 that are faster so, held, if as a whole it is; else `whole`.

    Which these are holds for all models of the run.
    """
    layout, trials = whole.tuned.lowered.layout, run.settings.trials
    with run.cost.spent("tune"), run.cost.counting("before"):
        plain = run.bench.tune(folded(run.first).eval(), layout, trials, run.progress, siblings, "fp32, to compare")
    run.bits.floats = faster_in_float(whole.tuned, plain)
    if not run.bits.floats:
        return whole
    some = run.tune(run.first, layout, trials, siblings, "tuning some layers in fp32", "before")
    run.load("some", some)
    faster = run.compare(ROUNDED, "some", TIMED_ROUNDS).ratio.median < 1
    run.bench.drop("some")
    if not faster:
        run.bits.floats = ()
        return whole
    run.bench.drop(ROUNDED)
    run.load(ROUNDED, some)
    run.progress.say(f"faster in fp32, and so in that: {', '.join(run.bits.floats)}")
    return some


def _worthwhile(run: RunState, version: Version, promise: Promise, precision: str) -> tuple[Version, float]:
    """Return the unpruned model in fewer bits if it is clearly faster and leaves most of what may be lost to pruning.

    Else, and where it does not work, it is the one in fp32.
    """
    try:
        whole, lost = _rounded(run, version, precision)
    except CpruneError as error:
        run.progress.say(f"{precision} does not work for this model: {error}")
        return version, 0.0
    share, allowed = run.compare("before", ROUNDED, TIMED_ROUNDS).ratio.median, promise.report - promise.required
    worth = share <= WORTH and lost <= MOST_LOST * allowed
    run.progress.say(
        f"{precision} alone is {1 / share:.2f}x as fast and loses {100 * lost:.2f} points: "
        + (f"the run goes on in {precision} (--precision fp32 does not)" if worth else "that is not worth it")
    )
    if worth:
        return whole, lost
    run.bench.drop(ROUNDED)
    run.bits.floats = ()
    return version, 0.0
