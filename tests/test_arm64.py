"""Everything a user does with a phone or a board, on an emulated AArch64 device: real code, real RPC, no real clock."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arm64
import numpy as np
import pytest
import torch
from rpc_rig import KEY, Rig, Server, free_port
from test_loop import TOML, data_file
from torch import nn

from cprune.cli import main as cli
from cprune.compiling import deploy
from cprune.compiling.tuned import opened_tuner, tune
from cprune.network.capture import capture
from cprune.network.halving import halved
from cprune.network.quantizing import quantized
from cprune.progress import Progress
from cprune.targets import link
from cprune.targets.remote import tracker
from cprune.targets.target import find
from cprune.tuner.programs.workload import FMLA

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not link.linkers("aarch64-linux-gnu"), reason="no linker for aarch64-linux-gnu"),
]


@pytest.fixture(scope="module")
def board() -> Iterator[Rig]:
    command, environment = arm64.server()
    with tracker.Tracker(port=free_port()) as started:
        started.wait()
        where = str(started.address)
        rig = Rig(started, [Server(where, command, KEY, environment).start() for _ in range(2)])
        try:
            rig.wait(2, deadline_s=120)
            yield rig
        finally:
            for server in rig.servers:
                server.kill()


@pytest.fixture(scope="module")
def target(board: Rig, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("target") / "board.toml"
    path.write_text(
        f'like = "linux-arm64"\nname = "board"\nkey = "{KEY}"\ntracker = "{board.where}"\nthreads = 1\n'
        "device_timeout_s = 60\n[timing]\nrepeats = 2\nmin_run_ms = 0.5\ndeadline_s = 30\n"
    )
    return str(path)


def told(capsys: pytest.CaptureFixture[str], *words: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    assert cli.main([*words, "--json"]) in codes, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_devices_shows_both_boards(board: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "devices", "--rpc-tracker", board.where)
    assert [(d["key"], d["state"], d["machine"]) for d in found["devices"]] == [(KEY, "free", "aarch64")] * 2
    assert "emulated" in found["devices"][0]["cpu"]
    board.wait(2)


def test_doctor_finds_everything_well(target: str, board: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "doctor", "--target", target, codes=(0, 1))  # how steady an emulator is, nobody knows
    names = [check["name"] for check in found["checks"]]
    assert names[:3] == ["compiler", "linker", "tracker"]
    assert names[-2:] == ["kernel", "clock"]
    assert all(check["ok"] for check in found["checks"] if check["name"] != "clock")
    board.wait(2)


@pytest.fixture(scope="module")
def run(target: str, board: Rig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("run")
    (base / "fast.toml").write_text(TOML.replace("max_drop = 1.0", "min_acc = 0.2"))
    words = [
        "-m",
        "test_loop:tiny",
        "-d",
        f"npz:{data_file(base)}",
        "--target",
        target,
        "--config",
        str(base / "fast.toml"),
    ]
    assert cli.main(["run", *words, "--max-steps", "2", "--out", str(base / "run")]) in (0, 1)
    return base / "run"


def test_a_whole_run_ends_with_a_result_for_the_board(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["target"] == "board"
    assert result["accuracy"]["after"] >= 0.2
    assert "emulated" in json.loads((run / "run.json").read_text())["target"]["cpu"]
    assert "emulated" in (run / "report.md").read_text()


def test_the_bundle_of_the_run_is_verified_on_the_board(
    run: Path, board: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = run / "bundle"
    found = told(capsys, "export", str(run))
    assert {"model.so", "runner.cpp", "CMakeLists.txt", "example.safetensors"} <= set(found["files"])
    assert link.machine_of(bundle / "model.so") == link.MACHINES["aarch64"]
    verified = told(capsys, "verify", str(bundle))
    assert verified["ok"]
    assert verified["max_difference"] < 1e-4
    board.wait(2)


def test_the_runner_runs_on_the_board_without_python(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = run / "bundle"
    if not bundle.exists():
        told(capsys, "export", str(run))
    command, environment = arm64.server()
    device = Path(command[0]).parent
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no aarch64-linux-gnu-g++: the runner needs the C++ library that TVM's runtime was built with")
    import tvm_ffi

    include = Path(tvm_ffi.__file__).parent / "include"
    libraries = [device / "site" / "tvm" / "lib", device / "site" / "tvm_ffi" / "lib"]
    words = [*("-std=c++17", "-O1", "-DCPRUNE_THREADS=1", f"-I{include}", "-Wl,--no-as-needed"),
             *(f"-L{folder}" for folder in libraries), "-ltvm_runtime", "-ltvm_ffi"]  # fmt: skip
    runner = bundle / "cprune_runner"
    done = subprocess.run(
        [compiler, str(bundle / "runner.cpp"), *words, "-o", str(runner)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loader = [environment["CPRUNE_EMULATOR"], str(device / "lib" / "ld-linux-aarch64.so.1")]
    path = ":".join(map(str, [device / "lib", *libraries]))
    ran = subprocess.run([*loader, "--library-path", path, str(runner), str(bundle)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "agrees" in ran.stdout


def test_integers_are_computed_on_the_board_as_in_pytorch(target: str, board: Rig, tmp_path: Path) -> None:
    path = tmp_path / "fast.toml"
    path.write_text(Path(target).read_text().replace('like = "linux-arm64"', 'like = "linux-arm64:cortex-a76"'))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
        nn.Conv2d(16, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    ).eval()  # fmt: skip
    images = torch.randn(16, 3, 12, 12)
    network = quantized(capture(model, (images[:1],)), [(images,)]).eval()
    with opened_tuner(find(str(path)), tmp_path / "r.sqlite", 0, Progress()) as (session, tuner):
        tuned = tune(network, (images[:1],), tuner, 1, Progress())
        (output,) = tuned.load(session, "model")
    assert tuned.lowered.layout.dot == "sdot"
    with torch.no_grad():
        wanted, before = network(images[:1]).numpy(), model(images[:1]).numpy()
    assert np.abs(output - wanted).max() < np.abs(wanted - before).max() + 1e-4
    board.wait(2)


@pytest.mark.parametrize(("bits", "processor", "dot"), [("bf16", "neoverse-v1", "bfdot"), ("fp16", "cortex-a76", FMLA)])
def test_16_bits_are_computed_on_the_board_as_in_pytorch(
    target: str, board: Rig, tmp_path: Path, bits: str, processor: str, dot: str
) -> None:
    path = tmp_path / "half.toml"
    path.write_text(Path(target).read_text().replace('like = "linux-arm64"', f'like = "linux-arm64:{processor}"'))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()
    image = torch.randn(1, 3, 12, 12)
    network = halved(capture(model, (image,)), (image,), precision=bits).eval()
    with opened_tuner(find(str(path)), tmp_path / "r.sqlite", 0, Progress()) as (session, tuner):
        tuned = tune(network, (image,), tuner, 1, Progress())
        (output,) = tuned.load(session, "model")
    assert tuned.lowered.layout.dot == dot
    with torch.no_grad():
        wanted = network(image).numpy()
    assert np.abs(output - wanted).max() < 0.01 * np.abs(wanted).max()
    board.wait(2)


def test_tune_writes_a_library_for_the_board(target: str, board: Rig, tmp_path: Path) -> None:
    words = ["-m", "small_nets:tiny", "--target", target, "--trials", "2", "--records", str(tmp_path / "r.sqlite")]
    assert cli.main(["tune", *words, "--out", str(tmp_path / "out")]) == 0
    assert link.machine_of(tmp_path / "out" / "model.so") == link.MACHINES["aarch64"]
    example = deploy.read_example(tmp_path / "out")
    assert np.isfinite(example.outputs[0]).all()
    assert os.path.getsize(tmp_path / "out" / "weights.safetensors") > 100
    board.wait(2)
