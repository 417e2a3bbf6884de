"""NetAdapt on fakes: group after group, each time the one whose narrowing costs least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from fakes import FakeBench, Killed, MemoryKeeper, Seen, a_run, seen
from test_tables import TABLES, by_macs, run_of, trainer

from cprune.method import netadapt
from cprune.method.ending import finish
from cprune.method.latency import LatencyTable
from cprune.method.netadapt import NetAdapt
from cprune.method.state import RunState
from cprune.runs.events import Chosen, Scouted, Step, Trained


def whole(run: RunState) -> tuple[list[Step], NetAdapt]:
    method = NetAdapt(run)
    method.begin()
    return list(method.steps()), method


def kept(run: RunState) -> list[Scouted]:
    return [scouted for _, scouted in sorted(run.history.scouted.items())]


def costly(points: float) -> Callable[[Seen], float]:
    """Return an accuracy: each 16 inner channels cost so many points until 25 epochs of training brought them back."""
    return lambda m: 0.9 - (0.01 * points * (128 - m.a) / 16 if m.epochs < 25 else 0.0)


def test_iterations_narrow_one_group_each_and_go_on_from_what_was_kept() -> None:
    run = run_of(deciding=lambda _: 0.9)
    whole(run)
    widths = [dict(text.rsplit(" ", 1) for text in one.widths) for one in kept(run)]
    assert widths[0] == {"a": "112"}  # of the two groups alone its narrowing moves the predictions least
    for before, after in pairwise(widths):
        assert sum(before.get(group) != width for group, width in after.items()) == 1
    shares = [one.share for one in kept(run)]
    # 10 % less each time, as long as both groups reach that, and no more than their widths allow
    assert all(after <= 0.9 * before + 1e-9 for before, after in pairwise([1.0, *shares]))
    assert [one.round for one in kept(run)] == [2 + i for i in range(len(shares))]


def test_half_of_the_seconds_are_for_short_trainings_an_equal_part_for_each_iteration() -> None:
    run = run_of(deciding=costly(1.0))
    whole(run)
    # 50 s in 16 iterations, two proposals each while both groups can go narrower
    assert [one.epochs for one in kept(run)][:4] == [1.5625] * 4
    assert {one.epochs for one in kept(run)} <= {1.5625, 3.125}
    iterations = len(kept(run))
    left = 100 - 50 / 16 * iterations
    assert [run.history.chosen[i].epochs for i in (0, 1)] == [round(left / 2, 2)] * 2


def test_iterations_end_when_too_much_is_lost() -> None:
    run = run_of(deciding=costly(3.5))
    whole(run)
    losses = [round(100 * one.loss.loss, 1) for one in kept(run)]
    assert losses[-1] > 6
    assert all(loss <= 6 for loss in losses[:-1])


def test_first_trained_is_the_last_from_which_training_is_thought_to_bring_back_enough_and_then_a_further_one() -> None:
    run = run_of(deciding=costly(1.0))
    steps, method = whole(run)
    hopeful = [one for one in kept(run) if one.loss.loss <= 0.02]
    assert [step.verdict for step in steps] == ["accepted", "accepted"]
    assert seen(run.keeper.load(0)).a == int(hopeful[-1].widths[-1].split()[-1])
    assert seen(run.keeper.load(1)).a < seen(run.keeper.load(0)).a
    assert finish(run, method.current).status == "pruned"


def test_after_one_that_lost_too_much_a_milder_one_is_trained() -> None:
    run = run_of(deciding=lambda m: 0.9 if m.a >= 112 or m.epochs < 20 else 0.8)
    steps, _ = whole(run)
    assert [step.verdict for step in steps] == ["excluded", "excluded"]
    first, second = (seen(run.keeper.load_scout(i, 0)) for i in (0, 1))
    assert second.a * second.stem > first.a * first.stem


def test_where_the_first_iteration_loses_too_much_it_is_the_only_one_and_the_only_one_trained() -> None:
    run = run_of(deciding=lambda m: 0.9 if m.whole else 0.8)
    steps, method = whole(run)
    assert len(kept(run)) == 1
    assert [step.verdict for step in steps] == ["excluded"]
    assert finish(run, method.current).status == "unpruned"


def test_proposals_that_diverge_are_none() -> None:
    run = run_of(diverges=lambda m: m.epochs > 0)
    steps, _ = whole(run)
    assert steps == []
    assert kept(run) == []


def test_a_model_of_which_nothing_may_go_stays_as_it_is() -> None:
    run = a_run(FakeBench(by_macs, by_task=True), trainer(), None, replace(TABLES, ignore=("*",)))
    steps, method = whole(run)
    assert steps == []
    assert finish(run, method.current).status == "unpruned"


def test_there_is_a_last_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netadapt, "ITERATIONS", 2)
    run = run_of(deciding=lambda _: 0.9)
    whole(run)
    assert len(kept(run)) == 2
    assert run.history.chosen[0].epochs == 25.0  # half of what the short trainings left, all of their half was used


def test_no_group_goes_below_the_largest_sparsity() -> None:
    run = a_run(
        FakeBench(by_macs, by_task=True), trainer(deciding=lambda _: 0.9), None, replace(TABLES, max_sparsity=0.5)
    )
    whole(run)
    last = seen(run.keeper.load_scout(2 + len(kept(run)) - 1, 0))
    assert (last.stem, last.a) == (32, 64)


def test_every_group_alone_reaches_what_is_asked_for() -> None:
    method = NetAdapt(run_of())
    method.begin()
    assert method._proposals({}) == {"stem": 48, "a": 112}
    assert method._proposals({"stem": 32, "a": 32}) == {"stem": 16}  # a fifth of 128 is between 32 and 16
    assert method._proposals({"stem": 16, "a": 32}) == {}


@pytest.mark.parametrize(("reductions", "found"), [((0.2, 0.1), {"a": 112}), ((0.2,), {})])
def test_what_too_few_groups_reach_alone_is_asked_for_in_smaller_parts(
    monkeypatch: pytest.MonkeyPatch, reductions: tuple[float, ...], found: dict[str, int]
) -> None:
    monkeypatch.setattr(netadapt, "REDUCTIONS", reductions)
    method = NetAdapt(a_run(FakeBench(by_macs, by_task=True), trainer(), None, replace(TABLES, max_sparsity=0.2)))
    method.begin()
    # of the inner width an eighth may go, which is an eighth of the time; of the stream, in blocks of 16, nothing
    assert method._proposals({}) == found


def test_a_width_that_only_its_estimate_says_is_fast_enough_is_not_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hopeful(LatencyTable):
        """Says 1 us of what is not measured."""

        def forecast_s(self, *arguments: Any, **named: Any) -> float:
            found = super().forecast_s(*arguments, **named)
            return 1e-6 if self.missing([arguments[0]]) else found

    monkeypatch.setattr("cprune.method.plain.LatencyTable", Hopeful)
    method = NetAdapt(run_of())
    method.begin()
    wanted = 0.72 * method.table.forecast_s({})
    # 112 and 96 of 128 inner channels take 0.88 and 0.75 of the time, 80 take 0.63
    assert method._reaching(wanted, {}, "a", [112, 96, 80]) == 80
    assert method._reaching(wanted, {}, "a", [112, 96]) is None


def test_a_run_that_was_killed_anywhere_ends_like_one_that_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netadapt, "ITERATIONS", 2)
    undisturbed = MemoryKeeper()
    whole(run_of(undisturbed, deciding=costly(1.0)))
    assert {Scouted, Chosen, Step, Trained} <= {type(event) for event in undisturbed.kept}
    for lives in range(1, len(undisturbed.kept)):
        keeper = MemoryKeeper(lives=lives)
        first = run_of(keeper, deciding=costly(1.0))
        with pytest.raises(Killed):
            whole(first)
        keeper.lives = None
        second = run_of(keeper, deciding=costly(1.0))
        second.bench.tuner = first.bench.tuner  # what was tuned is on disk
        whole(second)
        assert keeper.without_cost() == undisturbed.without_cost()
