"""What every method begins with: a look at the accuracy, the unpruned model tuned, checked and timed."""

from __future__ import annotations

from cprune.channels.groups import analyse
from cprune.method.promise import Promise, promised
from cprune.method.state import RunState, Version
from cprune.runs.events import Start


def begin(run: RunState) -> Version:
    """Return the unpruned model, tuned and held by the workbench as "before".

    Raises UserError if the accuracy asked for is more than the model has, or the confidence more than there can be.
    """
    settings = run.settings
    if settings.strict:
        analyse(run.first, run.example, settings.ignore, settings.whole_heads).must_be_free()
    known = run.history.start
    promise = Promise.of(known) if known else promised(run)
    for line in promise.told():
        run.progress.say(line)
    layout = run.layout if known else run.choose_layout(run.first)
    version = run.tune(run.first, layout, settings.trials, text="tuning the model as it is", phase="before")
    run.load("before", version)
    if known is None:
        latency = run.compare("before", "before", settings.rounds).old_ms
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
                latency_ms=latency,
                narrow=layout.narrow,
                seconds=so_far.seconds,
            )
        )
    latency = run.start.latency_ms
    run.progress.say(
        f"tuned: {latency.median:.3f} ms [{latency.low:.3f}, {latency.high:.3f}], "
        f"{len(version.tuned.lowered.tasks())} tasks, blocks of {layout.block} channels, {run.start.trials} trials"
    )
    return version
