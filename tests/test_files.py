"""A model from a file goes the whole way: read, pruned, trained, resumed, and given back in the form it came in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from test_loop import EXAMPLE, TOML, Tiny, command, data_file, tiny

import cprune
from cprune.cli import main as cli
from cprune.cli.options import input_values
from cprune.models.formats import onnx as onnx_format
from cprune.models.source import Source
from cprune.network.capture import capture
from cprune.targets.errors import UserError


def onnx_file(path: Path) -> Path:
    """Write the tiny network with names that only ONNX allows, for a batch of one."""
    network = capture(tiny(), (EXAMPLE,))
    onnx_format.write(network, path, ["image:0"], ["scores/logits"], (EXAMPLE,))
    made = onnx.load(path)
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(made, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_file_is_pruned_and_given_back(tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fast.toml").write_text(TOML)
    file, out = tmp_path / f"whole{ending}", tmp_path / "run"
    if ending == ".onnx":
        onnx_file(file)
    else:
        torch.export.save(torch.export.export(tiny(), (EXAMPLE,)), file)
    words = ("run", "-m", file.name, "-d", f"npz:{data_file(tmp_path)}", "--config", "fast.toml", "--out", str(out))
    running = command(tmp_path, *words, "--ignore", "a.*")
    _, errors = running.communicate(timeout=400)
    assert running.returncode in (0, 1), errors
    assert "Traceback" not in errors
    config = json.loads((out / "run.json").read_text())
    assert Path(config["model_spec"]).is_absolute()

    small = tmp_path / f"small{ending}"
    assert cli.main(["export", str(out), "-o", str(small)]) == 0
    again = Source(str(small)).opened(0)
    pruned = cprune.load(out)
    x = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(again.network(x), pruned(x), rtol=1e-4, atol=1e-4)
    if ending == ".onnx":
        assert (again.input_names, again.output_names) == (("image:0",), ("scores/logits",))
    assert cli.main(["check", "-m", str(small), "--no-compile"]) == 0
    assert cli.main(["check", "-m", str(out), "--no-compile"]) == 0


def test_an_onnx_file_of_one_image_is_opened_for_batches_and_has_the_model_s_groups(tmp_path: Path) -> None:
    found = Source(str(onnx_file(tmp_path / "m.onnx"))).opened(0)
    x = torch.randn(5, 1, 12, 12)
    torch.testing.assert_close(found.network(x), tiny()(x), rtol=1e-4, atol=1e-5)
    assert found.outputs == 4
    assert sum(p.numel() for p in found.network.parameters()) == sum(p.numel() for p in fused(tiny()).parameters())


def fused(model: Tiny) -> torch.nn.Module:
    """Return the model without BatchNorm: the exporter folds it into the convolution; untrained, it leaves no bias."""
    model.a = torch.nn.Sequential(torch.nn.Conv2d(64, 128, 3, padding=1, bias=False), torch.nn.ReLU())
    return model


def test_shapes_and_values_of_inputs_are_typed() -> None:
    assert input_values(["1,3,8,8"]) == ({"": (1, 3, 8, 8)}, {})
    assert input_values(["a:0=2x3", "sr:=16000", "t:=0.5"]) == ({"a:0": (2, 3)}, {"sr": 16000, "t": 0.5})
    for text in ("a=", "a=1,,2", "a:=x", "", "0,3"):
        with pytest.raises(UserError):
            input_values([text])
    with pytest.raises(UserError, match="has a shape already"):
        input_values(["a=1", "a=2"])


def test_a_source_comes_back_from_run_json(tmp_path: Path) -> None:
    whole = Source("my:model", tmp_path / "w.pth", {"x": (1, 3)}, {"sr": 8000})
    assert Source.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def test_weights_and_fixed_values_do_not_go_with_every_model(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "m.onnx")
    with pytest.raises(UserError, match="has its own weights"):
        Source(str(file), tmp_path / "w.pth").opened(0)
    with pytest.raises(UserError, match="only an input of an ONNX file"):
        Source("resnet20", None, {}, {"x": 1}).opened(0)
    with pytest.raises(UserError, match="there is no file"):
        Source(str(tmp_path / "none.pt2")).opened(0)


class Two(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a + b).mean((2, 3))


class Words(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return {"scores": super().forward(x)}


def two() -> Any:
    return Two(), (EXAMPLE, EXAMPLE)


def words() -> Any:
    return Words(), EXAMPLE


@pytest.mark.parametrize(("model", "message"), [("two", "does not take one image"), ("words", "one row of scores")])
def test_a_model_that_labels_do_not_fit_is_sent_to_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    assert cli.main(["run", "-m", f"test_files:{model}", "-d", f"npz:{data_file(tmp_path)}"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "cprune.prune(" in told
