"""The methods to compare with, on fakes: one share of every width, found by bisection or named beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from fakes import FakeBench, FakeTrainer, Killed, MemoryKeeper, Seen, a_run, seen
from test_tables import TABLES, by_macs, recovering, run_of, trainer

from cprune.method.ending import finish
from cprune.method.loop import Loop
from cprune.method.one_shot import OneShot
from cprune.method.rounds import Rounds
from cprune.method.settings import METHODS, Settings
from cprune.method.state import RunState
from cprune.method.tables import Tables
from cprune.method.uniform import Uniform
from cprune.method.whole_run import METHODS as MADE
from cprune.method.whole_run import _method
from cprune.progress import Progress
from cprune.runs.events import Chosen, GroupChange, Planned, Step, Trained


def whole(run: RunState, make: Callable[[RunState], Rounds]) -> tuple[list[Step], Rounds]:
    method = make(run)
    method.begin()
    return list(method.steps()), method


def inner(run: RunState) -> OneShot:
    return OneShot(run, inner=True)


def keeps(least_a: int) -> Callable[[Seen], float]:
    """Return an accuracy that is kept while the inner width has so many channels."""
    return lambda m: 0.9 if m.a >= least_a else 0.8


# -- the largest share


def test_shares_are_eighths_up_to_the_largest_sparsity() -> None:
    uniform = Uniform(run_of())
    uniform.begin()
    assert uniform.shares == (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
    # 64 channels in blocks of 16: an eighth less is as long as none, and so on; a half is the least that fills blocks
    assert uniform._narrower(0.125) == {"a": 112}
    assert uniform._narrower(0.5) == {"stem": 32, "a": 64}
    assert uniform._narrower(0.75) == {"stem": 16, "a": 32}


@pytest.mark.parametrize(
    ("least_a", "tried", "verdicts"),
    [
        (32, [64, 32], ["accepted", "accepted"]),
        (64, [64, 32, 48], ["accepted", "excluded", "excluded"]),
        (48, [64, 32, 48], ["accepted", "excluded", "accepted"]),
        (96, [64, 96, 80], ["excluded", "accepted", "excluded"]),
        (112, [64, 96, 112], ["excluded", "excluded", "accepted"]),
    ],
)
def test_the_largest_share_that_keeps_the_floor_is_found_by_bisection(
    least_a: int, tried: list[int], verdicts: list[str]
) -> None:
    run = run_of(deciding=keeps(least_a))
    steps, method = whole(run, Uniform)
    assert [step.groups[-1].after for step in steps] == tried
    assert [step.verdict for step in steps] == verdicts
    assert seen(finish(run, method.current).network).a == least_a


def test_every_share_that_is_trained_has_an_equal_part_of_the_seconds() -> None:
    run = run_of(deciding=keeps(48))
    whole(run, Uniform)
    assert [run.history.chosen[i].epochs for i in range(3)] == [33.33, 33.33, 33.33]  # of 100 s, 1 s each


def test_every_share_is_cut_from_the_unpruned_model() -> None:
    run = run_of(deciding=keeps(48))
    whole(run, Uniform)
    assert {seen(run.keeper.load_scout(i, 0)).epochs for i in range(3)} == {0.0}
    assert run.history.chosen[2].groups == (GroupChange("stem", 64, 32), GroupChange("a", 128, 48))


def test_what_is_not_faster_is_not_trained_and_its_seconds_are_for_a_larger_share() -> None:
    def latency(model: Seen) -> float:
        return 1.0 if model.a >= 64 else 0.5

    run = a_run(FakeBench(latency, by_task=True), trainer(), None, TABLES)
    steps, _ = whole(run, Uniform)
    assert [step.verdict for step in steps] == ["rejected", "accepted"]
    assert run.history.chosen[1].epochs == 50.0  # of two shares that were left, two rounds at most


def test_training_that_diverges_was_too_large_a_share() -> None:
    run = run_of(diverges=lambda m: m.a < 112)
    steps, _ = whole(run, Uniform)
    assert [step.verdict for step in steps] == ["excluded", "excluded", "accepted"]
    assert "diverged" in steps[0].reason


def test_no_more_goes_than_the_settings_allow() -> None:
    run = a_run(FakeBench(by_macs, by_task=True), trainer(), None, replace(TABLES, max_sparsity=0.3))
    uniform = Uniform(run)
    uniform.begin()
    assert uniform.shares == (0.125, 0.25)


@pytest.mark.parametrize("make", [Uniform, OneShot])
def test_a_model_of_which_nothing_may_go_stays_as_it_is(make: Callable[[RunState], Rounds]) -> None:
    run = a_run(FakeBench(by_macs, by_task=True), trainer(), None, replace(TABLES, ignore=("*",)))
    steps, method = whole(run, make)
    assert steps == []
    assert finish(run, method.current).status == "unpruned"


@pytest.mark.parametrize("importance", ["elimination", "taylor", "fpgm", "random"])
def test_channels_go_by_what_the_settings_say(importance: str) -> None:
    run = a_run(FakeBench(by_macs, by_task=True), trainer(), None, replace(TABLES, importance=importance))
    method = Uniform(run)
    method.begin()
    assert method.importance == importance
    which = method._ranked(run.first, method.before.graph)
    assert {group: sorted(order) for group, order in which.items()} == {
        "stem": list(range(64)),
        "a": list(range(128)),
    }


def test_without_a_setting_uniform_is_by_l1_and_its_other_name_by_the_geometric_median() -> None:
    assert Uniform(run_of()).importance == "l1"
    fpgm = MADE["fpgm"](run_of())
    assert isinstance(fpgm, Uniform)
    assert fpgm.importance == "fpgm"


# -- one cut that is named beforehand


def test_one_shot_takes_half_of_every_width_and_trains_it_for_all_of_the_seconds() -> None:
    run = run_of()
    steps, method = whole(run, OneShot)
    assert [step.groups for step in steps] == [(GroupChange("stem", 64, 32), GroupChange("a", 128, 64))]
    assert run.history.chosen[0].epochs == 100.0
    outcome = finish(run, method.current)
    assert outcome.status == "pruned"
    assert outcome.comparison.ratio.median == pytest.approx(0.25, abs=0.01)


def test_inner_widths_are_those_that_one_layer_makes() -> None:
    steps, _ = whole(run_of(), inner)
    assert [step.groups for step in steps] == [(GroupChange("a", 128, 64),)]


def test_the_share_is_a_setting() -> None:
    run = a_run(FakeBench(by_macs, by_task=True), trainer(), None, replace(TABLES, one_shot_share=0.25))
    steps, _ = whole(run, OneShot)
    assert [step.groups for step in steps] == [(GroupChange("stem", 64, 48), GroupChange("a", 128, 96))]


def test_one_shot_that_was_too_much_gives_the_unpruned_model_back() -> None:
    run = run_of(deciding=keeps(96))
    steps, method = whole(run, OneShot)
    assert [step.verdict for step in steps] == ["excluded"]
    assert finish(run, method.current).status == "unpruned"


# -- a run that was killed


@pytest.mark.parametrize("make", [Uniform, OneShot, inner])
def test_a_run_that_was_killed_anywhere_ends_like_one_that_was_not(make: Callable[[RunState], Rounds]) -> None:
    undisturbed = MemoryKeeper()
    whole(run_of(undisturbed, deciding=keeps(48)), make)
    assert {Planned, Chosen, Step, Trained} <= {type(event) for event in undisturbed.kept}
    for lives in range(1, len(undisturbed.kept)):
        keeper = MemoryKeeper(lives=lives)
        first = run_of(keeper, deciding=keeps(48))
        with pytest.raises(Killed):
            whole(first, make)
        keeper.lives = None
        second = run_of(keeper, deciding=keeps(48))
        second.bench.tuner = first.bench.tuner  # what was tuned is on disk
        whole(second, make)
        assert keeper.without_cost() == undisturbed.without_cost()


# -- which method runs


def test_every_method_of_the_settings_is_made_of_its_name() -> None:
    assert {*MADE, "cprune"} == set(METHODS)
    for name, made in MADE.items():
        assert type(_method(_named(name, shown=16))) is type(made(_named(name, shown=16)))
    assert isinstance(_method(_named("cprune", shown=16)), Loop)
    assert isinstance(_method(_named("tables", shown=16)), Tables)


def test_where_no_training_images_are_seen_algorithm_1_runs_and_says_so() -> None:
    lines: list[str] = []

    class Listening(Progress):
        def say(self, text: str) -> None:
            lines.append(text)

    for name in ("tables", "cprune", "uniform"):
        assert isinstance(_method(_named(name, shown=0, progress=Listening())), Loop)
    assert lines == ["the method uniform needs training images that it can see: Algorithm 1 runs instead"]


def _named(method: str, shown: int, progress: Progress | None = None) -> RunState:
    return a_run(trainer=FakeTrainer(recovering, shown=shown), settings=Settings(method=method), progress=progress)
