"""A device behind a bad network: two network namespaces, joined by a cable that delays and loses packets.

It stands for a phone over Wi-Fi.  Needs root, `ip` and `tc` with netem; skipped elsewhere.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from contracts import time_once
from kernels import doubled
from rpc_rig import KEY, SERVE, Server, free_port

from cprune.targets import link
from cprune.targets.remote import tracker
from cprune.targets.remote.rpc import RpcSession
from cprune.targets.session import Built, Timed
from cprune.targets.target import Target, Timing, find

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not link.linkers("x86_64-linux-gnu"), reason="no linker for x86_64-linux-gnu"),
]

HERE, THERE = "10.203.7.1", "10.203.7.2"


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


class Cable:
    """A namespace and the cable to it."""

    def __init__(self) -> None:
        self.space, self.ours, self.theirs = (f"cprune{part}{os.getpid() % 10000}" for part in ("n", "a", "b"))

    def __enter__(self) -> Cable:
        run("ip", "netns", "add", self.space)
        run("ip", "link", "add", self.ours, "type", "veth", "peer", "name", self.theirs, "netns", self.space)
        run("ip", "addr", "add", f"{HERE}/24", "dev", self.ours)
        run("ip", "link", "set", self.ours, "up")
        run(*self.inside("ip", "addr", "add", f"{THERE}/24", "dev", self.theirs))
        run(*self.inside("ip", "link", "set", self.theirs, "up"))
        run(*self.inside("ip", "link", "set", "lo", "up"))
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "netns", "del", self.space], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self.ours], capture_output=True, check=False)

    def inside(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.space, *words]

    def shaped(self, *words: str) -> None:
        """Set what the cable does in both directions, in tc's words."""
        run("tc", "qdisc", "replace", "dev", self.ours, "root", *words)
        run(*self.inside("tc", "qdisc", "replace", "dev", self.theirs, "root", *words))

    def plugged(self, there: bool) -> None:
        """Pull the plug on the far side, or put it back."""
        run(*self.inside("ip", "link", "set", self.theirs, "up" if there else "down"))


@pytest.fixture
def cable() -> Iterator[Cable]:
    if not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("ip or tc is missing")
    made = Cable()
    try:
        made.__enter__()
    except subprocess.CalledProcessError as error:
        made.__exit__()
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield made
    made.__exit__()


@pytest.fixture
def target(cable: Cable) -> Iterator[Target]:
    with tracker.Tracker(HERE, free_port()) as started:
        started.wait()
        where = str(started.address)
        server = Server(where, cable.inside(sys.executable, str(SERVE), "--host", THERE)).start()
        try:
            deadline = time.monotonic() + 60
            while not tracker.summary(started.address):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            made = replace(find("linux-x86_64", threads=1), key=KEY, tracker=where, device_timeout_s=60.0)
            yield replace(made, timing=Timing(3, 0.5, 15.0))
        finally:
            server.kill()


def median_s(session: RpcSession, built: Built) -> float:
    (timed,) = session.time([built])
    assert isinstance(timed, Timed)
    return statistics.median(timed.runs_s)


def test_delay_and_loss_do_not_reach_the_timings(cable: Cable, target: Target) -> None:
    with RpcSession(target) as session:
        (built,) = session.build([doubled()])
        assert isinstance(built, Built)
        good = median_s(session, built)
        try:
            cable.shaped("netem", "delay", "40ms", "10ms", "loss", "2%")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this kernel has no netem: {error.stderr.decode().strip()}")
        bad = median_s(session, built)
        assert bad < 1e-3  # 64 additions; one round trip alone is 80 ms
        assert bad < 20 * good


def test_a_slow_line_does_not_reach_the_timings(cable: Cable, target: Target) -> None:
    with RpcSession(target) as session:
        (built,) = session.build([doubled()])
        assert isinstance(built, Built)
        good = median_s(session, built)
        with Path(session._libraries.path(built.handle)).open("ab") as file:
            file.write(bytes(1 << 20))
        (again,) = session.build([doubled()])
        assert isinstance(again, Built)
        cable.shaped("tbf", "rate", "2mbit", "burst", "16k", "latency", "400ms")
        slow = median_s(session, again)
        assert slow < 1e-3
        assert slow < 20 * good


def test_a_connection_cut_while_a_library_is_sent_is_mended(cable: Cable, target: Target) -> None:
    said: list[str] = []
    with RpcSession(target, say=said.append) as session:
        (built,) = session.build([doubled()])
        assert isinstance(built, Built)
        with Path(session._libraries.path(built.handle)).open("ab") as file:
            file.write(bytes(30 << 20))
        cable.shaped("tbf", "rate", "50mbit", "burst", "64k", "latency", "400ms")  # five seconds to send
        cut = threading.Timer(1.0, cable.plugged, (False,))
        mended = threading.Timer(20.0, cable.plugged, (True,))
        cut.start(), mended.start()
        start = time.monotonic()
        (answer,) = session.time([built])
        spent = time.monotonic() - start
        mended.join()
        assert isinstance(answer, Timed), (answer, said)
        assert 19 < spent < 60
        assert isinstance(time_once(session, doubled()), Timed)
