"""A PostgreSQL server of the tests' own: in a temporary folder, on a socket in it, gone at the end.

This file is not collected by itself; `conftest.py` makes a fixture of it.
"""

from __future__ import annotations

import ctypes
import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MISSING = "needs the PostgreSQL server (Debian: apt install postgresql) and psycopg (pip install 'cprune[team]')"
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def programs() -> Path | None:
    """Return the folder that holds `initdb` and `postgres`, wherever the system keeps it."""
    found = [shutil.which("postgres"), *sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), reverse=True)]
    config = shutil.which("pg_config")
    if config:
        said = subprocess.run([config, "--bindir"], capture_output=True, text=True).stdout.strip()
        found.append(f"{said}/postgres")
    folders = [Path(path).resolve().parent for path in found if path and Path(path).exists()]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Server:
    """A running server; `database()` makes an empty database and returns its URL."""

    def __init__(self, socket: Path) -> None:
        self.socket, self.made = socket, 0

    def url(self, name: str) -> str:
        return f"postgresql://cprune@/{name}?host={self.socket}"

    def run(self, statement: str, name: str = "postgres") -> None:
        import psycopg

        with psycopg.connect(host=str(self.socket), user="cprune", dbname=name, autocommit=True) as connection:
            connection.execute(statement.encode())

    def database(self) -> str:
        self.made += 1
        name = f"test_{self.made}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def running() -> Iterator[Server]:
    """Start a server, stop it at the end; skip the test where there is none to start."""
    pytest.importorskip("psycopg", reason=MISSING)
    folder = programs()
    if folder is None:
        pytest.skip(MISSING)
    as_user = _unprivileged()
    home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    try:
        if as_user:
            os.chown(home, as_user["user"], as_user["group"])
        data = str(home / "data")
        make = [folder / "initdb", "-D", data, "-U", "cprune", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(make, capture_output=True, text=True, cwd=home, **as_user)
        assert made.returncode == 0, made.stderr
        options = {"listen_addresses": "", "unix_socket_directories": home, "fsync": "off", "shared_buffers": "16MB"}
        start = [folder / "postgres", "-D", data, *(f"--{name}={value}" for name, value in options.items())]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                start, stdout=log, stderr=log, cwd=home, preexec_fn=_die_with_parent, start_new_session=True, **as_user
            )
        try:
            _wait(Server(home), server, home / "log")
            yield Server(home)
        finally:
            server.send_signal(signal.SIGINT)  # "fast": throws clients out
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _unprivileged() -> dict[str, Any]:
    """Return whom to start the server as: it refuses to run as root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it as")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGINT)  # also when the tests are killed


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            return server.run("SELECT 1")
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start ({error}):\n{log.read_text()}") from error
            time.sleep(0.05)
