"""The run folder: its file names, its lock, its journal, and writing so that a kill at any moment loses
nothing.

A run is a folder.  `run.json` says what was asked for, `journal.jsonl` what happened, one event a line, and
`result.json` what came of it.  Files that are replaced are written to a temporary name first; the journal
only ever grows, and each line is on the disk before the run goes on, so `cprune resume` can rebuild the state
of the run by reading.  Light: only the standard library, so that `cprune report` and `--help` start at once.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cprune.targets.errors import BrokenWorld, UserError, nearest

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = ".tmp"
_LOCK = ".lock"
_counter = itertools.count()
_lock_files: set[int] = set()  # descriptors of the locks this process holds


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.  Making the object touches nothing; use `create` or `open` to get a checked
    one."""

    path: Path

    @property
    def run_json(self) -> Path:
        """Resolved configuration, versions, target fingerprint, seed: written once, by `create`."""
        return self.path / "run.json"

    @property
    def journal(self) -> Path:
        """What happened, one event a line; see `Journal`."""
        return self.path / "journal.jsonl"

    @property
    def records(self) -> Path:
        """The tuning records, unless the run was given a shared store."""
        return self.path / "records.sqlite"

    @property
    def analysis(self) -> Path:
        """Tasks, channels and frozen groups, for the report; see `cprune.runs.report.sections`."""
        return self.path / "analysis.json"

    @property
    def programs(self) -> Path:
        """The program of every task of the final model; see `cprune.compiling.deploy.keep_programs`."""
        return self.path / "programs.json"

    @property
    def result(self) -> Path:
        """The outcome; missing as long as the run is not finished."""
        return self.path / "result.json"

    @property
    def weights(self) -> Path:
        """The weights of the pruned model."""
        return self.path / "model.safetensors"

    @property
    def model_json(self) -> Path:
        """The shapes and nodes of the pruned model."""
        return self.path / "model.json"

    @property
    def report_html(self) -> Path:
        """The report, one file for any browser."""
        return self.path / "report.html"

    @property
    def report_md(self) -> Path:
        """The report as text."""
        return self.path / "report.md"

    @property
    def steps_dir(self) -> Path:
        """The accepted models, a folder a step: what a resumed run goes on from."""
        return self.path / "steps"

    def step_dir(self, index: int) -> Path:
        """The model after step `index`, for example `steps/0007`."""
        return self.steps_dir / f"{index:04d}"

    @property
    def final_dir(self) -> Path:
        """What the last phase (long training, final tuning) has reached so far."""
        return self.path / "final"

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> RunFolder:
        """Make the folder of a new run and write `config` (plain values) as its `run.json`.

        A folder that is there and empty is taken; so is one in which an earlier `create` was killed.  Raises
        UserError if `path` is a run already, holds anything else, is a file, or cannot be written;
        BrokenWorld if the disk is full.
        """
        folder = cls(Path(path))
        where = folder.path
        with _user_errors(f"cannot make a run in {where}"):
            if folder.run_json.exists():
                raise UserError(
                    f"{where} is already a run",
                    f"Go on with it: cprune resume {where}, or choose another folder with --out",
                )
            where.mkdir(parents=True, exist_ok=True)
            others = sorted(entry.name for entry in where.iterdir() if not _ours(entry.name))
            if others:
                raise UserError(
                    f"{where} is not empty (it holds {', '.join(others[:3])}{', …' if others[3:] else ''})",
                    "Choose another folder with --out; a run starts in a folder of its own",
                )
            if not os.access(where, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with folder.lock():  # two runs that were started with one --out at the same moment
            if folder.run_json.exists():
                raise UserError(f"{where} has just become another run", "Choose another folder with --out")
            write_json(folder.run_json, config)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Return the folder of the run at `path`.

        Raises UserError if there is none, suggesting the run that may have been meant: the newest one inside
        `path`, or the one beside it whose name is nearest.
        """
        folder = cls(Path(path))
        where = folder.path
        with _user_errors(f"cannot open the run {where}"):
            if folder.run_json.is_file():
                return folder
            if where.is_dir():
                problem = f"{where} is not the folder of a run (it has no run.json)"
            elif where.exists():
                problem = f"{where} is a file, not the folder of a run"
            else:
                problem = f"there is no folder {where}"
        inside = _runs_in(where)
        if inside:
            newest = max(inside, key=lambda run: (run / "run.json").stat().st_mtime)
            raise UserError(problem, f"The newest run in it is {newest}")
        beside = {run.name: run for run in _runs_in(where.parent)}
        near = nearest(where.absolute().name, beside, at_least=0.0)
        hint = f"Did you mean {beside[near]}?" if near is not None else "Start one with: cprune run --out DIR"
        raise UserError(problem, hint)

    def config(self) -> dict[str, Any]:
        """Return what `create` wrote to `run.json`.  Raises UserError if it cannot be read any more."""
        config = read_json(self.run_json)
        if config is None:
            raise UserError(
                f"{self.path} is not the folder of a run (it has no run.json)",
                "Start one with: cprune run --out DIR",
            )
        return config

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; raises UserError with the pid of the one that holds it already.

        The lock goes with the process, however that ends, and does not pass to processes it started.  On a
        file system without locks (and on Windows) there is none: two runs in one folder are then not
        prevented.
        """
        path = self.path / _LOCK
        try:
            import fcntl
        except ImportError:  # pragma: no cover
            yield
            return
        with _disk(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _lock_files.add(file)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(file, 32, 0).decode("ascii", "replace").strip()
                raise UserError(
                    f"another cprune (pid {pid or 'unknown'}) is working on this run, {self.path}",
                    "Wait until it is done" + (f", or stop it with: kill {pid}" if pid else ""),
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            # The file stays when the lock goes: removing it would race with the next one to open it.
            with _disk(path):
                os.ftruncate(file, 0)
                os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            if file in _lock_files:  # not so in a forked child that comes by here
                _lock_files.discard(file)
                os.close(file)


class Journal:
    """The journal of a run: events, each a dict of plain values with "event" (its kind) and "time".

    Kinds: start, tuned, measured, step, cost, final, note (what they hold is said in `cprune.method.loop`, which writes
    them). One process appends (the one that holds `RunFolder.lock`); any number may read meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Mapping[str, Any]) -> None:
        """Write `event` as one line; it is on the disk when this returns.

        "time" (unix seconds) is added if it is missing.  What a crash left of a last line is cut away first.
        Numbers that JSON lacks (nan, inf) become null.  Raises BrokenWorld if the disk is full or gone; the
        journal is then as before.
        """
        if not isinstance(event.get("event"), str):
            raise ValueError(f'an event needs its kind as "event", got {dict(event)}')
        line = _json({"event": event["event"], "time": round(time.time(), 3), **event})
        with _disk(self.path):
            is_new = not self.path.exists()
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                end = self._mend(file)
                try:
                    _write_all(file, line.encode() + b"\n", end)
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, end)
                    raise
            finally:
                os.close(file)
            if is_new:
                _sync_folder(self.path.parent)

    def events(self) -> list[dict[str, Any]]:
        """Return all events, oldest first; none if there is no journal yet.

        A last line that is no event was being written when the run was killed, and is left out.  Any other
        such line raises UserError with its number.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        lines = data.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        events = []
        for number, line in enumerate(lines, start=1):
            event = _event(line)
            if event is not None:
                events.append(event)
            elif number < len(lines):
                raise UserError(
                    f"{self.path}, line {number}: not an event of a journal",
                    "The file was changed or damaged.  Put a copy back, or keep only the lines before it"
                    f" (head -n {number - 1}) and resume from there",
                )
        return events

    @staticmethod
    def _mend(file: int) -> int:
        """Cut off a torn last line, end a whole one that lacks its newline; return where to write."""
        size = os.fstat(file).st_size
        data = os.pread(file, size, 0)
        ended = data.endswith(b"\n")
        last = data.rfind(b"\n", 0, size - ended) + 1
        if _event(data[last:]) is None:
            os.ftruncate(file, last)
            return last
        if not ended:
            _write_all(file, b"\n", size)
            return size + 1
        return size


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace the content of `path` (text as UTF-8): afterwards it is the old one or the new one, never a
    part.

    It is on the disk when this returns.  Raises BrokenWorld if the disk is full or the place cannot be
    written; then the old content is still there and no temporary file is left.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_counter)}{_TEMPORARY}")
    with _disk(path):
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                _write_all(file, content, 0)
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` to `path` as indented JSON, atomically; nan and inf become null, numpy scalars
    numbers."""
    atomic_write(path, _json(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`, or None if there is no such file; UserError if it holds anything
    else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        detail = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read as JSON: {detail}", "Put a copy of the file back") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object", "Put a copy of the file back")
    return value


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _json(value: Mapping[str, Any], indent: int | None = None) -> str:
    text = json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode()  # a file name that is no UTF-8 must not stop a run


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a numpy or torch scalar
        return _plain(value.item())
    raise TypeError(f"{type(value).__name__} is no plain value: {value!r}")


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:  # a disk that is nearly full takes a part and fails at the next attempt
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _sync_folder(path: Path) -> None:
    """Make a new or renamed file of the folder `path` survive a power cut."""
    with contextlib.suppress(OSError):  # some file systems cannot, and then need not
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into BrokenWorld."""
    try:
        yield
    except OSError as error:
        _broken(path, error)


def _broken(path: Path, error: OSError) -> NoReturn:
    problem = f"cannot write {path} ({error.strerror}).  Nothing recorded so far is lost"
    if error.errno in _FULL:
        problem = f"disk full: {problem}; make room and resume the run"
    raise BrokenWorld(problem) from error


@contextlib.contextmanager
def _user_errors(problem: str) -> Iterator[None]:
    """Turn an OSError about a path that the user typed into UserError, a full disk into BrokenWorld."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            _broken(Path(error.filename or "."), error)
        raise UserError(f"{problem}: {error.strerror}", "Choose another folder") from error


def _ours(name: str) -> bool:
    """Whether a file in a folder without run.json was left there by a `create` that was killed."""
    return name == _LOCK or (name.startswith(".run.json.") and name.endswith(_TEMPORARY))


def _runs_in(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if (entry / "run.json").is_file())
    except OSError:
        return []


def _let_go_after_fork() -> None:
    # A forked worker that outlives a killed run must not keep the run locked.
    for file in _lock_files:
        os.close(file)
    _lock_files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)
