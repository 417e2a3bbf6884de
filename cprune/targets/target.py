"""What a machine is: the compiler's target, its threads, its vectors, and how a timing is taken on it.

A target is `local`, the name of another kind of machine (`android-arm64`, with a processor `android-arm64:cortex-a76`),
the simulated accelerator (`npu-sim`, or another one of its presets, `npu-sim:vta-half`) or a TOML file:

    like = "android-arm64:cortex-a76"   # what is not said below
    name = "my phone"
    key = "pixel"                       # what its server told the tracker
    tracker = "127.0.0.1:9190"
    device_timeout_s = 600.0            # how long to wait for a device that is gone
    threads = 2
    vector = 4                          # float32 lanes
    vector_registers = 32
    [compiler]                          # TVM's target, instead of the one of `like`
    kind = "llvm"
    mtriple = "aarch64-linux-android"
    mcpu = "cortex-a76"
    [timing]
    repeats = 5
    min_run_ms = 2.0
    deadline_s = 20.0
    cooldown_s = 0.0
    hot_c = 80.0

TVM is imported only where this machine's processor is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cprune.targets.errors import UserError, unknown
from cprune.targets.plain import read
from cprune.targets.presets import CPUS, KINDS, no_cuda

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


NPU = "npu-sim"


@dataclass(frozen=True)
class Timing:
    """How one candidate is timed: `repeats` runs, each long enough to last `min_run_ms`.

    `cooldown_s` is a pause before every run, for a machine that gets hot.  While a device says that its processor is
    hotter than `hot_c` degrees Celsius it is left alone (0: never).
    """

    repeats: int = 5
    min_run_ms: float = 2.0
    deadline_s: float = 20.0
    cooldown_s: float = 0.0
    hot_c: float = 80.0

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.  Raises UserError."""
        for field, least in (("repeats", 1), ("min_run_ms", 0), ("deadline_s", 0.1), ("cooldown_s", 0), ("hot_c", 0)):
            value = getattr(self, field)
            if not value >= least:
                raise UserError(f"timing.{field} = {value!r}: a number of at least {least} is needed")


@dataclass(frozen=True)
class Target:
    """A machine that programs are built for and timed on.

    `compiler` is the TVM target as JSON text.  `threads` is what TVM's pool is started with and checked against.
    `vector` is the number of float32 lanes of a vector register, `vector_registers` how many there are: the
    sketches size their register tiles with them.  `transport` is "local", "npu" for the simulated accelerator (`cpu`
    names its preset), or "rpc" for a device that the tracker at `tracker` (HOST:PORT) knows under `key`; what its
    processor is, `cpu` says only once the device was asked.
    For a device that is gone a session waits `device_timeout_s`.
    """

    name: str
    compiler: str
    threads: int
    vector: int
    vector_registers: int
    cpu: str
    transport: Literal["local", "rpc", "npu"] = "local"
    timing: Timing = Timing()
    key: str = ""
    tracker: str = ""
    device_timeout_s: float = 600.0

    @property
    def triple(self) -> str:
        """Return LLVM's name of the kind of machine; "" for this one."""
        return str(json.loads(self.compiler).get("mtriple", ""))

    @property
    def emulated(self) -> bool:
        """Tell whether the device said that its processor is not a real one."""
        return self.cpu.startswith("emulated")

    @property
    def simulated(self) -> bool:
        """Tell whether it is the simulated accelerator: its programs may compute something wrong without a word."""
        return self.transport == "npu"

    @property
    def fingerprint(self) -> str:
        """Return 12 hex digits that differ when timings are not comparable: processor, target, threads, TVM."""
        identity = [self.compiler, self.threads, self.cpu, self.transport, tvm_version()]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `run.json`."""
        return {**asdict(self), "compiler": json.loads(self.compiler), "fingerprint": self.fingerprint}


def tvm_version() -> str:
    """Return the version of the installed TVM without importing it."""
    from importlib.metadata import version

    return version("apache-tvm")


def names() -> tuple[str, ...]:
    """Return the names that `find` knows."""
    return ("local", *KINDS, NPU)


def find(name: str | Target = "local", threads: int | None = None) -> Target:
    """Return the target of this name (`local`, `KIND`, `KIND:CPU` or a TOML file); a Target is returned as it is.

    `threads` overrides the number of threads (default: the cores this process may use; for another machine, its
    processor's large cores).  Raises UserError for a name that is not known, a file that says nonsense, or a thread
    count that makes no sense.
    """
    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads}: at least 1 is needed")
    target = name if isinstance(name, Target) else _named(name)
    if threads is None:
        return target
    if target.simulated and threads != 1:
        raise UserError(f"--threads {threads}: {target.name} runs one program at a time", "Leave --threads out.")
    if target.transport == "local" and threads > cores():
        raise UserError(
            f"--threads {threads}: this machine lets cprune use {cores()} cores", f"Type --threads 1 to {cores()}."
        )
    return with_threads(target, threads)


def _named(name: str) -> Target:
    if name.endswith(".toml"):
        return _from_file(Path(name))
    kind, _, cpu = name.partition(":")
    if kind in KINDS:
        return _remote(kind, cpu)
    if kind == "cuda":
        raise UserError(f"no target cuda: {no_cuda()}", "See: cprune targets")
    if kind == NPU:
        return _simulated(cpu)
    if name != "local":
        raise unknown("target", name, names())
    return _local(cores())


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_threads(target: Target) -> int:
    """Return how many threads this machine computes with (training): the target's own if it is the target."""
    return target.threads if target.transport == "local" else find("local").threads


def with_threads(target: Target, threads: int) -> Target:
    """Return the target with another number of threads."""
    compiler = {**json.loads(target.compiler), "num-cores": threads}
    return replace(target, threads=threads, compiler=json.dumps(compiler, sort_keys=True))


def _remote(kind: str, cpu: str) -> Target:
    machine = KINDS[kind]
    if cpu and cpu not in machine.cpus:
        raise (
            unknown(f"processor of {kind}", cpu, machine.cpus)
            if machine.cpus
            else UserError(f"{kind} has no processors to choose from", f"Type --target {kind}.")
        )
    threads = CPUS[cpu].cores if cpu else 4
    compiler = {
        "kind": "llvm",
        "mtriple": machine.triple,
        "mcpu": CPUS[cpu].mcpu if cpu else machine.mcpu,
        "num-cores": threads,
        **({"mattr": list(machine.attributes)} if machine.attributes else {}),
    }
    name = f"{kind}:{cpu}" if cpu else kind
    text = json.dumps(compiler, sort_keys=True)
    return Target(name, text, threads, machine.vector, machine.vector_registers, cpu or machine.mcpu, "rpc", key=kind)


def _simulated(preset: str) -> Target:
    """Return the simulated accelerator; what it leaves to a processor is compiled for any."""
    from cprune.targets.npu.machine import MODEL, VTA
    from cprune.targets.npu.machine import preset as found

    machine = found(preset or VTA.name)
    name = f"{NPU}:{preset}" if preset else NPU
    text = json.dumps({"kind": "llvm", "num-cores": 1}, sort_keys=True)
    return Target(name, text, 1, machine.lanes, 32, f"{machine.name}, simulated (model {MODEL})", "npu")


def _from_file(path: Path) -> Target:
    """Return the target that a TOML file describes."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the target file {path} ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML file ({error})") from error
    return from_dict(values, str(path))


def from_dict(values: Mapping[str, object], where: str) -> Target:
    """Return the target of a TOML file's content, or of a `to_dict`.  `where` names it in a UserError."""
    known = {field.name for field in fields(Target)} | {"like"}
    for name in values:
        if name not in known | {"fingerprint"}:
            raise unknown(f"setting in {where}:", name, known)
    settings = {**find(str(values.get("like", "local"))).to_dict(), **values}
    settings["compiler"] = _compiler(settings["compiler"], where)
    settings["timing"] = _timing(settings["timing"], where)
    target = read(Target, {field.name: settings[field.name] for field in fields(Target)}, where=where)
    for name in ("threads", "vector", "vector_registers"):
        if getattr(target, name) < 1:
            raise UserError(f"{where}: {name} = {getattr(target, name)}: at least 1 is needed")
    return with_threads(target, target.threads)


def _timing(values: object, where: str) -> Mapping[str, object]:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: [timing] is a table of numbers")
    return vars(read(Timing, values, where=f"[timing] of {where}"))


def _compiler(values: object, where: str) -> str:
    if not isinstance(values, Mapping) or not isinstance(values.get("kind"), str):
        raise UserError(f'{where}: [compiler] is TVM\'s target, with at least kind = "llvm"')
    return json.dumps(values, sort_keys=True)


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
