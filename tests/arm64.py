"""An AArch64 device on this machine: the bundle that goes onto phones, run by qemu's user emulation.

What it needs is downloaded once (apt for the packages, pip for the wheels) and kept in a cache folder.  No root: qemu
itself is unpacked from its Debian package where it is not installed.  Latencies mean nothing here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from cprune.targets.errors import CpruneError
from cprune.targets.remote import bundle

QEMU = "qemu-aarch64-static"


def cache() -> Path:
    """Return the folder that keeps what was downloaded."""
    base = os.environ.get("CPRUNE_TEST_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "cprune-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def qemu() -> str:
    """Return the emulator; skips where there is none and none can be had."""
    found = shutil.which(QEMU)
    if found:
        return found
    folder = cache() / "qemu"
    kept = folder / "usr" / "bin" / QEMU
    if not kept.exists():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                pytest.skip(f"neither {QEMU} nor {tool} is there")
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["apt-get", "-q", "download", "qemu-user-static"], cwd=folder, capture_output=True)
        debs = list(folder.glob("*.deb"))
        if done.returncode or not debs:
            pytest.skip(f"{QEMU} cannot be downloaded: {done.stderr.decode().strip()[-200:]}")
        with tempfile.TemporaryDirectory() as scratch:  # the package has an emulator for every processor there is
            subprocess.run(["dpkg-deb", "-x", str(debs[0]), scratch], check=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(scratch) / "usr" / "bin" / QEMU, kept)
        debs[0].unlink()
    return str(kept)


def server() -> tuple[list[str], dict[str, str]]:
    """Return the command that starts the emulated device's server, and its environment."""
    emulator = qemu()
    archive, folder = cache() / "server.tar.gz", cache() / "server"
    key = str(os.path.getmtime(bundle.__file__)) + str(os.path.getmtime(bundle.serve.__file__))
    stamp = folder / ".made-of"
    if not stamp.exists() or stamp.read_text() != key:
        try:
            bundle.write(archive, "linux-arm64", cache() / "downloads", print)
        except CpruneError as error:
            pytest.skip(f"no AArch64 server: {error}")
        shutil.rmtree(folder, ignore_errors=True)
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="fully_trusted")
        stamp.write_text(key)
    return [str(folder / "cprune-device" / "run.sh")], {"CPRUNE_EMULATOR": emulator}
