"""`cprune check` proves pruning and compiling on the user's own model, and sees what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import Residual, captured, randomised
from torch import Tensor, nn

from cprune.channels import surgery
from cprune.channels.branches import Branch, branches, without
from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.cli import main as cli
from cprune.commands import check
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.progress import Progress
from cprune.targets.errors import UserError

CHECK = ("check", "-m", "small_nets:tiny")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = cli.main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_model_that_is_pruned_and_compiled_rightly_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found = told(capsys, *CHECK, "--records", str(tmp_path / "r.sqlite"))
    assert code == 0
    assert (found["groups"], found["failed"], found["failures"], found["compiled"]) == (2, 0, [], True)


def test_a_pruning_that_takes_the_wrong_channels_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = captured("Chain")

    def shifted(network: Network, graph: Graph, removed: surgery.Removed) -> Network:
        return surgery.prune(network, graph, {g: [(c + 1) % graph.group(g).channels for c in cs]
                                              for g, cs in removed.items()})  # fmt: skip

    monkeypatch.setattr(check, "prune", shifted)
    wrong = list(check.pruned_as_masked(whole.network, whole.graph, whole.example, 0, Progress()))
    assert {"conv1", "conv2", "fc1", "all groups"} <= {w.group for w in wrong}
    assert all(w.max_difference is not None and w.max_difference > 1e-3 for w in wrong)


def test_a_pruned_model_that_does_not_run_is_a_failure_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = captured("Chain")

    def broken(network: Network, graph: Graph, removed: surgery.Removed) -> Network:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nand more")

    monkeypatch.setattr(check, "prune", broken)
    first, *_ = check.pruned_as_masked(whole.network, whole.graph, whole.example, 0, Progress())
    assert first.group == "conv1"
    assert "RuntimeError: mat1 and mat2 shapes" in first.what
    assert first.max_difference is None


def test_a_failure_is_exit_code_1_and_names_the_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = check.Wrong("conv1", "the pruned model differs from the masked one", 0.25)
    monkeypatch.setattr(check, "pruned_as_masked", lambda *_: iter([wrong]))
    assert cli.main([*CHECK, "--no-compile"]) == 1
    assert "BAD  conv1: the pruned model differs from the masked one by 0.25" in capsys.readouterr().out


# -- branches


def residual() -> tuple[nn.Module, Tensor]:
    model = Residual()
    return randomised(model), model.example(1)[0]


def test_every_branch_is_tried_and_the_model_without_them_compiled(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("check", "-m", "test_check:residual", "--records", str(tmp_path / "r.sqlite"))
    code, found = told(capsys, *words)
    assert (code, found["branches"], found["failures"], found["compiled"]) == (0, 3, [], True)
    assert cli.main([*words, "--no-compile"]) == 0
    assert "without each of 3 residual branches it computes" in capsys.readouterr().out
    code, found = told(capsys, *words, "--no-compile", "--ignore", "b1")
    assert (code, found["branches"], found["failed"]) == (0, 2, 0)


def test_a_branch_that_takes_the_shortcut_along_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = captured("Residual")
    found = branches(whole.network, whole.example)

    def other_side(network: Network, chosen: list[Branch]) -> Network:
        return without(network, [replace(branch, operand=1 - branch.operand) for branch in chosen])

    monkeypatch.setattr(check, "without", other_side)
    wrong = list(check.removed_as_zero(whole.network, found, whole.example, 0, Progress()))
    assert [w.group for w in wrong] == ["a1", "b1", "c1", "all branches"]
    assert all(w.max_difference is not None and w.max_difference > 1e-3 for w in wrong)
    assert wrong[0].what == "the model without it differs from the one with its value at zero"


# -- what the user leaves out


def test_ignored_layers_keep_their_channels_and_the_reason_says_so() -> None:
    whole = captured("Chain")
    graph = analyse(whole.network, whole.example, ["conv*"])
    assert [g.id for g in graph.groups] == ["fc1"]
    assert [(f.layers, f.channels, f.reason) for f in graph.frozen if "conv1" in f.layers] == [
        (("conv1",), 6, "--ignore conv* names conv1")
    ]


def test_a_type_may_be_named() -> None:
    whole = captured("Chain")
    assert [g.id for g in analyse(whole.network, whole.example, ["Linear"]).groups] == ["conv1", "conv2"]
    assert [g.id for g in analyse(whole.network, whole.example, ["Conv2d"]).groups] == ["fc1"]


def test_a_layer_that_shares_its_channels_freezes_them_all() -> None:
    whole = captured("Residual")
    ids = [g.id for g in analyse(whole.network, whole.example, ["a2"]).groups]
    assert ids == ["a1", "b1", "c1", "c2"]  # a2 adds into the stem's stream


def test_an_ignored_layer_that_is_not_there_is_answered_with_the_nearest() -> None:
    whole = captured("Chain")
    with pytest.raises(UserError, match="Did you mean 'conv1'"):
        analyse(whole.network, whole.example, ["conv11"])


def test_strict_is_content_with_a_model_that_is_understood() -> None:
    captured("Residual").graph.must_be_free()
    whole = captured("Chain")
    analyse(whole.network, whole.example, ["conv1"]).must_be_free()


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.sort(self.conv(x).mean((2, 3)), 1).values)  # type: ignore[no-any-return]


def sorted_model() -> tuple[nn.Module, Tensor]:
    return Sorted(), torch.zeros(1, 3, 8, 8)


def test_strict_names_what_is_frozen_and_where() -> None:
    model, x = sorted_model()
    with pytest.raises(UserError, match=r"--strict: 1 kind\(s\) of channels cannot be pruned") as failure:
        analyse(capture(model, (x,)), (x,)).must_be_free()
    assert "conv: 8 channels stay because aten.sort.default (test_check.py:" in str(failure.value)


def test_strict_stops_a_run_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "explain"):
        assert cli.main([command, "-m", "test_check:sorted_model", "--strict"]) == 2
        told = capsys.readouterr().err
        assert "conv: 8 channels stay because aten.sort.default (test_check.py:" in told


# -- shapes of inputs


def build() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def test_an_example_s_shape_may_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("check", "-m", "test_check:build", "--no-compile")
    code, found = told(capsys, *arguments, "--input", "1,3,20,20")
    assert (code, found["groups"], found["failed"]) == (0, 1, 0)
    for text, message in (("1,3,x", "no shape"), ("1,0,3", "no shape"), ("a=1,3,8,8", "only the inputs of a file")):
        assert cli.main([*arguments, "--input", text]) == 2
        assert message in capsys.readouterr().err
