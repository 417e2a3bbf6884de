"""TVM's RPC tracker: where it is, what it knows, and a tracker of our own.

Everything that asks it has a deadline; the stock client waits a minute for a tracker that is not there.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from cprune.targets.errors import BrokenWorld, UserError

MAGIC = 0x2F271
SUMMARY = 6
DEADLINE_S = 5.0
DEFAULT = "127.0.0.1:9190"


@dataclass(frozen=True)
class Address:
    """Where a tracker listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parsed(text: str) -> Address:
    """Return the address HOST:PORT.  Raises UserError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"{text!r} is no address of a tracker", f"Type HOST:PORT, for example {DEFAULT}.")
    return Address(host.strip("[]"), int(port))


def address(text: str = "") -> Address:
    """Return the tracker to use: this one (HOST:PORT), that of TVM_TRACKER_HOST and _PORT, or the default."""
    if text:
        return parsed(text)
    host, port = os.environ.get("TVM_TRACKER_HOST", ""), os.environ.get("TVM_TRACKER_PORT", "")
    return parsed(f"{host or '127.0.0.1'}:{port or DEFAULT.partition(':')[2]}")


@dataclass(frozen=True)
class Free:
    """The devices of one key: how many are registered, how many of them are free, how many clients wait."""

    key: str
    devices: int
    free: int
    waiting: int


def summary(where: Address, deadline_s: float = DEADLINE_S) -> list[Free]:
    """Return what the tracker knows.  Raises BrokenWorld if there is none, or it does not answer."""
    state = _asked(where, deadline_s)
    servers: dict[str, int] = {}
    for server in state.get("server_info", []):
        key = str(server.get("key", "")).partition(":")[2]
        servers[key] = servers.get(key, 0) + 1
    queues = state.get("queue_info", {})
    return [
        Free(key, servers.get(key, 0), int(queue.get("free", 0)), int(queue.get("pending", 0)))
        for key in sorted({*servers, *queues})
        for queue in [queues.get(key, {})]
    ]


def _asked(where: Address, deadline_s: float) -> dict[str, Any]:
    try:
        with socket.create_connection((where.host, where.port), timeout=deadline_s) as connection:
            connection.settimeout(deadline_s)
            connection.sendall(struct.pack("<i", MAGIC))
            if struct.unpack("<i", _received(connection, 4))[0] != MAGIC:
                raise BrokenWorld(f"what listens at {where} is no TVM tracker")
            text = json.dumps([SUMMARY]).encode()
            connection.sendall(struct.pack("<i", len(text)) + text)
            size = struct.unpack("<i", _received(connection, 4))[0]
            if not 0 <= size < 1 << 24:
                raise BrokenWorld(f"what listens at {where} is no TVM tracker")
            code, state = json.loads(_received(connection, size))
    except (OSError, struct.error) as error:
        raise BrokenWorld(
            f"no tracker answers at {where} ({error}). Start one: cprune tracker --port {where.port}"
        ) from error
    except (ValueError, TypeError) as error:
        raise BrokenWorld(f"what listens at {where} is no TVM tracker ({error})") from error
    return state if code == 0 and isinstance(state, dict) else {}


def _received(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise OSError("the connection was closed")
        received += part
    return received


class Tracker:
    """A tracker in a process group of its own, which ends as a whole."""

    def __init__(self, host: str = "127.0.0.1", port: int = 9190) -> None:
        self.address = Address(host, port)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", host, f"--port={port}", f"--port-end={port + 1}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def wait(self, deadline_s: float = 60.0) -> None:
        """Return once it answers.  Raises BrokenWorld if it does not."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end and self._process.poll() is None:
            try:
                summary(self.address, 1.0)
                return
            except BrokenWorld:
                time.sleep(0.1)
        self.close()
        raise BrokenWorld(f"the tracker did not start; is the port {self.address.port} taken?")

    def serve(self) -> None:
        """Wait until it ends by itself."""
        self._process.wait()

    def close(self) -> None:
        """End it with everything it started."""
        try:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        except ProcessLookupError:
            self._process.wait()
