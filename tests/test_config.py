"""Settings from a TOML file or from Python: what is read, and what is refused with what to type."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cprune.cli import main as cli
from cprune.method.settings import Settings
from cprune.targets.errors import UserError


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("min_acc", "70%", 0.7),
        ("min_acc", "0.7", 0.7),
        ("min_acc", 0.7, 0.7),
        ("min_acc", 1, 1.0),
        ("min_acc", np.float32(0.5), 0.5),
        ("min_acc", None, None),
        ("max_drop", "1%", 0.01),
        ("max_sparsity", "50%", 0.5),
        ("confidence", "95%", 0.95),
        ("confidence", None, None),
        ("alpha", "99.5%", 0.995),
        ("beta", "98%", 0.98),
        ("trials", 64.0, 64),
        ("trials", np.int64(64), 64),
        ("long_epochs", 3, 3.0),
    ],
)
def test_a_setting_is_read_as_the_number_it_is(name: str, value: object, number: float | None) -> None:
    read = getattr(Settings.from_dict({name: value}), name)
    assert read == number
    assert number is None or type(read) is type(number)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("min_acc", "much", "the setting min_acc must be a share, not 'much'\nType a number from 0 to 1, or 70%."),
        ("min_acc", "170%", "the setting min_acc must be a share, not '170%'\nType a number from 0 to 1, or 70%."),
        ("min_acc", 70, "--min-acc 70 is no share\nType a number from 0 to 1, or 70%."),
        ("min_acc", True, "the setting min_acc must be a number, not True"),
        ("min_acc", [0.7], "the setting min_acc must be a number, not [0.7]"),
        ("max_drop", "lots", "the setting max_drop must be a share, not 'lots'\nType a number from 0 to 1, or 70%."),
        ("max_drop", None, "the setting max_drop must be a number, not None"),
        ("confidence", "100%", "--confidence 1 is not from 50% to 99.9%\nType 95%."),
        ("confidence", 0.4, "--confidence 0.4 is not from 50% to 99.9%\nType 95%."),
        ("importance", 3, "the setting importance must be a text, not 3"),
        (
            "importance",
            "l3",
            "unknown importance 'l3'\nDid you mean 'l1'? Known: elimination, fpgm, l1, l2, random, taylor",
        ),
        (
            "method",
            "table",
            "unknown method 'table'\nDid you mean 'tables'? "
            "Known: cprune, fpgm, netadapt, one-shot, one-shot-inner, tables, uniform",
        ),
        ("train_time_s", 0, "--train-time 0: it must be more than 0\nType 20m."),
        ("train_time_s", float("nan"), "the setting train_time_s must be a number, not nan"),
        ("trials", True, "the setting trials must be a whole number, not True"),
        ("trials", "many", "the setting trials must be a whole number, not 'many'"),
        ("trials", 0, "--trials 0: at least 1 is needed"),
        ("max_steps", 2.5, "the setting max_steps must be a whole number, not 2.5"),
        ("max_steps", float("inf"), "the setting max_steps must be a whole number, not inf"),
        ("max_steps", -1, "--max-steps -1: it cannot be negative"),
        ("run_ms", -1, "--run-ms -1: it must be more than 0, for example 10"),
        ("run_ms", 0, "--run-ms 0: it must be more than 0, for example 10"),
        ("run_ms", float("nan"), "the setting run_ms must be a number, not nan"),
        ("long_epochs", float("inf"), "the setting long_epochs must be a number, not inf"),
        pytest.param(
            "short_lr", 10**400, f"the setting short_lr must be a number, not {10**400}", id="a number of 401 digits"
        ),
        ("distil", 1, "the setting distil must be true or false, not 1"),
        ("ignore", "conv1", "the setting ignore must be a list, each item a text, not 'conv1'"),
        ("ignore", [1], "the setting ignore must be a list, each item a text, not [1]"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as refused:
        Settings.from_dict({name: value})
    assert str(refused.value) == message


def test_an_unknown_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown setting 'min_ac'\nDid you mean 'min_acc'"):
        Settings.from_dict({"min_ac": 0.7})


def test_what_a_run_writes_is_what_it_reads() -> None:
    settings = Settings(min_acc=0.7, ignore=("conv1", "Linear"), long_epochs=0)
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_a_share_in_a_settings_file_that_is_none_is_one_message(tmp_path: Any, capsys: Any) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('min_acc = "70 percent"\n')
    assert cli.main(["run", "--config", str(path), "-d", "fashion-mnist"]) == 2
    assert capsys.readouterr().err.startswith("error: the setting min_acc must be a share, not '70 percent'")
