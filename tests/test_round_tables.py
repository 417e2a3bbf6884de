"""The tables of a round are kept: a run that goes on does not look again, and chooses the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import DEFAULT, FakeBench, FakeTrainer, MemoryKeeper, a_run
from test_tables import by_macs

from cprune.method import planning
from cprune.method.allocation import Allocation, Problem
from cprune.method.kept import FolderKeeper
from cprune.method.planning import Plan, planned
from cprune.method.round_tables import Point, RoundTables, keep, kept
from cprune.method.state import RunState
from cprune.method.tables import Tables
from cprune.progress import Progress
from cprune.runs.folder import RunFolder
from cprune.targets.errors import UserError

FRONT = (Allocation((), (), 4e-3, 0.0, 10, 20), Allocation((("a", 8),), ("b",), 3e-3, 0.5, 5, 9))
TABLES = RoundTables.of(
    Problem({"a": (16, 8)}, {("a", 8): 0.5, ("a", 4): math.inf}, {"b": 0.1}, {}, ()),
    FRONT,
)


class Heard(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def run_of(keeper: MemoryKeeper, progress: Progress | None = None) -> RunState:
    trainer = FakeTrainer(images=10_000, shown=16)
    settings = replace(DEFAULT, train_time_s=100.0)
    return a_run(FakeBench(by_macs, by_task=True), trainer, keeper, settings, progress)


def plan_of(run: RunState) -> Plan:
    tables = Tables(run)
    tables.begin()
    return planned(run, tables.current, run.start.latency_ms.median, 1.0, 0)


def test_what_was_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    keeper = FolderKeeper(RunFolder.create(tmp_path / "run", {}))
    run = run_of(MemoryKeeper())
    run.keeper = keeper
    keep(run, 1, TABLES)
    assert json.loads((tmp_path / "run" / "steps" / "tables1.json").read_text())["widths"][1]["damage"] is None
    assert kept(run, 0, ["a"]) is None
    found = kept(run, 1, ["a", "c"])
    assert found == TABLES
    assert found.allocations == FRONT
    assert Point.of(FRONT[1]).allocation == FRONT[1]


def test_a_second_life_takes_the_front_of_the_first_and_looks_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = MemoryKeeper()
    first = plan_of(run_of(keeper))

    def looked(*_: Any, **__: Any) -> None:
        raise AssertionError("it looked again")

    monkeypatch.setattr(planning, "damage_table", looked)
    monkeypatch.setattr(planning, "LatencyTable", looked)
    second = plan_of(run_of(keeper))
    assert second.front == first.front
    assert [second.cut(one).tensors().keys() for one in second.front[-1:]]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"widths": [], "branches": {}}, "the field front is missing"),
        ({"widths": [], "branches": {}, "front": []}, "their front is empty"),
        (
            {"widths": [{"group": "x", "width": 3, "damage": 0.1}], "branches": {}, "front": []},
            "they are of another network, with x",
        ),
    ],
)
def test_tables_that_are_damaged_are_measured_again_and_that_is_said(values: Mapping[str, Any], why: str) -> None:
    keeper, heard = MemoryKeeper(), Heard()
    keeper.tables[0] = values
    plan = plan_of(run_of(keeper, heard))
    assert f"the tables of round 1 are measured again: {why}" in heard.lines
    assert len(plan.front) > 1
    assert keeper.tables[0] != values


def test_a_file_that_is_no_json_is_measured_again(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    keeper = FolderKeeper(folder)
    folder.steps_dir.mkdir()
    folder.tables(0).write_text('{"widths": [')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        keeper.load_tables(0)
    run = run_of(MemoryKeeper())
    run.keeper = keeper
    assert kept(run, 0, ["a"]) is None
