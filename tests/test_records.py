"""Records, and the store: SQLite in a file and in memory, damaged files, full disks, threads."""

from __future__ import annotations

import math
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from contracts import TARGET, TASK, StoreContract, failed, timed

from cprune.targets.errors import BrokenWorld, UserError
from cprune.tuner.records.record import Record, better_informed, fastest
from cprune.tuner.records.schema import SCHEMA
from cprune.tuner.records.store import Store


class TestStoreInAFile(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with Store(tmp_path / "records.sqlite") as store:
            yield store


class TestStoreInMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[Store]:
        with Store("sqlite://") as store:
            yield store


class TestRecord:
    def test_latency_is_the_median_of_the_runs(self) -> None:
        assert timed("a", 3.0, 1.0, 2.0).latency_s == 2.0
        assert timed("a", 1.0, 2.0).latency_s == 1.5

    def test_a_failure_is_infinitely_slow_not_1e10(self) -> None:
        assert failed("a", "build").latency_s == math.inf

    def test_the_key_tells_the_parts_apart(self) -> None:
        assert Record("ab", "c", "d", (1.0,)).key != Record("a", "bc", "d", (1.0,)).key

    @pytest.mark.parametrize(
        ("runs_s", "failure"), [((), ""), ((1.0,), "run"), ((math.nan,), ""), ((0.0,), ""), ((), "slow")]
    )
    def test_a_record_does_not_contradict_itself(self, runs_s: tuple[float, ...], failure: str) -> None:
        with pytest.raises(ValueError, match=r"record|runs|stage"):
            Record(TASK, TARGET, "a", runs_s, failure=failure)

    def test_hidden_features_are_an_object(self) -> None:
        with pytest.raises(ValueError, match="JSON object"):
            replace(timed("a", 1.0), hidden="[1]")


class TestBetterInformed:
    def test_hidden_features_win_if_nothing_else_differs(self) -> None:
        bare, rich = timed("a", 1.0), replace(timed("a", 1.0), hidden='{"spills":2}')
        assert better_informed(rich, bare)
        assert not better_informed(bare, rich)
        assert not better_informed(rich, rich)

    def test_another_timing_does_not_win_by_its_hidden_features(self) -> None:
        assert not better_informed(replace(timed("a", 2.0), hidden='{"spills":2}'), timed("a", 1.0))

    def test_hidden_features_do_not_outweigh_runs_or_a_check(self) -> None:
        rich = replace(timed("a", 1.0), hidden='{"spills":2}')
        assert not better_informed(rich, timed("a", 1.0, 1.0))
        assert not better_informed(rich, timed("a", 1.0, checked=True))


class TestFastest:
    def test_the_median_decides_among_those_that_did_not_fail(self) -> None:
        spiky, steady = timed("spiky", 1.0, 5.0, 5.0), timed("steady", 3.0, 3.0, 9.0)
        assert fastest([spiky, steady, failed("broken", "run")]) == steady  # minima 1 and 3 would have said "spiky"

    def test_of_failures_none_is_the_fastest(self) -> None:
        assert fastest([failed("a", "timeout"), failed("b", "lower")]) is None

    def test_of_two_equals_it_is_the_checked_one(self) -> None:
        assert fastest([timed("a", 1.0), timed("b", 1.0, checked=True)]) == timed("b", 1.0, checked=True)


class TestFile:
    def test_records_outlive_the_store(self, tmp_path: Path) -> None:
        with Store(tmp_path / "r.sqlite") as store:
            store.add([timed("a", 1.0)])
        with Store(f"sqlite:///{tmp_path}/r.sqlite") as store:
            assert store.of_task(TASK, TARGET) == [timed("a", 1.0)]
        assert [path.name for path in tmp_path.iterdir()] == ["r.sqlite"]  # the log was folded in

    def test_commits_are_synced_to_the_disk(self, tmp_path: Path) -> None:
        with Store(tmp_path / "r.sqlite") as store, store._engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"

    def test_a_change_of_the_working_directory_changes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with Store("r.sqlite") as store:
            (tmp_path / "elsewhere").mkdir()
            monkeypatch.chdir("elsewhere")
            store._engine.dispose()  # the next statement connects anew
            store.add([timed("a", 1.0)])
        assert not (tmp_path / "elsewhere" / "r.sqlite").exists()

    def test_a_newer_schema_is_not_touched(self, tmp_path: Path) -> None:
        path = tmp_path / "r.sqlite"
        with Store(path) as store, store._engine.begin() as connection:
            connection.execute(sa.text("UPDATE cprune_schema SET version = version + 1"))
        with pytest.raises(UserError, match=rf"newer cprune \(schema {SCHEMA + 1}.*\n.*pip install"):
            Store(path)

    def test_a_file_of_another_kind_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "holiday.jpg"
        path.write_bytes(b"\xff\xd8\xff" + bytes(5000))
        with pytest.raises(UserError, match=r"holiday\.jpg is not a record store"):
            Store(path)
        assert path.read_bytes()[:3] == b"\xff\xd8\xff"

    @pytest.mark.parametrize("damage", ["truncated", "overwritten"])
    def test_a_damaged_store_is_named_and_left_alone(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "r.sqlite"
        with Store(path) as store:
            store.add([timed(str(i), 1.0) for i in range(300)])
        whole = path.read_bytes()
        half = len(whole) // 2
        bad = whole[:half] if damage == "truncated" else whole[:8192] + b"\xa5" * 8192 + whole[16384:]
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"r\.sqlite is not a record store, or it is damaged.*\n.*mv "):
            Store(path)
        assert path.read_bytes() == bad

    def test_an_empty_file_becomes_a_store(self, tmp_path: Path) -> None:
        (tmp_path / "r.sqlite").touch()
        with Store(tmp_path / "r.sqlite") as store:
            assert len(store.all()) == 0

    def test_a_folder_is_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is a folder"):
            Store(tmp_path)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no folder .*nowhere"):
            Store(tmp_path / "nowhere" / "r.sqlite")

    @pytest.mark.parametrize(
        ("url", "text"), [("oracel://x/y", "unknown kind of database"), ("a b://", "not a database URL")]
    )
    def test_a_wrong_url_is_a_message(self, url: str, text: str) -> None:
        with pytest.raises(UserError, match=text):
            Store(url)

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql+nosuchdriver://me:secret@localhost/x",
            "postgresql+nosuchdriver://me@localhost/x?password=secret",
            "not a scheme://me:secret@localhost/x",
        ],
    )
    def test_a_password_is_never_printed(self, url: str) -> None:
        with pytest.raises((UserError, BrokenWorld)) as caught:
            Store(url)
        assert "secret" not in str(caught.value)

    def test_a_driver_that_is_not_installed_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)  # what `import psycopg` meets where there is none
        with pytest.raises(UserError, match=r"driver for 'postgresql\+psycopg' is not installed(.|\n)*cprune\[team\]"):
            Store("postgresql://localhost/x")

    def test_a_full_disk_breaks_the_world_and_loses_nothing(self, tmp_path: Path) -> None:
        with Store(tmp_path / "r.sqlite") as store:
            store.add([timed("a", 1.0)])
            with store._engine.connect() as connection:  # SQLite's own way to play a full disk
                connection.exec_driver_sql("PRAGMA max_page_count=1")
            with pytest.raises(BrokenWorld, match=r"disk full.*r\.sqlite.*[Nn]othing recorded"):
                store.add([timed(str(i), 1.0) for i in range(1000)])
            assert [record.candidate for record in store.of_task(TASK, TARGET)] == ["a"]

    def test_a_read_only_store_can_be_read(self, tmp_path: Path) -> None:
        with Store(tmp_path / "r.sqlite") as store:
            store.add([timed("a", 1.0)])
        with Store(f"sqlite:///file:{tmp_path}/r.sqlite?mode=ro&uri=true") as store:
            assert len(store.all()) == 1
            with pytest.raises(BrokenWorld, match=r"read-only.*[Nn]othing recorded"):
                store.add([timed("b", 1.0)])
            assert len(store.all()) == 1

    def test_a_store_opened_for_reading_is_neither_made_nor_changed(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"there is no record store .*r\.sqlite"):
            Store(tmp_path / "r.sqlite", read_only=True)
        assert not (tmp_path / "r.sqlite").exists()
        Store(tmp_path / "r.sqlite").close()
        with Store(tmp_path / "r.sqlite", read_only=True) as store, pytest.raises(ValueError, match="reading only"):
            store.add([timed("a", 1.0)])

    def test_another_sqlite_file_is_no_store_to_read_from(self, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "photos.db")) as connection:
            connection.execute("CREATE TABLE photos (name TEXT)")
        with pytest.raises(UserError, match=r"photos\.db is no record store"):
            Store(tmp_path / "photos.db", read_only=True)

    def test_a_row_that_contradicts_itself_is_named(self, tmp_path: Path) -> None:
        with Store(tmp_path / "r.sqlite") as store:
            store.add([timed("a", 1.0)])
            with store._engine.begin() as connection:
                connection.execute(sa.text("UPDATE cprune_records SET runs_s = '[]'"))
            with pytest.raises(UserError, match=r"no record \(id 1"):
                store.all()


class TestThreads:
    def test_threads_share_a_store(self, tmp_path: Path) -> None:
        with Store(tmp_path / "r.sqlite") as store:

            def add(name: str) -> None:
                for i in range(25):
                    store.add([timed(f"{name}-{i}", 1.0)])

            threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(store.all()) == 100
