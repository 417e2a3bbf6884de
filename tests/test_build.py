"""Machine code for another machine: linking, and looking at what came out."""

from __future__ import annotations

import json
import stat
import struct
from pathlib import Path

import pytest

from cprune.targets import link as build
from cprune.targets.errors import UserError
from cprune.targets.link import Linker, check_machine, linker, linkers, machine_of
from cprune.targets.target import find


def elf(path: Path, machine: int) -> Path:
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine) + bytes(40))
    return path


def test_the_machine_of_a_library_is_read_from_its_head(tmp_path: Path) -> None:
    assert machine_of(elf(tmp_path / "a.so", 183)) == 183
    check_machine(tmp_path / "a.so", "aarch64-linux-android")


def test_a_library_for_another_machine_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.so is for x86_64, the device is aarch64-linux-gnu"):
        check_machine(elf(tmp_path / "a.so", 62), "aarch64-linux-gnu")


def test_a_file_that_is_no_library_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"\x7fEL")
    with pytest.raises(ValueError, match="is no ELF library"):
        machine_of(tmp_path / "a.so")


def program(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_linkers_are_found_in_the_order_ndk_lld_zig_gcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("clang-ndk", "ld.lld", "aarch64-linux-gnu-gcc"):
        program(tmp_path, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TVM_NDK_CC", str(tmp_path / "clang-ndk"))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: object())
    android = [found.name for found in linkers("aarch64-linux-android")]
    assert android == ["the NDK ($TVM_NDK_CC)", "ld.lld", "ziglang", "aarch64-linux-gnu-gcc"]
    assert [found.name for found in linkers("aarch64-linux-gnu")] == android[1:]  # the NDK is for Android


def test_without_a_linker_the_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no linker for aarch64-linux-gnu.*\n.*cprune\[android\]"):
        linker("aarch64-linux-gnu")


def test_what_a_linker_says_is_the_reason() -> None:
    with pytest.raises(ValueError, match="false: no message"):
        Linker("false", ("false",)).link([], "out.so")


@pytest.mark.parametrize("kind", ["linux-arm64", "android-arm64", "linux-riscv64"])
def test_a_kernel_becomes_a_library_of_its_machine(tmp_path: Path, kind: str) -> None:
    import tvm
    from tvm import te

    target = find(kind)
    if not linkers(target.triple):
        pytest.skip(f"no linker for {target.triple}")
    x = te.placeholder((64,), name="x")
    func = te.create_prim_func([x, te.compute((64,), lambda i: x[i] * 2.0)]).with_attr("global_symbol", "main")
    library = tvm.driver.build(tvm.IRModule({"main": func}), tvm.target.Target(json.loads(target.compiler)))
    found = linker(target.triple)

    def link(output: str, objects: list[str], **_: object) -> None:
        found.link(objects, output)

    link.output_format = "so"  # type: ignore[attr-defined]
    library.export_library(str(tmp_path / "k.so"), fcompile=link)
    check_machine(tmp_path / "k.so", target.triple)
