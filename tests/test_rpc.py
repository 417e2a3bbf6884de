"""The session over a tracker, with a real tracker and real servers on loopback, and what can go wrong with them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contracts import MachineContract, run_once, time_once
from kernels import crashing, doubled, hanging
from rpc_rig import KEY, Rig, Server, free_port, rig

from cprune.targets import link
from cprune.targets.errors import BrokenWorld, Bug, DeviceLost, UserError
from cprune.targets.remote import device, tracker
from cprune.targets.remote.client import GONE, Client
from cprune.targets.remote.rpc import RpcSession
from cprune.targets.session import Built, Failure, Timed
from cprune.targets.target import Timing, find, with_threads
from cprune.tuner.programs import program as programs
from cprune.tuner.programs.workload import Elementwise, key
from cprune.tuner.records.store import Store
from cprune.tuner.tune import Tuner

pytestmark = pytest.mark.skipif(not link.linkers("x86_64-linux-gnu"), reason="no linker for x86_64-linux-gnu")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is not back within two seconds is given up, so that the tests do not wait for ten."""
    monkeypatch.setattr(device, "BACK_S", 2.0)


@pytest.fixture(scope="module")
def one() -> Iterator[Rig]:
    with rig(1) as made:
        yield made


@pytest.fixture(scope="module")
def session(one: Rig) -> Iterator[RpcSession]:
    with RpcSession(one.target()) as made:
        yield made


# -- the way it should be


class TestSession(MachineContract):
    """A device does what every machine does."""


def test_the_target_learns_the_device_s_processor(session: RpcSession) -> None:
    (told,) = session.devices
    assert session.target.cpu == told["cpu"] != ""
    assert told["threads"] == 1
    assert told["machine"] == os.uname().machine
    assert 0 < told["round_trip_ms"] < 1e3


# -- what kernels do


@pytest.mark.slow
def test_a_kernel_that_hangs_ends_at_the_deadline_and_the_next_one_is_fine() -> None:
    with rig(1) as made, RpcSession(made.target(timing=Timing(2, 0.2, deadline_s=2.0))) as session:
        start = time.monotonic()
        failed = time_once(session, hanging())
        assert isinstance(failed, Failure)
        assert failed.stage == "timeout"
        assert isinstance(time_once(session, doubled()), Timed)
        assert time.monotonic() - start < 20


def test_a_program_with_wrong_numbers_is_timed_and_never_wins(
    session: RpcSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubling = Elementwise(("scale", ("in", 0), 2.0), (((1, 16, 4, 4), 16),), (1, 16, 4, 4), 16)
    tripling = replace(doubling, expression=("scale", ("in", 0), 3.0))
    right = programs.module_of
    monkeypatch.setattr(programs, "module_of", lambda w, c: right(tripling if c["parallel"] == "none" else w, c))
    target = with_threads(session.target, 2)  # so that there are two programs; the device still has one thread
    with Store(tmp_path / "records.sqlite") as store:
        best = Tuner(session, store, target).tune(doubling, 2)
        (wrong,) = (r for r in store.of_task(key(doubling), target.fingerprint) if r.failure)
    assert best.candidate["parallel"] == "outer"
    assert (wrong.failure, wrong.candidate) == ("check", '{"parallel":"none"}')
    assert "differs from PyTorch" in wrong.reason


@pytest.mark.slow
def test_a_stock_server_serves_too_with_more_calls_over_the_network() -> None:
    with rig(0) as made:
        made.servers.append(Server(made.where, (sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1")))
        made.servers[0].start()
        made.wait(1)
        with RpcSession(made.target()) as stock:
            timed = time_once(stock, doubled())
            ran = run_once(stock, doubled(), [np.ones(64, np.float32)])
    assert isinstance(timed, Timed)
    assert len(timed.runs_s) == 2
    assert isinstance(ran, Timed)
    assert ran.output is not None
    assert np.array_equal(ran.output, np.full(64, 2.0, np.float32))


def test_a_library_that_cannot_be_loaded_is_a_failed_candidate(session: RpcSession) -> None:
    (built,) = session.build([doubled()])
    assert isinstance(built, Built)
    library = Path(session._libraries.path(built.handle))
    library.write_bytes(library.read_bytes()[:64])
    (failed,) = session.time([built])
    assert isinstance(failed, Failure)
    assert failed.stage == "load"
    assert isinstance(time_once(session, doubled()), Timed)


def test_a_bug_of_ours_surfaces_from_the_builder_and_from_the_device_s_process(session: RpcSession) -> None:
    with pytest.raises(Bug, match=r"(?s)builder\.py.*AttributeError"):
        session._libraries.builder.ask("build", (["p"], [None], "{}", False), 60)
    with pytest.raises(Bug, match=r"(?s)client\.py.*TypeError"):
        session._pool.devices[0].ask("time", ("p0.so", 64, 1, 1e-3, 1.0, 0.0), 60)
    assert isinstance(time_once(session, doubled()), Timed)


def test_a_model_that_went_with_an_earlier_session_is_a_failure_and_no_bug() -> None:
    client = object.__new__(Client)
    client.models = {}
    assert client.run("model", []) == client.time_models(["model"], [], 1, 1e-3, 0.0) == GONE
    assert not device.broke(GONE)


def test_a_library_for_another_machine_is_refused_before_it_is_sent(session: RpcSession, tmp_path: Path) -> None:
    failed = session.hold("other", elf_for(tmp_path, 183), ())
    assert isinstance(failed, Failure)
    assert failed.stage == "load"
    assert "aarch64" in failed.reason
    assert isinstance(time_once(session, doubled()), Timed)


def elf_for(folder: Path, machine: int) -> Path:
    from test_build import elf

    return elf(folder / "model.so", machine)


# -- no tracker, no device


def test_without_a_tracker_the_message_says_how_to_start_one() -> None:
    port = free_port()
    target = replace(find("linux-x86_64", threads=1), tracker=f"127.0.0.1:{port}", device_timeout_s=0.5)
    with pytest.raises(DeviceLost, match=rf"no tracker answers at 127.0.0.1:{port}.*cprune tracker --port {port}"):
        RpcSession(target)


def test_what_is_no_tracker_is_said_to_be_none() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def answer() -> None:
            client, _ = other.accept()
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            client.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(BrokenWorld, match="is no TVM tracker"):
            tracker.summary(tracker.Address("127.0.0.1", port))


def test_without_a_device_the_wait_is_counted_down_and_ends(one: Rig) -> None:
    waits: list[str] = []
    said: list[str] = []
    with pytest.raises(DeviceLost, match=r"no device is registered under the key 'nobody'.*cprune devices"):
        RpcSession(one.target(key="nobody", device_timeout_s=2.5), waits.append, said.append)
    assert 2 <= len([text for text in waits if text]) <= 4  # once a second
    assert next(text for text in waits if text).startswith("waiting for a device: ")
    assert waits[-1] == ""
    assert len(said) == 1


def test_a_device_in_use_is_said_to_be_in_use(one: Rig, session: RpcSession) -> None:
    with pytest.raises(DeviceLost, match="every device under the key 'test' is in use"):
        RpcSession(one.target(device_timeout_s=0.5))


def test_more_threads_than_the_device_gives_are_refused(one: Rig) -> None:
    # TVM's pool takes any number; a device that does not is one whose answer differs from what was asked for.
    from cprune.targets.remote.device import Device

    two = Device("x", one.tracker.address, KEY, 2)
    assert "got 1 threads on the device, not 2" in two._greeted({"threads": 1, "cpu": "x"})


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core only")
def test_a_device_computes_with_as_many_threads_as_were_asked_for() -> None:
    with rig(1) as made, RpcSession(with_threads(made.target(), 2)) as session:
        assert session.devices[0]["threads"] == 2
        assert isinstance(time_once(session, doubled()), Timed)


# -- devices that go away


@pytest.mark.slow
def test_a_device_that_is_killed_and_started_again_is_waited_for() -> None:
    said: list[str] = []
    with rig(1) as made, RpcSession(made.target(), say=said.append) as session:
        assert isinstance(time_once(session, doubled()), Timed)
        made.servers[0].kill()
        back: list[float] = []

        def again() -> None:
            time.sleep(5)
            made.servers[0] = Server(made.where).start()
            made.wait(1)
            back.append(time.monotonic())

        threading.Thread(target=again, daemon=True).start()
        assert isinstance(time_once(session, doubled()), Timed)
        assert time.monotonic() - back[0] < 10
        assert any("is gone" in text for text in said)
        assert said[-1] == "1 device is back"


@pytest.mark.slow
def test_a_frozen_device_times_out_and_is_used_again_when_it_thaws() -> None:
    with rig(1) as made, RpcSession(made.target(timing=Timing(2, 0.2, deadline_s=2.0))) as session:
        assert isinstance(time_once(session, doubled()), Timed)
        made.servers[0].signal(signal.SIGSTOP)
        threading.Timer(8, lambda: made.servers[0].signal(signal.SIGCONT)).start()
        start = time.monotonic()
        answer = time_once(session, doubled())
        assert isinstance(answer, Timed)
        assert 7 < time.monotonic() - start < 25


@pytest.mark.slow
def test_one_of_two_devices_gone_costs_no_measurement() -> None:
    said: list[str] = []
    with rig(2) as made, RpcSession(made.target(), say=said.append) as session:
        assert len(session.devices) == 2
        built = [b for b in session.build([doubled() for _ in range(12)]) if isinstance(b, Built)]
        made.servers[1].kill()
        answers = session.time(built)
        assert all(isinstance(answer, Timed) for answer in answers)
        assert len(session.devices) == 1
        assert any("is gone" in text for text in said)


@pytest.mark.slow
def test_what_was_timed_before_the_last_device_went_is_not_lost() -> None:
    with rig(1) as made, RpcSession(made.target(device_timeout_s=1.0)) as session:
        built = [b for b in session.build([doubled() for _ in range(40)]) if isinstance(b, Built)]
        threading.Timer(0.15, made.servers[0].kill).start()
        with pytest.raises(DeviceLost) as lost:  # noqa: PT012 - it takes some rounds until the device is gone
            while True:
                session.time(built)
        assert len(lost.value.answers) == 40
        assert all(a is None or isinstance(a, Timed) for a in lost.value.answers)


@pytest.mark.slow
def test_a_tracker_that_ends_in_the_middle_does_not_disturb_a_session_that_runs() -> None:
    with rig(1) as made, RpcSession(made.target(device_timeout_s=1.0)) as session:
        made.tracker.close()
        assert isinstance(time_once(session, doubled()), Timed)
        with pytest.raises(DeviceLost, match="no tracker answers"):  # only a new session needs it
            time_once(session, crashing())


@pytest.mark.slow
def test_servers_find_a_tracker_that_was_started_again() -> None:
    with rig(1) as made:
        port = made.tracker.address.port
        made.tracker.close()
        with tracker.Tracker(port=port) as again:
            again.wait()
            made.wait(1, deadline_s=20)


def test_a_client_that_dies_gives_its_device_back(one: Rig, session: RpcSession) -> None:
    session.close()
    one.wait(1)
    with RpcSession(one.target()) as mine:
        pid = mine._pool.devices[0]._process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        one.wait(1, deadline_s=10)


# -- connections that are cut


@pytest.mark.slow
def test_a_connection_cut_while_a_library_is_sent_is_tried_again(tmp_path: Path) -> None:
    with rig(1) as made, RpcSession(made.target(timing=Timing(2, 0.2, 60.0))) as session:
        (built,) = session.build([doubled()])
        assert isinstance(built, Built)
        library = Path(session._libraries.path(built.handle))
        with library.open("ab") as file:  # what follows an ELF file's sections does no harm, and takes time to send
            file.write(bytes(150 << 20))
        (first,) = made.servers[0].sessions()
        threading.Timer(0.1, os.kill, (first, signal.SIGKILL)).start()
        assert isinstance(session.time([built])[0], Timed)
        assert made.servers[0].sessions() != [first]


def test_a_server_refuses_whoever_does_not_bring_the_key() -> None:
    import socket
    import struct

    with rig(1) as made:
        (port,) = ports_of(made.servers[0])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(struct.pack("<ii", 0xFF271, 4) + b"abcd")
            assert struct.unpack("<i", stranger.recv(4))[0] != 0xFF271
        with socket.create_connection(("127.0.0.1", port), timeout=15) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(4) == b""
        with RpcSession(made.target()) as session:
            assert isinstance(time_once(session, doubled()), Timed)


def ports_of(server: Server) -> set[int]:
    """Return the ports on which a server listens, all of them on loopback."""
    import psutil

    assert server.process is not None
    found = psutil.Process(server.process.pid).net_connections("tcp")
    listening = [c for c in found if c.status == psutil.CONN_LISTEN]
    assert all(c.laddr.ip == "127.0.0.1" for c in listening)
    return {c.laddr.port for c in listening}


def test_a_missing_linker_is_said_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "linkers", lambda triple: [])
    with pytest.raises(UserError, match="no linker for"):
        RpcSession(find("linux-x86_64"))
