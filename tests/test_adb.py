"""`cprune devices push` with phones that are folders of this machine: adb is a script here, everything else is real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rpc_rig import SERVE, free_port

from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.remote import adb, tracker
from cprune.targets.remote.tracker import Address

ADB = """#!/usr/bin/env python3
import os, shutil, subprocess, sys
here = os.path.dirname(os.path.abspath(__file__))
words = sys.argv[1:]
with open(os.path.join(here, "log"), "a") as log:
    print(*words, file=log)
if words == ["devices"]:
    print("List of devices attached")
    print(open(os.path.join(here, "phones")).read(), end="")
    sys.exit()
assert words[0] == "-s"
phone, words = os.path.join(here, words[1]), words[2:]
os.makedirs(phone, exist_ok=True)
there = lambda text: text.replace("/data/local/tmp", phone)
if words[0] == "push":
    shutil.copy(words[1], there(words[2]))
elif words[0] == "shell":
    sys.exit(subprocess.run(["sh", "-c", there(words[1])]).returncode)
"""


@pytest.fixture
def phones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "adb").write_text(ADB)
    (folder / "adb").chmod(0o755)
    (folder / "phones").write_text("one\tdevice\ntwo\tdevice\n")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A bundle with this machine's Python instead of one for a phone."""
    root = tmp_path / "cprune-device"
    root.mkdir()
    (root / "serve.py").write_text(SERVE.read_text())
    (root / "run.sh").write_text(f'#!/bin/sh\nexec {sys.executable} "$(dirname "$0")/serve.py" "$@"\n')
    (root / "run.sh").chmod(0o755)
    with tarfile.open(tmp_path / "server.tar.gz", "w:gz") as packed:
        packed.add(root, root.name)
    return tmp_path / "server.tar.gz"


@pytest.fixture
def address() -> Iterator[Address]:
    with tracker.Tracker(port=free_port()) as started:
        started.wait()
        yield started.address


def test_every_phone_gets_the_server_on_a_port_of_its_own(phones: Path, archive: Path, address: Address) -> None:
    root = Path(__file__).parents[1]
    port = free_port()
    words = ["push", str(archive), "--tracker", str(address), "--key", "phone", "--port", str(port)]
    pushing = subprocess.Popen(
        [sys.executable, "-m", "cprune.cli", "devices", *words],
        env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores Ctrl-C
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not any(k.key == "phone" and k.free == 2 for k in tracker.summary(address)):
            assert pushing.poll() is None, pushing.communicate()
            assert time.monotonic() < end
            time.sleep(0.1)
        log = (phones / "log").read_text().splitlines()
        assert f"-s one forward tcp:{port} tcp:{port}" in log
        assert f"-s two forward tcp:{port + 1} tcp:{port + 1}" in log
        assert f"-s one reverse tcp:{address.port} tcp:{address.port}" in log
    finally:
        pushing.send_signal(signal.SIGINT)
        _, errors = pushing.communicate(timeout=30)
    assert pushing.returncode == 130, errors
    assert f"-s one forward --remove tcp:{port}" in (phones / "log").read_text()
    end = time.monotonic() + 15
    while any(k.devices for k in tracker.summary(address)):  # the servers ended with it
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_bundle_that_is_there_is_not_sent_again(phones: Path, archive: Path) -> None:
    phone = adb.Phone("one", 9100)
    for _ in range(2):
        adb._started(phone, archive, "k", Address("127.0.0.1", 1), 0, print).kill()
    assert (phones / "log").read_text().count(" push ") == 1


def push(archive: Path, address: Address, *serials: str) -> None:
    adb.push(archive, "phone", address, serials, 9100, 0, print)


def test_what_is_missing_is_said(phones: Path, archive: Path, address: Address) -> None:
    with pytest.raises(UserError, match="no phone three: adb sees one, two"):
        push(archive, address, "three")
    (phones / "phones").write_text("one\tunauthorized\n")
    with pytest.raises(UserError, match="does not allow USB debugging"):
        push(archive, address)
    (phones / "phones").write_text("")
    with pytest.raises(UserError, match="adb sees no phone"):
        push(archive, address)
    with pytest.raises(UserError, match="cprune devices bundle"):
        push(archive.with_name("other.tar.gz"), address)
    with pytest.raises(UserError, match="is not on this machine"):
        push(archive, Address("10.0.0.1", 9190))
    with pytest.raises(BrokenWorld, match="cprune tracker"):
        push(archive, Address("127.0.0.1", free_port()))


def test_without_adb_the_user_is_told_to_install_it(
    archive: Path, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="adb is missing"):
        push(archive, address)
