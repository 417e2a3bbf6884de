"""Phones on a cable: the server goes there by adb, and both directions go through the cable.

The phone reaches the tracker on this machine by `adb reverse`, this machine reaches the phone's server by
`adb forward`; every phone has a port of its own, and nothing listens on a network.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.remote.tracker import Address, summary

FOLDER = "/data/local/tmp"
PUSH_DEADLINE_S = 600.0
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Phone:
    """A phone as adb knows it, and the port that its server gets."""

    serial: str
    port: int


def push(
    archive: Path,
    key: str,
    tracker: Address,
    serials: Sequence[str],
    port: int,
    cores: int,
    say: Callable[[str], None],
) -> None:
    """Unpack the bundle on every phone (or those of `serials`), start its server, and wait until Ctrl-C.

    Raises UserError without adb, a phone or a tracker, BrokenWorld where adb fails.
    """
    if shutil.which("adb") is None:
        raise UserError(
            "adb is missing", "Install it (Debian: apt install adb) and connect a phone with USB debugging."
        )
    if not archive.is_file():
        raise UserError(f"there is no {archive}", f"Make it: cprune devices bundle --target android-arm64 {archive}")
    if tracker.host not in ("127.0.0.1", "localhost"):
        raise UserError(f"the tracker {tracker} is not on this machine", "adb brings the phones here: cprune tracker")
    summary(tracker)
    phones = [Phone(serial, port + index) for index, serial in enumerate(_serials(serials))]
    servers = [_started(phone, archive, key, tracker, cores, say) for phone in phones]
    say(f"{len(phones)} phone{'s' if len(phones) > 1 else ''} under the key {key!r}; Ctrl-C ends their servers")
    try:
        while True:
            for phone, server in zip(phones, servers, strict=True):
                if server.poll() is not None:
                    raise BrokenWorld(f"the server on {phone.serial} ended (exit code {server.returncode})")
            time.sleep(0.5)
    finally:
        for phone, server in zip(phones, servers, strict=True):
            server.terminate()
            _quiet(phone, "shell", f"pkill -f {FOLDER}/cprune-device/serve.py")
            _quiet(phone, "forward", "--remove", f"tcp:{phone.port}")
            _quiet(phone, "reverse", "--remove", f"tcp:{tracker.port}")


def _serials(chosen: Sequence[str]) -> list[str]:
    """Return the serial numbers of the phones to use: those of `chosen`, all if it is empty."""
    lines = _adb(["devices"], DEADLINE_S).splitlines()[1:]
    states = {parts[0]: parts[1] for line in lines if len(parts := line.split()) >= 2}
    for serial, state in states.items():
        if state == "unauthorized" and (not chosen or serial in chosen):
            raise UserError(f"the phone {serial} does not allow USB debugging", "Unlock it and accept this computer.")
    ready = [serial for serial, state in states.items() if state == "device"]
    missing = [serial for serial in chosen if serial not in ready]
    if missing or not ready:
        known = f"adb sees {', '.join(ready)}" if ready else "adb sees none"
        raise UserError(
            f"no phone {', '.join(missing)}: {known}" if missing else "adb sees no phone",
            "Connect it, switch on USB debugging, and look at: adb devices",
        )
    return [serial for serial in ready if not chosen or serial in chosen]


def _started(
    phone: Phone, archive: Path, key: str, tracker: Address, cores: int, say: Callable[[str], None]
) -> subprocess.Popen[bytes]:
    """Bring the bundle there if another one is there, and start the server."""
    there = f"{FOLDER}/{archive.name}"
    size = archive.stat().st_size
    if _shell(phone, f"stat -c %s {shlex.quote(there)} 2>/dev/null || true").strip() != str(size):
        say(f"{phone.serial}: pushing {size / 1e6:.0f} MB")
        _adb(["-s", phone.serial, "push", str(archive), there], PUSH_DEADLINE_S)
        _shell(phone, f"cd {FOLDER} && rm -rf cprune-device && tar xzf {shlex.quote(there)}", PUSH_DEADLINE_S)
    _adb(["-s", phone.serial, "reverse", f"tcp:{tracker.port}", f"tcp:{tracker.port}"], DEADLINE_S)
    _adb(["-s", phone.serial, "forward", f"tcp:{phone.port}", f"tcp:{phone.port}"], DEADLINE_S)
    command = (
        f"{FOLDER}/cprune-device/run.sh --tracker 127.0.0.1:{tracker.port} --key {shlex.quote(key)} "
        f"--port {phone.port} --report-as 127.0.0.1 --cores {cores}"
    )
    say(f"{phone.serial}: server on port {phone.port}")
    return subprocess.Popen(["adb", "-s", phone.serial, "shell", command], stdin=subprocess.DEVNULL)


def _shell(phone: Phone, command: str, deadline_s: float = DEADLINE_S) -> str:
    return _adb(["-s", phone.serial, "shell", command], deadline_s)


def _quiet(phone: Phone, *words: str) -> None:
    subprocess.run(["adb", "-s", phone.serial, *words], capture_output=True, check=False, timeout=DEADLINE_S)


def _adb(words: Sequence[str], deadline_s: float) -> str:
    try:
        done = subprocess.run(["adb", *words], capture_output=True, text=True, check=False, timeout=deadline_s)
    except subprocess.TimeoutExpired as error:
        raise BrokenWorld(f"adb {' '.join(words[:4])} did not end within {deadline_s:g} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise BrokenWorld(f"adb {' '.join(words[:4])}: {said[-1][:300]}")
    return done.stdout
