"""What the way over the tracker costs: overhead and bias of a measurement, two devices against one, recovery, doctor.

    python experiments/rpc_overhead.py

Everything is real and on this machine: a tracker and servers on loopback, the programs of one convolution's sketch.
The same programs, built for the same processor, are timed in process (the local session's worker) and over RPC, in
turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))

from rpc_rig import KEY, Rig, Server, rig

from cprune.targets.interval import interval
from cprune.targets.local import LocalSession
from cprune.targets.remote.rpc import RpcSession
from cprune.targets.session import Built, Program, Timed
from cprune.targets.target import Target, Timing, find
from cprune.tuner.programs import program as programs
from cprune.tuner.programs import space
from cprune.tuner.programs.workload import Conv2d

LAYER = Conv2d(1, 64, 28, 28, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "relu", 16, 16)
TIMING = Timing(repeats=5, min_run_ms=2.0)
BATCH = 4  # as the search does


def same_machine(made: Rig, threads: int) -> tuple[Target, Target]:
    """Return this machine as the local target and as a device, with one compiler target."""
    local = replace(find("local", threads), timing=TIMING)
    compiler = {**json.loads(local.compiler), "mtriple": "x86_64-linux-gnu"}
    remote = replace(
        local, name="loopback", transport="rpc", key=KEY, tracker=made.where, compiler=json.dumps(compiler),
        device_timeout_s=30.0,
    )  # fmt: skip
    return local, remote


def sleeping(ms: float) -> Program:
    """Return a kernel that sleeps."""
    import tvm
    from tvm import te, tirx

    x = te.placeholder((64,), name="x")
    call = lambda ins, outs: tirx.Evaluate(tirx.call_extern("int32", "usleep", int(1e3 * ms)))  # noqa: E731
    func = te.create_prim_func([x, te.extern((64,), [x], call, dtype="float32", name="y")])
    return Program(tvm.ir.save_json(tvm.IRModule({"main": func.with_attr("global_symbol", "main")})), ((64,), (64,)))


def overhead(count: int, rounds: int, threads: int) -> None:
    """Print what a measurement over RPC takes longer, and how the two medians differ."""
    with rig(1) as made:
        local, remote = same_machine(made, threads)
        candidates = space.of_target(LAYER, local)[:: max(1, len(space.of_target(LAYER, local)) // count)][:count]
        entries = [programs.program(LAYER, c) for c in candidates]
        with LocalSession(local) as here, RpcSession(remote) as there:
            ours = [b for b in here.build(entries) if isinstance(b, Built)]
            theirs = [b for b in there.build(entries) if isinstance(b, Built)]
            assert len(ours) == len(theirs) == len(entries)
            there.time(theirs), here.time(ours)  # both have started
            spent: dict[str, list[float]] = {"here": [], "there": []}
            ratios = []
            for _ in range(rounds):
                fresh = [b for b in there.build(entries) if isinstance(b, Built)]
                for first in range(0, len(entries), BATCH):
                    start = time.perf_counter()
                    found = here.time(ours[first : first + BATCH])
                    middle = time.perf_counter()
                    others = there.time(fresh[first : first + BATCH])
                    end = time.perf_counter()
                    spent["here"].append((middle - start) / len(found))
                    spent["there"].append((end - middle) / len(found))
                    for a, b in zip(found, others, strict=True):
                        assert isinstance(a, Timed)
                        assert isinstance(b, Timed)
                        ratios.append(statistics.median(b.runs_s) / statistics.median(a.runs_s))
    extra = interval([1e3 * (t - h) for h, t in zip(spent["here"], spent["there"], strict=True)])
    bias = interval(ratios)
    print(f"{len(entries)} programs, {rounds} rounds in turns, {threads} thread(s), every library sent anew")
    print(f"a measurement: {1e3 * statistics.median(spent['here']):.1f} ms in process, "
          f"{1e3 * statistics.median(spent['there']):.1f} ms over RPC; overhead {extra.median:.1f} ms "
          f"({extra.low:.1f} to {extra.high:.1f}); goal: under 5")  # fmt: skip
    print(f"median over RPC / in process: {bias.median:.4f} ({bias.low:.4f} to {bias.high:.4f}); goal: within 2 %")


def throughput(ms: float, count: int) -> None:
    """Print measurements a second with one and with two servers, of kernels that sleep."""
    rates = []
    for servers in (1, 2):
        with rig(servers) as made:
            target = replace(made.target(), timing=Timing(repeats=3, min_run_ms=ms, deadline_s=20.0))
            with RpcSession(target) as session:
                built = [b for b in session.build([sleeping(ms)] * count) if isinstance(b, Built)]
                session.time(built[:4])
                start = time.perf_counter()
                assert all(isinstance(t, Timed) for t in session.time(built))
                rates.append(count / (time.perf_counter() - start))
    print(f"two servers, kernels that sleep {ms:g} ms: {rates[0]:.1f} and {rates[1]:.1f} measurements a second, "
          f"{rates[1] / rates[0]:.2f}x; goal: 1.8x")  # fmt: skip


def recovery() -> None:
    """Print how long after a server registered again the next measurement is there."""
    with rig(1) as made, RpcSession(made.target()) as session:
        (built,) = session.build([sleeping(1)])
        assert isinstance(built, Built)
        session.time([built])
        made.servers[0].kill()
        started: list[float] = []

        def again() -> None:
            made.servers[0] = Server(made.where).start()
            made.wait(1)
            started.append(time.perf_counter())

        threading.Timer(15, again).start()  # after it was given up
        assert isinstance(session.time([built])[0], Timed)
        spent = time.perf_counter() - started[0]
        print(f"recovery: {spent:.1f} s from the device's registration to the next measurement; goal: 10")


def doctor() -> None:
    """Print what `cprune doctor` takes."""
    with rig(1) as made:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        target = Path("/tmp") / f"cprune-doctor-{os.getpid()}.toml"
        target.write_text(f'like = "linux-x86_64"\nkey = "{KEY}"\ntracker = "{made.where}"\nthreads = 1\n')
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "cprune.cli", "doctor", "--target", str(target), "--json"],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
        spent = time.perf_counter() - start
        target.unlink()
        checks = json.loads(done.stdout)["checks"]
        print(f"doctor: {spent:.1f} s, {sum(c['ok'] for c in checks)} of {len(checks)} checks well; goal: under 30 s")


def main() -> None:
    """Print all four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    overhead(given.programs, given.rounds, given.threads)
    throughput(20, 40)
    recovery()
    doctor()


if __name__ == "__main__":
    main()
