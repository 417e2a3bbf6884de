"""The front of a run: what could be had (--plan), what is worth choosing from, front.json, and what is picked of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import MemoryKeeper
from test_limits import half, run_with
from test_tables import whole

from cprune.commands.picking import Pick, delivered, picked
from cprune.files import write_json
from cprune.method.ending import finish
from cprune.method.forecast import LEFT, Forecast, forecast
from cprune.method.front import _worth, front_of, point_of
from cprune.method.state import RunState
from cprune.method.tables import Tables
from cprune.runs.folder import RunFolder
from cprune.runs.front import Front, FrontPoint, Unpruned, read_front, write_front
from cprune.targets.errors import UserError
from cprune.targets.interval import Interval

POINT = FrontPoint("trained", Interval(1.0, 0.9, 1.1), 2.0, 0.004, 10, 20, 1, {"a": 8}, se=0.001, step=0)
GUESS = FrontPoint("forecast", Interval(0.5, 0.5, 0.5), 4.0, 0.02, 5, 9, 2, {"a": 4}, damage=0.3)
FRONT = Front(Unpruned(Interval(2.0, 1.9, 2.1), 0.9, 30, 60), (POINT, GUESS), "nobody knows")


def planned(run: RunState) -> Forecast:
    tables = Tables(run)
    tables.begin()
    return forecast(run, tables.before)


# -- the plan


def untrained(model: Any) -> float:
    """Return an accuracy: every channel that is gone costs a thousandth, before training."""
    return 0.9 - 0.001 * (128 - model.a)


def test_a_plan_shows_points_of_the_front_with_what_is_thought_to_be_lost_and_trains_nothing() -> None:
    run = run_with(untrained)
    found = planned(run)
    shares = [0.876, 0.751, 0.627, 0.502, 0.378, 0.253]
    assert [1 / point.speedup for point in found.front.points] == pytest.approx(shares, abs=2e-3)
    assert [point.loss for point in found.front.points] == pytest.approx(
        [LEFT * 0.001 * gone for gone in (16, 32, 48, 64, 80, 96)]
    )
    assert {point.status for point in found.front.points} == {"forecast"}
    assert found.front.points[0].widths == {"a": 112}
    assert found.front.unpruned.params == 148_548
    assert (found.train_s, found.missed) == (100.0, "")
    assert {type(event).kind for event in run.keeper.events()} <= {"start", "planned", "cost"}
    assert found.to_dict()["seconds"]["training"] == 100
    assert isinstance(found.to_dict()["points"][0]["latency_ms"], float)


def test_a_run_goes_on_from_its_plan_and_looks_at_nothing_again() -> None:
    keeper = MemoryKeeper()
    planned(run_with(keeper=keeper))
    tables = keeper.tables[0]
    run = run_with(keeper=keeper)
    steps, _ = whole(run)
    assert steps
    assert keeper.tables[0] is tables


def test_what_cannot_be_met_is_said_with_what_comes_nearest() -> None:
    found = planned(run_with(untrained, speedup=10.0))
    assert [point.meets for point in found.front.points] == [False] * 6
    assert found.missed == (
        "no model can meet the limits; the nearest: speed-up 3.95x, at least 10x was asked for: missed by 60 %"
    )
    found = planned(run_with(untrained, speedup=1.9))
    assert [point.meets for point in found.front.points] == [False] * 3 + [True] * 3
    assert found.missed == ""


def test_of_many_points_a_few_are_shown_and_the_one_that_meets_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    from cprune.method import forecast as module

    monkeypatch.setattr(module, "POINTS", 3)
    found = planned(run_with(untrained, speedup=2.5))
    assert [round(1 / point.speedup, 1) for point in found.front.points] == [0.9, 0.5, 0.4, 0.3]
    assert [point.meets for point in found.front.points] == [False, False, True, True]
    assert planned(run_with(untrained, max_latency_ms=1e3)).missed == ""


# -- the end


def test_the_front_of_a_finished_run_has_its_models_and_forecasts_in_the_gaps() -> None:
    run = run_with()
    _, tables = whole(run)
    outcome = finish(run, tables.current)
    front = front_of(run, outcome)
    made = [point for point in front.points if point.status == "certified"]
    assert [point.delivered for point in made] == [True]
    assert made[0].speedup == 1 / outcome.comparison.ratio.median
    assert made[0].widths == {"a": 64}
    assert made[0].meets is None
    assert 3 <= len(front.points) <= 5
    assert list(front.points) == sorted(front.points, key=lambda point: point.speedup)
    assert {point.status for point in front.points} == {"certified", "forecast"}


def test_a_forecast_that_would_lose_three_times_too_much_is_no_choice() -> None:
    # A half lost 0.8 points; a quarter has more than four times its damage.
    run = run_with(lambda m: half(m) - 0.008 * (m.a < 128))
    _, tables = whole(run)
    run.history.steps = run.history.steps[:1]
    front = front_of(run, finish(run, tables.current))
    forecasts = [point for point in front.points if point.status == "forecast"]
    assert forecasts
    assert max(point.loss for point in forecasts) <= 0.03
    assert max(point.speedup for point in forecasts) < 3


def test_models_that_are_not_certified_are_trained_ones_and_know_their_loss_where_it_is_decided() -> None:
    run = run_with(speedup=1.3)
    _, tables = whole(run)
    outcome = finish(run, tables.current)
    run.history.certified.clear()
    front = front_of(run, replace(outcome, choice=replace(outcome.choice, index=None)))
    made = [point for point in front.points if point.status == "trained"]
    assert [(point.step, point.delivered, point.meets) for point in made] == [(0, False, True)]
    assert made[0].latency_ms.median == pytest.approx(outcome.comparison.old_ms.median / made[0].speedup)
    network = run.keeper.load(0)
    assert point_of(run, 0, network, made[0].latency_ms, 2.0, None).loss == 0.0


def test_without_tables_or_a_trained_model_there_is_no_forecast() -> None:
    keeper = MemoryKeeper()
    run = run_with(keeper=keeper)
    _, tables = whole(run)
    outcome = finish(run, tables.current)
    keeper.tables.clear()
    assert {point.status for point in front_of(run, outcome).points} == {"certified"}
    run.history.scouted.clear()
    assert {point.status for point in front_of(run, outcome).points} == {"certified"}


def test_many_trained_models_are_no_choice() -> None:
    many = [replace(POINT, step=step, speedup=1 + step) for step in range(8)]
    many[2] = replace(many[2], status="certified")
    many[0] = replace(many[0], delivered=True)
    assert [point.step for point in _worth(many)] == [0, 2, 5, 6, 7]


# -- the file


def test_a_front_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_front(tmp_path / "front.json") is None
    write_front(tmp_path / "front.json", FRONT)
    assert read_front(tmp_path / "front.json") == FRONT
    more = replace(POINT, step=1000, speedup=3.0)
    assert FRONT.with_point(more).points == (POINT, more, GUESS)
    assert FRONT.with_point(replace(more, step=0)).points == (replace(more, step=0), GUESS)
    write_json(tmp_path / "front.json", {"points": 3})
    with pytest.raises(UserError, match="points must be a list"):
        read_front(tmp_path / "front.json")


# -- what is picked


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run", {"model": "tiny"})
    sure = replace(POINT, status="certified", step=1, speedup=1.5, latency_ms=Interval(1.33, 1.3, 1.4), delivered=True)
    write_front(folder.front, replace(FRONT, points=(sure, POINT, GUESS)))
    return folder


def test_the_delivered_model_is_picked_where_it_is_fast_enough(run: RunFolder) -> None:
    for pick in (Pick(speedup=1.5), Pick(latency_ms=1.32)):  # 1.33 ms is 1 % above it
        assert picked(run, pick).folder == run.path
        assert picked(run, pick).programs == run.programs


def test_a_model_that_is_not_certified_is_picked_with_a_warning(run: RunFolder) -> None:
    found = picked(run, Pick(speedup=2.0))
    assert found.folder == run.step_dir(0)
    assert found.programs == run.programs_of(0)
    assert found.warning == ("this model was trained, but not certified: 2.00x, 1 ms, 0.40 points lost, trained")
    run.long_trained_dir(0).mkdir(parents=True)
    (run.long_trained_dir(0) / "model.json").write_text("{}")
    assert picked(run, Pick(latency_ms=1.0)).folder == run.long_trained_dir(0)


def test_where_only_a_forecast_is_so_fast_the_error_says_what_makes_a_model_of_it(run: RunFolder) -> None:
    with pytest.raises(UserError) as caught:
        picked(run, Pick(latency_ms=0.6))
    assert "no model of" in caught.value.message
    assert "1.50x, 1.33 ms, 0.40 points lost, certified" in caught.value.message
    assert caught.value.hint == f"Train one more: cprune resume {run.path} --speedup 3.33"
    with pytest.raises(UserError, match="forecasts no model that is so fast"):
        picked(run, Pick(speedup=9.0))


def test_a_run_without_a_front_is_not_finished_or_old(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    with pytest.raises(UserError, match="is not finished"):
        picked(folder, Pick(speedup=2.0))
    with pytest.raises(UserError, match="is not finished"):
        delivered(folder)
    write_json(folder.result, {})
    with pytest.raises(UserError, match="earlier version"):
        picked(folder, Pick(speedup=2.0))
