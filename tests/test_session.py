"""The session on this machine survives what kernels do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contracts import MachineContract, time_once
from kernels import crashing, doubled, hanging, tripled

from cprune.targets.errors import Bug, UserError, ours
from cprune.targets.local import LocalSession
from cprune.targets.session import Built, Failure, Program, Timed
from cprune.targets.target import Target, Timing, find


@pytest.fixture
def own(target: Target) -> Any:
    with LocalSession(replace(target, timing=Timing(2, 0.2, 3.0))) as made:
        yield made


class TestSession(MachineContract):
    """This machine does what every machine does."""


def test_what_was_built_is_built_again_when_the_worker_was_replaced(own: LocalSession) -> None:
    (built,) = own.build([doubled()])
    assert isinstance(built, Built)
    os.kill(own.worker_pid, signal.SIGKILL)  # type: ignore[arg-type]
    answers = [own.time([built])[0] for _ in range(2)]
    assert isinstance(answers[-1], Timed)


@pytest.mark.slow
def test_a_build_that_never_ends_is_one_programs_failure(own: LocalSession, monkeypatch: pytest.MonkeyPatch) -> None:
    # The worker meets a module whose build does not come back; the real thing is a compiler in an endless loop.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "endless_build"))
    own.close()
    endless = Program('"endless"', ((1,), (1,)))
    answers = own.build([doubled(), endless, tripled()])
    assert [type(answer) for answer in answers] == [Built, Failure, Built]
    assert answers[1].stage == "timeout"  # type: ignore[union-attr]


def test_a_kernel_that_crashes_is_a_failed_candidate_and_the_next_one_is_fine(own: LocalSession) -> None:
    failed = time_once(own, crashing())
    assert isinstance(failed, Failure)
    assert failed.stage == "run"
    assert "SIG" in failed.reason
    assert isinstance(time_once(own, doubled()), Timed)


def test_a_kernel_that_hangs_ends_at_the_deadline_and_the_next_one_is_fine(own: LocalSession) -> None:
    assert isinstance(time_once(own, doubled()), Timed)
    start = time.monotonic()
    failed = time_once(own, hanging())
    assert failed == Failure("timeout", "no answer within 3 s")
    assert time.monotonic() - start < 6
    assert isinstance(time_once(own, doubled()), Timed)


def test_a_worker_killed_from_outside_is_replaced(own: LocalSession) -> None:
    assert isinstance(time_once(own, doubled()), Timed)
    assert own.worker_pid is not None
    os.kill(own.worker_pid, signal.SIGKILL)
    answers = [time_once(own, doubled()) for _ in range(2)]
    assert isinstance(answers[-1], Timed)


def test_the_worker_ends_with_a_parent_that_is_killed_while_a_kernel_hangs() -> None:
    # The parent says which process its worker is, asks it to run a kernel without an end, and is then killed.
    code = """
        import sys, threading
        sys.path.insert(0, "tests")
        from contracts import time_once
        from kernels import doubled, hanging
        from cprune.targets.local import LocalSession
        from cprune.targets.target import find
        session = LocalSession(find("local"))
        time_once(session, doubled())
        print(session.worker_pid, flush=True)
        time_once(session, hanging())
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(1)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_pool_has_the_threads_of_the_target(target: Target) -> None:
    one = find("local", 1)
    with LocalSession(replace(one, timing=Timing(2, 0.2, 5.0))) as session:
        assert isinstance(time_once(session, doubled()), Timed)  # the worker refuses to start with another number
    assert one.fingerprint != find("local").fingerprint or target.threads == 1


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(UserError, match="--threads 4096"):
        find("local", 4096)


def test_an_unknown_target_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown target 'lokal'") as caught:
        find("lokal")
    assert "Did you mean 'local'?" in str(caught.value)


def test_a_process_outlives_the_thread_that_asked_first(target: Target) -> None:
    """Linux ends a process with the thread that started it, if it asked to be ended with its parent."""
    import threading

    with LocalSession(target) as session:
        first: list[Any] = []
        asking = threading.Thread(target=lambda: first.append(time_once(session, doubled())))
        asking.start()
        asking.join()
        pid = session.worker_pid
        time.sleep(0.5)
        assert isinstance(time_once(session, doubled()), Timed)
        assert session.worker_pid == pid


def _own_worker(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let every worker that starts from now on run this code first."""
    (folder / "sitecustomize.py").write_text(textwrap.dedent(code))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_bug_of_ours_in_the_worker_surfaces_with_its_traceback(own: LocalSession) -> None:
    (built,) = own.build([doubled()])
    assert isinstance(built, Built)
    own._alive[999] = own._alive[built.handle]  # a session that forgets what its worker holds
    for _ in range(2):
        with pytest.raises(Bug, match=r"(?s)worker\.py.*in time.*KeyError: 999"):
            own.time([replace(built, handle=999)])
    assert isinstance(own.time([built])[0], Timed)  # and the worker lives on


def test_a_bug_of_ours_while_a_program_is_built_is_no_failure_of_the_program(
    own: LocalSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _own_worker(tmp_path, monkeypatch, "import tvm\ntvm.ir.load_json = lambda text: text.nonsense")
    with pytest.raises(Bug, match=r"AttributeError: 'str' object has no attribute 'nonsense'"):
        own.build([doubled()])


def test_the_last_words_of_a_worker_are_in_the_reason(
    own: LocalSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What LLVM does where it has no instruction for something.
    _own_worker(
        tmp_path,
        monkeypatch,
        """
        import os, sys, tvm
        def abort(text):
            sys.stderr.write("x" * 5000 + "\\nLLVM ERROR: Cannot select: t7: v8f32 = fpowi\\nIn function: main\\n")
            sys.stderr.flush()
            os.abort()
        tvm.ir.load_json = abort
        """,
    )
    failed = time_once(own, doubled())
    assert isinstance(failed, Failure)
    assert failed.stage == "build"
    assert failed.reason == "the worker ended: SIGABRT (LLVM ERROR: Cannot select: t7: v8f32 = fpowi)"


def test_what_a_worker_said_of_an_earlier_program_is_not_in_the_reason(
    own: LocalSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _own_worker(
        tmp_path,
        monkeypatch,
        """
        import os, tvm
        load = tvm.ir.load_json
        def noisy(text):
            if "dies" in text:
                os._exit(3)
            os.write(2, b"error: of the first one\\n")
            return load(text)
        tvm.ir.load_json = noisy
        """,
    )
    assert isinstance(time_once(own, doubled()), Timed)
    failed = time_once(own, Program('"dies"', ((1,), (1,))))
    assert failed == Failure("build", "the worker ended: exit code 3")


def test_errors_of_tvm_are_told_from_ours_where_they_have_the_same_class() -> None:
    import tvm
    from tvm.s_tir import Schedule

    schedule = Schedule(tvm.ir.load_json(doubled().module))
    with pytest.raises(TypeError) as of_tvm:
        tvm.get_global_func("runtime.NumThreads")("one", "too", "many")
    with pytest.raises(TypeError) as of_ours:
        schedule.fuse(3)
    with pytest.raises(RuntimeError) as of_schedule:
        schedule.get_sblock("nowhere")
    with pytest.raises(ValueError, match="JSON") as of_json:
        tvm.ir.load_json("{}")
    told = [ours(error.value) for error in (of_tvm, of_ours, of_schedule, of_json)]
    assert told == [False, True, False, False]
