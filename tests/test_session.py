"""The session on this machine survives what kernels do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cprune.targets.errors import UserError
from cprune.targets.local import LocalSession
from cprune.targets.session import Failure, Program, Timed, arguments
from cprune.targets.target import Target, Timing, find


def program(compute: Any, shape: tuple[int, ...] = (64,)) -> Program:
    import tvm
    from tvm import te

    x = te.placeholder(shape, name="x")
    func = te.create_prim_func([x, compute(te, x)]).with_attr("global_symbol", "main")
    return Program(tvm.ir.save_json(tvm.IRModule({"main": func})), (shape, shape))


def doubled() -> Program:
    return program(lambda te, x: te.compute((64,), lambda i: x[i] * 2.0, name="y"))


def crashing() -> Program:
    return program(lambda te, x: te.compute((64,), lambda i: x[i + 2_000_000_000], name="y"))


def hanging() -> Program:
    def compute(te: Any, x: Any) -> Any:
        k = te.reduce_axis((0, 2_000_000_000), "k")
        return te.compute((64,), lambda i: te.sum(x[(i * 7 + k) % 64], axis=k), name="y")

    return program(compute)


@pytest.fixture
def own(target: Target) -> Any:
    with LocalSession(replace(target, timing=Timing(2, 0.2, 3.0))) as made:
        yield made


def test_a_program_is_timed_and_its_output_comes_back(session: LocalSession) -> None:
    timed = session.time(doubled(), seed=5)
    assert isinstance(timed, Timed)
    assert len(timed.runs_s) == 2
    assert all(0 < run < 1e-2 for run in timed.runs_s)
    assert np.array_equal(timed.output, 2 * arguments(doubled(), 5)[0])  # type: ignore[arg-type]


def test_a_slow_program_is_cut_short_after_one_call(session: LocalSession) -> None:
    timed = session.time(doubled(), slow_s=1e-12)
    assert isinstance(timed, Timed)
    assert len(timed.runs_s) == 1


def test_a_kernel_that_crashes_is_a_failed_candidate_and_the_next_one_is_fine(own: LocalSession) -> None:
    failed = own.time(crashing())
    assert isinstance(failed, Failure)
    assert failed.stage == "run"
    assert "SIG" in failed.reason
    assert isinstance(own.time(doubled()), Timed)


def test_a_kernel_that_hangs_ends_at_the_deadline_and_the_next_one_is_fine(own: LocalSession) -> None:
    assert isinstance(own.time(doubled()), Timed)
    start = time.monotonic()
    failed = own.time(hanging())
    assert failed == Failure("timeout", "no answer within 3 s")
    assert time.monotonic() - start < 6
    assert isinstance(own.time(doubled()), Timed)


def test_a_worker_killed_from_outside_is_replaced(own: LocalSession) -> None:
    assert isinstance(own.time(doubled()), Timed)
    assert own.worker_pid is not None
    os.kill(own.worker_pid, signal.SIGKILL)
    answers = [own.time(doubled()) for _ in range(2)]
    assert isinstance(answers[-1], Timed)


def test_a_program_that_cannot_be_built_is_a_failed_candidate(session: LocalSession) -> None:
    failed = session.time(Program('{"not": "a module"}', ((1,), (1,))))
    assert isinstance(failed, Failure)
    assert failed.stage == "build"


def test_the_worker_ends_with_a_parent_that_is_killed_while_a_kernel_hangs() -> None:
    # The parent says which process its worker is, asks it to run a kernel without an end, and is then killed.
    code = """
        import sys, threading
        sys.path.insert(0, "tests")
        from test_session import doubled, hanging
        from cprune.targets.local import LocalSession
        from cprune.targets.target import find
        session = LocalSession(find("local"))
        session.time(doubled())
        print(session.worker_pid, flush=True)
        session.time(hanging())
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
        assert isinstance(session.time(doubled()), Timed)  # the worker refuses to start with another number
    assert one.fingerprint != find("local").fingerprint or target.threads == 1


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(UserError, match="--threads 4096"):
        find("local", 4096)


def test_an_unknown_target_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown target 'lokal'") as caught:
        find("lokal")
    assert "Did you mean 'local'?" in str(caught.value)
