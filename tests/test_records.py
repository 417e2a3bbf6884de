"""Records, and the store: SQLite in a file and in memory, damaged files, full disks, kill -9, two writers."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from contracts import TARGET, TASK, StoreContract, failed, timed

from cprune.targets.errors import BrokenWorld, UserError
from cprune.tuner.records import SCHEMA, Record, Store


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


class TestFile:
    def test_records_outlive_the_store(self, tmp_path: Path) -> None:
        with Store(tmp_path / "r.sqlite") as store:
            store.add([timed("a", 1.0)])
        with Store(f"sqlite:///{tmp_path}/r.sqlite") as store:
            assert store.best(TASK, TARGET) == timed("a", 1.0)
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
            assert store.count() == 0

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

    def test_a_password_is_never_printed(self) -> None:
        with pytest.raises((UserError, BrokenWorld)) as caught:
            Store("postgresql+nosuchdriver://me:secret@localhost/x")
        assert "secret" not in str(caught.value)

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
            assert store.count() == 1
            with pytest.raises(BrokenWorld, match=r"read-only.*[Nn]othing recorded"):
                store.add([timed("b", 1.0)])
            assert store.count() == 1


WRITER = textwrap.dedent(
    """
    import sys
    from cprune.tuner.records import Record, Store
    path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with Store(path) as store:
        print("ready", flush=True)
        for i in range(count):
            store.add([Record("task", "target", f"{name}-{i}", (1.0 + i,))])
            store.add([Record("task", "target", "shared", (1.0,) * (i + 1))])
            print(i, flush=True)
    """
)


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


class TestProcesses:
    def test_writers_at_the_same_time_lose_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "r.sqlite"  # does not exist yet: they also race to make it
        writers = [writer(path, name, 40) for name in "abc"]
        for process in writers:
            process.communicate(timeout=60)
            assert process.returncode == 0
        with Store(path) as store:
            names = {record.candidate for record in store.of_task("task", "target")}
            assert names == {f"{name}-{i}" for name in "abc" for i in range(40)} | {"shared"}
            shared = [record for record in store.of_task("task", "target") if record.candidate == "shared"]
            assert [len(record.runs_s) for record in shared] == [40]  # the best informed one of all three

    def test_kill_9_loses_at_most_the_record_being_written(self, tmp_path: Path) -> None:
        path = tmp_path / "r.sqlite"
        process = writer(path, "a", 100_000)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(20):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        acknowledged = 20 + len(process.stdout.read().splitlines())
        process.wait()
        with Store(path) as store:
            done = len(store.of_task("task", "target")) - 1  # without "shared"
            assert done - 1 <= acknowledged <= done
            store.add([timed("after", 1.0)])
            assert store.count() == done + 2

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
            assert store.count() == 100
