"""The command line as a stranger meets it: help, mistakes, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cprune import progress
from cprune.channels.branches import Branch
from cprune.cli import main as cli
from cprune.cli import options, show
from cprune.commands.explain import Explained, branch_rows
from cprune.method.task_table import TaskRow
from cprune.progress import Progress
from cprune.targets.errors import BrokenWorld, nearest


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    told = capsys.readouterr()
    return code, told.out, told.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the message of a command that must be refused in one clear message: exit code 2, no traceback."""
    code, out, err = run(*arguments, capsys=capsys)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    return err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--help", capsys=capsys)
    assert code == 0
    commands = ("run", "resume", "report", "explain", "bench", "models", "targets", "records")
    for command in (*commands, "tune", "profile", "devices", "tracker", "doctor", "export", "verify"):
        assert f"  {command} " in out


@pytest.mark.parametrize("command", ["run", "explain", "check", "bench", "tune", "profile"])
def test_a_command_about_a_model_has_the_shared_options_before_its_own(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(command, "--help", capsys=capsys)
    assert code == 0
    shared = ["--model", "--weights", "--input", "--target", "--rpc-tracker", "--device-timeout", "--threads", "--seed"]
    places = [out.index(option) for option in (*shared, "--records", "--json")]
    assert places == sorted(places)


@pytest.mark.parametrize("code", ["import cprune", "from cprune.cli.main import main; main(['--help'])"])
def test_help_and_import_load_nothing_that_takes_long(code: str) -> None:
    code += "; import sys; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"torch", "tvm", "xgboost", "sqlalchemy", "onnx", "onnxruntime", "networkx", "jinja2", "numpy", "PIL"}
    assert not heavy & set(done.stderr.split())


def test_a_mistyped_option_is_answered_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model" in refused(capsys, "run", "--modle", "x")


def test_a_mistyped_command_is_answered_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "rnu" in refused(capsys, "rnu")


def test_an_unknown_model_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'resnet18'?" in refused(capsys, "run", "-m", "resnet_18x", "-d", "fashion-mnist")


@pytest.mark.parametrize("command", ["run", "explain", "check", "bench", "tune", "profile"])
def test_a_model_may_be_named_with_and_without_the_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("-d", "fashion-mnist") if command == "run" else ()
    by_option = refused(capsys, command, "-m", "resnet2O", *data)
    assert refused(capsys, command, "resnet2O", *data) == by_option
    assert "Did you mean 'resnet20'?" in by_option
    assert refused(capsys, command, *data, "resnet2O", "--model=resnet2O") == by_option
    assert refused(capsys, command, "resnet20", "-m", "resnet18", *data) == (
        "error: two models: resnet20 and --model resnet18\nGive one of them.\n"
    )


def test_the_model_without_the_option_may_be_a_file_or_a_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cprune.runs.folder import RunFolder

    assert "there is no file nothing.onnx" in refused(capsys, "check", "nothing.onnx")
    RunFolder.create(tmp_path / "begun", {})
    assert f"the run in {tmp_path / 'begun'} is not finished" in refused(capsys, "check", str(tmp_path / "begun"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet2O", "resnet20"),  # the letter, which is as near to resnet32 for difflib
        ("resnet2", "resnet20"),
        ("resnet21", "resnet20"),
        ("vggl6", "vgg16"),
        ("VGG1I", "vgg11"),
        ("resnte18", "resnet18"),
        ("resnet", "resnet18"),
        ("xylophone", None),
    ],
)
def test_the_nearest_name_is_the_one_with_the_fewest_letters_to_type(name: str, meant: str | None) -> None:
    known = ("resnet-fashion", "resnet18", "resnet20", "resnet32", "resnet50", "vgg11", "vgg16")
    assert nearest(name, known) == meant


def test_of_no_names_none_is_near() -> None:
    assert nearest("resnet20", ()) is None


def test_an_unknown_target_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Known: android-arm64, linux-arm64" in refused(capsys, "run", "-t", "phone")


def test_a_zoo_model_without_data_is_asked_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--data" in refused(capsys, "run", "-m", "resnet20")


@pytest.mark.parametrize("value", ["1.5", "-0.1", "70", "much", "120%"])
def test_an_accuracy_that_is_none_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0.7" in refused(capsys, "run", f"--min-acc={value}")


def test_points_that_are_written_as_a_share_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "run", "--max-drop", "1.0")
    assert "100% of the accuracy" in told
    assert "One point is 1%" in told


def test_two_limits_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "exclude each other" in refused(capsys, "run", "--min-acc", "0.9", "--max-drop", "1%")


@pytest.mark.parametrize("value", ["100%", "0.2", "sure"])
def test_a_confidence_that_is_none_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "run", "--confidence", value)
    assert "95%" in told or "70%" in told


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("--max-latency", "3"), "Type 3ms, 800us or 0.02s."),
        (("--max-latency", "fastms"), "Type 3ms, 800us or 0.02s."),
        (("--speedup", "1x"), "Type 2x"),
        (("--speedup", "double"), "Type 2x"),
        (("--max-params", "some"), "Type 300k, 1.5M or 2G."),
        (("--max-macs", "-3M"), "Type 300k, 1.5M or 2G."),
    ],
)
def test_a_limit_that_is_none_is_answered_with_what_to_type(
    words: tuple[str, str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert advice in refused(capsys, "run", *words)


def test_limits_are_typed_with_their_units() -> None:
    assert [options.milliseconds(text) for text in ("3ms", "800us", "0.02s")] == [3.0, 0.8, 20.0]
    assert [options.times(text) for text in ("2x", "1.5")] == [2.0, 1.5]
    assert [options.count(text) for text in ("300k", "1.5M", "2G", "1200")] == [300_000, 1_500_000, 2_000_000_000, 1200]


def test_an_unknown_importance_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'taylor'" in refused(capsys, "run", "--importance", "tailor")


def test_a_setting_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.toml").write_text("trails = 3\n")
    assert "Did you mean 'trials'" in refused(capsys, "run", "--config", str(tmp_path / "a.toml"))
    (tmp_path / "b.toml").write_text("trials = \n")
    assert "is not TOML" in refused(capsys, "run", "--config", str(tmp_path / "b.toml"))
    assert "cannot read" in refused(capsys, "run", "--config", str(tmp_path / "c.toml"))


def test_truncated_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cprune.models.zoo import ASSETS

    whole = (ASSETS / "resnet_fashion.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cut.safetensors" in refused(capsys, "run", "--weights", str(tmp_path / "cut.safetensors"))


def test_weights_of_another_shape_are_refused_with_the_first_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    from cprune.models.zoo import ASSETS

    tensors = load_file(ASSETS / "resnet_fashion.safetensors")
    tensors["layer1.0.conv1.weight"] = tensors["layer1.0.conv1.weight"][:16].clone()
    save_file(tensors, tmp_path / "other.safetensors")
    assert "layer1.0.conv1.weight" in refused(capsys, "run", "--weights", str(tmp_path / "other.safetensors"))


def test_labels_out_of_range_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.zeros((20, 1, 28, 28), np.float32)
    labels = np.arange(20) % 10
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels + 5, x_test=images, y_test=labels)
    assert "label 10 of y_train is out of range" in refused(capsys, "run", "-d", f"npz:{tmp_path / 'd.npz'}")


def test_an_empty_folder_of_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path) in refused(capsys, "run", "-d", f"folder:{tmp_path}")


def test_a_model_that_cannot_be_exported_is_refused_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "branching.py").write_text(
        "from torch import nn\n"
        "class Branching(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(784, 10)\n"
        "    def forward(self, x):\n"
        "        x = x.flatten(1)\n"
        "        return self.fc(x) if x.sum() > 0 else self.fc(-x)\n"
        "def make():\n"
        "    return Branching()\n"
    )
    monkeypatch.chdir(tmp_path)
    told = refused(capsys, "run", "-m", "branching:make", "-d", "fashion-mnist")
    assert "branching.py:8" in told


def test_a_folder_that_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not the folder of a run" in refused(capsys, "resume", str(tmp_path))
    assert "not the folder of a run" in refused(capsys, "report", str(tmp_path))


def test_a_bar_is_gone_before_the_message_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    class Bar(Progress):
        def done(self) -> None:
            ended.append("bar")

    monkeypatch.setattr(progress, "of_terminal", Bar)
    with pytest.raises(ZeroDivisionError), show.progress():
        raise ZeroDivisionError
    assert ended == ["bar"]


def test_a_model_that_onnxruntime_does_not_run_ends_its_process(tmp_path: Path) -> None:
    from cprune.commands import rivals

    (tmp_path / "model.onnx").write_bytes(b"no model")
    with (
        pytest.raises(BrokenWorld, match="does not run the exported model"),
        rivals.started("onnxruntime", tmp_path, 1),
    ):
        pass


def test_a_full_disk_is_said_and_loses_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cprune import api

    def full(**_: object) -> None:
        raise BrokenWorld("no space left on the disk")

    monkeypatch.setattr(api, "run", full)
    code, _, err = run("run", capsys=capsys)
    assert code == 2
    assert "no space left" in err


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cprune import api

    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "run", stopped)
    code, _, err = run("run", capsys=capsys)
    assert code == 130
    assert "cprune resume DIR" in err


def test_models_and_targets_print_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("models", "targets"):
        code, out, _ = run(command, "--json", capsys=capsys)
        assert code == 0
        assert json.loads(out)[command]


def test_explain_shows_groups_frozen_and_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = str(tmp_path / "records.sqlite")
    code, out, err = run("explain", "-m", "resnet20", "--trials", "1", "--records", records, "--json", capsys=capsys)
    assert code == 0, err
    told = json.loads(out)
    assert {"id": "layer2.1.conv1", "channels": 32, "layers": ["layer2.1.conv1"]} in told["groups"]
    assert told["frozen"][0]["layers"] == ["linear"]
    assert told["frozen"][0]["reason"]
    assert 0.8 < told["prunable_latency_share"] <= 1  # one trial each, on a machine that may be busy
    by_layer = {t["layers"][0]: t for t in told["tasks"] if t["layers"]}
    assert by_layer["layer1.0.conv1"]["uses"] == 3
    branch = told["branches"][0]
    assert (len(told["branches"]), branch["id"]) == (9, "layer1.0.conv1")
    assert branch["layers"] == ["layer1.0.conv1", "layer1.0.conv2"]
    # Its convolutions run the programs of all three blocks of the stage, one of them with the sum along.
    cost = [sum(t["latency_us"] for t in told["tasks"] if layer in t["layers"]) for layer in branch["layers"]]
    assert branch["latency_us"] == pytest.approx(sum(cost), abs=0.01)


def test_a_branch_costs_what_its_layers_cost_in_every_task() -> None:
    found = [Branch("a1", ("a1", "a2"), "add", 1), Branch("b1", ("b1", "fc"), "add_1", 0)]
    # One program of 10 us runs a1 and b1, another of 4 us runs a2 twice; the last one pools.
    tasks = [TaskRow("conv 3x3", ("a1", "b1"), 10.0, 2, 8, 1), TaskRow("conv 1x1", ("a2",), 4.0, 2, 8, 1),
             TaskRow("pool", (), 12.0, 1, 0, 0)]  # fmt: skip
    rows = branch_rows(found, tasks)
    assert [(row.id, row.latency_us) for row in rows] == [("a1", 18.0), ("b1", 10.0)]
    told = Explained("net", "local", (), rows, (), tuple(tasks), "")
    assert [told.share(row.latency_us) for row in rows] == [0.45, 0.25]  # of 40 us
    assert [row.latency_us for row in branch_rows(found, [])] == [0, 0]


# -- other machines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--rpc-tracker", "127.0.0.1:9190"), "--rpc-tracker is about another machine"),
        (("tune", "--device-timeout", "5m"), "--device-timeout is about another machine"),
        (("run", "--target", "linux-arm64", "--rpc-tracker", "nowhere"), "'nowhere' is no address of a tracker"),
        (("run", "--target", "linux-arm46"), "Did you mean 'linux-arm64'?"),
        (("run", "--target", "linux-arm64", "--device-timeout", "long"), "'long' is no length of time"),
        (("bench", "--target", "linux-arm64"), "compares runtimes on this machine"),
        (("devices", "--rpc-tracker", "127.0.0.1:1"), "cprune tracker --port 1"),
        (("devices", "serve", "--key", "a:b"), "a key has no colon"),
        (("devices", "serve", "--key", "a", "--tracker", "x"), "'x' is no address of a tracker"),
        (("devices", "bundle", "server.tar.gz", "--target", "linux-riscv64"), "there is no bundle for linux-riscv64"),
        (("devices", "bundle", "server.zip"), "should end in .tar.gz"),
        (("export", "nothing"), "nothing"),
        (("verify", "nothing"), "holds no compiled model"),
    ],
)
def test_a_mistake_about_a_device_is_answered(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *words)


def test_targets_lists_machines_and_processors(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("targets", "--json", capsys=capsys)
    assert code == 0
    told = json.loads(out)
    assert [t["name"] for t in told["targets"]] == [
        *("local", "linux-arm64", "android-arm64", "linux-x86_64", "linux-riscv64", "npu-sim")
    ]
    assert "raspberry-pi-5" in told["processors"]["linux-arm64"]


def test_doctor_finds_this_machine_well(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("doctor", "--json", capsys=capsys)
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert {"compiler", "linker", "kernel", "clock"} <= checks.keys()
    assert checks["kernel"]["ok"]
    assert "computes what PyTorch does" in checks["kernel"]["detail"]
    assert code in (0, 1)  # how steady the clock of a test machine is, nobody knows


def test_doctor_stops_at_what_explains_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("doctor", "--target", "linux-x86_64", "--rpc-tracker", "127.0.0.1:1", "--json", capsys=capsys)
    assert code == 1
    *_, last = json.loads(out)["checks"]
    assert last["name"] in ("tracker", "linker")
    assert not last["ok"]
    assert last["detail"] or last["advice"]


# -- a plan, and one more model


def plan(missed: str = "") -> dict[str, object]:
    point = {"status": "forecast", "latency_ms": 0.5, "speedup": 2.0, "loss": 0.004, "params": 1000, "macs": 2_000_000,
             "gone": 1, "widths": {}, "damage": 0.25, "meets": not missed}  # fmt: skip
    return {
        "folder": "runs/x",
        "unpruned": {"latency_ms": {"median": 1.0, "low": 0.9, "high": 1.1}, "params": 2000, "macs": 4_000_000},
        "points": [point],
        "estimate": "a guess",
        "seconds": {"training": 300, "others": 100},
        "missed": missed,
    }


@pytest.mark.parametrize(("missed", "code"), [("", 0), ("no model can meet the limits; the nearest: …", 1)])
def test_a_plan_is_shown_and_what_cannot_be_met_is_an_exit_code(
    missed: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cprune import api
    from cprune.runs.folder import RunFolder

    asked = []

    def planned(**options: object) -> tuple[RunFolder, dict[str, object]]:
        asked.append(options["plan"])
        return RunFolder(tmp_path), plan(missed)

    monkeypatch.setattr(api, "run", planned)
    monkeypatch.setenv("COLUMNS", "160")
    found, out, _ = run("run", "--plan", capsys=capsys)
    assert found == code
    assert asked == [True]
    assert "about 0.4" in out
    assert "2.00x" in out
    assert "5 min 00 s of training" in out
    assert f"cprune resume {tmp_path}" in out.replace("\n", "")
    assert missed in out
    found, out, _ = run("run", "--plan", "--json", capsys=capsys)
    assert (found, json.loads(out)["missed"]) == (code, missed)


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        ([], "pruned", 0),
        ([], "unpruned", 1),
        ([True], "unpruned", 0),
        ([True, False], "pruned", 1),
    ],
)
def test_a_limit_that_was_missed_is_an_exit_code(
    limits: list[bool],
    status: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from cprune import api
    from cprune.runs.folder import RunFolder

    told = [{"name": "speedup", "asked": 2.0, "reached": 1.0, "met": met} for met in limits]
    result = {"status": status, "limits": told, "notes": []}
    monkeypatch.setattr(api, "run", lambda **_: (RunFolder(tmp_path), result))
    assert run("run", "--json", capsys=capsys)[0] == code


def test_one_more_model_is_asked_for_in_one_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "exclude each other" in refused(capsys, "resume", str(tmp_path), "--speedup", "2", "--max-latency", "1ms")
