"""A process that answers requests on a pipe, each with a deadline; it is ended when it does not answer.

What may crash or hang (kernels, a compiler, a connection to a device) runs in such a process, never in ours.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

from cprune.targets.errors import BrokenWorld, Bug, ours, type_and_first_line
from cprune.targets.session import Failure

START_DEADLINE_S = 120.0
MODEL_DEADLINE_S = 300.0
STDERR_BYTES = 1024
"""What is read of the end of a dead process's stderr."""


@dataclass(frozen=True)
class _Raised:
    """The answer to a request in which our own code failed."""

    traceback: str


class Process:
    """`python -m MODULE FD ARGUMENTS…`, started when it is first asked, and again after its end.

    The process greets with one value; `greeted(value)` says what is wrong with it ("" for nothing) and is where a new
    life is prepared (`send`, `receive`).  `lives` counts how often it was started.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        greeted: Callable[[Any], str],
        prepare: Callable[[Process], None] = lambda _: None,
        start_deadline_s: float = START_DEADLINE_S,
    ) -> None:
        self.module, self.arguments, self.environment = module, list(arguments), dict(environment)
        self.greeted, self.prepare, self.start_deadline_s = greeted, prepare, start_deadline_s
        self.lives = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._stderr: IO[bytes] | None = None  # a file, not a pipe: nobody has to empty it
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Return the number of the living process."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it now if it is not running.  Raises BrokenWorld if it cannot be started."""
        with self._lock:
            self._started()

    def ask(self, name: str, args: tuple[Any, ...], deadline_s: float) -> Any:
        """Return the answer, or Failure("run" | "timeout") if the process ended or said nothing in time.

        Raises BrokenWorld if it cannot be started, Bug if the method failed in a way that is no answer.
        """
        with self._lock:
            connection = self._started()
            try:
                self._forget_stderr()
                connection.send((name, args))
                in_time = connection.poll(deadline_s)
                answer = connection.recv() if in_time else None
            except (EOFError, OSError):
                return Failure("run", f"the worker ended: {self._end()}")
            except BaseException:  # Ctrl-C between question and answer: the pipe is out of step
                self._end()
                raise
            if in_time:
                return _value(answer)
            self._end()
            return Failure("timeout", f"no answer within {deadline_s:g} s")

    def again(self, name: str, args: tuple[Any, ...]) -> Any:
        """Ask while a new life is prepared (`prepare` only)."""
        assert self._connection is not None
        self._connection.send((name, args))
        return _value(self._connection.recv())

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _started(self) -> Connection:
        if self._connection is not None:
            return self._connection
        mine, theirs = Pipe()
        # The package's parent folder leads the path, so that the process finds the same cprune as we are.
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        command = [sys.executable, "-m", self.module, str(theirs.fileno()), *self.arguments]
        environment = {**os.environ, **self.environment, "PYTHONPATH": path}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the process ends)
        self._process = _spawner().submit(_spawned, command, environment, theirs.fileno(), self._stderr).result()
        theirs.close()
        self._connection = mine
        self.lives += 1
        try:
            greeting = mine.recv() if mine.poll(self.start_deadline_s) else None
        except (EOFError, OSError):
            greeting = None
        wrong = "did not start" if greeting is None else self.greeted(greeting)
        if wrong:
            self._end()
            raise BrokenWorld(f"the measuring process {wrong}. Try: python -m {self.module}")
        try:
            self.prepare(self)
        except (EOFError, OSError):
            self._end()
            raise BrokenWorld("the measuring process ended while it was started") from None
        except Exception:
            self._end()
            raise
        return mine

    def _end(self) -> str:
        """End the process and return how it ended, with the end of what it said."""
        process, self._process = self._process, None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        stderr, self._stderr = self._stderr, None
        if process is None or stderr is None:
            return "not running"
        try:
            code = process.wait(0.2)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        with stderr:
            said = _last_words(stderr)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how} ({said})" if said else how

    def _forget_stderr(self) -> None:
        """Empty the file, so that it has what the next request makes the process say and does not grow.

        The process writes where the file's position is, which it shares with us.
        """
        if self._stderr is not None:
            self._stderr.seek(0)
            self._stderr.truncate()


def _value(answer: Any) -> Any:
    if isinstance(answer, _Raised):
        raise Bug(answer.traceback)
    return answer


def _last_words(stderr: IO[bytes]) -> str:
    """Return the line at the end of a dead process's stderr that says most: the last one with an error, or the last.

    The lines of a stack (`File "…", line 3, in f`) say nothing alone.
    """
    stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - STDERR_BYTES))
    lines = [line.strip() for line in stderr.read().decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith('File "')]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1][:300]


_SPAWNERS: dict[int, ThreadPoolExecutor] = {}


def _spawner() -> ThreadPoolExecutor:
    """Return the thread that starts all processes, and lives as long as we do.

    Linux ends a process that asked for it (`die_with_parent`) when the *thread* that started it ends.
    """
    if os.getpid() not in _SPAWNERS:
        _SPAWNERS[os.getpid()] = ThreadPoolExecutor(1, "cprune-spawner")
    return _SPAWNERS[os.getpid()]


def _spawned(
    command: Sequence[str], environment: Mapping[str, str], fd: int, stderr: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        pass_fds=[fd],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
    )


# -- for the process itself


def begun(fd: str) -> Connection:
    """Return the pipe to the parent, and let the parent alone decide when this process ends."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the parent, which closes the pipe
    return Connection(int(fd))


def answer(connection: Connection, holder: object) -> None:
    """Answer requests with the methods of `holder` until the parent closes the pipe.

    What became of a candidate is an answer (`failure`); whatever a method raises is a bug of ours.
    """
    while True:
        try:
            name, args = connection.recv()
        except (EOFError, OSError):
            return
        try:
            value = getattr(holder, name)(*args)
        except Exception:
            value = _Raised(traceback.format_exc())
        connection.send(value)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, also by SIGKILL in the middle of a hanging kernel."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return
    if os.getppid() == 1:
        sys.exit(0)


def failure(stage: str, error: Exception) -> Failure:
    """Return why a candidate is no program; raise the error again where it is a bug of ours."""
    if ours(error):
        raise error
    return Failure(stage, type_and_first_line(error))
