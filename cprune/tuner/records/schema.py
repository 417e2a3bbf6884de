"""The tables of a record store, and the steps by which an older store becomes one of today.

A step only ever adds columns that may be NULL.  So a process of an older cprune that has the store open goes on
writing undisturbed, and a store that may not be changed can still be read: the columns it lacks are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
versions = sa.Table("cprune_schema", metadata, sa.Column("version", sa.Integer, primary_key=True))
records = sa.Table(
    "cprune_records",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),  # order of recording
    sa.Column("key", sa.String(64), nullable=False, unique=True),
    sa.Column("task_key", sa.String(64), nullable=False),
    sa.Column("target", sa.String(128), nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("candidate", sa.Text, nullable=False),
    sa.Column("runs_s", sa.Text, nullable=False),  # JSON list; its repr gives every double back exactly
    sa.Column("failure", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("checked", sa.Boolean, nullable=False),
    sa.Column("space", sa.String(32), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("hidden", sa.Text),
    sa.Index("cprune_records_task", "task_key", "target"),
)


@dataclass(frozen=True)
class Step:
    """A store of schema `version - 1` becomes one of schema `version` by adding the columns `adds` to its records."""

    version: int
    adds: tuple[str, ...]


STEPS = (Step(2, ("hidden",)),)
"""Every migration there ever was, oldest first.  Schema 3: one more entry here, its columns in the table above."""

SCHEMA = STEPS[-1].version
"""Version of the tables above.  A store with a higher one is of a newer cprune and is not touched."""


def version_of(connection: sa.Connection) -> int | None:
    """Return the schema of the store, or None if there are no tables yet."""
    if not sa.inspect(connection).has_table(versions.name):
        return None
    version: int | None = connection.execute(sa.select(sa.func.max(versions.c.version))).scalar()
    return version


def columns_of(version: int) -> list[sa.Column[Any]]:
    """Return the columns that the records of a store of schema `version` have."""
    later = {name for step in STEPS if step.version > version for name in step.adds}
    return [column for column in records.c if column.name not in later]


def create(connection: sa.Connection) -> None:
    """Make the tables, those that are missing, and say which schema they have."""
    metadata.create_all(connection)
    if version_of(connection) is None:
        connection.execute(versions.insert().values(version=SCHEMA))


def migrate(connection: sa.Connection) -> None:
    """Take the steps that the store lacks.

    To be called inside one transaction that locks other writers out.  Where a database cannot take back an ALTER
    TABLE, a migration that was cut off is completed by the next one: a column that is there already is not added.
    """
    version = version_of(connection)
    for step in STEPS:
        if version is None or step.version <= version:
            continue
        there = {column["name"] for column in sa.inspect(connection).get_columns(records.name)}
        for name in step.adds:
            if name not in there:
                kind = records.c[name].type.compile(connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {records.name} ADD COLUMN {name} {kind}")
        _is_now(connection, step)


def _is_now(connection: sa.Connection, step: Step) -> None:
    connection.execute(versions.update().where(versions.c.version == step.version - 1).values(version=step.version))
