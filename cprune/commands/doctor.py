"""`cprune doctor`: is everything there that tuning for a machine needs, and does it work?

Every check says what is there, or what to do.  The last ones build one real convolution, run it on the machine, and
compare it with PyTorch.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cprune.targets import link
from cprune.targets.connect import connect
from cprune.targets.errors import CpruneError
from cprune.targets.process import Process
from cprune.targets.remote import tracker
from cprune.targets.remote.device import free_devices
from cprune.targets.session import Built, Failure, Session, Timed
from cprune.targets.target import Target, tvm_version
from cprune.tuner.programs import program as programs
from cprune.tuner.programs import reference, space
from cprune.tuner.programs.workload import Conv2d

BUILD_DEADLINE_S = 60.0
STABLE = 0.05
ROUNDS = 41

KERNEL = Conv2d(
    batch=1,
    in_channels=32,
    height=28,
    width=28,
    out_channels=32,
    kernel=(3, 3),
    stride=(1, 1),
    pad=(1, 1, 1, 1),
    dilation=(1, 1),
    groups=1,
    residual=False,
    activation="relu",
    in_block=4,
    out_block=4,
)
"""What is run as a test: 7 million multiply-adds, in blocks that every machine has."""


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is well, what was found, and what to do where it is not."""

    name: str
    ok: bool
    detail: str
    advice: str = ""


def examine(target: Target) -> Iterator[Check]:
    """Yield the checks in an order in which the first bad one explains those after it, which are left out."""
    steps: tuple[Callable[[Target], Iterator[Check]], ...] = (_compiler,) if target.simulated else (_compiler, _linker)
    if target.transport == "rpc":
        steps = (*steps, _tracker, _device)
    for step in (*steps, _kernel):
        try:
            for check in step(target):
                yield check
                if not check.ok and check.name != "clock":
                    return
        except CpruneError as error:
            what, _, advice = str(error).partition("\n")
            yield Check(step.__name__.strip("_"), False, what, advice)
            return


def _compiler(target: Target) -> Iterator[Check]:
    if target.transport != "rpc":
        yield Check("compiler", True, f"TVM {tvm_version()}, for {target.cpu}, {target.threads} threads")
        return
    with tempfile.TemporaryDirectory(prefix="cprune-doctor-") as folder:
        builder = Process("cprune.targets.remote.builder", [target.triple], {}, str)
        try:
            answer = builder.ask("reference", (str(Path(folder) / "k.so"), target.compiler), BUILD_DEADLINE_S)
        finally:
            builder.close()
    if isinstance(answer, Failure):
        yield Check("compiler", False, f"TVM {tvm_version()} cannot build for {target.triple}: {answer.reason}",
                    "Look at [compiler] of the target file, and at: cprune targets")  # fmt: skip
    else:
        yield Check("compiler", True, f"TVM {tvm_version()} builds for {target.triple}")


def _linker(target: Target) -> Iterator[Check]:
    if target.transport == "local":
        name = link.host_compiler()
        yield Check("linker", bool(name), name or "no C compiler: cprune tune cannot write a compiled model",
                    "" if name else "Install one, for example: apt install gcc")  # fmt: skip
        return
    first, *others = [linker.name for linker in link.linkers(target.triple)] or [""]
    if first:
        yield Check("linker", True, first + (f" (also there: {', '.join(others)})" if others else ""))
    else:
        link.linker(target.triple)  # raises, with what to do


def _tracker(target: Target) -> Iterator[Check]:
    where = tracker.address(target.tracker)
    start = time.perf_counter()
    known = tracker.summary(where)
    spent_ms = 1e3 * (time.perf_counter() - start)
    keys = ", ".join(f"{k.key} ({k.free} of {k.devices} free)" for k in known) or "no device"
    yield Check("tracker", True, f"{where} answers in {spent_ms:.0f} ms; it knows: {keys}")


def _device(target: Target) -> Iterator[Check]:
    where = tracker.address(target.tracker)
    said: list[str] = []
    devices, reason = free_devices(where, target.key, target.threads, said.append)
    try:
        if not devices:
            advice = (
                "Wait until another client is done with it."
                if reason.endswith("in use")
                else f"On the device: cprune devices serve --tracker {where} --key {target.key}   (see docs/devices.md)"
            )
            yield Check("device", False, "; ".join([reason, *said]), advice)
            return
        for device in devices:
            facts, architecture = device.facts, target.triple.split("-")[0]
            yield Check("device", True, f"{device.name}: {describe(facts)}")
            if facts["machine"] and link.MACHINES.get(facts["machine"]) != link.MACHINES.get(architecture):
                yield Check("machine", False, f"{device.name} is {facts['machine']}, the target is {target.triple}",
                            "Give the --target of that machine, or another key in a target file.")  # fmt: skip
            same = facts["tvm"] in ("", tvm_version())
            yield Check("versions", same, f"TVM {facts['tvm'] or 'of unknown version'} there, {tvm_version()} here",
                        "" if same else "Use the same version there: cprune devices bundle makes one.")  # fmt: skip
    finally:
        for device in devices:
            device.close()


def _kernel(target: Target) -> Iterator[Check]:
    said: list[str] = []
    with connect(target, say=said.append) as (session, device):
        candidate = space.of_target(KERNEL, device)[0]
        built = session.build([programs.program(KERNEL, candidate)])[0]
        plain = reference.sample(KERNEL, 0)
        raced: Timed | Failure = built if isinstance(built, Failure) else _raced(session, built, candidate, plain)
        if isinstance(raced, Failure):
            yield Check("kernel", False, f"a convolution fails in stage {raced.stage}: {raced.reason}",
                        "Report it with this line.")  # fmt: skip
            return
        assert raced.output is not None
        wrong = reference.agrees(raced.output, reference.expected(KERNEL, plain))
        ms = 1e3 * statistics.median(raced.runs_s)
        yield Check("kernel", not wrong, wrong or f"a convolution runs in {ms:.3f} ms and computes what PyTorch does",
                    "Report it: a kernel that computes something else is a bug." if wrong else "")  # fmt: skip
        if not target.simulated:
            yield _clock(raced.runs_s)


def _raced(session: Session, built: Built, candidate: Any, plain: Any) -> Timed | Failure:
    return session.race([built], [programs.inputs_of(KERNEL, candidate, plain)], ROUNDS)[0]


def _clock(runs_s: tuple[float, ...]) -> Check:
    """Say whether the same kernel takes the same time again and again."""
    quarter = sorted(runs_s)
    spread = (quarter[len(quarter) * 3 // 4] - quarter[len(quarter) // 4]) / statistics.median(runs_s)
    half = len(runs_s) // 2
    drift = statistics.median(runs_s[half:]) / statistics.median(runs_s[:half]) - 1
    ok = spread < STABLE and abs(drift) < STABLE
    return Check(
        "clock",
        ok,
        f"the same kernel {len(runs_s)} times: middle half within {spread:.1%}, second half {drift:+.1%}",
        ""
        if ok
        else "Close what else runs there, plug it in, fix the clock (governor performance), let it cool down; "
        "cooldown_s in a target file pauses between runs.",
    )


def describe(facts: dict[str, Any]) -> str:
    """Return one line for what a device says of itself."""
    parts = [str(facts.get("cpu") or "unknown processor")]
    if facts.get("memory_bytes"):
        parts.append(f"{facts['memory_bytes'] / 2**30:.1f} GB")
    parts.append(f"TVM {facts['tvm']}" if facts.get("tvm") else "a stock TVM server")
    parts.append(f"round trip {facts['round_trip_ms']:.1f} ms")
    if facts.get("temperature_c"):
        parts.append(f"{facts['temperature_c']:.0f} °C")
    return ", ".join(parts)
