"""What somebody who calls cprune from Python sees when it refuses: our message, without what led us to it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cprune
from cprune import api
from cprune.network import saving as networks
from cprune.network.capture import capture
from cprune.runs.folder import RunFolder
from cprune.targets.errors import CpruneError, UserError, front_door

EXAMPLE = torch.zeros(1, 3, 8, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder that holds a model."""
    run = RunFolder.create(tmp_path / "run", {})
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    networks.save(capture(model, (EXAMPLE,)), run.path)
    return run.path


def shown(call: Callable[[], Any]) -> str:
    """Return what Python prints for the error of this call, which must be one traceback."""
    with pytest.raises(CpruneError) as caught:
        call()
    text = "".join(traceback.format_exception(caught.value))
    tracebacks = [line for line in text.splitlines() if line.startswith("Traceback (most recent call last)")]
    assert len(tracebacks) == 1, text
    return text


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def without_checksum(path: Path) -> None:
    path.write_text(path.read_text().replace("sha256", "sha257"))


def of_bytes_that_are_no_text(path: Path) -> None:
    path.write_bytes(b"\xff" + path.read_bytes())


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.json", halve),
        ("model.json", without_checksum),
        ("model.json", of_bytes_that_are_no_text),
        ("model.safetensors", halve),
        ("model.safetensors", change),
        ("model.safetensors", Path.unlink),
    ],
)
def test_a_damaged_model_is_refused_in_one_traceback(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    text = shown(lambda: cprune.load(folder))
    assert "\ncprune.targets.errors.UserError: " in text
    assert str(folder) in text.split("UserError: ")[-1]


def test_so_are_a_run_that_cannot_go_on_and_a_model_that_cannot_be_exported(folder: Path) -> None:
    (folder / "run.json").write_text('{"settings": {}}')
    assert "is no configuration of a run" in shown(lambda: api.resume(folder))
    model = nn.Conv2d(1, 2, 3)
    assert "the model fails on its example input" in shown(lambda: cprune.prune(model, EXAMPLE, evaluate=lambda _: 1.0))


def test_a_compiled_model_that_is_damaged_is_refused_in_one_traceback(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"target"')
    assert "is damaged" in shown(lambda: cprune.open_compiled(tmp_path))


def test_what_led_to_an_error_is_still_there_for_who_looks(folder: Path) -> None:
    halve(folder / "model.json")
    with pytest.raises(UserError) as caught:
        cprune.load(folder)
    assert caught.value.__cause__ is None
    assert isinstance(caught.value.__context__, ValueError)


def test_an_error_that_is_not_ours_keeps_all_that_led_to_it() -> None:
    @front_door
    def broken() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ZeroDivisionError("second") from error

    with pytest.raises(ZeroDivisionError) as caught:
        broken()
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_front_door_keeps_name_and_signature() -> None:
    assert cprune.load.__name__ == "load"
    assert "pruned model" in str(cprune.load.__doc__)
