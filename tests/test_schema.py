"""A store of an older cprune becomes one of today: nothing is lost, whoever is there at the same moment."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from contracts import OTHER, TARGET, TASK, failed, timed
from postgres import Server

from cprune.targets.errors import BrokenWorld
from cprune.tuner.records import schema
from cprune.tuner.records.database import Database
from cprune.tuner.records.record import Record, digest
from cprune.tuner.records.store import Store

SCHEMA_1 = """
CREATE TABLE cprune_schema (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE cprune_records (
    id {id} NOT NULL, "key" VARCHAR(64) NOT NULL, task_key VARCHAR(64) NOT NULL, target VARCHAR(128) NOT NULL,
    task TEXT NOT NULL, candidate TEXT NOT NULL, runs_s TEXT NOT NULL, failure VARCHAR(16) NOT NULL,
    reason TEXT NOT NULL, checked BOOLEAN NOT NULL, space VARCHAR(32) NOT NULL, created {double} NOT NULL,
    PRIMARY KEY (id), UNIQUE ("key")
);
CREATE INDEX cprune_records_task ON cprune_records (task_key, target);
INSERT INTO cprune_schema (version) VALUES (1)
"""
OLD = [timed("a", 0.1 + 0.2, 3.0, checked=True), failed("b", "build", "line 1\nline 2 €"), timed("c", 1.0, task=OTHER)]


def insert_as_before(connection: sa.Connection, record: Record) -> None:
    """Add a record in the words of schema 1."""
    row = {
        "key": record.key,
        "task_key": digest(record.task),
        "runs_s": json.dumps(record.runs_s),
        **{name: getattr(record, name) for name in ("target", "task", "candidate", "failure", "reason", "checked")},
        **{name: getattr(record, name) for name in ("space", "created")},
    }
    table = sa.table("cprune_records", *(sa.column(name) for name in row))
    connection.execute(table.insert().values(row))


@pytest.fixture(params=["sqlite", "postgresql"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a store that cprune 0.1 wrote."""
    if request.param == "sqlite":
        place, kinds = str(tmp_path / "r.sqlite"), {"id": "INTEGER", "double": "DOUBLE"}
    else:
        place = request.getfixturevalue("postgres_server").database()
        kinds = {"id": "SERIAL", "double": "DOUBLE PRECISION"}
    engine = Database.at(place).engine()
    with engine.begin() as connection:
        for statement in SCHEMA_1.format(**kinds).split(";\n"):
            connection.exec_driver_sql(statement)
        for record in OLD:
            insert_as_before(connection, record)
    engine.dispose()
    return place


def version(place: str) -> int | None:
    engine = Database.at(place).engine()
    with engine.connect() as connection:
        found = schema.version_of(connection)
    engine.dispose()
    return found


def test_an_old_store_is_migrated_when_it_is_opened_and_loses_nothing(old: str) -> None:
    with Store(old) as store:
        assert store.all() == OLD
        rich = replace(OLD[2], hidden='{"spills":2}')
        store.add([rich])
        assert store.of_task(OTHER, TARGET) == [rich]
    assert version(old) == schema.SCHEMA
    with Store(old) as store:
        assert store.all() == [*OLD[:2], rich]


def test_opening_for_reading_leaves_an_old_store_as_it_is(old: str) -> None:
    with Store(old, read_only=True) as store:
        assert store.all() == OLD
        assert store.of_task(TASK, TARGET) == OLD[:2]
    assert version(old) == 1


def test_four_that_open_an_old_store_at_the_same_moment_migrate_it_once(old: str) -> None:
    gate, found, errors = threading.Barrier(4), [], []

    def one(index: int) -> None:
        gate.wait()
        try:
            with Store(old) as store:
                store.add([timed(f"new {index}", 1.0)])
                found.append(store.all()[:3])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert found == [OLD] * 4
    with Store(old) as store:
        assert len(store.all()) == 7


def test_an_older_cprune_that_has_the_store_open_goes_on_undisturbed(old: str) -> None:
    engine = Database.at(old).engine()
    with engine.connect() as connection, Store(old) as store:
        with connection.begin():
            insert_as_before(connection, timed("from the old one", 1.0))
        assert store.all() == [*OLD, timed("from the old one", 1.0)]
    engine.dispose()


HALF_WAY = """
import sys, time
from cprune.tuner.records import schema
from cprune.tuner.records.store import Store

def hang(connection, step):
    print("the column is there, the version is not", flush=True)
    time.sleep(600)

schema._is_now = hang
Store(sys.argv[1])
"""


def test_kill_9_in_the_middle_of_a_migration_leaves_a_store_that_opens(old: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HALF_WAY, old], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith(b"the column is there")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with Store(old) as store:
        assert store.all() == OLD
    assert version(old) == schema.SCHEMA


def test_a_column_that_a_cut_off_migration_left_is_not_added_twice(old: str) -> None:
    engine = Database.at(old).engine()
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE cprune_records ADD COLUMN hidden TEXT")
    engine.dispose()
    with Store(old) as store:
        assert store.all() == OLD


def test_an_old_file_that_is_read_only_can_be_read_and_says_so_when_written(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(SCHEMA_1.format(id="INTEGER", double="DOUBLE"))
    with Store(f"sqlite:///file:{path}?mode=ro&uri=true") as store:
        assert store.all() == []
        with pytest.raises(BrokenWorld, match="read-only"):
            store.add([timed("d", 1.0)])
    assert version(str(path)) == 1


def test_an_old_store_of_somebody_else_can_be_read_and_says_so_when_written(postgres_server: Server) -> None:
    place = postgres_server.database()
    name = place.split("/")[3].split("?")[0]
    engine = Database.at(place).engine()
    with engine.begin() as connection:
        for statement in SCHEMA_1.format(id="SERIAL", double="DOUBLE PRECISION").split(";\n"):
            connection.exec_driver_sql(statement)
        insert_as_before(connection, OLD[0])
        connection.exec_driver_sql(f"CREATE ROLE {name}_reader LOGIN")
        connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}_reader")
    engine.dispose()
    with Store(place.replace("cprune@", f"{name}_reader@")) as store:
        assert store.all() == OLD[:1]
        with pytest.raises(BrokenWorld, match="may not be written"):
            store.add([timed("d", 1.0)])


def test_the_steps_are_without_a_gap_and_only_add_what_may_be_missing() -> None:
    assert [step.version for step in schema.STEPS] == list(range(2, schema.SCHEMA + 1))
    assert all(schema.records.c[name].nullable for step in schema.STEPS for name in step.adds)
    assert "hidden" not in {column.name for column in schema.columns_of(1)}
