"""What was tried for a task on a target, and what came of it: records and the store that keeps them.

A record is a plain value: which task (workload), which target, which candidate, and either its timing runs or
the stage and the reason of its failure.  The store keeps one record per (task, target, candidate) in any
database that SQLAlchemy speaks to; without a choice that is the file `records.sqlite` of the run folder.
Failures are kept like successes: they teach the validity model, and a candidate that is known to fail is
never built again.

Words as in TVM's MetaSchedule (task, candidate, record).  Ours differs in that a failure is not a latency of
1e10, and in that a record says whether the program's *result* was ever compared with the reference.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.session import STAGES
from cprune.tuner.records import schema
from cprune.tuner.records.database import Database, forbids_writing
from cprune.tuner.records.schema import SCHEMA

_CHUNK = 200  # keys in one IN (…): far below every database's limit
_PAGE = 1000  # rows that `each` reads in one go
_REASON_CHARS = 4000  # compilers print megabytes; the first lines and the last say why


@dataclass(frozen=True)
class Record:
    """One candidate of one task, tried on one target.

    Attributes:
        task: the workload as canonical JSON text.
        target: fingerprint of the target, a short hex string.
        candidate: knobs or decisions as canonical JSON text.
        runs_s: every timing run in seconds; empty exactly if the candidate failed.
        failure: "" or one of `cprune.targets.session.STAGES`.
        reason: why it failed, for people.
        checked: True once the result was compared with the reference, whatever came of it (also True if the
            program failed when it was about to be compared).
        space: which search space proposed it: "sketch" or "metaschedule".
        hidden: the hidden features, read from the compiled form, as canonical JSON object text; "" where unknown.
        created: when it was tried, in unix seconds.

    Raises ValueError for a record that contradicts itself (no runs and no failure, runs and a failure, a run
    that is not a positive number, a stage that does not exist, features that are no object): that is a mistake
    in the code, not in the data.
    """

    task: str
    target: str
    candidate: str
    runs_s: tuple[float, ...]
    failure: str = ""
    reason: str = ""
    checked: bool = False
    space: str = "sketch"
    hidden: str = ""
    created: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        if self.failure and self.failure not in STAGES:
            raise ValueError(f"failure stage {self.failure!r} is none of {', '.join(STAGES)}")
        if bool(self.runs_s) == bool(self.failure):
            raise ValueError("a record has either timing runs or a failure, never both or none")
        if not all(math.isfinite(run) and run > 0 for run in self.runs_s):
            raise ValueError(f"timing runs must be positive seconds, got {self.runs_s}")
        if self.hidden and not (self.hidden.startswith("{") and self.hidden.endswith("}")):
            raise ValueError(f"hidden features are a JSON object, got {self.hidden[:80]!r}")

    @property
    def latency_s(self) -> float:
        """The median of the runs in seconds; infinity for a candidate that failed."""
        return statistics.median(self.runs_s) if self.runs_s else math.inf

    @property
    def key(self) -> str:
        """The sha256 (hex) of task, target and candidate: what a store keeps one record of."""
        return _sha256(self.task, self.target, self.candidate)


def better_informed(new: Record, old: Record) -> bool:
    """Say whether `new` should take the place of `old`, a record of the same key.

    From least to most: failed; timed; timed and its result found right; its result found wrong (or it failed
    when it was about to be compared).  The last is final: a wrong program never comes back because somebody
    timed it again. A failure below that can be bad luck (a timeout on a busy machine), so a timing replaces
    it and it never replaces a timing.  Among equals more runs win, otherwise the older record stays, unless the new
    one is the very same with its hidden features added.
    """

    def information(record: Record) -> tuple[int, int]:
        wrong = record.failure == "check" or (record.failure != "" and record.checked)
        rank = 3 if wrong else 0 if record.failure else 2 if record.checked else 1
        return rank, len(record.runs_s)

    if new.hidden and not old.hidden and replace(new, hidden="", created=old.created) == old:
        return True
    return information(new) > information(old)


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
        return self._records(self._read(self._about(task, target)))

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
            yield from self._records(rows)
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
            self._change(schema.create, lambda found: found is not None)
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
        self._change(schema.migrate, lambda found: found == SCHEMA)
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
        return self._select().where(about.task_key == _sha256(task), about.target == target)

    def _records(self, rows: Iterable[sa.Row[Any]]) -> list[Record]:
        found = []
        for row in rows:
            try:
                found.append(_record(row))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{self.name} holds a row that is no record (id {row.id}: {error})",
                    "Delete that row from the table cprune_records, or name another store",
                ) from error
        return found

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
            stored |= zip((row.key for row in rows), self._records(rows), strict=True)
        known, changed = set(stored), dict[str, Record]()
        for record in records:
            old = stored.get(record.key)
            if old is None or better_informed(record, old):
                hidden = record.hidden or (old.hidden if old else "")
                stored[record.key] = changed[record.key] = replace(record, hidden=hidden)
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


def fastest(records: Iterable[Record]) -> Record | None:
    """Return the fastest of `records` that did not fail, or None; among equals a checked one, then the first."""
    valid = (record for record in records if not record.failure)
    return min(valid, key=lambda record: (record.latency_s, not record.checked), default=None)


def _sha256(*texts: str) -> str:
    # The length in front keeps ("ab", "c") and ("a", "bc") apart.
    parts = (f"{len(text)}:{text}" for text in texts)
    return hashlib.sha256("".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _row(record: Record) -> dict[str, Any]:
    return {
        "key": record.key,
        "task_key": _sha256(record.task),
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
