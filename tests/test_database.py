"""A database that a team shares: PostgreSQL passes the contract, and several processes at once lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from contracts import StoreContract, timed
from postgres import Server

from cprune.targets.errors import BrokenWorld
from cprune.tuner.records.database import _WRITERS, Database
from cprune.tuner.records.store import Store


class TestStoreInPostgreSQL(StoreContract):
    @pytest.fixture
    def store(self, postgres_server: Server) -> Iterator[Store]:
        with Store(postgres_server.database()) as store:
            yield store


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_plain_url_chooses_psycopg_3_by_itself(scheme: str) -> None:
    assert Database.at(f"{scheme}://me@host/x").url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_a_store_is_opened_by_its_url(scheme: str, postgres_server: Server) -> None:
    with Store(postgres_server.database().replace("postgresql", scheme, 1)) as store:
        store.add([timed("a", 1.0)])
        assert len(store.all()) == 1


def test_a_server_that_is_not_there_is_said_without_a_traceback() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(BrokenWorld, match=r"postgresql\+psycopg://me:\*\*\*@127\.0\.0\.1:9/x failed"):
        Store("postgresql://me:secret@127.0.0.1:9/x")


def test_a_database_that_is_not_there_is_named(postgres_server: Server) -> None:
    with pytest.raises(BrokenWorld, match='"nowhere" does not exist'):
        Store(postgres_server.url("nowhere"))


def test_a_writer_does_not_wait_for_ever(postgres_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not less: the writer itself may stand still for half of that only, which a busy machine makes it do.
    monkeypatch.setattr("cprune.tuner.records.database.BUSY_SECONDS", 2.0)
    with Store(postgres_server.database()) as store, store._engine.connect() as other, other.begin():
        other.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
        with pytest.raises(BrokenWorld, match="locked by another process for 2 s"):
            store.add([timed("a", 1.0)])
        assert len(store.all()) == 0  # readers wait for nobody


def test_a_writer_that_froze_is_thrown_out_while_the_next_one_waits(
    postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cprune.tuner.records.database.BUSY_SECONDS", 2.0)
    with Store(postgres_server.database()) as store, store._engine.connect() as frozen:
        frozen.begin()
        store._database.lock_writers_out(frozen)
        store.add([timed("a", 1.0)])
        assert len(store.all()) == 1
        frozen.invalidate()


# --- several processes -----------------------------------------------------------------------------------------

WRITER = """
import sys
from cprune.tuner.records.record import Record
from cprune.tuner.records.store import Store
place, first, last, runs, batch = sys.argv[1], *map(int, sys.argv[2:])
with Store(place) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for start in range(first, last, batch):
        store.add([Record("task", "target", str(i), (1.0,) * runs) for i in range(start, start + batch)])
        print(start, flush=True)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, without tables: the writers also race to make them."""
    if request.param == "sqlite":
        return str(tmp_path / "r.sqlite")
    return str(request.getfixturevalue("postgres_server").database())


def writer(place: str, *numbers: int) -> subprocess.Popen[str]:
    """Start a process that adds records `first` to `last` of so many runs, `batch` at a time, when told to go."""
    command = [sys.executable, "-c", WRITER, place, *map(str, numbers)]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)


def let_go(writers: list[subprocess.Popen[str]]) -> None:
    for process in writers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in writers:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def test_four_processes_that_write_at_once_lose_nothing(place: str) -> None:
    writers = [writer(place, 50 * i, 50 * i + 200, i + 1, 1) for i in range(4)]
    let_go(writers)
    for process in writers:
        process.communicate(timeout=120)
        assert process.returncode == 0
    with Store(place) as store:
        runs = {int(record.candidate): len(record.runs_s) for record in store.all()}
    # Of those who tried a candidate the one with most runs is kept: number i tried 50 i to 50 i + 199, i + 1 times.
    assert runs == {n: min(4, n // 50 + 1) for n in range(350)}


def test_kill_9_loses_nothing_that_was_acknowledged_and_leaves_nothing_half(place: str) -> None:
    process = writer(place, 0, 100_000, 1, 3)
    let_go([process])
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = 20 + len(process.stdout.read().splitlines())
    process.wait()
    with Store(place) as store:
        done = len(store.all())
        assert done in (3 * acknowledged, 3 * acknowledged + 3)  # the last batch may have arrived unsaid
        assert [record.candidate for record in store.all()] == [str(i) for i in range(done)]
        store.add([timed("after", 1.0)])
        assert len(store.all()) == done + 1
