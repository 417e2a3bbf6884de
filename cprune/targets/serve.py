"""The server of a device: `python serve.py --tracker HOST:PORT --key K`, or `cprune devices serve`.

It needs Python and TVM's runtime, nothing of cprune: the file is copied onto devices as it is.  It speaks the protocol
of TVM's RPC server, and differs from the stock one in what it survives.  Every session has a process of its own: a
kernel that crashes ends that process, and a client that goes away while a kernel hangs takes it along.  The server
itself loads no kernel; it registers again and waits for the next session.

RPC means that whoever reaches the port runs code here.  It listens on loopback unless told otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from typing import Any

GRACE_S = 2.0
PING_S = 2.0
RETRY_S = 1.0
UNUSED_S = 6.0  # a key that a client got from the tracker and did not use is taken back after this long
POLLRDHUP = getattr(select, "POLLRDHUP", 0x2000)


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracker", required=True, help="HOST:PORT of the tracker")
    parser.add_argument("--key", required=True, help="what the device is asked for by, without a colon")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: any)")
    parser.add_argument("--report-as", default="", help="address that clients reach this server by, if another")
    parser.add_argument("--cores", type=int, default=0, help="pin sessions to the N fastest cores (default: all)")
    options = parser.parse_args(arguments)
    if ":" in options.key or not options.key:
        parser.error(f"--key {options.key!r}: a key has no colon and is not empty")
    host, _, port = options.tracker.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--tracker {options.tracker!r}: type HOST:PORT, for example 127.0.0.1:9190")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    Server((host, int(port)), options.key, options.host, options.port, options.report_as, options.cores).run()


def say(text: str) -> None:
    """Print one line for whoever looks after the device."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Server:
    """Registers at a tracker and serves one session after the other."""

    def __init__(self, tracker: tuple[str, int], key: str, host: str, port: int, report_as: str, cores: int) -> None:
        self.tracker, self.key, self.report_as, self.cores = tracker, key, report_as, cores
        self.socket = socket.create_server((host, port), backlog=4)
        self.port = int(self.socket.getsockname()[1])
        self.connection: socket.socket | None = None
        self.lost_said, self.before = False, ""

    def run(self) -> None:
        """Serve for ever."""
        os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")
        import tvm
        from tvm.rpc import base

        self.base = base
        load_extra_library()
        say(f"cprune device server: key {self.key}, port {self.port}, TVM {tvm.__version__}, pid {os.getpid()}")
        while True:
            try:
                client, address, timeout_s = self._accepted()
            except (OSError, ValueError) as error:
                self._lost(error)
                continue
            with client:
                self._session(client, address, timeout_s)

    def _lost(self, error: Exception) -> None:
        """Forget the tracker; the next round connects again."""
        if not self.lost_said:
            say(f"no tracker at {self.tracker[0]}:{self.tracker[1]} ({error}); trying again every {RETRY_S:g} s")
            self.lost_said = True
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        time.sleep(RETRY_S)

    def _register(self) -> str:
        """Tell the tracker that this device is free; return the key that its next client brings."""
        base = self.base
        if self.connection is None:
            self.connection = socket.create_connection(self.tracker, timeout=10)
            self.connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            if struct.unpack("<i", base.recvall(self.connection, 4))[0] != base.RPC_TRACKER_MAGIC:
                raise ValueError("it is no TVM tracker")
            info = {"key": f"server:{self.key}", "addr": [self.report_as or None, self.port]}
            self._tell([base.TrackerCode.UPDATE_INFO, info])
            say(f"registered at {self.tracker[0]}:{self.tracker[1]} as {self.key}")
            self.lost_said = False
        match = base.random_key(self.key)
        self._tell([base.TrackerCode.PUT, self.key, [self.port, match], self.report_as or None])
        return str(match)

    def _tell(self, message: list[object]) -> None:
        self.base.sendjson(self.connection, message)
        if self.base.recvjson(self.connection) != self.base.TrackerCode.SUCCESS:
            raise ValueError("the tracker refused this server")

    def _accepted(self) -> tuple[socket.socket, str, float]:
        """Wait for a client with the right key; return its socket, its address and its time limit (0: none)."""
        base = self.base
        match, taken = self._register(), 0.0
        while True:
            if not select.select([self.socket], [], [], PING_S)[0]:
                base.sendjson(self.connection, [base.TrackerCode.GET_PENDING_MATCHKEYS])
                waiting = match in base.recvjson(self.connection)
                taken = 0.0 if waiting else taken + PING_S
                if taken > UNUSED_S:
                    match, taken = self._register(), 0.0
                continue
            client, address = self.socket.accept()
            client.settimeout(10)
            try:
                greeting = self._greeted(client, match)
            except (OSError, struct.error, UnicodeDecodeError):
                greeting = None
            if greeting is None:
                client.close()
                continue
            client.settimeout(None)
            keep_alive(client)
            return client, f"{address[0]}:{address[1]}", greeting

    def _greeted(self, client: socket.socket, match: str) -> float | None:
        base = self.base
        if struct.unpack("<i", base.recvall(client, 4))[0] != base.RPC_MAGIC:
            return None
        size = struct.unpack("<i", base.recvall(client, 4))[0]
        if not 0 <= size <= 4096:
            return None
        name, *words = base.recvall(client, size).decode("utf-8").split()
        if name != f"client:{match}":
            client.sendall(struct.pack("<i", base.RPC_CODE_MISMATCH))
            return None
        ours = f"server:{self.key}".encode()
        client.sendall(struct.pack("<ii", base.RPC_CODE_SUCCESS, len(ours)) + ours)
        limits = [word.partition("=")[2] for word in words if word.startswith("-timeout=")]
        return float(limits[0]) if limits else 0.0

    def _session(self, client: socket.socket, address: str, timeout_s: float) -> None:
        """Run one session in a process of its own, and see to it that it ends."""
        child = os.fork()
        if not child:
            status = 1
            try:
                self.socket.close()
                if self.connection is not None:
                    self.connection.close()
                serve(client, self.cores, self.before)
                status = 0
            finally:
                os._exit(status)
        say(f"session of {address} begins (pid {child})")
        try:
            self.before, why = self._watched(child, client, timeout_s)
        except BaseException:
            self._killed(child, "")
            raise
        say(f"session of {address} {why}")

    def _watched(self, child: int, client: socket.socket, timeout_s: float) -> tuple[str, str]:
        """Wait for the end of a session; end it after its time limit, or if its client is gone for GRACE_S.

        Return how it ended, and the same for people: "crashed"; "killed", so it was computing and saw nothing of its
        client's end; "ended", so it was listening.
        """
        hangup = select.poll()
        hangup.register(client, POLLRDHUP | select.POLLHUP | select.POLLERR)
        start, gone = time.monotonic(), 0.0
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            now = time.monotonic()
            if done:
                code = os.waitstatus_to_exitcode(status)
                if code < 0:
                    return "crashed", f"crashed ({signal.Signals(-code).name})"
                return "ended", "ended" if code == 0 else "ended: the connection was lost"
            if not gone and hangup.poll(0):
                gone = now
            if gone and now - gone > GRACE_S:
                return self._killed(child, "was ended: its client is gone")
            if timeout_s and now - start > timeout_s:
                return self._killed(child, f"was ended after its {timeout_s:g} s")
            time.sleep(0.02 if now - start < 2 else 0.1)

    def _killed(self, child: int, why: str) -> tuple[str, str]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "killed", why


def serve(client: socket.socket, cores: int, before: str) -> None:
    """Be the process of one session; `before` is how the one before ended."""
    import tempfile

    import tvm
    import tvm_ffi
    from tvm.rpc import _ffi_api

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, fastest_cores()[:cores])
    # A client chooses fewer threads, never more than the pool is made with; left alone TVM counts half of the cores.
    os.environ.setdefault("TVM_NUM_THREADS", str(available()))
    with tempfile.TemporaryDirectory(prefix="cprune-device-") as folder:

        def path(name: str) -> str:
            return os.path.join(folder, os.path.basename(name))

        def load_module(name: str) -> object:
            return tvm.runtime.load_module(path(name))

        tvm_ffi.register_global_func("tvm.rpc.server.workpath", path, override=True)
        tvm_ffi.register_global_func("tvm.rpc.server.load_module", load_module, override=True)
        tvm_ffi.register_global_func("cprune.device", lambda: json.dumps({**device(), "before": before}), override=True)
        tvm_ffi.register_global_func("cprune.time", lambda name, *args: measured(path(name), *args), override=True)
        _ffi_api.ServerLoop(client.fileno())


def measured(path: str, *arguments: Any) -> str:
    """Return the JSON of a measurement, `timed`, of an uploaded library, or ["load" | "run", what failed].

    One call over RPC instead of the eight that it is made of, each of which costs a round trip.  `arguments` are
    repeats, run_s, slow_s, cooldown_s and the kernel's arguments.  The library is removed.
    """
    import tvm

    stage = "load"
    try:
        try:
            loaded = tvm.runtime.load_module(path)
        finally:
            os.unlink(path)
        stage = "run"
        return json.dumps(timed(loaded, tvm.cpu(), list(arguments[4:]), *arguments[:4]))
    except Exception as error:  # an exception over RPC looks like a broken connection
        return json.dumps([stage, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"])


def timed(
    library: Any, device: Any, arguments: list[Any], repeats: int, run_s: float, slow_s: float, cooldown_s: float
) -> list[float]:
    """Return the seconds of `repeats` runs, or of one call alone where that takes longer than `slow_s`."""
    alone = once(library, device, arguments)
    return [alone] if alone > slow_s else runs(library, device, arguments, repeats, run_s, alone, cooldown_s)


def once(library: Any, device: Any, arguments: list[Any]) -> float:
    """Return the seconds of the second call: the first one touches the memory."""
    return float(library.time_evaluator("main", device, number=1, repeat=1)(*arguments).results[0])


def runs(
    library: Any, device: Any, arguments: list[Any], repeats: int, run_s: float, alone: float, cooldown_s: float
) -> list[float]:
    """Return the mean seconds of a call in each run; a run takes about `run_s`, where one call takes `alone`."""
    number = max(1, min(2000, int(run_s / max(alone, 1e-7))))
    pause = int(1e3 * cooldown_s)
    evaluate = library.time_evaluator(
        "main", device, number=number, repeat=repeats, cooldown_interval_ms=pause, repeats_to_cooldown=1
    )
    return [float(seconds) for seconds in evaluate(*arguments).results]


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def keep_alive(client: socket.socket) -> None:
    """Have the system ask every few seconds whether the client is there: a lost network says nothing by itself."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 15000)):
        if hasattr(socket, option):
            client.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def load_extra_library() -> None:
    """Load the part of TVM's runtime that a runtime-only installation leaves out (random arguments)."""
    import tvm

    if tvm.get_global_func("tvm.contrib.random.random_fill_for_measure", allow_missing=True) is not None:
        return
    folder = os.path.dirname(tvm.__file__)
    for place in (folder, os.path.join(folder, "lib"), os.path.join(os.path.dirname(folder), "apache_tvm.libs")):
        library = os.path.join(place, "libtvm_runtime_extra.so")
        if os.path.exists(library):
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
            return
    say("libtvm_runtime_extra.so is missing beside TVM's runtime: arguments cannot be made on this device")


# -- what the device is


def device() -> dict[str, object]:
    """Return what the device says of itself: processor, cores, memory, TVM, clocks and temperature."""
    import tvm

    return {
        "machine": os.uname().machine,
        "system": f"{os.uname().sysname} {os.uname().release}",
        "cpu": cpu(),
        "cores": available(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "tvm": str(tvm.__version__),
        "clock_khz": clock_khz(),
        "temperature_c": temperature_c(),
    }


def cpu() -> str:
    """Return the processors' names and part numbers, each once with how many there are; "emulated …" where it is.

    An emulator of user programs (qemu-user) tells another machine than the kernel runs on.
    """
    processors: Counter[str] = Counter()
    lines = _lines("/proc/cpuinfo")
    machine = os.uname().machine
    kernel = "".join(_lines("/proc/sys/kernel/arch"))
    foreign = any(line.startswith(("vendor_id", "flags")) for line in lines) and machine not in ("x86_64", "i686")
    if foreign or kernel not in ("", machine):
        return f"emulated {machine}"
    parts: list[str] = []
    for line in [*lines, ""]:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "CPU implementer", "CPU part", "isa", "uarch"):
            parts.append(value.strip())
        elif not line.strip() and parts:
            processors[" ".join(parts)] += 1
            parts = []
    return ", ".join(f"{count} x {text}" for text, count in sorted(processors.items())) or os.uname().machine


def available() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fastest_cores() -> list[int]:
    """Return the cores that this process may use, those with the highest clock first."""
    allowed = sorted(os.sched_getaffinity(0))
    return sorted(allowed, key=lambda core: -_number(f"/sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq"))


def clock_khz() -> int:
    """Return the current clock of the fastest core; 0 where it is not told."""
    best = fastest_cores()[:1] if hasattr(os, "sched_getaffinity") else []
    return max((_number(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq") for core in best), default=0)


def temperature_c() -> float | None:
    """Return the temperature of the hottest zone that is about the processor; None where it is not told."""
    zones = "/sys/class/thermal"
    degrees: list[float] = []
    for zone in sorted(os.listdir(zones)) if os.path.isdir(zones) else []:
        kind = " ".join(_lines(f"{zones}/{zone}/type")).lower()
        value = _number(f"{zones}/{zone}/temp")
        if value and any(word in kind for word in ("cpu", "soc", "x86_pkg", "tsens", "core")):
            degrees.append(value / 1000 if value > 1000 else float(value))
    return max(degrees, default=None)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _number(path: str) -> int:
    text = "".join(_lines(path)[:1]).strip()
    return int(text) if text.lstrip("-").isdigit() else 0


if __name__ == "__main__":
    main()
