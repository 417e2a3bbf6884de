"""Machine code as a shared library: which linker makes one for which machine, and whether the library fits.

TVM's compiler makes object files for many processors by itself; a linker for them is what a workstation may lack.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cprune.targets.errors import UserError

FLAGS = ("-z", "now", "-z", "max-page-size=16384")
"""Missing symbols are told when a library is loaded, not in a kernel; new Android wants pages of 16 KB."""

COMPILERS = ("cc", "gcc", "clang")
"""What links for this machine, the first that is there."""

MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243}
"""ELF's numbers of processors."""


@dataclass(frozen=True)
class Linker:
    """A program that makes a shared library of object files.  `driver`: it is a compiler, which hands options on."""

    name: str
    command: tuple[str, ...]
    driver: bool = False

    def link(self, objects: Sequence[str], output: str, deadline_s: float = 60.0) -> None:
        """Write `output`.  Raises OSError or ValueError with what the linker said."""
        flags = [f"-Wl,{','.join(FLAGS)}", "-nostdlib"] if self.driver else ["--hash-style=both", *FLAGS]
        done = subprocess.run(
            [*self.command, "-shared", *flags, "-o", output, *objects],
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise ValueError(f"{self.name}: {said[0][:300]}")


def linkers(triple: str) -> list[Linker]:
    """Return the linkers for a triple that this machine has, in the order in which they are preferred."""
    machine = triple.split("-")[0]
    available = []
    ndk = os.environ.get("TVM_NDK_CC")
    if ndk and "android" in triple and shutil.which(ndk):
        available.append(Linker("the NDK ($TVM_NDK_CC)", (ndk,), driver=True))
    lld = shutil.which("ld.lld")
    if lld:
        available.append(Linker("ld.lld", (lld,)))
    if importlib.util.find_spec("ziglang") is not None:
        available.append(Linker("ziglang", (sys.executable, "-m", "ziglang", "ld.lld")))
    names = [f"{machine}-linux-gnu-gcc", *(("gcc",) if platform.machine() == machine else ())]
    gcc = next((name for name in names if shutil.which(name)), None)
    if gcc:
        available.append(Linker(gcc, (gcc,), driver=True))
    return available


def linker(triple: str) -> Linker:
    """Return the preferred linker.  UserError with how to get one if there is none."""
    available = linkers(triple)
    if not available:
        raise UserError(
            f"no linker for {triple} on this machine",
            "Install one: pip install 'cprune[android]' (ziglang), or your system's lld. cprune doctor tells more.",
        )
    return available[0]


def host_compiler() -> str:
    """Return the path of the compiler that links for this machine, "" if there is none."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), "")


def export(library: Any, path: Path, triple: str) -> None:
    """Write what TVM compiled as a shared library for the machine of `triple` ("" for this one), and look at it.

    Raises UserError where there is no linker, OSError or ValueError with what the linker said.
    """
    if not triple:
        compiler = host_compiler()
        if not compiler:
            raise UserError(
                "no C compiler to link the compiled model with", "Install one, for example: apt install gcc"
            )
        library.export_library(str(path), cc=compiler)
        return
    chosen = linker(triple)

    def link(output: str, objects: Any, **_: Any) -> None:
        chosen.link([objects] if isinstance(objects, str) else list(objects), output)

    link.output_format = "so"  # type: ignore[attr-defined]
    library.export_library(str(path), fcompile=link)
    check_machine(path, triple)


def machine_of(library: Path) -> int:
    """Return ELF's number of the processor a library is for.  Raises ValueError for a file that is no ELF library."""
    with library.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        raise ValueError(f"{library} is no ELF library")
    little = head[5] == 1
    return int(struct.unpack("<H" if little else ">H", head[18:20])[0])


def check_machine(library: Path, triple: str) -> None:
    """Raise ValueError if `library` was not made for the machine of `triple`."""
    expected = MACHINES.get(triple.split("-")[0])
    machine = machine_of(library)
    if expected is not None and machine != expected:
        names = {number: name for name, number in MACHINES.items()}
        raise ValueError(f"{library.name} is for {names.get(machine, f'machine {machine}')}, the device is {triple}")
