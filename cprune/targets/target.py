"""What a machine is: the compiler's target, its threads, its vectors, and how a timing is taken on it.

TVM is imported only where the processor's name is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cprune.targets.errors import UserError, unknown


@dataclass(frozen=True)
class Timing:
    """How one candidate is timed: `repeats` runs, each long enough to last `min_run_ms`."""

    repeats: int = 5
    min_run_ms: float = 2.0
    deadline_s: float = 20.0


@dataclass(frozen=True)
class Target:
    """A machine that programs are built for and timed on.

    `compiler` is the TVM target as JSON text.  `threads` is what TVM's pool is started with and checked against.
    `vector` is the number of float32 lanes of a vector register, `vector_registers` how many there are: the
    sketches size their register tiles with them.
    """

    name: str
    compiler: str
    threads: int
    vector: int
    vector_registers: int
    cpu: str
    transport: str = "local"
    timing: Timing = Timing()

    @property
    def fingerprint(self) -> str:
        """Return 12 hex digits that differ when timings are not comparable: processor, target, threads, TVM."""
        told = [self.compiler, self.threads, self.cpu, self.transport, tvm_version()]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `run.json`."""
        return {**asdict(self), "compiler": json.loads(self.compiler), "fingerprint": self.fingerprint}


def tvm_version() -> str:
    """Return the version of the installed TVM without importing it."""
    from importlib.metadata import version

    return version("apache-tvm")


def names() -> tuple[str, ...]:
    """Return the names that `find` knows."""
    return ("local",)


def find(name: str = "local", threads: int | None = None) -> Target:
    """Return the target of this name.

    `threads` overrides the number of threads (default: the cores this process may use).
    Raises UserError for a name that is not known or a thread count that makes no sense.
    """
    if name != "local":
        raise unknown("target", name, names())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= cores:
        raise UserError(
            f"--threads {threads}: this machine lets cprune use {cores} cores", f"Type --threads 1 to {cores}."
        )
    return _local(threads or cores)


@cache
def _local(threads: int) -> Target:
    machine = platform.machine().lower()
    vector, registers = _vectors(machine)
    kind = {"kind": "llvm", "mcpu": _llvm_cpu(), "num-cores": threads}
    return Target("local", json.dumps(kind, sort_keys=True), threads, vector, registers, _cpu_model(machine))


def _vectors(machine: str) -> tuple[int, int]:
    """Return (float32 lanes, number of vector registers) of this machine."""
    if machine in ("aarch64", "arm64"):
        return 4, 32
    flags = _cpuinfo("flags").split()
    if "avx512f" in flags:
        return 16, 32
    return (8, 16) if "avx2" in flags or "avx" in flags else (4, 16)


def _cpu_model(machine: str) -> str:
    family = " ".join(_cpuinfo(key) for key in ("cpu family", "model", "CPU part"))
    return f"{_cpuinfo('model name') or machine} {family}".strip()


@cache
def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def _llvm_cpu() -> str:
    import tvm

    return str(tvm.get_global_func("target.llvm_get_system_cpu")())
