"""Machines by name and by file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cprune.targets.errors import UserError
from cprune.targets.presets import CPUS, KINDS
from cprune.targets.target import Target, Timing, find, from_dict, names, with_threads


def test_the_built_in_names() -> None:
    assert names() == ("local", "linux-arm64", "android-arm64", "linux-x86_64", "linux-riscv64", "npu-sim")


def test_an_android_phone_with_its_processor() -> None:
    found = find("android-arm64:cortex-a76", threads=2)
    compiler = json.loads(found.compiler)
    assert (compiler["mtriple"], compiler["mcpu"], compiler["num-cores"]) == ("aarch64-linux-android", "cortex-a76", 2)
    assert (found.transport, found.key, found.threads, found.vector, found.vector_registers) == (
        "rpc", "android-arm64", 2, 4, 32,
    )  # fmt: skip
    assert found.triple == "aarch64-linux-android"


def test_a_board_is_a_processor_with_its_cores() -> None:
    found = find("linux-arm64:raspberry-pi-5")
    assert (json.loads(found.compiler)["mcpu"], found.threads) == ("cortex-a76", 4)


@pytest.mark.parametrize("kind", KINDS)
def test_tvm_accepts_every_kind_and_processor(kind: str) -> None:
    import tvm

    for cpu in ("", *(f":{name}" for name in CPUS if KINDS[kind].cpus)):
        target = tvm.target.Target(json.loads(find(kind + cpu).compiler))
        assert target.attrs["mtriple"] == KINDS[kind].triple


def test_other_threads_or_another_processor_are_another_machine() -> None:
    one = find("linux-arm64:cortex-a72")
    prints = {one.fingerprint, with_threads(one, 2).fingerprint, replace(one, cpu="4 x 0x41 0xd08").fingerprint}
    assert len(prints) == 3
    assert replace(one, tracker="10.0.0.1:9190", key="other").fingerprint == one.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("andriod-arm64", "unknown target 'andriod-arm64'\nDid you mean 'android-arm64'?"),
        ("android-arm64:cortex-x11", "unknown processor of android-arm64 'cortex-x11'\nDid you mean 'cortex-x1'?"),
        ("linux-riscv64:x", "linux-riscv64 has no processors to choose from"),
        ("nothing.toml", "cannot read the target file nothing.toml"),
    ],
)
def test_a_mistake_is_answered_with_what_to_type(name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        find(name)
    assert str(error.value).startswith(message)


def file(folder: Path, text: str) -> Target:
    path = folder / "phone.toml"
    path.write_text(text)
    return find(str(path))


def test_a_file_says_only_what_differs(tmp_path: Path) -> None:
    found = file(
        tmp_path,
        """
        like = "android-arm64:cortex-a76"
        name = "my phone"
        key = "pixel"
        tracker = "127.0.0.1:9290"
        threads = 2
        [timing]
        cooldown_s = 0.5
        """,
    )
    assert (found.name, found.key, found.tracker, found.threads) == ("my phone", "pixel", "127.0.0.1:9290", 2)
    assert found.timing == Timing(cooldown_s=0.5)
    assert json.loads(found.compiler)["num-cores"] == 2
    assert json.loads(found.compiler)["mcpu"] == "cortex-a76"


def test_a_file_may_give_the_whole_compiler(tmp_path: Path) -> None:
    found = file(
        tmp_path,
        """
        like = "linux-arm64"
        [compiler]
        kind = "llvm"
        mtriple = "aarch64-linux-gnu"
        mcpu = "cortex-a510"
        """,
    )
    assert json.loads(found.compiler)["mcpu"] == "cortex-a510"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("like =", "is no TOML file"),
        ('like = "linux-arm64"\nthread = 2', "'thread'\nDid you mean 'threads'?"),
        ('like = "linux-arm64"\nthreads = "two"', "the setting threads must be a whole number, not 'two'"),
        ('like = "linux-arm64"\nthreads = 0', "threads = 0: at least 1 is needed"),
        ('like = "linux-arm64"\nkey = 7', "the setting key must be a text, not 7"),
        ('like = "linux-arm64"\ntransport = "ssh"', "the setting transport must be one of local, rpc, npu, not 'ssh'"),
        ('like = "linux-arm64"\n[timing]\nrepeats = 0', "timing.repeats = 0"),
        ('like = "linux-arm64"\n[timing]\nrepeats = 2.5', "repeats must be a whole number, not 2.5"),
        ('like = "linux-arm64"\n[timing]\nrepeat = 5', "'repeat'\nDid you mean 'repeats'?"),
        ('like = "linux-arm64"\n[compiler]\nmcpu = "x"', "[compiler] is TVM's target"),
        ('liek = "linux-arm64"', "'liek'\nDid you mean 'like'?"),
        ('like = "phone"', "unknown target 'phone'"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        file(tmp_path, text)
    assert message in str(error.value)


def test_a_target_comes_back_from_what_run_json_keeps() -> None:
    one = find("linux-arm64:cortex-a72", threads=2)
    assert from_dict({"like": "linux-arm64", **one.to_dict()}, "run.json") == one


def test_more_threads_than_this_machine_has_are_refused_for_a_target_that_was_found_before() -> None:
    with pytest.raises(UserError, match="--threads 4096: this machine lets cprune use"):
        find(find("local"), threads=4096)
    assert find(find("local"), threads=1) == find("local", threads=1)


def test_cuda_is_refused_with_what_is_missing_here() -> None:
    with pytest.raises(UserError, match=r"no target cuda: .*(NVIDIA driver|GPU)"):
        find("cuda")
