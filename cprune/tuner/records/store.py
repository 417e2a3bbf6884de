"""The store that keeps the records: one for each (task, target, candidate).

That is any database that SQLAlchemy speaks to; without a choice it is the file `records.sqlite` of the run folder.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from cprune.targets.errors import BrokenWorld, UserError
from cprune.tuner.records import schema
from cprune.tuner.records.database import Database, forbids_writing
from cprune.tuner.records.record import Record, better_informed, digest
from cprune.tuner.records.schema import SCHEMA

_CHUNK = 200  # keys in one IN (…): far below every database's limit
_PAGE = 1000  # rows that `each` reads in one go
_REASON_CHARS = 4000  # compilers print megabytes; the first lines and the last say why


@dataclass(frozen=True)
class Added:
    """What came of adding records: how many were `new`, `better` than the stored one, or `known` already."""

    new: int = 0
    better: int = 0
    known: int = 0

    def __add__(self, other: Added) -> Added:
        return Added(self.new + other.new, self.better + other.better, self.known + other.known)


class Store:
    """All records of one database.  Use it as a context manager, or call `close`.

    One store may be used by several threads, and one database by several processes and machines: writers take
    turns (a writer waits up to a minute for its turn), readers wait for nobody.  What `add` wrote is on the
    disk when it returns; a process killed in the middle leaves the records it was writing out, and nothing else.
    """

    def __init__(self, place: str | Path, *, read_only: bool = False) -> None:
        """Open the store at `place`, a path or an SQLAlchemy URL, and make its tables if it has none.

        A store of an older cprune gets today's columns, in place and in one transaction.  If it may not be written,
        or if only reading is asked for with `read_only`, it is read as it is.

        Raises UserError for a path or URL that cannot be a store (a folder, a file of another kind, a damaged
        file, a driver that is not installed, a store of a newer cprune, with `read_only` also one that is not there)
        and BrokenWorld if the database does not answer.
        """
        self._database = Database.at(place)
        self.name = self._database.name
        self._read_only = read_only
        self._version = SCHEMA
        self._lock = threading.RLock()
        if read_only and self._database.missing:
            raise UserError(f"there is no record store {self.name}", "Name one that was tuned into: --records STORE")
        self._engine = self._database.engine()
        try:
            with self._translated():
                self._open()
        except BaseException:
            self._engine.dispose()
            raise

    def add(self, records: Sequence[Record]) -> Added:
        """Keep `records`, all of them or (after an exception) none.  They are on the disk when this returns.

        A record whose (task, target, candidate) is stored already replaces the stored one only if
        `better_informed` says so, so adding something twice changes nothing.  Hidden features that are stored stay
        when a record without them takes the place: they are the candidate's, not the timing's.
        """
        if self._read_only:
            raise ValueError(f"{self.name} was opened for reading only")
        if not records:
            return Added()
        if self._version < SCHEMA:
            with self._translated():
                self._migrate()
        for attempt in range(10):
            try:
                with self._translated(), self._transaction(write=True) as connection:
                    return self._merge(connection, records)
            except IntegrityError:
                # Where writers do not take turns, one can insert the same key after our look; look again.
                if attempt == 9:
                    raise
        raise AssertionError("unreachable")

    def of_task(self, task: str, target: str) -> list[Record]:
        """Return all records of the workload text `task` on the target fingerprint `target`, oldest first."""
        return _records(self.name, self._read(self._about(task, target)))

    def all(self, target: str | None = None) -> list[Record]:
        """Return all records of all tasks (on `target`, if given), oldest first."""
        return list(self.each(target))

    def each(self, target: str | None = None) -> Iterator[Record]:
        """Yield what `all` returns without holding it all.

        What other processes record meanwhile may be among it; it never keeps them waiting.
        """
        last = 0
        while True:
            query = self._select().where(schema.records.c.id > last).limit(_PAGE)
            if target is not None:
                query = query.where(schema.records.c.target == target)
            rows = self._read(query)
            yield from _records(self.name, rows)
            if len(rows) < _PAGE:
                return
            last = rows[-1].id

    def targets(self) -> list[str]:
        """Return the target fingerprints that have records, in order of first record."""
        about = schema.records.c
        first = sa.select(sa.func.min(about.id)).group_by(about.target)
        return [row.target for row in self._read(sa.select(about.target).where(about.id.in_(first)).order_by(about.id))]

    def close(self) -> None:
        """Let go of the database.  Closing twice is fine."""
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ inside

    def _open(self) -> None:
        """Check or make the tables.  A complete store is only read, so that a read-only one can be opened."""
        with self._transaction() as connection:
            if self._database.file:
                damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                if damage != "ok":
                    raise self._database.damaged(str(damage).splitlines()[-1])
            version = schema.version_of(connection)
        if version is None:
            if self._read_only:
                raise UserError(
                    f"{self.name} is no record store: it has no tables of cprune", "Name another one: --records STORE"
                )
            self._change(schema.create, lambda version: version is not None)
            with self._transaction() as connection:
                version = schema.version_of(connection)
        if version is not None and version > SCHEMA:
            raise UserError(
                f"{self.name} was written by a newer cprune (schema {version}, this one knows {SCHEMA})",
                "Update cprune with: pip install --upgrade cprune, or name another store",
            )
        self._version = version or SCHEMA
        if self._version < SCHEMA and not self._read_only:
            try:
                self._migrate()
            except DBAPIError as error:
                if not forbids_writing(error):
                    raise

    def _migrate(self) -> None:
        self._change(schema.migrate, lambda version: version == SCHEMA)
        self._version = SCHEMA

    def _change(self, change: Callable[[sa.Connection], None], done: Callable[[int | None], bool]) -> None:
        """Make or alter tables.  Not all databases lock others out of that: an error is none if it is done after it."""
        try:
            with self._transaction(write=True) as connection:
                change(connection)
        except (IntegrityError, OperationalError, ProgrammingError):
            with self._transaction() as connection:
                if not done(schema.version_of(connection)):
                    raise

    def _select(self) -> sa.Select[Any]:
        return sa.select(*schema.columns_of(self._version)).order_by(schema.records.c.id)

    def _about(self, task: str, target: str) -> sa.Select[Any]:
        about = schema.records.c
        return self._select().where(about.task_key == digest(task), about.target == target)

    def _read(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self._translated(), self._transaction() as connection:
            return connection.execute(query).all()

    def _merge(self, connection: sa.Connection, records: Sequence[Record]) -> Added:
        """Write what is new or better in one transaction."""
        table = schema.records
        keys = list(dict.fromkeys(record.key for record in records))
        stored: dict[str, Record] = {}
        for start in range(0, len(keys), _CHUNK):
            query = sa.select(table).where(table.c.key.in_(keys[start : start + _CHUNK])).with_for_update()
            rows = connection.execute(query).all()
            stored |= zip((row.key for row in rows), _records(self.name, rows), strict=True)
        known, changed = set(stored), _changed(stored, records)
        new_rows = [_row(record) for key, record in changed.items() if key not in known]
        if new_rows:
            connection.execute(table.insert(), new_rows)
        better = changed.keys() & known
        for key in better:
            connection.execute(table.update().where(table.c.key == key).values(_row(changed[key])))
        return Added(len(new_rows), len(better), len(records) - len(new_rows) - len(better))

    @contextlib.contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sa.Connection]:
        with self._lock, self._engine.connect() as connection:
            # SQLite alone reads this option, when it begins.
            connection = connection.execution_options(cprune_write=write)
            with connection.begin():
                if write:
                    self._database.lock_writers_out(connection)
                yield connection

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the database's errors into ours."""
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise self._database.translate(error) from error
        except SQLAlchemyError as error:
            raise BrokenWorld(f"the record store {self.name} failed: {error}") from error


def _changed(stored: Mapping[str, Record], records: Iterable[Record]) -> dict[str, Record]:
    """Return by key what is to be written so that each key holds the best informed record."""
    best, changed = dict(stored), dict[str, Record]()
    for record in records:
        old = best.get(record.key)
        if old is None or better_informed(record, old):
            hidden = record.hidden or (old.hidden if old else "")
            best[record.key] = changed[record.key] = replace(record, hidden=hidden)
    return changed


def _row(record: Record) -> dict[str, object]:
    return {
        "key": record.key,
        "task_key": digest(record.task),
        "target": record.target,
        "task": record.task,
        "candidate": record.candidate,
        "runs_s": json.dumps(record.runs_s),
        "failure": record.failure,
        "reason": _storable(record.reason),
        "checked": record.checked,
        "space": record.space,
        "created": record.created,
        "hidden": record.hidden,
    }


def _records(store: str, rows: Iterable[sa.Row[Any]]) -> list[Record]:
    """Return the records of rows.  Raises UserError, which names the store, for a row that is none."""
    records = []
    for row in rows:
        try:
            records.append(_record(row))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{store} holds a row that is no record (id {row.id}: {error})",
                "Delete that row from the table cprune_records, or name another store",
            ) from error
    return records


def _record(row: sa.Row[Any]) -> Record:
    return Record(
        task=row.task,
        target=row.target,
        candidate=row.candidate,
        runs_s=tuple(json.loads(row.runs_s)),
        failure=row.failure,
        reason=row.reason,
        checked=row.checked,
        space=row.space,
        hidden=getattr(row, "hidden", None) or "",
        created=row.created,
    )


def _storable(text: str) -> str:
    """Make a compiler's output fit for any database: no NUL, no lone surrogates, at most 4,000 characters."""
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
    if len(text) <= _REASON_CHARS:
        return text
    quarter = _REASON_CHARS // 4
    return f"{text[:quarter]}\n[… {len(text) - _REASON_CHARS} characters …]\n{text[-3 * quarter :]}"
