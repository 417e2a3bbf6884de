"""Runs that decide by estimates: what is not tuned and timed, and what estimates were wrong by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fakes import DEFAULT, FakeBench, FakeTrainer, Killed, MemoryKeeper, Seen, a_run

from cprune.method.ending import Outcome, finish
from cprune.method.loop import Loop
from cprune.method.result import result_of
from cprune.method.state import RunState
from cprune.method.tables import Tables
from cprune.progress import Progress
from cprune.runs.events import Chosen, Estimated, Step
from cprune.runs.forecasts import Forecast, forecasts
from cprune.targets.interval import Interval
from cprune.tuner.programs.workload import Workload
from cprune.tuner.tune import Best, Job

TABLES = replace(DEFAULT, train_time_s=100.0, estimate=True)
ALGORITHM_1 = replace(DEFAULT, method="cprune", estimate=True, max_steps=4)


def by_macs(model: Seen) -> float:
    """Return a latency like that of the tasks: the multiplications of the block, in ms."""
    return 1e-3 * (9 * 144 * (model.stem + 2 * model.stem * model.a) + 4 * model.stem) * 1e-3


def recovering(model: Seen) -> float:
    return 0.9 - 0.2 * (1 - model.stem * model.a / 64 / 128) * 0.5 ** (model.epochs / 4)


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Watched(FakeBench):
    """A bench that notes what is tuned: networks, and entries of tables; the latter are not to be touched."""

    def __init__(self, latency: Any = by_macs) -> None:
        super().__init__(latency, by_task=True)
        self.entries: list[Workload] = []
        self.tuned: list[Seen] = []
        tune_all, in_turns = self.tuner.tune_all, self.tuner.in_turns

        def noted(jobs: Sequence[Job], *rest: Any, **named: Any) -> dict[str, Best]:
            self.entries += [job.workload for job in jobs]
            return tune_all(jobs, *rest, **named)

        def raced(entries: Sequence[Any], rounds: int) -> list[tuple[float, ...]]:
            self.entries += [workload for workload, _ in entries]
            return in_turns(entries, rounds)

        self.tuner.tune_all, self.tuner.in_turns = noted, raced  # type: ignore[method-assign]

    def load(self, key: str, tuned: Any) -> None:
        super().load(key, tuned)
        self.tuned.append(self.models[key])


def tables_run(keeper: MemoryKeeper | None = None, progress: Progress | None = None) -> RunState:
    trainer = FakeTrainer(recovering, images=10_000, shown=16)
    return a_run(Watched(), trainer, keeper, TABLES, progress)


def whole(run: RunState) -> tuple[list[Step], Outcome]:
    method = Tables(run) if run.settings.method == "tables" else Loop(run)
    method.begin()
    steps = list(method.steps())
    return steps, finish(run, method.current)


# -- the method of tables


def test_a_round_plans_and_scouts_without_tuning_or_timing_anything_but_its_own_model() -> None:
    run = tables_run()
    steps, outcome = whole(run)
    assert [step.verdict for step in steps] == ["accepted", "accepted"]
    assert outcome.status == "pruned"
    assert run.bench.entries == []
    assert len(run.history.scouted) > 2
    # The unpruned model, the model of either round, and both once more at the end: no scout among them.
    assert set(run.bench.compared) <= {
        ("before", "before"),
        ("before", "step0"),
        ("step0", "step1"),
        ("before", "after"),
    }
    assert all(scout.share == scout.forecast for scout in run.history.scouted.values())


def test_what_was_forecast_and_estimated_is_compared_with_what_was_measured() -> None:
    said = Said()
    run = tables_run(progress=said)
    steps, outcome = whole(run)
    first = steps[0]
    assert first.ratio is not None
    assert first.forecast == pytest.approx(run.history.chosen[0].share, abs=1e-6)
    narrower = [one for one in first.estimated if one.estimated_us != one.measured_us]
    assert narrower
    assert {one.call for one in first.estimated} == set(run.history.chosen[0].estimated_us)
    # A task takes 1 us and 1 ns a multiplication; the estimate takes up to 3 us for a launch.
    assert max(abs(one.error) for one in first.estimated) < 0.6
    told = result_of(outcome, {"model": "tiny", "target": {"name": "fake"}})["forecasts"]
    assert [one["model"] for one in told["models"]] == ["step 0", "step 1", "the pruned model"]
    assert told["models"][0]["forecast"] == round(first.forecast, 4)
    assert told["models"][0]["measured"] == round(first.ratio.median, 4)
    assert told["estimated"] == sum(len(step.estimated) for step in steps)
    assert any("of the time was forecast" in line for line in said.lines)
    assert any("calls were estimated before they were measured" in line for line in said.lines)


def test_a_run_by_estimates_that_was_killed_anywhere_ends_like_one_that_was_not() -> None:
    undisturbed = MemoryKeeper()
    whole(tables_run(undisturbed))
    assert any(isinstance(event, Chosen) and event.estimated_us for event in undisturbed.kept)
    for lives in range(1, len(undisturbed.kept), 2):
        keeper = MemoryKeeper(lives=lives)
        with pytest.raises(Killed):
            whole(tables_run(keeper))
        keeper.lives = None
        whole(tables_run(keeper))
        assert keeper.without_cost() == undisturbed.without_cost()


# -- Algorithm 1


def algorithm_1(accuracy: Any = lambda _: 0.9, latency: Any = by_macs, **changed: Any) -> tuple[list[Step], RunState]:
    run = a_run(Watched(latency), FakeTrainer(accuracy), None, replace(ALGORITHM_1, **changed))
    loop = Loop(run)
    loop.begin()
    return list(loop.steps()), run


def test_what_is_estimated_to_be_faster_is_trained_before_it_is_tuned_and_timed() -> None:
    steps, run = algorithm_1(max_steps=1)
    (step,) = steps
    assert step.verdict == "accepted"
    assert step.reason.endswith("x faster")
    assert step.forecast is not None
    assert step.forecast < 1
    assert step.estimated
    assert [model.epochs for model in run.bench.tuned] == [0.0, 1.0]  # the unpruned one, and one that is trained
    assert run.bench.entries == []


def test_what_loses_too_much_is_never_tuned_nor_timed() -> None:
    steps, run = algorithm_1(lambda m: 0.9 if m.whole else 0.5)
    assert {step.verdict for step in steps} == {"excluded"}
    assert {step.trials for step in steps} == {0}
    assert all(step.latency_ms is None and step.forecast is not None for step in steps)
    assert all(model.whole for model in run.bench.tuned)


def test_what_is_not_faster_by_estimate_is_not_trained() -> None:
    steps, run = algorithm_1(beta=0.01, max_steps=1)
    assert [step.verdict for step in steps] == ["rejected"]
    assert steps[0].reason.startswith("not faster by estimate: 0.")
    assert run.trainer.looks("decide") == [run.trainer.looks("decide")[0]]  # the unpruned model alone


def test_the_gate_has_the_last_word_on_what_was_estimated_to_be_faster() -> None:
    steps, _ = algorithm_1(latency=lambda _: 1.0, max_steps=1)
    assert steps[0].verdict == "rejected"
    assert steps[0].reason == "not clearly faster: 1.000 [1.000, 1.000] of the time"
    assert steps[0].estimated
    assert steps[0].accuracy == 0.9


def test_after_a_rejected_step_the_same_table_answers_and_after_an_accepted_one_a_new_one() -> None:
    steps, _ = algorithm_1(lambda m: 0.9 if m.a >= 112 else 0.5, max_steps=3)
    assert [step.verdict for step in steps][:2] == ["accepted", "excluded"]


# -- errors


def a_step(index: int, forecast: float | None, ratio: float | None, *errors: float, verdict: Any = "accepted") -> Step:
    measured = None if ratio is None else Interval(ratio, ratio, ratio)
    estimated = tuple(Estimated(f"call{i}", 100.0 * (1 + error), 100.0) for i, error in enumerate(errors))
    return Step(
        index, "task", 0, (), measured, measured, measured, 0.9, verdict, "", 0, {}, "key", None, forecast, estimated
    )


def test_errors_are_what_was_forecast_over_what_was_measured() -> None:
    steps = [a_step(0, 0.55, 0.5, -0.1, 0.3), a_step(1, 0.8, 1.0, 0.2, verdict="rejected"), a_step(2, 0.9, 0.9)]
    told = forecasts(steps, 2, 0.5)
    assert told.models == (
        Forecast("step 0", 0.55, 0.5, 0.1),
        Forecast("step 1", 0.8, 1.0, -0.2),
        Forecast("step 2", 0.9, 0.9, 0.0),
        Forecast("the pruned model", 0.495, 0.5, -0.01),  # 0.55 * 0.9
    )
    assert (told.estimated, told.error) == (3, 0.2)
    assert told.sentences()[0] == "step 0: 0.550 of the time was forecast, 0.500 measured (error +10.0%)"
    assert told.sentences()[-1] == "3 calls were estimated before they were measured: median error 20.0%"


def test_what_was_not_forecast_or_not_measured_has_no_error() -> None:
    steps = [a_step(0, None, 0.5), a_step(1, 0.8, None, verdict="excluded")]
    assert forecasts(steps, 0, 0.5).models == ()
    assert forecasts(steps).sentences() == ()
    assert [one.model for one in forecasts([a_step(0, 0.5, 0.5)], None, 1.0).models] == ["step 0"]
