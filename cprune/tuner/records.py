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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.pool import StaticPool

from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.session import STAGES

SCHEMA = 1
"""Version of the tables below.  A store with a higher one is of a newer cprune and is not touched."""

_BUSY_SECONDS = 60.0  # how long a writer waits for another writer; one write takes milliseconds
_CHUNK = 200  # keys in one IN (…): far below every database's limit
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
        space: which search space proposed it: "sketch", "metaschedule" or "default".
        created: when it was tried, in unix seconds.

    Raises ValueError for a record that contradicts itself (no runs and no failure, runs and a failure, a run
    that is not a positive number, a stage that does not exist): that is a mistake in the code, not in the
    data.
    """

    task: str
    target: str
    candidate: str
    runs_s: tuple[float, ...]
    failure: str = ""
    reason: str = ""
    checked: bool = False
    space: str = "sketch"
    created: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        if self.failure and self.failure not in STAGES:
            raise ValueError(f"failure stage {self.failure!r} is none of {', '.join(STAGES)}")
        if bool(self.runs_s) == bool(self.failure):
            raise ValueError("a record has either timing runs or a failure, never both or none")
        if not all(math.isfinite(run) and run > 0 for run in self.runs_s):
            raise ValueError(f"timing runs must be positive seconds, got {self.runs_s}")

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
    it and it never replaces a timing.  Among equals more runs win, otherwise the older record stays.
    """

    def information(record: Record) -> tuple[int, int]:
        wrong = record.failure == "check" or (record.failure != "" and record.checked)
        rank = 3 if wrong else 0 if record.failure else 2 if record.checked else 1
        return rank, len(record.runs_s)

    return information(new) > information(old)


_metadata = sa.MetaData()
_schema = sa.Table("cprune_schema", _metadata, sa.Column("version", sa.Integer, primary_key=True))
_records = sa.Table(
    "cprune_records",
    _metadata,
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
    sa.Index("cprune_records_task", "task_key", "target"),
)


class Store:
    """All records of one database.  Use it as a context manager, or call `close`.

    One store may be used by several threads, and one database by several processes: SQLite serialises the
    writers (a writer waits up to a minute for its turn), other databases lock the rows that are replaced.
    What `add` and `mark` wrote is on the disk when they return; a process killed in the middle leaves the
    record it was writing out, and nothing else.
    """

    def __init__(self, url: str | Path) -> None:
        """Open the store at `url`, a path or an SQLAlchemy URL, and make its tables if it has none.

        Raises UserError for a path or URL that cannot be a store (a folder, a file of another kind, a damaged
        file, a driver that is not installed, a store of a newer cprune) and BrokenWorld if the database does
        not answer.
        """
        self._url, self.name = _parse(url)
        self._sqlite = self._url.get_backend_name() == "sqlite"
        self._lock = threading.RLock()
        self._engine = self._make_engine()
        try:
            with self._translated():
                self._open()
        except BaseException:
            self._engine.dispose()
            raise

    def add(self, records: Sequence[Record]) -> None:
        """Keep `records`, all of them or (after an exception) none.  They are on the disk when this returns.

        A record whose (task, target, candidate) is stored already replaces the stored one only if
        `better_informed` says so, so adding something twice changes nothing.
        """
        self._write(records)

    def mark(self, record: Record, *, checked: bool = True, failure: str = "", reason: str = "") -> Record:
        """Note what comparing `record`'s result with the reference said; returns the record as stored.

        `mark(record)` says it was right.  `mark(record, failure="check", reason=…)` says it was wrong: its
        runs are dropped, it is never `best` again, and no later `add` brings it back; so does any other stage
        (a winner that crashed when it was about to be compared).  A record that is not in the store yet is
        put there.
        """
        runs_s = () if failure or record.failure else record.runs_s
        new = replace(
            record,
            runs_s=runs_s,
            failure=failure or record.failure,
            reason=reason or record.reason,
            checked=checked or record.checked or failure != "",
        )
        return self._write([new])[0]

    def of_task(self, task: str, target: str) -> list[Record]:
        """Return all records of the workload text `task` on the target fingerprint `target`, oldest first."""
        query = _about(task, target).order_by(_records.c.id)
        return [_record(row) for row in self._read(query)]

    def best(self, task: str, target: str) -> Record | None:
        """Return the fastest record of `task` on `target` that did not fail, or None.

        Equal medians: the one whose result was checked, then the older one.
        """
        query = _about(task, target).where(_records.c.failure == "").order_by(_records.c.id)
        valid = [_record(row) for row in self._read(query)]
        return min(valid, key=lambda record: (record.latency_s, not record.checked), default=None)

    def tasks(self, target: str | None = None) -> list[str]:
        """Return the workload texts that have records (on `target`, if given), in order of first record."""
        first = sa.select(sa.func.min(_records.c.id)).group_by(_records.c.task_key)
        if target is not None:
            first = first.where(_records.c.target == target)
        query = sa.select(_records.c.task).where(_records.c.id.in_(first)).order_by(_records.c.id)
        return [row.task for row in self._read(query)]

    def count(self) -> int:
        """Return how many records there are, failures included."""
        return int(self._read(sa.select(sa.func.count(_records.c.id)))[0][0])

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

    @property
    def _file(self) -> bool:
        return self._sqlite and self._url.database not in (None, "", ":memory:")

    def _make_engine(self) -> sa.Engine:
        options: dict[str, Any] = {}
        if self._sqlite:
            options["connect_args"] = {"timeout": _BUSY_SECONDS, "check_same_thread": False}
        if self._sqlite and not self._file:
            options["poolclass"] = StaticPool  # a database in memory lives as long as its one connection
        try:
            engine = sa.create_engine(self._url, **options)
        except NoSuchModuleError as error:
            raise UserError(
                f"unknown kind of database {self._url.drivername!r} in {self.name}",
                "Needs no driver: sqlite:///FILE.  Others: postgresql+psycopg://… and so on",
            ) from error
        except ImportError as error:
            raise UserError(
                f"the driver for {self._url.drivername!r} is not installed ({error})",
                "Install it with pip, or name a SQLite file instead",
            ) from error
        if self._sqlite:
            sa.event.listen(engine, "connect", _sqlite_connected)
            sa.event.listen(engine, "begin", _sqlite_begin)
        return engine

    def _open(self) -> None:
        """Check or make the tables.  A complete store is only read, so that a read-only one can be opened."""
        with self._transaction() as connection:
            if self._file:
                damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                if damage != "ok":
                    raise self._damaged(str(damage).splitlines()[-1])
            version = self._version(connection)
        if version is None:
            try:
                with self._transaction(write=True) as connection:
                    _metadata.create_all(connection)
                    if self._version(connection) is None:
                        connection.execute(_schema.insert().values(version=SCHEMA))
            except (IntegrityError, OperationalError, ProgrammingError):
                # Somebody else made the tables between the two transactions; only SQLite locks that out.
                with self._transaction() as connection:
                    if self._version(connection) is None:
                        raise
            with self._transaction() as connection:
                version = self._version(connection)
        if version is not None and version > SCHEMA:
            raise UserError(
                f"{self.name} was written by a newer cprune (schema {version}, this one knows {SCHEMA})",
                "Update cprune with: pip install --upgrade cprune, or name another store",
            )

    def _version(self, connection: sa.Connection) -> int | None:
        if not sa.inspect(connection).has_table(_schema.name):
            return None
        version: int | None = connection.execute(sa.select(sa.func.max(_schema.c.version))).scalar()
        return version

    def _read(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self._translated(), self._transaction() as connection:
            return connection.execute(query).all()

    def _write(self, records: Sequence[Record]) -> list[Record]:
        """Merge `records` into the table in one transaction; returns what is stored for each of them."""
        if not records:
            return []
        for attempt in range(10):
            try:
                with self._translated(), self._transaction(write=True) as connection:
                    return self._merge(connection, records)
            except IntegrityError:
                # Outside SQLite another process can insert the same key after our look; look again.
                if attempt == 9:
                    raise
        raise AssertionError("unreachable")

    def _merge(self, connection: sa.Connection, records: Sequence[Record]) -> list[Record]:
        keys = list(dict.fromkeys(record.key for record in records))
        stored: dict[str, Record] = {}
        for start in range(0, len(keys), _CHUNK):
            query = sa.select(_records).where(_records.c.key.in_(keys[start : start + _CHUNK]))
            stored |= {row.key: _record(row) for row in connection.execute(query.with_for_update())}
        known, changed = set(stored), dict[str, Record]()
        for record in records:
            old = stored.get(record.key)
            if old is None or better_informed(record, old):
                stored[record.key] = changed[record.key] = record
        new_rows = [_row(record) for key, record in changed.items() if key not in known]
        if new_rows:
            connection.execute(_records.insert(), new_rows)
        for key in changed.keys() & known:
            connection.execute(_records.update().where(_records.c.key == key).values(_row(changed[key])))
        return [stored[record.key] for record in records]

    @contextlib.contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sa.Connection]:
        with self._lock, self._engine.connect() as connection:
            # SQLite alone reads this option, in `_sqlite_begin`.
            connection = connection.execution_options(cprune_write=write)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the database's errors into ours: the one place that knows their texts."""
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise self._translate(str(error.orig)) from error
        except SQLAlchemyError as error:
            raise BrokenWorld(f"the record store {self.name} failed: {error}") from error

    def _translate(self, text: str) -> UserError | BrokenWorld:
        lost = "Nothing recorded so far is lost"
        if self._sqlite:
            if "not a database" in text or "malformed" in text:
                return self._damaged(text)
            if "is full" in text:
                return BrokenWorld(f"disk full: cannot write {self.name}. {lost}; free some space and resume")
            if "readonly" in text:
                return BrokenWorld(f"{self.name} is read-only. {lost}; make it writable and resume")
            if "unable to open" in text:
                return BrokenWorld(f"cannot open {self.name}: is its folder there, and writable?")
            if "locked" in text:
                return BrokenWorld(
                    f"{self.name} was locked by another process for {_BUSY_SECONDS:g} s. {lost}; resume later"
                )
        return BrokenWorld(f"the record store {self.name} failed: {text}. {lost}")

    def _damaged(self, detail: str) -> UserError:
        return UserError(
            f"{self.name} is not a record store, or it is damaged ({detail})",
            f"Move it away (mv {self.name} {self.name}.bad); what it held is then measured again",
        )


def _sha256(*texts: str) -> str:
    # The length in front keeps ("ab", "c") and ("a", "bc") apart.
    parts = (f"{len(text)}:{text}" for text in texts)
    return hashlib.sha256("".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _about(task: str, target: str) -> sa.Select[Any]:
    return sa.select(_records).where(_records.c.task_key == _sha256(task), _records.c.target == target)


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
        created=row.created,
    )


def _storable(text: str) -> str:
    """Make a compiler's output fit for any database: no NUL, no lone surrogates, at most 4,000 characters."""
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
    if len(text) <= _REASON_CHARS:
        return text
    quarter = _REASON_CHARS // 4
    return f"{text[:quarter]}\n[… {len(text) - _REASON_CHARS} characters …]\n{text[-3 * quarter :]}"


def _parse(url: str | Path) -> tuple[sa.URL, str]:
    """Return the URL to connect to and the name that messages use."""
    if isinstance(url, str) and "://" in url:
        try:
            parsed = sa.make_url(url)
        except ArgumentError as error:
            raise UserError(
                f"{url!r} is not a database URL", "Type a file name, or DIALECT://USER@HOST/DATABASE"
            ) from error
        if parsed.get_backend_name() != "sqlite" or parsed.query or parsed.database in (None, "", ":memory:"):
            return parsed, parsed.render_as_string(hide_password=True)
        path = Path(str(parsed.database))
    else:
        path = Path(url)
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, not a record store", f"Type the file: {path / 'records.sqlite'}"
        )
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}", f"Make it with: mkdir -p {path.parent}")
    # Absolute, since a connection that is opened later must not follow a change of the working directory.
    return sa.URL.create("sqlite", database=str(path.absolute())), str(path)


def _sqlite_connected(connection: Any, _: object) -> None:
    """Set up a SQLite connection: our own transactions, write-ahead log, every commit synced to the disk."""
    connection.isolation_level = None  # the driver would begin transactions late, after the first read
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA synchronous=FULL")
        deadline = time.monotonic() + _BUSY_SECONDS
        while cursor.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
            # Changing the mode does not wait for other connections by itself; two first openers meet here.
            try:
                cursor.execute("PRAGMA journal_mode=WAL")
                break
            except connection.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
    finally:
        cursor.close()


def _sqlite_begin(connection: sa.Connection) -> None:
    """Begin a writing transaction with the write lock: what it read cannot change before it writes."""
    write = connection.get_execution_options().get("cprune_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
