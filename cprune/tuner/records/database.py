"""Where a record store lies: a path or a URL, the engine that reaches it, and the errors of the databases as ours.

SQLite and PostgreSQL are looked after here; any other database that SQLAlchemy speaks to works by its own rules.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import StaticPool

from cprune.targets.errors import BrokenWorld, UserError

BUSY_SECONDS = 60.0
"""How long a writer waits for another writer; one write takes milliseconds."""

_ANSWER_SECONDS = 10  # how long a server may take to answer a first call
_WRITERS = int.from_bytes(b"cprune", "big")  # the advisory lock that writers hold in PostgreSQL
_LOST = "Nothing recorded so far is lost"


@dataclass(frozen=True)
class Database:
    """One database: the URL to connect to and the name that messages use, which never holds a password."""

    url: sa.URL
    name: str

    @classmethod
    def at(cls, place: str | Path) -> Database:
        """Return the database at `place`, a path or an SQLAlchemy URL.

        `postgresql://…` means the driver psycopg 3, in every version of SQLAlchemy.  Raises UserError for what is
        neither a path nor a URL, for a folder, and for a file in a folder that does not exist.
        """
        if isinstance(place, str) and "://" in place:
            try:
                url = sa.make_url(place)
            except ArgumentError as error:
                raise UserError(
                    f"{_without_password(place)!r} is not a database URL",
                    "Type a file name, or DIALECT://USER@HOST/DATABASE",
                ) from error
            if url.drivername in ("postgresql", "postgres"):
                url = url.set(drivername="postgresql+psycopg")
            if url.get_backend_name() != "sqlite" or url.query or url.database in (None, "", ":memory:"):
                secret = [key for key in url.query if "pass" in key]
                shown = url.update_query_dict(dict.fromkeys(secret, "hidden"))
                return cls(url, shown.render_as_string(hide_password=True))
            path = Path(str(url.database))
        else:
            path = Path(place)
        if path.is_dir():
            raise UserError(f"{path} is a folder, not a record store", f"Type the file: {path / 'records.sqlite'}")
        if not path.parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}", f"Make it with: mkdir -p {path.parent}")
        # Absolute, since a connection that is opened later must not follow a change of the working directory.
        return cls(sa.URL.create("sqlite", database=str(path.absolute())), str(path))

    @property
    def sqlite(self) -> bool:
        """Tell whether this is SQLite, in a file or in memory."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def file(self) -> bool:
        """Tell whether this is SQLite in a file."""
        return self.sqlite and self.url.database not in (None, "", ":memory:")

    @property
    def missing(self) -> bool:
        """Tell whether this is a file that is not there, which connecting would make."""
        return self.file and not self.url.query and not Path(str(self.url.database)).exists()

    @property
    def _postgresql(self) -> bool:
        return self.url.get_backend_name() == "postgresql"

    def engine(self) -> sa.Engine:
        """Return the engine that connects to it.  Raises UserError if the driver is unknown or not installed."""
        options: dict[str, Any] = {}
        if self.sqlite:
            options["connect_args"] = {"timeout": BUSY_SECONDS, "check_same_thread": False}
        if self.sqlite and not self.file:
            options["poolclass"] = StaticPool  # a database in memory lives as long as its one connection
        if self._postgresql:
            # A writer that waited for its turn must see what was written meanwhile, whatever the server's default.
            options["isolation_level"] = "READ COMMITTED"
            options["pool_pre_ping"] = True  # hours may pass between two records
            if "connect_timeout" not in self.url.query:
                options["connect_args"] = {"connect_timeout": _ANSWER_SECONDS}
        try:
            engine = sa.create_engine(self.url, **options)
        except NoSuchModuleError as error:
            raise UserError(
                f"unknown kind of database {self.url.drivername!r} in {self.name}",
                "Needs no driver: sqlite:///FILE.  For a team: postgresql://USER@HOST/DATABASE",
            ) from error
        except ImportError as error:
            install = "pip install 'cprune[team]'" if self._postgresql else "pip"
            raise UserError(
                f"the driver for {self.url.drivername!r} is not installed ({error})",
                f"Install it with: {install}, or name a SQLite file instead",
            ) from error
        if self.sqlite:
            sa.event.listen(engine, "connect", _sqlite_connected)
            sa.event.listen(engine, "begin", _sqlite_begin)
        return engine

    def lock_writers_out(self, connection: sa.Connection) -> None:
        """Wait for the writer before us, at most BUSY_SECONDS; the lock goes with the transaction.

        SQLite did so when the transaction began.  In PostgreSQL two writers that locked row after row would sooner or
        later wait for each other.  A writer that stops in the middle (a frozen machine) is thrown out by the server
        while the others still wait.
        """
        if self._postgresql:
            connection.exec_driver_sql(
                f"SELECT set_config('lock_timeout', '{BUSY_SECONDS:g}s', true),"
                f" set_config('idle_in_transaction_session_timeout', '{BUSY_SECONDS / 2:g}s', true)"
            )
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")

    def translate(self, error: DBAPIError) -> UserError | BrokenWorld:
        """Return the database's error as ours: the one place that knows their texts."""
        text = " ".join(str(error.orig).split())
        code = getattr(error.orig, "sqlstate", None)
        if self.sqlite and ("not a database" in text or "malformed" in text):
            return self.damaged(text)
        if (self.sqlite and "is full" in text) or code == "53100":
            return BrokenWorld(f"disk full: cannot write {self.name}. {_LOST}; free some space and resume")
        if self.sqlite and "readonly" in text:
            return BrokenWorld(f"{self.name} is read-only. {_LOST}; make it writable and resume")
        if forbids_writing(error):
            return BrokenWorld(f"{self.name} may not be written ({text}). {_LOST}; ask its owner for the right to")
        if self.sqlite and "unable to open" in text:
            return BrokenWorld(f"cannot open {self.name}: is its folder there, and writable?")
        if (self.sqlite and "locked" in text) or code == "55P03":
            return BrokenWorld(
                f"{self.name} was locked by another process for {BUSY_SECONDS:g} s. {_LOST}; resume later"
            )
        return BrokenWorld(f"the record store {self.name} failed: {text}. {_LOST}")

    def damaged(self, detail: str) -> UserError:
        """Return the error for a file that is no store."""
        return UserError(
            f"{self.name} is not a record store, or it is damaged ({detail})",
            f"Move it away (mv {self.name} {self.name}.bad); what it held is then measured again",
        )


def forbids_writing(error: DBAPIError) -> bool:
    """Tell whether the database can be read and refuses to be written: read-only, or not ours to change."""
    return "readonly database" in str(error.orig) or getattr(error.orig, "sqlstate", None) in ("25006", "42501")


def _without_password(text: str) -> str:
    scheme, _, rest = text.partition("://")
    return f"{scheme}://…@{rest.rpartition('@')[2]}" if "@" in rest else text


def _sqlite_connected(connection: sqlite3.Connection, _: object) -> None:
    """Set up a SQLite connection: our own transactions, write-ahead log, every commit synced to the disk."""
    connection.isolation_level = None  # the driver would begin transactions late, after the first read
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA synchronous=FULL")
        deadline = time.monotonic() + BUSY_SECONDS
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
