"""The run folder: the names of its files, and its lock.

A run is a folder.  `run.json` says what was asked for, `journal.jsonl` what happened, one event a line, and
`result.json` what came of it.  Light: only the standard library, so that `cprune report` and `--help` start at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cprune.files import TEMPORARY, disk_errors, path_errors, read_json, write_json
from cprune.targets.errors import UserError, nearest

_LOCK = ".lock"
_lock_files: set[int] = set()  # descriptors of the locks this process holds


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.  Making the object touches nothing; use `create` or `open` to get a checked one."""

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
        """Tasks, channels and frozen groups, for the report; see `cprune.runs.report.run.Analysis`."""
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
    def front(self) -> Path:
        """The models worth choosing from: forecast, trained, certified; see `cprune.runs.front`."""
        return self.path / "front.json"

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

    def long_trained_dir(self, index: int) -> Path:
        """The model of step `index` after long training, for example `final/0007`."""
        return self.path / "final" / f"{index:04d}"

    def rounded_dir(self, index: int) -> Path:
        """The model of step `index` in int8 or bf16, of a run that ends in these, for example `final/0007.rounded`."""
        return self.path / "final" / f"{index:04d}.rounded"

    def programs_of(self, index: int) -> Path:
        """The program of every task of the model of step `index`, for example `final/0007.programs.json`."""
        return self.path / "final" / f"{index:04d}.programs.json"

    def scout_dir(self, round_: int, number: int) -> Path:
        """The network of a scout, for example `steps/scout0.1`."""
        return self.steps_dir / f"scout{round_}.{number}"

    def tables(self, round_: int) -> Path:
        """What a round looked at and measured before it chose, for example `steps/tables0.json`."""
        return self.steps_dir / f"tables{round_}.json"

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> RunFolder:
        """Make the folder of a new run and write `config` (plain values) as its `run.json`.

        A folder that is there and empty is taken; so is one in which an earlier `create` was killed.  Raises
        UserError if `path` is a run already, holds anything else, is a file, or cannot be written;
        BrokenWorld if the disk is full.
        """
        folder = cls(Path(path))
        where = folder.path
        with path_errors(f"cannot make a run in {where}"):
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
        with path_errors(f"cannot open the run {where}"):
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

    def unfinished(self) -> UserError:
        """Return the error for a run that has no model yet."""
        return UserError(f"the run in {self.path} is not finished", f"Go on with it: cprune resume {self.path}")

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
        with disk_errors(path):
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
            with disk_errors(path):
                os.ftruncate(file, 0)
                os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            if file in _lock_files:  # not so in a forked child that comes by here
                _lock_files.discard(file)
                os.close(file)


def read_programs(path: Path) -> dict[str, Any]:
    """Return what `cprune.compiling.deploy.keep_programs` wrote.  Raises UserError where it is damaged."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"target", "inputs", "layout", "programs"} <= stored.keys():
            raise ValueError("something is missing")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error})") from error
    return stored


def _ours(name: str) -> bool:
    """Whether a file in a folder without run.json was left there by a `create` that was killed."""
    return name == _LOCK or (name.startswith(".run.json.") and name.endswith(TEMPORARY))


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
