"""The method of tables on fakes: rounds, scouts, and a run that was killed anywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import DEFAULT, FakeBench, FakeTrainer, Killed, MemoryKeeper, Seen, a_run, seen, tiny

from cprune.method.ending import finish
from cprune.method.scouting import next_share
from cprune.method.state import RunState
from cprune.method.tables import Tables
from cprune.runs.events import Chosen, Planned, Scouted, Step

TABLES = replace(DEFAULT, train_time_s=100.0)
MACS_MS = {"whole": 1.0}


def by_macs(model: Seen) -> float:
    """Return a latency like that of the tasks: the multiplications of the block, in ms."""
    return 1e-3 * (9 * 144 * (model.stem + 2 * model.stem * model.a) + 4 * model.stem) * 1e-3


def recovering(model: Seen) -> float:
    """Return an accuracy: narrow models lose up to 20 points, and each epoch of training brings half of it back."""
    return 0.9 - 0.2 * (1 - model.stem * model.a / 64 / 128) * 0.5 ** (model.epochs / 4)


def trainer(**changed: object) -> FakeTrainer:
    return FakeTrainer(**{"deciding": recovering, "images": 10_000, "shown": 64, **changed})  # type: ignore[arg-type]


def run_of(keeper: MemoryKeeper | None = None, **changed: object) -> RunState:
    return a_run(FakeBench(by_macs, by_task=True), trainer(**changed), keeper, TABLES)


def whole(run: RunState) -> tuple[list[Step], Tables]:
    tables = Tables(run)
    tables.begin()
    return list(tables.steps()), tables


def test_two_rounds_narrow_the_network_and_almost_all_training_goes_into_what_is_delivered() -> None:
    run = run_of()
    steps, tables = whole(run)
    assert [step.verdict for step in steps] == ["accepted", "accepted"]
    outcome = finish(run, tables.current)
    assert outcome.status == "pruned"
    assert outcome.comparison.ratio.high < 0.7
    assert outcome.choice.accuracy >= 0.89
    # 4 % of 100 s for every scout, 30 % for the first round and the rest for the second
    scouts = list(run.history.scouted.values())
    assert {scout.epochs for scout in scouts} == {4.0}
    assert [run.history.chosen[i].epochs for i in (0, 1)] == [30.0, 70.0 - 4 * len(scouts)]


def test_the_second_round_goes_on_from_the_first_and_its_aim_follows_from_what_training_brought_back() -> None:
    run = run_of()
    steps, _ = whole(run)
    first, second = run.history.chosen[0], run.history.chosen[1]
    assert seen(run.keeper.load(1)).stem * seen(run.keeper.load(1)).a < seen(run.keeper.load(0)).stem * seen(run.keeper.load(0)).a  # fmt: skip  # noqa: E501
    assert first.share < 1
    assert second.share < 1
    assert steps[0].loss is not None
    assert steps[0].loss.loss < first.scout_loss


def test_a_round_that_is_too_inaccurate_is_excluded_and_the_next_one_starts_from_the_model_before() -> None:
    run = run_of(deciding=lambda m: 0.9 if m.stem * m.a == 64 * 128 else 0.8)
    steps, tables = whole(run)
    assert [step.verdict for step in steps] == ["excluded", "excluded"]
    assert finish(run, tables.current).status == "unpruned"
    assert {seen(run.keeper.load_scout(1, 0)).stem} <= {64, 56, 48, 40, 32}


def test_training_that_diverges_is_no_model() -> None:
    run = run_of(diverges=lambda m: m.epochs > 8)
    steps, _ = whole(run)
    assert steps[0].verdict == "excluded"
    assert "diverged" in steps[0].reason


def test_scouts_that_diverge_have_lost_everything() -> None:
    run = run_of(diverges=lambda m: m.epochs > 0)
    whole(run)
    assert {scout.loss.loss for scout in run.history.scouted.values()} == {1.0}


def test_a_model_that_is_not_faster_ends_the_run() -> None:
    run = a_run(FakeBench(lambda _: 1.0, by_task=True), trainer(), None, TABLES)
    steps, _ = whole(run)
    assert [step.verdict for step in steps] == ["rejected"]
    assert run.bench.compared.count(("before", "step0")) == 1  # as long as when it was a candidate


def test_a_run_that_was_killed_anywhere_ends_like_one_that_was_not() -> None:
    undisturbed = MemoryKeeper()
    whole(run_of(undisturbed))
    kinds = {type(event) for event in undisturbed.kept}
    assert {Planned, Scouted, Chosen, Step} <= kinds
    for lives in range(1, len(undisturbed.kept)):
        keeper = MemoryKeeper(lives=lives)
        with pytest.raises(Killed):
            whole(run_of(keeper))
        keeper.lives = None
        whole(run_of(keeper))
        assert keeper.without_cost() == undisturbed.without_cost()


def test_the_next_scout_lies_between_those_that_lost_more_and_less_than_the_aim() -> None:
    # 1 point at half of the latency, 4 at a quarter, 2 wanted: in the middle of the logarithms
    assert next_share([(0.5, 0.01), (0.25, 0.04)], 0.02) == pytest.approx(0.5**1.5)
    # one scout alone that lost 8 times too much: a power of 3, so twice the latency, but no step of more than exp(0.5)
    assert next_share([(0.25, 0.08)], 0.01) == pytest.approx(0.25 * 2.718281828**0.5)
    assert next_share([(0.4, 0.01)], 0.02) == pytest.approx(0.4 * 0.5 ** (1 / 3))


def test_tiny_is_whole_at_first() -> None:
    assert seen(tiny()).whole
