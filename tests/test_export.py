"""A bundle to deploy: complete, right, and run by a C++ program that knows TVM's runtime only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import captured, tiny
from torch import Tensor

from cprune.api import _config
from cprune.channels.branches import branches, without
from cprune.channels.groups import analyse
from cprune.channels.surgery import prune
from cprune.cli import main as cli
from cprune.compiling import deploy
from cprune.compiling.tuned import tune
from cprune.method.settings import Settings
from cprune.models.formats import onnx as onnx_format
from cprune.models.formats import write as saved
from cprune.models.source import Source
from cprune.network import saving as networks
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.progress import Progress
from cprune.runs.folder import RunFolder
from cprune.runs.front import Front, FrontPoint, Unpruned, write_front
from cprune.targets.interval import Interval
from cprune.targets.local import LocalSession
from cprune.targets.target import Target
from cprune.tuner.records.store import Store
from cprune.tuner.tune import Tuner

TRIALS = Settings(trials=2)


@pytest.fixture(scope="module")
def run(session: LocalSession, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a finished run leaves of its model."""
    model, x = tiny()
    return finished(tmp_path_factory.mktemp("export") / "run", capture(model, (x,)), x, session, target)


def finished(folder: Path, network: Network, x: Tensor, session: LocalSession, target: Target) -> Path:
    """Write what a finished run leaves of this network."""
    where = RunFolder.create(folder, _config("tiny", "functions", Source(""), target, TRIALS, None))
    with Store(where.records) as store:
        tuned = tune(network, (x,), Tuner(session, store, target), TRIALS.trials, Progress())
    networks.save(network, where.path)
    deploy.keep_programs(where.programs, tuned.lowered, tuned.programs, target)
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    assert cli.main(["export", str(run)]) == 0
    return run / "bundle"


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    assert cli.main([*words, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_bundle_is_exported_without_measuring(bundle: Path, run: Path) -> None:
    names = {path.name for path in bundle.iterdir()}
    assert names == {
        *("model.so", "model.json", "weights.safetensors", "example.safetensors"),
        *("runner.cpp", "CMakeLists.txt", "README.md"),
    }
    assert "@" not in (bundle / "README.md").read_text().replace("@@", "")


def test_verify_compares_with_pytorch(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "verify", str(bundle))
    assert found["ok"]
    assert found["max_difference"] < 1e-4
    assert 0 < found["latency_ms"]["low"] <= found["latency_ms"]["median"]


def test_verify_finds_wrong_weights(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import load_file, save_file

    other = shutil.copytree(bundle, tmp_path / "other")
    weights = load_file(other / "weights.safetensors")
    save_file({name: 2 * w for name, w in weights.items()}, other / "weights.safetensors")
    found = told(capsys, "verify", str(other), code=1)
    assert not found["ok"]
    assert found["max_difference"] > 0.01


def test_a_bundle_of_another_machine_is_not_run_here(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    model = json.loads((other / "model.json").read_text())
    model["target"]["cpu"] = "another processor"
    (other / "model.json").write_text(json.dumps(model))
    assert cli.main(["verify", str(other)]) == 2
    assert "was compiled for another machine (another processor)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [("weights.safetensors", "is damaged"), ("example.safetensors", "is damaged"), ("model.json", "is damaged")],
)
def test_a_damaged_bundle_is_said_to_be_damaged(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    (other / name).write_bytes((other / name).read_bytes()[:100])
    assert cli.main(["verify", str(other)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_not_exported(tmp_path: Path, target: Target, capsys: Any) -> None:
    RunFolder.create(tmp_path / "run", _config("tiny", "functions", Source(""), target, TRIALS, None))
    assert cli.main(["export", str(tmp_path / "run")]) == 2
    assert "cprune resume" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_not_written_over(bundle: Path, run: Path, capsys: Any) -> None:
    assert cli.main(["export", str(run)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_another_machine_than_the_compiled_one_needs_tuning(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", "-m", "small_nets:tiny", "--trials", "2", "--out", str(tmp_path / "c"),
                      "--records", str(tmp_path / "r.sqlite")]) == 0  # fmt: skip
    assert cli.main(["export", str(tmp_path / "c"), "--target", "linux-arm64", "--out", str(tmp_path / "b")]) == 2
    assert "cprune tune -m" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "c"), "--out", str(tmp_path / "b")]) == 0
    assert cli.main(["verify", str(tmp_path / "b")]) == 0


# -- the runner


@pytest.fixture(scope="module")
def runner(bundle: Path) -> Path:
    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("no cmake or no C++ compiler")
    build = bundle.parent / "build"
    for words in (
        ["cmake", "-S", str(bundle), "-B", str(build), f"-DPython3_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "cprune_runner"


def test_the_runner_agrees_with_pytorch(runner: Path, bundle: Path) -> None:
    ran = subprocess.run([runner, bundle], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "agrees: largest difference from PyTorch" in ran.stdout
    assert " ms a call" in ran.stdout


def test_the_runner_takes_an_input_and_writes_the_output(runner: Path, bundle: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(7).standard_normal((1, 3, 12, 12), np.float32)
    x.tofile(tmp_path / "x.bin")
    words = [runner, bundle, "--input", tmp_path / "x.bin", "--output", tmp_path / "y.bin", "--repeat", "1"]
    assert subprocess.run(words, capture_output=True).returncode == 0
    (wanted,) = deploy.open_compiled(bundle)(x)
    assert np.array_equal(np.fromfile(tmp_path / "y.bin", np.float32).reshape(wanted.shape), wanted)


def test_the_runner_says_what_is_wrong(runner: Path, bundle: Path, tmp_path: Path) -> None:
    def said(*words: object) -> str:
        ran = subprocess.run([runner, *map(str, words)], capture_output=True, text=True)
        assert ran.returncode == 2
        return ran.stderr

    (tmp_path / "short.bin").write_bytes(bytes(8))
    assert "too short" in said(bundle, "--input", tmp_path / "short.bin")
    assert "cannot read" in said(tmp_path)
    assert "unknown option --speed" in said(bundle, "--speed")
    other = shutil.copytree(bundle, tmp_path / "other")
    (other / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes()[:-4])
    assert "is damaged" in said(other)


def test_the_runner_disagrees_with_a_wrong_answer(runner: Path, bundle: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    other = shutil.copytree(bundle, tmp_path / "other")
    example = load_file(other / "example.safetensors")
    example["output.0"][0, 0] += 1
    save_file(example, other / "example.safetensors")
    ran = subprocess.run([runner, other], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "DISAGREES" in ran.stdout


# -- the model itself, not compiled


def test_the_model_is_written_for_pytorch(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.pt2"
    assert told(capsys, "export", str(run), "-o", str(file))["max_difference"] < 1e-5
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(torch.export.load(file).module()(x), networks.load(run)(x))


def test_the_model_is_written_as_onnx(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deeper" / "model.onnx"
    assert told(capsys, "export", str(run), "-o", str(file))["max_difference"] < 1e-5
    again = onnx_format.opened(file)
    assert (again.input_names, again.output_names) == (("input",), ("output",))
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(again.model(x), networks.load(run)(x))


def test_the_model_of_a_run_that_lost_a_branch_and_channels_is_written_and_comes_back(
    session: LocalSession, target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = captured("Residual")
    narrower = prune(whole.network, whole.graph, {"stem": [2], "b1": [0, 4]})
    shorter = without(narrower, branches(whole.network, whole.example)[:1])
    x = whole.example[0][:1]
    run = finished(tmp_path / "run", shorter, x, session, target)
    for file in (tmp_path / "model.pt2", tmp_path / "model.onnx"):
        assert told(capsys, "export", str(run), "-o", str(file))["max_difference"] < 1e-5
        back = Source(str(file)).opened(seed=0)
        torch.testing.assert_close(back.network(x), shorter(x))
        assert [b.layers for b in branches(back.network, (x,))] == [("b1", "b2"), ("c1", "c2")]
    assert cli.main(["export", str(run)]) == 0
    (compiled,) = deploy.open_compiled(run / "bundle")(x.numpy())
    assert np.allclose(compiled, shorter(x).detach(), atol=1e-4)


def test_a_file_that_is_there_is_not_written_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.pt2").write_text("precious")
    assert cli.main(["export", str(run), "-o", str(tmp_path / "model.pt2")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "model.pt2").read_text() == "precious"


def test_a_model_that_came_out_wrong_is_not_left_behind(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved, "_pt2", lambda network, inputs, path: path.write_text("x") and 0.5)
    assert cli.main(["export", str(run), "-o", str(tmp_path / "model.pt2")]) == 2
    assert "differs from the model by 0.5" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# -- another model of the front


@pytest.fixture
def two(session: LocalSession, target: Target, tmp_path: Path) -> Path:
    """A run that delivered a model and trained a narrower one, which is not certified."""
    model, x = tiny()
    whole = capture(model, (x,))
    run = RunFolder.open(finished(tmp_path / "run", whole, x, session, target))
    graph = analyse(whole, (x,))
    smaller = prune(whole, graph, {graph.groups[0].id: [0]})
    networks.save(smaller, run.step_dir(0))
    with Store(run.records) as store:
        tuned = tune(smaller, (x,), Tuner(session, store, target), TRIALS.trials, Progress())
    run.programs_of(0).parent.mkdir()
    deploy.keep_programs(run.programs_of(0), tuned.lowered, tuned.programs, target)
    point = FrontPoint("certified", Interval(1.0, 1.0, 1.0), 1.5, 0.0, 1, 1, 0, {}, step=1, delivered=True)
    other = replace(point, status="trained", speedup=2.0, latency_ms=Interval(0.7, 0.7, 0.7), step=0, delivered=False)
    write_front(run.front, Front(Unpruned(Interval(1.5, 1.5, 1.5), 0.9, 2, 2), (point, other)))
    return run.path


def test_another_model_of_the_front_is_exported_with_a_warning(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(3).standard_normal((1, 3, 12, 12), np.float32)
    assert cli.main(["export", str(two), "--pick", "2x", "--out", str(tmp_path / "b")]) == 0
    assert "warning: this model was trained, but not certified" in capsys.readouterr().err
    (compiled,) = deploy.open_compiled(tmp_path / "b")(x)
    wanted = networks.load(RunFolder(two).step_dir(0))(torch.from_numpy(x)).detach()
    assert np.allclose(compiled, wanted, atol=1e-4)
    file = tmp_path / "model.pt2"
    assert told(capsys, "export", str(two), "--pick", "0.7ms", "-o", str(file))["max_difference"] < 1e-5
    torch.testing.assert_close(torch.export.load(file).module()(torch.from_numpy(x)), wanted)


def test_the_delivered_model_is_exported_without_one(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(two), "--pick", "1.5x", "--out", str(tmp_path / "b")]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_model_that_nobody_trained_is_not_exported(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(two), "--pick", "3x"]) == 2
    assert f"cprune resume {two} --speedup 3" in capsys.readouterr().err
    assert cli.main(["export", str(two.parent), "--pick", "3x"]) == 2
    assert "is no run folder" in capsys.readouterr().err
