"""A run whose models all fail in the end trains one safer model, and delivers that if it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import FakeBench, Killed, MemoryKeeper, Seen, a_run, seen
from test_limits import half, run_with
from test_tables import TABLES, by_macs, trainer, whole

from cprune.method import further
from cprune.method.ending import finish
from cprune.method.front import front_of
from cprune.method.further import retreated
from cprune.method.state import RunState
from cprune.method.tables import Tables
from cprune.runs.events import Asked

INDEX = Asked(0, 2.0).index


def unlucky(keeper: MemoryKeeper | None = None, least: int = 72, **changed: object) -> RunState:
    """Return a run in which half of the channels seem enough and are too few in the report, where `least` are not."""

    def reporting(model: Seen) -> float:
        return 0.9 if model.a >= least else 0.8

    settings = replace(TABLES, ignore=("b",))
    trained = trainer(**{"deciding": half, "reporting": reporting, **changed})
    return a_run(FakeBench(by_macs, by_task=True), trained, keeper, settings)


def test_where_all_that_was_trained_fails_in_the_report_a_safer_model_is_delivered() -> None:
    run = unlucky()
    _, tables = whole(run)
    assert seen(run.keeper.load(0)).a == 64  # 1.99x
    retreated(run, tables)
    outcome = finish(run, tables.current)
    assert run.history.asked[0].speedup == pytest.approx(1.99 ** (2 / 3), abs=0.02)
    assert (outcome.status, outcome.choice.index) == ("stepped-back", INDEX)
    assert seen(outcome.network).a == 80
    assert run.history.chosen[INDEX].epochs == 10.0  # a tenth of 100 s, and one is an epoch
    points = front_of(run, outcome).points
    assert [point.step for point in points if point.delivered] == [INDEX]


def test_where_the_safer_one_fails_too_the_model_stays_as_it_is() -> None:
    run = unlucky(least=100)
    _, tables = whole(run)
    retreated(run, tables)
    outcome = finish(run, tables.current)
    assert (outcome.status, outcome.choice.accuracy) == ("unpruned", 0.9)
    assert any("the safer model was certified, but reaches 80.00%" in note for note in outcome.notes)
    assert [point.delivered for point in front_of(run, outcome).points if point.step == INDEX] == [False]


def test_where_no_model_of_the_tables_is_slower_than_what_failed_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(further, "SLOWER", 100.0)
    run = unlucky()
    _, tables = whole(run)
    retreated(run, tables)
    assert run.history.further[0].reason == "nothing is left whose removal would make the model faster"
    assert finish(run, tables.current).status == "unpruned"


def test_a_run_that_delivers_something_or_never_tried_asks_for_nothing() -> None:
    for run in (run_with(), run_with(ignore=("*",))):
        _, tables = whole(run)
        retreated(run, tables)
        assert run.history.asked == []


def test_a_safer_model_whose_training_diverges_is_none() -> None:
    run = unlucky(diverges=lambda model: model.a == 80 and model.epochs > 5)
    _, tables = whole(run)
    retreated(run, tables)
    outcome = finish(run, tables.current)
    assert run.history.further[0].reason == "training diverged: the loss is nan"
    assert outcome.status == "unpruned"
    assert all(point.step != INDEX for point in front_of(run, outcome).points)


def test_a_run_that_was_killed_while_it_retreated_ends_like_one_that_was_not() -> None:
    done = MemoryKeeper()
    run = unlucky(done)
    _, tables = whole(run)
    start = len(done.kept)
    retreated(run, tables)
    for lives in range(start + 1, len(done.kept)):
        keeper = MemoryKeeper()
        run = unlucky(keeper)
        _, tables = whole(run)
        keeper.lives = lives
        with pytest.raises(Killed):
            retreated(run, tables)
        keeper.lives = None
        run = unlucky(keeper)
        tables = Tables(run)
        tables.begin()
        assert list(tables.steps()) == []
        retreated(run, tables)
        assert keeper.without_cost() == done.without_cost()
