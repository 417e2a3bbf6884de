"""`cprune tune` writes a compiled model that a stranger can open and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_nets import tiny

from cprune.cli import main as cli
from cprune.compiling import deploy
from cprune.models.zoo import load_model
from cprune.targets.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("tune")
    options = ["--trials", "2", "--records", str(where / "r.sqlite"), "--out", str(where / "compiled"), "--json"]
    assert cli.main(["tune", "-m", "small_nets:tiny", *options]) == 0
    return where / "compiled"


def test_the_compiled_model_answers_as_pytorch_does(folder: Path) -> None:
    compiled = deploy.open_compiled(folder)
    model = load_model("small_nets:tiny").model
    for seed in range(3):
        x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        (output,) = compiled(x.numpy())
        with torch.no_grad():
            assert np.abs(output - model(x).numpy()).max() < 1e-4


def test_the_folder_says_what_it_was_compiled_for(folder: Path) -> None:
    told = json.loads((folder / "model.json").read_text())
    assert told["inputs"][0]["shape"] == list(tiny()[1].shape)
    assert told["target"]["name"] == "local"
    assert told["latency_ms"]["low"] <= told["latency_ms"]["median"] <= told["latency_ms"]["high"]


def test_another_shape_is_refused_and_not_computed(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 12, 12\)"):
        deploy.open_compiled(folder)(np.zeros((1, 3, 11, 12), np.float32))


def test_tuning_into_a_folder_that_holds_something_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "-m", "small_nets:tiny", "--out", str(folder)]) == 2
    assert "not empty" in capsys.readouterr().err


def _cut(name: str) -> Callable[[Path], object]:
    return lambda where: (where / name).write_bytes((where / name).read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut("model.json"), "damaged"),
        (_cut("weights.safetensors"), "damaged"),
        (_cut("model.so"), "cannot be loaded"),
        (lambda where: (where / "model.json").unlink(), "holds no compiled model"),
    ],
)
def test_a_damaged_folder_is_named(
    folder: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    damage(copy)
    with pytest.raises(UserError, match=message):
        deploy.open_compiled(copy)


def test_a_length_of_time_is_read_with_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    from cprune.cli.options import duration

    assert [duration(text) for text in ("90", "90s", "5m", "1.5h")] == [90, 90, 300, 5400]
    assert cli.main(["tune", "--time-limit", "soon"]) == 2
    assert "5m" in capsys.readouterr().err
