"""int8 from the command line: a model as it is, a run, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_halves import multiplies_halves
from test_integers import multiplies_bytes
from test_loop import TABLES_TOML, command, data_file

import cprune
from cprune.commands.request import Request
from cprune.commands.rounded import given, in_integers
from cprune.method.settings import Settings
from cprune.method.subject import subject_of
from cprune.models.formats.write import save
from cprune.models.source import Source
from cprune.network.halving import halved
from cprune.network.precision import precision
from cprune.network.quantizing import quantized
from cprune.network.torch_export import batches
from cprune.progress import Progress
from cprune.targets.errors import UserError
from cprune.targets.target import find


def asked(target: str = "local") -> Request:
    return Request(Source("resnet-fashion"), find(target), Settings(trials=1))


def test_a_processor_that_multiplies_no_bytes_is_told_so() -> None:
    with pytest.raises(UserError, match="no instruction that multiplies bytes"):
        given(asked("linux-arm64:cortex-a72"), "int8", "fashion-mnist")


@multiplies_bytes
def test_int8_without_images_asks_for_them() -> None:
    with pytest.raises(UserError, match="needs images"):
        given(asked(), "int8", None)


@multiplies_bytes
def test_the_built_in_model_loses_next_to_nothing_in_integers() -> None:
    model = given(asked(), "int8", "fashion-mnist")
    network = in_integers(model, 0, Progress())
    assert precision(network) == "int8"
    answers = model.answers(network)
    assert answers is not None
    assert answers.before == pytest.approx(0.93, abs=0.01)
    assert abs(answers.loss.loss) < 0.004


@pytest.mark.parametrize("bits", ["int8", "bf16", "fp16"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_the_built_in_model_in_fewer_bits_is_written_as_others_run_it(tmp_path: Path, bits: str, suffix: str) -> None:
    subject = subject_of(Source("resnet-fashion"), "fashion-mnist", find("local"), Settings())
    images = subject.trainer.samples(64, 0)
    assert images is not None
    shown = images.inputs(64)
    plain, example = subject.network, subject.example
    network = (quantized(plain, shown) if bits == "int8" else halved(plain, example, precision=bits)).eval()
    path = tmp_path / f"model{suffix}"
    assert save(network, example, path) < 0.03
    again = Source(str(path)).opened(0).network.eval()
    assert batches(again, example) == [True]
    if bits == "int8" or suffix == ".pt2":
        assert precision(again) == bits
    with torch.no_grad():
        ours, theirs = network(*shown[0]), again(*shown[0])
    assert (ours.argmax(1) == theirs.argmax(1)).all()


@pytest.mark.slow
@multiplies_bytes
def test_a_model_is_tuned_in_integers_and_its_folder_runs(tmp_path: Path) -> None:
    out = tmp_path / "compiled"
    tuning = command(
        tmp_path, "tune", "-m", "test_loop:small", "-d", f"npz:{data_file(tmp_path)}", "--precision", "int8",
        "--trials", "2", "--records", str(tmp_path / "records.sqlite"), "--out", str(out), "--json",
    )  # fmt: skip
    printed, errors = tuning.communicate(timeout=240)
    assert tuning.returncode == 0, errors
    told = json.loads(printed)
    assert told["precision"] == "int8"
    assert told["accuracy"]["lost"]["images"] == 35
    verified = command(tmp_path, "verify", str(out), "--json")
    printed, errors = verified.communicate(timeout=120)
    assert verified.returncode == 0, errors
    assert json.loads(printed)["ok"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "operator"),
    [
        pytest.param("int8", "fake_quantize", marks=multiplies_bytes),
        pytest.param("bf16", "_to_copy", marks=multiplies_halves),
    ],
)
def test_a_run_in_fewer_bits_ends_with_a_model_in_them_that_is_exported(
    tmp_path: Path, bits: str, operator: str
) -> None:
    (tmp_path / "tables.toml").write_text(TABLES_TOML)
    out = tmp_path / "run"
    running = command(
        tmp_path, "run", "-m", "test_loop:small", "-d", f"npz:{data_file(tmp_path)}", "--config", "tables.toml",
        "--precision", bits, "--threads", "1", "--out", str(out), "--json",
    )  # fmt: skip
    printed, errors = running.communicate(timeout=400)
    assert running.returncode == 0, errors
    told = json.loads(printed)
    assert (told["precision"]["before"], told["precision"]["after"]) == ("fp32", bits)
    assert told["precision"]["alone"] > 0
    network = cprune.load(out)
    assert any(operator in node.op for node in network.nodes)
    exporting = command(tmp_path, "export", str(out), "--out", str(tmp_path / "bundle"))
    _, errors = exporting.communicate(timeout=240)
    assert exporting.returncode == 0, errors
    image = np.random.default_rng(0).standard_normal((1, 1, 12, 12)).astype(np.float32)
    (answer,) = cprune.open_compiled(tmp_path / "bundle")(image)
    with torch.no_grad():
        wanted = network(torch.from_numpy(image)).numpy()
    assert np.abs(answer - wanted).max() < 0.05 * max(1.0, np.abs(wanted).max())
