"""The whole method on fakes: every verdict, every way to end, every kill, exactly and in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from typing import Any

import pytest
import torch
from fakes import DEFAULT, EXAMPLE, FakeBench, FakeTrainer, Killed, MemoryKeeper, Seen, a_run, seen, tiny, width_ms
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from cprune.channels import groups
from cprune.channels.graph import Graph
from cprune.method import ending, state
from cprune.method.ending import Outcome, finish
from cprune.method.history import History
from cprune.method.loop import Loop
from cprune.method.settings import Settings
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.progress import Progress
from cprune.runs.events import (
    Certified,
    CostSoFar,
    Measured,
    PartSizes,
    Renewed,
    Reported,
    Start,
    Step,
    Trained,
)
from cprune.targets.errors import DeviceLost, UserError
from cprune.targets.interval import Comparison, Interval
from cprune.targets.paired import Paired
from cprune.training.trainer import Pace, Schedule


@pytest.fixture(autouse=True, scope="module")
def groups_are_found_once() -> Iterator[None]:
    """Equal networks have equal groups: look for them once.  And one thread: the networks are tiny."""
    known: dict[tuple[Seen, object], Graph] = {}

    def analyse(network: Network, *rest: Any) -> Graph:
        width = replace(seen(network), epochs=0.0)
        if (width, rest[1:]) not in known:
            known[width, rest[1:]] = groups.analyse(network, *rest)
        return known[width, rest[1:]]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "analyse", analyse)
        yield
    torch.set_num_threads(threads)


def whole_run(**parts: Any) -> tuple[list[Step], Outcome]:
    """Run to the end; return the steps and what came of it."""
    loop = Loop(a_run(**parts))
    loop.begin()
    steps = list(loop.steps())
    return steps, finish(loop.run, loop.current)


def verdicts(steps: list[Step]) -> list[tuple[str, int, int, str]]:
    """Return (group, channels before, after, verdict) of steps that change one group."""
    return [(s.groups[0].id, s.groups[0].before, s.groups[0].after, s.verdict) for s in steps if len(s.groups) == 1]


# -- verdicts


def test_channels_go_step_by_step_until_the_next_would_cost_too_much() -> None:
    # a channel costs 0.01 points, one point may be lost: 100 of the 192 channels, in steps of 16
    trainer = FakeTrainer(lambda m: 0.9 - 1e-4 * (192 - m.stem - m.a))
    steps, outcome = whole_run(trainer=trainer)
    assert verdicts(steps) == [
        ("stem", 64, 48, "accepted"), ("stem", 48, 32, "accepted"), ("stem", 32, 16, "accepted"),
        ("a", 128, 112, "accepted"), ("a", 112, 96, "accepted"), ("a", 96, 80, "accepted"), ("a", 80, 64, "excluded"),
    ]  # fmt: skip
    assert steps[-1].reason == "accuracy 88.88% is below 89.00%"
    assert steps[0].ratio == Interval(176 / 192, 176 / 192, 176 / 192)
    assert steps[0].reason == "1.091x faster"
    assert outcome.status == "pruned"
    assert outcome.comparison.ratio.median == 0.5
    assert seen(outcome.network) == Seen(16, 80, epochs=6 + 12)  # a short training for every step, a long one at last
    assert outcome.choice.accuracy == pytest.approx(0.8904)
    assert outcome.counts == {"accepted": 6, "rejected": 0, "excluded": 1}
    assert outcome.notes == ()


def test_a_step_that_is_not_faster_is_rejected_and_tried_again_with_more_channels() -> None:
    # three blocks of 16 take as long as four: only 32 channels at once are faster
    def in_pairs(model: Seen) -> float:
        return float(-(-model.stem // 32) * 32 + model.a)

    steps, _ = whole_run(bench=FakeBench(in_pairs, forecast_ms=width_ms), settings=replace(DEFAULT, max_steps=2))
    assert verdicts(steps) == [("stem", 64, 48, "rejected"), ("stem", 64, 32, "accepted")]
    assert steps[0].reason == "not clearly faster: 1.000 [1.000, 1.000] of the time"
    assert steps[0].accuracy is None  # nobody trains what is not faster


def test_a_gain_within_the_noise_is_no_gain() -> None:
    steps, outcome = whole_run(bench=FakeBench(spread=0.1), settings=replace(DEFAULT, max_steps=1))
    assert [step.verdict for step in steps] == ["rejected"]
    assert steps[0].reason == "not clearly faster: 0.917 [0.825, 1.008] of the time"
    assert outcome.status == "unpruned"


def test_a_hopeless_forecast_is_rejected_without_being_timed() -> None:
    bench = FakeBench(forecast_ms=lambda m: 100.0 if m.whole else 125.0)
    steps, _ = whole_run(bench=bench, settings=replace(DEFAULT, max_steps=1))
    assert steps[0].reason == "the changed tasks are slower (forecast 1.250 of the time)"
    assert steps[0].latency_ms is None
    assert steps[0].ratio is None
    assert all(pair == ("before", "before") for pair in bench.compared)


def test_a_forecast_that_is_only_bad_is_left_to_the_gate() -> None:
    bench = FakeBench(forecast_ms=lambda m: 100.0 if m.whole else 124.0)
    steps, _ = whole_run(bench=bench, settings=replace(DEFAULT, max_steps=1))
    assert steps[0].verdict == "accepted"


def test_what_is_excluded_is_not_tried_again_while_other_groups_are() -> None:
    trainer = FakeTrainer(lambda m: 0.9 if m.stem == 64 else 0.5)
    steps, outcome = whole_run(trainer=trainer)
    assert [v for v in verdicts(steps) if v[0] == "stem"] == [("stem", 64, 48, "excluded")]
    assert outcome.network is not None
    assert seen(outcome.network).stem == 64
    assert seen(outcome.network).a == 32  # 80 % of a layer's channels may go at most: 26 of 128 stay


def test_a_step_keeps_alpha_of_the_accuracy_before_it_even_where_the_floor_allows_more() -> None:
    trainer = FakeTrainer(lambda m: 0.9 - 0.001 * (192 - m.stem - m.a))
    held = replace(DEFAULT, max_drop=0.5, alpha=0.99, retry_epochs=0.0, max_steps=1)
    steps, _ = whole_run(trainer=trainer, settings=held)
    assert steps[0].reason == "accuracy 88.40% is below 89.10%"
    steps, _ = whole_run(trainer=trainer, settings=replace(held, alpha=0.9))
    assert steps[0].verdict == "accepted"


def test_a_model_that_is_nearly_good_enough_is_trained_once_more_and_longer() -> None:
    trainer = FakeTrainer(lambda m: 0.9 if m.whole or m.epochs >= 4 else 0.885)
    steps, _ = whole_run(trainer=trainer, settings=replace(DEFAULT, max_steps=1))
    assert (steps[0].verdict, steps[0].accuracy) == ("accepted", 0.9)


def test_a_model_that_is_far_below_gets_no_second_training() -> None:
    trainer = FakeTrainer(lambda m: 0.9 if m.whole or m.epochs >= 4 else 0.98 * 0.891 - 1e-6)
    steps, _ = whole_run(trainer=trainer, settings=replace(DEFAULT, max_steps=1))
    assert steps[0].verdict == "excluded"


def test_without_retry_epochs_there_is_no_second_training() -> None:
    trainer = FakeTrainer(lambda m: 0.9 if m.whole or m.epochs > 1 else 0.885)
    steps, _ = whole_run(trainer=trainer, settings=replace(DEFAULT, max_steps=1, retry_epochs=0.0))
    assert steps[0].verdict == "excluded"


def test_training_that_diverges_excludes_the_step() -> None:
    trainer = FakeTrainer(diverges=lambda m: m.stem < 64)
    steps, outcome = whole_run(trainer=trainer)
    assert ("stem", 64, 48, "excluded") in verdicts(steps)
    assert next(s for s in steps if s.key == "stem").reason == "training diverged: the loss is nan"
    assert seen(outcome.network).stem == 64


def test_statistics_are_repaired_before_every_training() -> None:
    trainer = FakeTrainer()
    steps, _ = whole_run(trainer=trainer, settings=replace(DEFAULT, max_steps=2))
    assert trainer.recalibrated == [Seen(48, 128, 0.0), Seen(32, 128, 1.0)]
    assert len(steps) == 2


def test_taylor_importance_asks_the_trainer_for_gradients() -> None:
    steps, _ = whole_run(settings=replace(DEFAULT, importance="taylor", max_steps=1))
    assert steps[0].verdict == "accepted"


def test_a_run_ends_after_as_many_steps_as_are_allowed() -> None:
    assert len(whole_run(settings=replace(DEFAULT, max_steps=3))[0]) == 3
    assert whole_run(settings=replace(DEFAULT, max_steps=0))[1].status == "unpruned"


def test_only_two_models_are_held_at_any_time() -> None:
    bench = FakeBench()
    loop = Loop(a_run(bench=bench))
    loop.begin()
    for _ in loop.steps():
        assert set(bench.models) <= {"before", loop.held}


# -- before the first step


def test_more_accuracy_than_the_model_has_is_refused_before_anything_is_tuned() -> None:
    bench = FakeBench()
    with pytest.raises(UserError, match=r"95\.00% is above what the model reaches: 90\.00%.*\nType --min-acc 0\.8900"):
        Loop(a_run(bench=bench, settings=replace(DEFAULT, min_acc=0.95))).begin()
    assert bench.calls == 0


def test_the_floor_of_decisions_allows_what_the_report_allows() -> None:
    trainer = FakeTrainer(deciding=lambda _: 0.95, reporting=lambda _: 0.9)
    start = Loop(a_run(trainer=trainer, settings=replace(DEFAULT, min_acc=0.88))).begin()
    assert (start.report, start.decide, start.certify, start.required) == (0.9, 0.95, 0.95, 0.88)
    assert start.floor == pytest.approx(0.93)
    assert start.allowed == pytest.approx(0.02)
    assert start.images == PartSizes()  # functions do not say


def test_a_loss_may_not_go_below_nothing() -> None:
    run = a_run(trainer=FakeTrainer(lambda _: 0.3), settings=replace(DEFAULT, max_drop=0.5))
    assert Loop(run).begin().required == 0


def test_strict_refuses_a_model_with_channels_that_cannot_go() -> None:
    run = a_run(settings=replace(DEFAULT, strict=True))
    assert Loop(run).begin()
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Softmax(1), nn.Conv2d(8, 4, 3)).eval()
    run.first = capture(model, EXAMPLE)
    with pytest.raises(UserError, match="strict"):
        Loop(run).begin()


# -- long training that leaves room


def short_of_breath(model: Seen) -> float:
    """Short training keeps one step, long training brings it back to 89.5 %, and then everything holds."""
    if model.whole:
        return 0.9
    if model.epochs >= 12:
        return 0.895
    return 0.892 if model.stem + model.a == 176 else 0.5


def test_when_steps_are_excluded_and_no_room_is_left_long_training_makes_some() -> None:
    keeper = MemoryKeeper()
    steps, outcome = whole_run(trainer=FakeTrainer(short_of_breath), keeper=keeper)
    kinds = [event.kind for event in keeper.without_cost() if event.kind != "measured"]
    assert kinds[:5] == ["start", "step", "step", "trained", "renewed"]
    assert [step.verdict for step in steps[:3]] == ["accepted", "excluded", "accepted"]
    assert steps[1].key == steps[2].key  # every task is tried again
    assert next(e for e in keeper.kept if isinstance(e, Renewed)).accuracy == 0.895
    assert [e.index for e in keeper.kept if isinstance(e, Trained)].count(0) == 1
    assert outcome.status == "pruned"


def test_when_no_task_is_left_long_training_may_begin_another_round() -> None:
    def every_group_once(model: Seen) -> float:
        if model.whole or model.epochs >= 12:
            return 0.9 if model.whole else 0.899
        return 0.896 if model.stem >= 48 and model.a >= 112 else 0.5

    keeper = MemoryKeeper()
    steps, _ = whole_run(trainer=FakeTrainer(every_group_once), keeper=keeper)
    kinds = [event.kind for event in keeper.without_cost() if event.kind != "measured"]
    renewed = kinds.index("renewed")
    assert kinds[renewed - 1] == "trained"
    assert "excluded" in {step.verdict for step in steps[: renewed - 2]}
    assert "accepted" in {step.verdict for step in steps[renewed - 2 :]}


def test_long_training_that_does_not_help_is_not_tried_at_every_step() -> None:
    def hopeless(model: Seen) -> float:
        if model.whole:
            return 0.9
        return 0.8915 if model.stem + model.a == 176 else 0.5

    keeper = MemoryKeeper()
    _, outcome = whole_run(trainer=FakeTrainer(hopeless), keeper=keeper)
    assert [e.index for e in keeper.kept if isinstance(e, Trained)] == [0]
    assert not [e for e in keeper.kept if isinstance(e, Renewed)]
    assert outcome.status == "pruned"


def test_room_is_a_quarter_of_the_loss_that_is_allowed() -> None:
    history = History.of([Start(0.9, 0.9, 0.86, 0.86, 16, 0, Interval(1, 1, 1))])
    assert history.roomy(0.87)
    assert not history.roomy(0.8699)
    assert not History.of([Start(0.9, 0.9, 0.9, 0.9, 16, 0, Interval(1, 1, 1))]).roomy(0.9)  # no loss is allowed


def test_where_no_loss_is_allowed_and_nothing_was_pruned_long_training_is_not_hoped_for() -> None:
    trainer = FakeTrainer(lambda m: 0.9 if m.whole else 0.5)
    loop = Loop(a_run(trainer=trainer, settings=replace(DEFAULT, max_drop=0.0, max_steps=1)))
    loop.begin()
    assert [step.verdict for step in loop.steps()] == ["excluded"]
    assert not loop.run.history.hopeful


# -- the end


def test_the_walk_goes_from_the_safest_model_to_the_first_that_loses_too_much() -> None:
    trainer = FakeTrainer(lambda _: 0.9, certifying=lambda m: 0.9 if m.stem >= 48 else 0.1)
    _, outcome = whole_run(trainer=trainer, settings=replace(DEFAULT, max_steps=3))
    assert outcome.status == "stepped-back"
    assert seen(outcome.network).stem == 48
    assert outcome.notes == (
        "the model after step 1 loses 80.00 points on the images that certify; 1.00 may be lost, so nothing faster is "
        "looked at",
    )
    assert [model.stem for model in trainer.looks("certify")] == [64, 48, 32]
    assert [model.stem for model in trainer.looks("report")] == [64, 48]  # one look before, one after


def test_long_training_that_does_not_help_is_taken_back() -> None:
    trainer = FakeTrainer(lambda m: 0.9 if m.epochs < 12 else 0.5)
    _, outcome = whole_run(trainer=trainer, settings=replace(DEFAULT, max_steps=1))
    assert outcome.status == "pruned"
    assert outcome.notes == ("long training did not help (50.00% after 90.00% where it is decided)",)
    assert seen(outcome.network) == Seen(48, 128, 1.0)


def test_if_no_model_can_be_certified_the_unpruned_one_comes_back() -> None:
    trainer = FakeTrainer(lambda _: 0.9, certifying=lambda m: 0.9 if m.whole else 0.1)
    _, outcome = whole_run(trainer=trainer, settings=replace(DEFAULT, max_steps=2))
    assert outcome.status == "unpruned"
    assert seen(outcome.network).whole
    assert outcome.notes[-1] == "no pruned model holds the accuracy asked for; the model stays as it is, tuned"
    assert outcome.after is outcome.before
    assert outcome.trials["final"] == 0
    assert (outcome.choice.accuracy, outcome.choice.loss.loss) == (0.9, 0)


def test_a_model_that_falls_below_the_floor_by_itself_is_not_certified() -> None:
    looks: list[Seen] = []

    def unsteady(model: Seen) -> float:
        # the newest model held the floor when it was accepted, and does not when it is looked at again
        looks.append(model)
        return 0.5 if model.stem == 32 and looks.count(model) > 1 else 0.9

    trainer = FakeTrainer(unsteady, certifying=lambda _: 0.9, diverges=lambda m: m.epochs >= 12)
    _, outcome = whole_run(trainer=trainer, settings=replace(DEFAULT, max_steps=2))
    assert outcome.status == "stepped-back"
    assert [model.stem for model in trainer.looks("certify")] == [64, 48]
    assert "the model after step 1: 50.00% on the images that decide is below 89.00%" in outcome.notes


def test_the_journal_says_image_by_image_what_was_lost() -> None:
    # a channel costs 0.025 points: 4 of 1000 images for 16 channels
    trainer = FakeTrainer(lambda m: 0.9 - 2.5e-4 * (192 - m.stem - m.a), images=1000)
    keeper = MemoryKeeper()
    steps, outcome = whole_run(trainer=trainer, keeper=keeper, settings=replace(DEFAULT, max_steps=1))
    lost = Paired(loss=0.004, images=1000, lost=4, gained=0)
    assert steps[0].loss == lost
    kept = {type(event): event for event in keeper.kept}
    assert kept[Trained] == Trained(0, 0.896, 0.896, "", lost, kept[Trained].so_far)
    assert kept[Certified] == Certified(0, 0.896, lost, True, kept[Certified].so_far)
    assert kept[Reported] == Reported(0, 0.896, lost, kept[Reported].so_far)
    assert outcome.start.images == PartSizes(1000, 1000, 1000)
    assert outcome.choice.bound is not None
    assert outcome.choice.bound.loss == pytest.approx(0.00888, abs=1e-5)  # Wilson: nothing was gained


def test_decisions_on_images_that_were_learnt_by_heart_are_told_of() -> None:
    lines: list[str] = []

    class Listening(Progress):
        def say(self, text: str) -> None:
            lines.append(text)

    trainer = FakeTrainer(lambda _: 0.9646, reporting=lambda _: 0.8882, images=10_000)
    _, outcome = whole_run(trainer=trainer, settings=replace(DEFAULT, max_steps=1), progress=Listening())
    told = (
        "the images that decide look memorised: 96.46% there, 88.82% on those of the report; leave x_val out or give "
        "images the model never saw"
    )
    assert told in lines
    assert outcome.notes == (told,)
    assert outcome.start.memorised
    assert outcome.choice.bound is None  # of new images they say nothing


def test_nothing_accepted_gives_the_unpruned_model_back_with_the_reason() -> None:
    _, outcome = whole_run(trainer=FakeTrainer(lambda m: 0.9 if m.whole else 0.1))
    assert outcome.status == "unpruned"
    assert outcome.notes == ("no step was both faster and accurate enough; the model stays as it is, tuned",)


def test_a_model_that_is_not_faster_after_final_tuning_is_not_returned() -> None:
    bench = FakeBench()

    def slower_at_the_end(model: Seen) -> float:
        return 192.0 if model.epochs >= 12 else width_ms(model)

    bench.latency_ms = slower_at_the_end
    _, outcome = whole_run(bench=bench, settings=replace(DEFAULT, max_steps=1))
    assert outcome.status == "unpruned"
    assert seen(outcome.network).whole
    assert outcome.choice.accuracy == 0.9
    assert outcome.after is outcome.before
    assert (outcome.comparison.new_ms, outcome.comparison.ratio.median) == (outcome.comparison.old_ms, 1.0)
    assert outcome.notes == ("the pruned model is not clearly faster after final tuning; the model stays as it is",)


class Throttled(FakeBench):
    """A bench whose machine is so many times slower in one final comparison after the other, then as it was."""

    def __init__(self, *times: float) -> None:
        super().__init__()
        self.times = list(times)

    def compare(self, old: str, new: str, rounds: int, run_ms: float, beta: float | None = None) -> Comparison:
        told = super().compare(old, new, rounds, run_ms, beta)
        if (old, new) != ("before", "after"):
            return told
        times = self.times.pop(0) if self.times else 1.0
        slowed = [Interval(*(times * value for value in astuple(one))) for one in (told.old_ms, told.new_ms)]
        return Comparison(*slowed, told.ratio)


@pytest.mark.parametrize(
    ("times", "waits", "old_ms"),
    [
        ((1.09,), 0, 1.09 * 192),  # 192 ms at the beginning, a tenth more is as usual
        ((1.5, 1.2), 2, 192),
        ((1.5, 1.3, 1.4, 1.6, 1.5, 1.5, 1.5, 1.5, 1.5), 8, 1.3 * 192),  # it stays slow: the best of nine counts
    ],
)
def test_the_end_waits_for_a_machine_that_is_slower_than_at_the_beginning_but_not_for_ever(
    times: tuple[float, ...], waits: int, old_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(ending.time, "sleep", slept.append)
    _, outcome = whole_run(bench=Throttled(*times), settings=replace(DEFAULT, max_steps=1))
    assert slept == waits * [15.0]
    assert outcome.comparison.old_ms.median == pytest.approx(old_ms)


def test_long_training_that_diverges_leaves_the_model_as_it_was() -> None:
    trainer = FakeTrainer(diverges=lambda m: m.epochs >= 12)
    _, outcome = whole_run(trainer=trainer, settings=replace(DEFAULT, max_steps=1))
    assert outcome.status == "pruned"
    assert seen(outcome.network) == Seen(48, 128, 1.0)
    assert outcome.notes == ("long training diverged (the loss is nan); the model of step 0 is used as it was",)


def test_before_and_after_are_compared_in_one_go_with_twice_the_rounds() -> None:
    bench = FakeBench()
    whole_run(bench=bench, settings=replace(DEFAULT, max_steps=1))
    assert bench.compared == [("before", "before"), ("before", "step0"), ("before", "after")]


# -- the promise


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    stem=st.lists(st.floats(0.5, 1.0), min_size=5, max_size=5),
    a=st.lists(st.floats(0.5, 1.0), min_size=9, max_size=9),
    slow=st.lists(st.floats(1.0, 200.0), min_size=5, max_size=5),
    optimism=st.floats(-0.05, 0.05),
    gain=st.floats(0.0, 0.02),
    drop=st.floats(0.0, 0.3),
    steps=st.integers(0, 12),
)
def test_whatever_the_model_the_result_is_never_slower_and_never_below_what_was_asked_for(
    stem: list[float], a: list[float], slow: list[float], optimism: float, gain: float, drop: float, steps: int
) -> None:
    def deciding(model: Seen) -> float:
        if model.whole:
            return 0.9
        return 0.9 * min(stem[model.stem // 16], a[model.a // 16]) + (gain if model.epochs >= 12 else 0.0)

    def testing(model: Seen) -> float:
        return deciding(model) - (0.0 if model.whole else optimism)

    def latency_ms(model: Seen) -> float:
        return slow[model.stem // 16] + model.a

    _, outcome = whole_run(
        bench=FakeBench(latency_ms),
        trainer=FakeTrainer(deciding, reporting=testing),
        settings=replace(DEFAULT, max_drop=drop, max_steps=steps, alpha=0.5),
    )
    assert outcome.choice.accuracy >= outcome.start.required
    assert testing(seen(outcome.network)) == outcome.choice.accuracy
    if outcome.status == "unpruned":
        assert seen(outcome.network).whole
    else:
        assert latency_ms(seen(outcome.network)) < latency_ms(Seen(64, 128, 0.0))


# -- killed and resumed: the same run, whenever it happens

SCENARIOS: dict[str, tuple[Callable[[], FakeBench], Callable[[], FakeTrainer], Settings]] = {
    "renewed": (FakeBench, lambda: FakeTrainer(short_of_breath), replace(DEFAULT, max_steps=6)),
    "stepped back": (
        FakeBench,
        lambda: FakeTrainer(lambda _: 0.9, certifying=lambda m: 0.9 if m.stem >= 48 else 0.1),
        replace(DEFAULT, max_steps=3),
    ),
    "not as good in the report": (
        FakeBench,
        lambda: FakeTrainer(lambda _: 0.9, reporting=lambda m: 0.9 if m.stem >= 48 else 0.1),
        replace(DEFAULT, max_steps=2),
    ),
    "rejected": (
        lambda: FakeBench(lambda m: float(-(-m.stem // 32) * 32 + -(-m.a // 64) * 64), forecast_ms=width_ms),
        FakeTrainer,
        replace(DEFAULT, max_steps=7),
    ),
    "diverged": (
        FakeBench,
        lambda: FakeTrainer(lambda m: 0.8915 if m.stem < 64 else 0.9, diverges=lambda m: m.a < 112 or m.epochs >= 12),
        replace(DEFAULT, max_steps=6),
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_killed_after_any_event_goes_on_as_if_nothing_had_happened(name: str) -> None:
    make_bench, make_trainer, settings = SCENARIOS[name]
    whole = MemoryKeeper()
    _, expected = whole_run(bench=make_bench(), trainer=make_trainer(), keeper=whole, settings=settings)
    for lives in range(1, len(whole.kept)):
        keeper = MemoryKeeper(lives=lives)
        with pytest.raises(Killed):
            whole_run(bench=make_bench(), trainer=make_trainer(), keeper=keeper, settings=settings)
        assert len(keeper.kept) == lives
        keeper.lives = None
        _, outcome = whole_run(bench=make_bench(), trainer=make_trainer(), keeper=keeper, settings=settings)
        assert keeper.without_cost() == whole.without_cost()
        assert (outcome.status, outcome.notes, outcome.counts) == (expected.status, expected.notes, expected.counts)
        assert seen(outcome.network) == seen(expected.network)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_device_that_is_lost_at_any_moment_loses_nothing_but_the_moment(name: str) -> None:
    make_bench, make_trainer, settings = SCENARIOS[name]
    whole, bench = MemoryKeeper(), make_bench()
    whole_run(bench=bench, trainer=make_trainer(), keeper=whole, settings=settings)
    for call in range(1, bench.calls + 1):
        broken = make_bench()
        broken.broken_at, broken.error = call, DeviceLost("no device answers any more")
        keeper = MemoryKeeper()
        with pytest.raises(DeviceLost):
            whole_run(bench=broken, trainer=make_trainer(), keeper=keeper, settings=settings)
        whole_run(bench=make_bench(), trainer=make_trainer(), keeper=keeper, settings=settings)
        assert keeper.without_cost() == whole.without_cost()


def test_nothing_that_was_certified_or_reported_is_looked_at_twice() -> None:
    settings = replace(DEFAULT, max_steps=3)
    once, whole = FakeTrainer(), MemoryKeeper()
    whole_run(trainer=once, keeper=whole, settings=settings)
    of_interest = [event for event in whole.without_cost() if event.kind in ("certified", "reported")]
    assert [event.kind for event in of_interest] == [*["certified"] * 3, *["reported"] * 3]
    for kind in ("certified", "reported"):
        trainer = FakeTrainer()
        keeper = MemoryKeeper(lives=1 + next(i for i, event in enumerate(whole.kept) if event.kind == kind))
        with pytest.raises(Killed):
            whole_run(trainer=trainer, keeper=keeper, settings=settings)
        keeper.lives = None
        whole_run(trainer=trainer, keeper=keeper, settings=settings)
        for part in ("certify", "report"):
            pruned = [model for model in trainer.looks(part) if not model.whole]
            assert pruned == [model for model in once.looks(part) if not model.whole]


def test_a_run_of_an_earlier_version_is_not_gone_on_with() -> None:
    keeper = MemoryKeeper([Start(0.9, 0.9, 0.89, 0.89, 16, 40, Interval(1, 1, 1))])
    with pytest.raises(
        UserError, match="started by an earlier version of cprune, which shared the data out in another way"
    ):
        Loop(a_run(keeper=keeper)).begin()


def test_no_comparison_of_the_gate_is_made_twice() -> None:
    settings = replace(DEFAULT, max_steps=2)
    keeper = MemoryKeeper(lives=2)  # the start, and the first comparison
    with pytest.raises(Killed):
        whole_run(keeper=keeper, settings=settings)
    assert isinstance(keeper.kept[-1], Measured)
    keeper.lives, bench = None, FakeBench()
    whole_run(bench=bench, keeper=keeper, settings=settings)
    assert ("before", "step0") not in bench.compared


def test_trials_and_seconds_are_those_of_all_lives() -> None:
    settings = replace(DEFAULT, max_steps=1)
    once = whole_run(settings=settings)[1]
    keeper, known = MemoryKeeper(lives=3), FakeBench()
    with pytest.raises(Killed):
        whole_run(bench=known, keeper=keeper, settings=settings)
    first_life_s = keeper.kept[-1].so_far.seconds["total"]  # type: ignore[union-attr]
    keeper.lives, again = None, FakeBench()
    again.known = known.known  # the records outlive the run
    outcome = whole_run(bench=again, keeper=keeper, settings=settings)[1]
    assert outcome.trials == once.trials == {"before": 5 * 32, "loop": 5 * 8, "final": 0}
    assert outcome.seconds["total"] >= round(first_life_s, 1)


def test_what_a_run_cost_is_written_while_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "BEAT_S", -1.0)
    keeper = MemoryKeeper()
    Loop(a_run(keeper=keeper)).begin()
    beats = [event for event in keeper.kept if isinstance(event, CostSoFar)]
    assert [beat.so_far.trials["before"] for beat in beats[:3] if beat.so_far] == [1, 2, 3]


def test_a_resumed_run_says_where_it_goes_on() -> None:
    lines: list[str] = []

    class Listening(Progress):
        def say(self, text: str) -> None:
            lines.append(text)

    keeper = MemoryKeeper(lives=5)
    with pytest.raises(Killed):
        whole_run(keeper=keeper)
    keeper.lives = None
    whole_run(keeper=keeper, progress=Listening())
    assert "resumed after 2 steps" in lines


def test_the_fakes_see_what_was_pruned_and_trained() -> None:
    assert seen(tiny()) == Seen(64, 128, 0.0)
    assert seen(tiny()).whole


class Busy(FakeTrainer):
    """A trainer that knows how long an epoch takes, and whose trainings take a while by the run's clock."""

    clock = 0.0

    def pace(self, model: nn.Module, schedule: Schedule) -> Pace:
        return Pace(seconds_per_epoch=2.0)

    def fine_tune(self, model: nn.Module, schedule: Schedule, *rest: Any) -> None:
        self.clock += 2.0 * schedule.epochs
        super().fine_tune(model, schedule, *rest)


def test_where_seconds_of_training_are_asked_for_half_of_them_go_into_steps_and_the_rest_into_long_training() -> None:
    trainer = Busy(lambda _: 0.9)
    run = a_run(trainer=trainer, settings=replace(DEFAULT, train_time_s=10.0))
    run.cost.clock = lambda: trainer.clock
    run.cost.mark = 0.0
    loop = Loop(run)
    loop.begin()
    steps = list(loop.steps())
    assert len(steps) == 3  # an epoch of 2 s after each: 6 s are not before the half
    finish(run, loop.current)
    assert trainer.clock == 10.0
    assert seen(run.keeper.load(2, long_trained=True)).epochs == 3 + 2  # 4 s were left


def test_where_nobody_knows_how_long_training_takes_long_training_has_its_own_epochs() -> None:
    class Timeless(FakeTrainer):
        def pace(self, model: nn.Module, schedule: Schedule) -> None:  # type: ignore[override]
            return None

    run = a_run(trainer=Timeless(lambda _: 0.9), settings=replace(DEFAULT, train_time_s=1000.0, max_steps=1))
    loop = Loop(run)
    loop.begin()
    list(loop.steps())
    finish(run, loop.current)
    assert seen(run.keeper.load(0, long_trained=True)).epochs == 1 + 12


def test_a_run_is_not_continued_with_other_data() -> None:
    keeper = MemoryKeeper()
    whole_run(keeper=keeper)
    start = [event for event in keeper.kept if isinstance(event, Start)]
    other = a_run(trainer=FakeTrainer(lambda _: 0.7), keeper=MemoryKeeper(start))
    with pytest.raises(UserError, match=r"right on 70\.00% of .* and was on 90\.00% when this run"):
        other.parent("decide")
