"""Decisions from estimates alone, for devices that are slow to reach (RB-CPrune: a predictor in place of tuning).

Algorithm 1 goes on to training where the changed tasks are estimated to be faster, with the programs of their wider
siblings; only what keeps its accuracy is tuned and timed by the gate.  What was estimated is compared with what was
measured then, a call at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from cprune.compiling.tuned import Tuned
from cprune.method.judgement import Judgement, faster, gate, learned, not_faster
from cprune.method.latency import LatencyTable
from cprune.method.plan import Proposal, change
from cprune.method.state import RunState, Version
from cprune.network.network import Network
from cprune.runs.events import Estimated, Step
from cprune.runs.forecasts import forecasts
from cprune.tuner.programs.workload import key


def compared(estimated_us: Mapping[str, float], tuned: Tuned) -> tuple[Estimated, ...]:
    """Return what the calls of a tuned model take whose latency had been estimated, by the value that they write."""
    return tuple(
        Estimated(call.output, estimated_us[call.output], 1e6 * tuned.best[key(call.workload)].latency_s)
        for call in tuned.lowered.calls
        if call.output in estimated_us
    )


def say_errors(run: RunState, step: Step) -> None:
    """Say what was forecast of a step's model, what was measured, and the error, where tables were not measured."""
    if run.settings.estimate:
        for sentence in forecasts([step]).sentences():
            run.progress.say(sentence)


class Estimating:
    """Verdicts of Algorithm 1 without tuning in the loop."""

    def __init__(self, run: RunState) -> None:
        self.run = run
        self._of: Version | None = None

    def judged(
        self,
        index: int,
        proposal: Proposal,
        old: Version,
        smaller: Network,
        held: str,
        tuned: Callable[[Network], Version],
    ) -> tuple[Judgement, Version | None]:
        """Return the verdict on `smaller`, the candidate of step `index`, and the tuned one where it came so far.

        As `cprune.method.judgement.judge`, but in another order: estimate, accuracy, gate.
        """
        run, table = self.run, self._table(old)
        widths = {group.id: group.after for group in change(proposal, old.graph)}
        share = table.forecast_s(widths) / table.forecast_s({})
        if share >= run.settings.beta:
            return Judgement("rejected", f"not faster by estimate: {share:.3f} of the time", forecast=share), None
        judgement = replace(learned(run, index, smaller), forecast=share)
        if judgement.verdict != "accepted":
            return judgement, None
        estimated_us = table.estimated_us(widths)
        new = tuned(smaller)
        comparison = gate(run, index, proposal, new, held, new.tuned.forecast_s / old.tuned.forecast_s)
        judgement = replace(judgement, comparison=comparison, estimated=compared(estimated_us, new.tuned))
        if not comparison.faster(run.settings.beta):
            return replace(judgement, verdict="rejected", reason=not_faster(comparison)), new
        return replace(judgement, reason=faster(comparison)), new

    def _table(self, old: Version) -> LatencyTable:
        """Return the table of the current model; that of an earlier one is forgotten."""
        if self._of is not old:
            tuner = self.run.bench.tuner
            self._of, self._latencies = old, LatencyTable(old.tuned, old.graph, tuner, taught=tuner.entries())
        return self._latencies
