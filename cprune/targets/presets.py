"""Machines by name: built-in targets of other architectures, and processors to choose for them.

What a processor is called is LLVM's name for it (`-mcpu`); cores are the large ones of a usual chip, which is what a
model should run on.  A target without a processor gets one that every machine of its kind runs.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass


@dataclass(frozen=True)
class Cpu:
    """A processor: LLVM's name, how many of its cores a usual chip has, and what it is."""

    mcpu: str
    cores: int
    about: str


CPUS = {
    "cortex-a53": Cpu("cortex-a53", 4, "small core of older phones, Raspberry Pi 3"),
    "cortex-a55": Cpu("cortex-a55", 4, "small core of phones"),
    "cortex-a72": Cpu("cortex-a72", 4, "Raspberry Pi 4, Graviton"),
    "cortex-a76": Cpu("cortex-a76", 4, "large core of phones of 2019, Raspberry Pi 5"),
    "cortex-a78": Cpu("cortex-a78", 4, "large core of phones of 2021"),
    "cortex-x1": Cpu("cortex-x1", 1, "largest core of phones of 2021"),
    "apple-a14": Cpu("apple-a14", 2, "iPhone 12"),
    "apple-m1": Cpu("apple-m1", 4, "Mac of 2020, under Linux"),
    "neoverse-n1": Cpu("neoverse-n1", 4, "Graviton 2, Ampere Altra"),
    "neoverse-v1": Cpu("neoverse-v1", 4, "Graviton 3"),
    "neoverse-v2": Cpu("neoverse-v2", 4, "Graviton 4"),
    "raspberry-pi-4": Cpu("cortex-a72", 4, "Raspberry Pi 4"),
    "raspberry-pi-5": Cpu("cortex-a76", 4, "Raspberry Pi 5"),
}


@dataclass(frozen=True)
class Kind:
    """A built-in target of another machine: LLVM's triple, its default processor and attributes, float lanes."""

    triple: str
    mcpu: str
    attributes: tuple[str, ...]
    vector: int
    vector_registers: int
    cpus: tuple[str, ...]


_ARM = tuple(CPUS)
KINDS = {
    "linux-arm64": Kind("aarch64-linux-gnu", "generic", ("+neon",), 4, 32, _ARM),
    "android-arm64": Kind("aarch64-linux-android", "generic", ("+neon",), 4, 32, _ARM),
    "linux-x86_64": Kind("x86_64-linux-gnu", "x86-64-v3", (), 8, 16, ()),
    "linux-riscv64": Kind("riscv64-linux-gnu", "generic-rv64", ("+m", "+a", "+f", "+d", "+c"), 4, 32, ()),
}


def no_cuda() -> str:
    """Return why `--target cuda` cannot be chosen on this machine: no GPU here, or no programs for one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        usable = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return "no NVIDIA driver on this machine (libcuda.so.1 is missing)"
    if not usable:
        return "the NVIDIA driver of this machine knows no GPU"
    return f"{count.value} GPU(s) here, but cprune's programs are for processors: it cannot tune for a GPU yet"
