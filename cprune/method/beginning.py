"""What every method begins with: a look at the accuracy, the unpruned model tuned, checked and timed."""

from __future__ import annotations

from cprune.channels.groups import analyse
from cprune.method.promise import Promise, promised
from cprune.method.state import RunState, Version
from cprune.runs.events import Start


def begin(run: RunState) -> Version:
    """Return the unpruned model, tuned and held by the workbench as "before".

    In a run in integers it is tuned in these too, held as "whole", and that is returned.

    Raises UserError if the accuracy asked for is more than the model has, or the confidence more than there can be.
    """
    settings = run.settings
    if settings.strict:
        analyse(run.first, run.example, settings.ignore, settings.whole_heads).must_be_free()
    known = run.history.start
    promise = Promise.of(known) if known else promised(run)
    for line in promise.told():
        run.progress.say(line)
    layout = run.first_layout if known else run.choose_layout(run.first)
    version = run.tune(run.first, layout, settings.trials, text="tuning the model as it is", phase="before")
    run.load("before", version)
    whole = version
    if settings.precision != "fp32":
        siblings, text = version.tuned.layer_programs, f"tuning the model as it is, {settings.precision}"
        whole = run.tune(run.first, run.layout, settings.trials, siblings, text, "before")
        run.load(run.whole, whole)
    if known is None:
        comparison = run.compare("before", run.whole, settings.rounds)
        latency = comparison.old_ms
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
                share=1.0 if whole is version else comparison.ratio.median,
                seconds=so_far.seconds,
            )
        )
    latency = run.start.latency_ms
    run.progress.say(
        f"tuned: {latency.median:.3f} ms [{latency.low:.3f}, {latency.high:.3f}], "
        f"{len(version.tuned.lowered.tasks())} tasks, blocks of {layout.block} channels, {run.start.trials} trials"
    )
    if whole is not version:
        run.progress.say(f"{settings.precision} alone: {run.start.whole_ms:.3f} ms, {1 / run.start.share:.2f}x as fast")
    return whole
