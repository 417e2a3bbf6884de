"""What every method begins with: a look at the accuracy, the unpruned model tuned, checked and timed."""

from __future__ import annotations

from cprune.channels.groups import analyse
from cprune.compiling.tuned import multiplies_bytes
from cprune.method.promise import Promise, promised
from cprune.method.state import IN_INTEGERS, RunState, Version
from cprune.runs.events import Start
from cprune.targets.errors import CpruneError

WORTH = 0.8  # of the latency in fp32, at most
MOST_LOST = 0.5  # of what may be lost
TIMED_ROUNDS = 5


def begin(run: RunState) -> Version:
    """Return the unpruned model, tuned and held by the workbench as "before".

    In a run in integers it is tuned in these too, held as IN_INTEGERS, and that is returned.  Where the precision is
    open the model as it is decides: how much faster integers make it, and what it loses.

    Raises UserError if the accuracy asked for is more than the model has, the confidence more than there can be, or
    int8 was asked for where nothing multiplies bytes or no images are seen.
    """
    settings = run.settings
    if settings.strict:
        analyse(run.first, run.example, settings.ignore, settings.whole_heads).must_be_free()
    if settings.precision == "int8":  # what would be in its way is said before anything is tuned
        run.integer_layout()
        run.shown()
    known = run.history.start
    promise = Promise.of(known) if known else promised(run)
    for line in promise.told():
        run.progress.say(line)
    layout = run.first_layout if known else run.choose_layout(run.first)
    version = run.tune(run.first, layout, settings.trials, text="tuning the model as it is", phase="before")
    run.load("before", version)
    whole, lost = version, 0.0
    if run.precision == "int8":
        whole, lost = _in_integers(run, version)
    elif known is None and may_be_in_integers(run):
        whole, lost = _worthwhile(run, version, promise)
    integers = whole is not version
    if known is None:
        comparison = run.compare("before", IN_INTEGERS if integers else "before", settings.rounds)
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
                share=comparison.ratio.median if integers else 1.0,
                precision="int8" if integers else "fp32",
                integers_lose=lost,
                seconds=so_far.seconds,
            )
        )
    latency = run.start.latency_ms
    run.progress.say(
        f"tuned: {latency.median:.3f} ms [{latency.low:.3f}, {latency.high:.3f}], "
        f"{len(version.tuned.lowered.tasks())} tasks, blocks of {layout.block} channels, {run.start.trials} trials"
    )
    if integers:
        run.progress.say(f"int8 alone: {run.start.whole_ms:.3f} ms, {1 / run.start.share:.2f}x as fast")
    return whole


def may_be_in_integers(run: RunState) -> bool:
    """Tell whether the settings leave the precision open, and nothing is against integers."""
    settings = run.settings
    if settings.precision != "auto" or settings.method != "tables" or not multiplies_bytes(run.bench.tuner.target):
        return False
    return run.trainer.samples(1, 0) is not None


def _in_integers(run: RunState, version: Version) -> tuple[Version, float]:
    """Return the unpruned model tuned in integers, held, and what it loses on the images that decide."""
    siblings, text = version.tuned.layer_programs, "tuning the model as it is, int8"
    whole = run.tune(run.first, run.integer_layout(), run.settings.trials, siblings, text, "before")
    run.load(IN_INTEGERS, whole)
    with run.cost.spent("evaluate"):
        look = run.trainer.look(whole.tuned.network, "decide")
    return whole, run.loss(look, "decide").loss


def _worthwhile(run: RunState, version: Version, promise: Promise) -> tuple[Version, float]:
    """Return the unpruned model in integers if it is clearly faster and leaves most of what may be lost to pruning.

    Else, and where it does not work, it is the one in fp32.
    """
    try:
        whole, lost = _in_integers(run, version)
    except CpruneError as error:
        run.progress.say(f"int8 does not work for this model ({error}): the run stays in fp32")
        return version, 0.0
    share, allowed = run.compare("before", IN_INTEGERS, TIMED_ROUNDS).ratio.median, promise.report - promise.required
    worth = share <= WORTH and lost <= MOST_LOST * allowed
    run.progress.say(
        f"int8 alone is {1 / share:.2f}x as fast and loses {100 * lost:.2f} points: the run "
        + ("goes on in int8 (--precision fp32 does not)" if worth else "stays in fp32 (--precision int8 does not)")
    )
    if worth:
        return whole, lost
    run.bench.drop(IN_INTEGERS)
    return version, 0.0
