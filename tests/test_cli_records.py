"""`cprune records`: what a person and a script see of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from postgres import Server

from cprune.cli import main as cli
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Dense, key
from cprune.tuner.records.record import Record
from cprune.tuner.records.store import Store

DENSE = key(Dense(1, 64, 10, "none", 16))
HERE, THERE = "8f3a11c0", "77aa77aa"


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A store of two targets: three candidates here, of which one failed, and one there."""
    knobs = [Candidate.of(oc_tile=n, n_tile=1, k_tile=4, parallel="none").text() for n in (1, 2, 4)]
    with Store(tmp_path / "r.sqlite") as store:
        store.add(
            [
                Record(DENSE, HERE, knobs[0], (3e-6, 3e-6, 4e-6), created=100.0),
                Record(DENSE, HERE, knobs[1], (1e-6, 2e-6, 5e-6), checked=True, created=300.0),
                Record(DENSE, HERE, knobs[2], (), failure="run", reason="SIGSEGV", created=200.0),
                Record(DENSE, THERE, knobs[2], (9e-6,), created=50.0),
            ]
        )
    return str(tmp_path / "r.sqlite")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and a terminal that is wide enough for a row."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = cli.main(["records", *arguments])
    told = capsys.readouterr()
    assert code == 0, told.err
    return told.out


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(said(capsys, *arguments, "--json"))
    return value


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = cli.main(["records", *arguments])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    return err


def test_list_has_a_row_for_each_task_and_target(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = told(capsys, "list", "--records", place)["tasks"]
    assert first.pop("id") == second["id"]
    assert first == {
        **{"description": "dense 64→10", "target": HERE, "tried": 3, "failed": 1},
        **{"best_us": 2.0, "low_us": 1.0, "high_us": 5.0, "last": 300.0},
    }
    assert (second["target"], second["tried"], second["failed"], second["best_us"]) == (THERE, 1, 0, 9.0)


def test_list_shows_a_person_the_same(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "list", "--records", place)
    assert "dense 64→10" in out
    assert "2 (1 to 5)" in out


def test_a_target_is_chosen_by_its_fingerprint(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["target"] for row in told(capsys, "list", "--records", place, "--target", THERE)["tasks"]] == [THERE]
    assert "Did you mean '8f3a11c0'?" in refused(capsys, "list", "--records", place, "--target", "8f3a11c1")


def test_best_shows_the_knobs_of_the_fastest(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = told(capsys, "best", "--records", place)["best"]
    assert first["candidate"] == {"k_tile": 4, "n_tile": 1, "oc_tile": 2, "parallel": "none"}
    assert (first["best_us"], first["checked"], first["runs"], first["task"]) == (2.0, True, 3, DENSE)
    assert "k_tile=4  n_tile=1  oc_tile=2  parallel=none" in said(capsys, "best", "--records", place)


def test_a_task_of_which_all_failed_has_no_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(tmp_path / "f.sqlite") as store:
        store.add([Record(DENSE, HERE, "{}", (), failure="run")])
    assert told(capsys, "best", "--records", str(tmp_path / "f.sqlite"))["best"] == []
    assert told(capsys, "list", "--records", str(tmp_path / "f.sqlite"))["tasks"][0]["best_us"] is None
    assert said(capsys, "best", "--records", str(tmp_path / "f.sqlite")) == "no records\n"


def test_a_task_with_markup_or_control_characters_is_shown_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = json.dumps(["tir", {"macs": 0, "module": "", "name": "[red]\x1b[2J", "shapes": []}], separators=(",", ":"))
    with Store(tmp_path / "o.sqlite") as store:
        store.add([Record(odd, HERE, "{}", (1e-6,)), Record("not a task", HERE, "not knobs", (1e-6,))])
    out = said(capsys, "list", "--records", str(tmp_path / "o.sqlite"))
    assert "[red]\N{REPLACEMENT CHARACTER}[2J" in out
    assert "not a task" in out
    assert "not knobs" in said(capsys, "best", "--records", str(tmp_path / "o.sqlite"))


def test_an_export_is_imported_into_another_store_once(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = str(tmp_path / "x.jsonl"), str(tmp_path / "other.sqlite")
    assert "4 records written" in said(capsys, "export", file, "--records", place)
    assert "4 new, 0 better, 0 already there" in said(capsys, "import", file, "--records", other)
    counts = {"new": 0, "better": 0, "known": 4, "left_out": {}}
    assert told(capsys, "import", file, "--records", other) == {"records": other, **counts}
    with Store(place) as one, Store(other) as two:
        assert one.all() == two.all()


def test_only_one_target_is_exported_if_one_is_named(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "x.jsonl")
    assert told(capsys, "export", file, "--records", place, "--target", THERE)["records"] == 1


def test_a_refused_file_does_not_even_make_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.jsonl").write_text("what?\n")
    err = refused(capsys, "import", str(tmp_path / "x.jsonl"), "--records", str(tmp_path / "new.sqlite"))
    assert "x.jsonl, line 1: this is no export of records" in err
    assert not (tmp_path / "new.sqlite").exists()


def test_merging_is_idempotent_and_leaves_the_other_as_it_was(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = str(tmp_path / "mine.sqlite")
    assert "4 new" in said(capsys, "merge", place, "--records", mine)
    assert "0 new, 0 better, 4 already there" in said(capsys, "merge", place, "--records", mine)
    assert "4 already there" in said(capsys, "merge", place, "--records", place)


def test_what_an_import_would_refuse_is_left_out_and_said(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store(place) as store:
        store.add([Record("no task", HERE, "{}", (1e-6,))])
    for command in (["export", str(tmp_path / "x.jsonl")], ["merge", place]):
        source = place if command[0] == "export" else str(tmp_path / "mine.sqlite")
        assert "1 left out: task: not JSON" in said(capsys, *command, "--records", source)
    assert "4 already there" in said(capsys, "import", str(tmp_path / "x.jsonl"), "--records", source)


def test_a_team_s_database_is_filled_from_a_file_and_read(
    place: str, postgres_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    team = postgres_server.database()
    assert "4 new" in said(capsys, "merge", place, "--records", team)
    assert len(told(capsys, "list", "--records", team)["tasks"]) == 2


def test_a_run_folder_means_its_own_store(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(place).parent / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    assert "no record store" in refused(capsys, "list", "--records", str(folder))
    said(capsys, "merge", place, "--records", str(folder))
    assert len(told(capsys, "list", "--records", str(folder))["tasks"]) == 2


def test_without_a_name_the_store_that_explain_and_bench_share_is_meant(
    place: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert str(cache / "cprune" / "records-local.sqlite") in refused(capsys, "list")
    said(capsys, "merge", place)
    assert len(told(capsys, "list")["tasks"]) == 2


def test_a_store_that_is_not_there_is_said_and_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["list"], ["best"], ["export", str(tmp_path / "x")], ["merge", str(tmp_path / "nowhere.sqlite")]):
        assert "nowhere.sqlite" in refused(capsys, *command, "--records", str(tmp_path / "nowhere.sqlite"))
    assert not (tmp_path / "nowhere.sqlite").exists()


def test_what_tvm_calls_a_target_belongs_to_the_format_that_needs_it(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(capsys, "export", str(tmp_path / "x"), "--records", place, "--target-tvm", "{}")
    assert "--format metaschedule" in err


def test_help_names_the_five_commands(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "--help")
    for command in ("list", "best", "export", "import", "merge"):
        assert f"  {command} " in out
