"""The loop on a real, tiny model, on this machine: its promises, and that a killed run loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cprune
from cprune import api
from cprune.method.settings import Settings
from cprune.runs.events import Measured, Scouted, Start, Step
from cprune.runs.folder import RunFolder
from cprune.runs.journal import Journal
from cprune.targets.errors import UserError
from cprune.tuner.records.store import Store

FAST: dict[str, Any] = {
    "method": "cprune", "trials": 3, "loop_trials": 2, "rounds": 7, "run_ms": 0.5, "beta": 1.0, "max_steps": 3,
}  # fmt: skip


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, padding=1)
        self.a = nn.Sequential(nn.Conv2d(64, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU())
        self.b = nn.Conv2d(128, 64, 3, padding=1)
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.b(self.a(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


EXAMPLE = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[cprune.api.Result, Tiny, list[int]]:
    """One run from Python in which accuracy never matters."""
    model, trained = tiny(), []
    result = cprune.prune(
        model,
        EXAMPLE,
        evaluate=lambda _: 0.9,
        train=lambda m: trained.append(sum(p.numel() for p in m.parameters())),
        out=tmp_path_factory.mktemp("runs") / "python",
        # Something must be found faster although other tests run beside this one: more rounds, more tries.
        **{**FAST, "rounds": 21, "run_ms": 2.0, "max_steps": 8},
    )
    return result, model, trained


@pytest.mark.slow
def test_the_pruned_model_is_smaller_and_faster_and_the_argument_untouched(pruned: Any) -> None:
    result, model, trained = pruned
    assert result.result["status"] == "pruned"
    assert result.result["params"]["after"] < result.result["params"]["before"]
    assert result.speedup.low > 1
    assert result.speedup.low <= result.speedup.median <= result.speedup.high
    assert len(trained) >= result.result["steps"]["accepted"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny().parameters(), strict=True))


@pytest.mark.slow
def test_the_folder_gives_the_same_model_back(pruned: Any) -> None:
    result, _, _ = pruned
    again = cprune.load(result.folder)
    with torch.no_grad():
        assert torch.equal(again(EXAMPLE), result.model.eval()(EXAMPLE))


@pytest.mark.slow
def test_the_result_has_every_field_of_the_contract(pruned: Any) -> None:
    has_every_field_of_the_contract(json.loads((pruned[0].folder / "result.json").read_text()))


def has_every_field_of_the_contract(told: dict[str, Any]) -> None:
    assert {"status", "model", "target", "accuracy", "latency_ms", "speedup", "macs", "params", "trials", "seconds",
            "steps"} <= told.keys()  # fmt: skip
    assert told["accuracy"].keys() == {"required", "before", "after", "images", "loss", "bound", "memorised"}
    assert told["latency_ms"]["after"].keys() == {"median", "low", "high"}
    assert told["trials"].keys() == {"before", "loop", "final"}
    assert {"tune", "train", "total"} <= told["seconds"].keys()
    assert told["steps"].keys() == {"accepted", "rejected", "excluded"}


@pytest.mark.slow
def test_every_step_of_the_journal_says_what_happened_and_why(pruned: Any) -> None:
    steps = [e for e in Journal(pruned[0].folder / "journal.jsonl").events() if isinstance(e, Step)]
    assert steps
    for step in steps:
        assert step.reason
        assert all(group.after < group.before for group in step.groups)
        if step.verdict == "accepted":
            assert step.ratio is not None
            assert step.ratio.high < 1


@pytest.mark.slow
def test_the_report_is_one_file_without_references(pruned: Any) -> None:
    html = (pruned[0].folder / "report.html").read_text()
    assert "<svg" in html
    assert 'src="http' not in html
    assert 'href="http' not in html


def test_an_unknown_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'trials'"):
        cprune.prune(tiny(), EXAMPLE, evaluate=lambda _: 0.9, trails=3)


# --- killed and resumed ----------------------------------------------------------------------------------------

TOML = """
method = "cprune"
trials = 3
loop_trials = 2
rounds = 15
run_ms = 0.5
max_steps = 5
short_epochs = 0.2
retry_epochs = 0.0
long_epochs = 0.2
beta = 1.0
alpha = 0.0
max_drop = 1.0
"""


TABLES_TOML = """
precision = "fp32"
trials = 2
loop_trials = 1
rounds = 3
run_ms = 0.5
beta = 1.0
train_time_s = 5.0
max_drop = 1.0
"""


def small() -> nn.Sequential:
    """Return a model of one group of 32 channels, whose latency tables are measured in seconds."""
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)).eval()


def data_file(folder: Path) -> Path:
    import numpy as np

    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    images = rng.normal(size=(400, 1, 12, 12)).astype(np.float32) + labels[:, None, None, None]
    path = folder / "data.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:100], y_test=labels[:100])
    return path


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    return subprocess.Popen(
        [sys.executable, "-m", "cprune.cli", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("after", ["measured", "step", "trained"])
def test_a_killed_run_is_resumed_and_measures_nothing_twice(tmp_path: Path, after: str) -> None:
    (tmp_path / "fast.toml").write_text(TOML)
    out = tmp_path / "run"
    arguments = ("run", "-m", "test_loop:tiny", "-d", f"npz:{data_file(tmp_path)}", "--config", "fast.toml",
                 "--out", str(out))  # fmt: skip
    journal = Journal(out / "journal.jsonl")
    for seed in range(3):  # on a busy machine no step may be faster, so that nothing is trained: then once more
        first = command(tmp_path, *arguments, "--seed", str(seed))
        if has_come(first, journal, after):
            break
        shutil.rmtree(out)
    else:
        pytest.fail(f"none of three runs came to {after!r}: {first.communicate()}")
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = journal.events()
    with Store(out / "records.sqlite") as store:
        counted = len(store.all())
    second = command(tmp_path, "resume", str(out), "--json")
    printed, errors = second.communicate(timeout=240)
    assert second.returncode in (0, 1), errors
    events = journal.events()
    assert events[: len(before)] == before  # what was known is still known
    keys = [e.key for e in events if isinstance(e, Measured)]
    assert len(keys) == len(set(keys))  # no gate was measured twice
    assert sum(isinstance(e, Start) for e in events) == 1
    steps = [e for e in events if isinstance(e, Step)]
    assert [e.index for e in steps] == list(range(len(steps)))
    with Store(out / "records.sqlite") as store:
        assert len(store.all()) >= counted
    assert json.loads(printed)["steps"]["accepted"] == sum(e.verdict == "accepted" for e in steps)
    assert (out / "report.html").exists()
    assert json.loads(printed)["seconds"]["total"] > before[-1].so_far.seconds["total"]


def wait_for(running: subprocess.Popen[str], journal: Journal, kind: str) -> None:
    """Return as soon as an event of a kind is in the journal of a run that goes on."""
    assert has_come(running, journal, kind), running.communicate()


def has_come(running: subprocess.Popen[str], journal: Journal, kind: str) -> bool:
    """Wait for an event of a kind in the journal of a run; False if that ends without one."""
    deadline = time.monotonic() + 240
    while not any(event.kind == kind for event in journal.events()):
        if running.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return True


@pytest.mark.slow
def test_a_run_of_the_tables_that_is_killed_in_the_long_training_ends_with_a_whole_result(tmp_path: Path) -> None:
    (tmp_path / "tables.toml").write_text(TABLES_TOML)
    data = data_file(tmp_path)
    for seed in range(3):  # a busy machine may find that the first candidate is not faster: nothing is trained then
        out = tmp_path / f"run{seed}"
        journal = Journal(out / "journal.jsonl")
        first = command(tmp_path, "run", "-m", "test_loop:small", "-d", f"npz:{data}", "--config", "tables.toml",
                        "--threads", "1", "--seed", str(seed), "--out", str(out))  # fmt: skip
        wait_for(first, journal, "measured")  # seconds of training follow
        first.send_signal(signal.SIGKILL)
        first.wait()
        before = journal.events()
        if isinstance(before[-1], Measured):
            break
    else:
        pytest.fail(f"three runs found their first candidate too slow to train: {before[-1]}")
    with Store(out / "records.sqlite") as store:
        counted = len(store.all())
    second = command(tmp_path, "resume", str(out), "--json")
    printed, errors = second.communicate(timeout=240)
    assert second.returncode == 0, errors
    told = json.loads(printed)
    assert told == json.loads((out / "result.json").read_text())
    has_every_field_of_the_contract(told)
    assert told["status"] == "pruned"
    assert told["params"]["after"] < told["params"]["before"]
    assert told["speedup"]["low"] > 1
    events = journal.events()
    assert events[: len(before)] == before  # what was known is still known
    once = [(e.round, e.number) for e in events if isinstance(e, Scouted)]
    assert len(once) == len(set(once))  # no scout was trained twice
    keys = [e.key for e in events if isinstance(e, Measured)]
    assert len(keys) == len(set(keys))
    steps = [e for e in events if isinstance(e, Step)]
    assert steps[0].verdict == "accepted"
    assert told["steps"]["accepted"] == sum(e.verdict == "accepted" for e in steps)
    with Store(out / "records.sqlite") as store:
        assert len(store.all()) >= counted
    assert told["seconds"]["total"] > before[-1].so_far.seconds["total"]
    smaller = cprune.load(out)
    assert sum(p.numel() for p in smaller.parameters()) == told["params"]["after"]
    assert (out / "report.html").exists()


def test_a_folder_that_is_a_run_already_is_not_run_over(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", {"model": "x"})
    with pytest.raises(UserError, match="is already a run"):
        api.run(out=tmp_path / "run", settings=Settings(**FAST))


@pytest.mark.slow
def test_resuming_on_another_machine_is_refused(tmp_path: Path, pruned: Any) -> None:
    config = json.loads((pruned[0].folder / "run.json").read_text())
    config["data"] = "fashion-mnist"
    config["target"]["fingerprint"] = "0" * 12
    RunFolder.create(tmp_path / "run", config)
    with pytest.raises(UserError, match="this machine is not the one"):
        api.resume(tmp_path / "run")
