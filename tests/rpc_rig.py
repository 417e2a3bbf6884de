"""A real tracker and real device servers on loopback, for tests: what a phone is behind a cable, on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cprune.targets.errors import BrokenWorld
from cprune.targets.remote import tracker
from cprune.targets.target import Target, Timing, find

SERVE = Path(__file__).parents[1] / "cprune" / "targets" / "serve.py"
KEY = "test"


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A device server in a process group of its own."""

    where: str
    command: Sequence[str] = (sys.executable, str(SERVE))
    key: str = KEY
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def start(self) -> Server:
        self.process = subprocess.Popen(
            [*self.command, "--tracker", self.where, "--key", self.key],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **self.environment},
        )
        return self

    def signal(self, number: int) -> None:
        """Send a signal to the server and its sessions."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def sessions(self) -> list[int]:
        """Return the processes of its sessions."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self.process.wait()


@dataclass
class Rig:
    """A tracker with its servers."""

    tracker: tracker.Tracker
    servers: list[Server]

    @property
    def where(self) -> str:
        return str(self.tracker.address)

    def target(self, **changes: object) -> Target:
        """This machine as if it were another one, with one thread."""
        base = replace(find("linux-x86_64", threads=1), key=KEY, tracker=self.where, device_timeout_s=20.0)
        return replace(base, **{"timing": Timing(2, 0.2, 5.0), **changes})  # type: ignore[arg-type]

    def wait(self, devices: int, deadline_s: float = 60.0) -> None:
        """Return once so many devices are free."""
        end = time.monotonic() + deadline_s
        while sum(found.free for found in tracker.summary(self.tracker.address)) < devices:
            for server in self.servers:
                if server.process is not None and server.process.poll() is not None:
                    assert server.process.stdout is not None
                    raise BrokenWorld(f"a server ended: {server.process.stdout.read()[-2000:]}")
            if time.monotonic() > end:
                raise BrokenWorld(f"not {devices} free devices at {self.where}")
            time.sleep(0.05)


@contextmanager
def rig(servers: int) -> Iterator[Rig]:
    """Start a tracker and servers, and end them whatever happens."""
    with tracker.Tracker(port=free_port()) as started:
        made = Rig(started, [Server(str(started.address)).start() for _ in range(servers)])
        try:
            started.wait()
            made.wait(servers)
            yield made
        finally:
            for server in made.servers:
                server.kill()
