"""A whole run on a device that goes away in the middle: nothing is lost, and it goes on where it was."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from rpc_rig import KEY, Rig, Server, rig
from test_loop import TOML, command, data_file

from cprune.runs.journal import Journal
from cprune.targets import link
from cprune.tuner.records.store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not link.linkers("x86_64-linux-gnu"), reason="no linker for x86_64-linux-gnu"),
]


def target_file(folder: Path, made: Rig) -> Path:
    path = folder / "other.toml"
    path.write_text(
        f'like = "linux-x86_64"\nname = "other"\nkey = "{KEY}"\ntracker = "{made.where}"\nthreads = 1\n'
        "device_timeout_s = 3\n[timing]\nrepeats = 2\nmin_run_ms = 0.2\ndeadline_s = 10\n"
    )
    return path


def test_a_run_whose_device_is_gone_for_good_ends_resumable_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "fast.toml").write_text(TOML)
    out = tmp_path / "run"
    with rig(1) as made:
        words = ["run", "-m", "test_loop:tiny", "-d", f"npz:{data_file(tmp_path)}", "--config", "fast.toml"]
        first = command(tmp_path, *words, "--target", str(target_file(tmp_path, made)), "--out", str(out))
        journal, deadline = Journal(out / "journal.jsonl"), time.monotonic() + 240
        while not any(e.kind == "start" for e in journal.events()):
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        made.servers[0].kill()
        _, errors = first.communicate(timeout=120)
        assert first.returncode == 2, errors
        assert "Traceback" not in errors
        assert "waited 3 s (--device-timeout)" in errors
        assert f"cprune resume {out}" in errors
        before = journal.events()
        with Store(out / "records.sqlite") as store:
            counted = len(store.all())
        assert counted > 0

        refused = command(tmp_path, "resume", str(out), "--device-timeout", "1s")
        _, errors = refused.communicate(timeout=120)
        assert refused.returncode == 2
        assert "no device" in errors

        made.servers[0] = Server(made.where).start()
        made.wait(1)
        second = command(tmp_path, "resume", str(out), "--json")
        printed, errors = second.communicate(timeout=400)
        assert second.returncode in (0, 1), errors
    assert journal.events()[: len(before)] == before
    with Store(out / "records.sqlite") as store:
        assert len(store.all()) >= counted
    assert json.loads(printed)["target"] == "other"


def test_a_run_is_not_resumed_on_another_processor(tmp_path: Path) -> None:
    (tmp_path / "fast.toml").write_text(TOML)
    out = tmp_path / "run"
    with rig(1) as made:
        words = ["run", "-m", "test_loop:tiny", "-d", f"npz:{data_file(tmp_path)}", "--config", "fast.toml"]
        target = target_file(tmp_path, made)
        done = command(tmp_path, *words, "--max-steps", "1", "--target", str(target), "--out", str(out))
        _, errors = done.communicate(timeout=400)
        assert done.returncode in (0, 1), errors
        made.wait(1)
        config = json.loads((out / "run.json").read_text())
        config["target"]["fingerprint"] = "0" * 12
        config["target"]["cpu"] = "1 x another processor"
        (out / "run.json").write_text(json.dumps(config))
        other = command(tmp_path, "resume", str(out))
        _, errors = other.communicate(timeout=120)
        assert other.returncode == 2
        assert "is not the one that" in errors
        assert "1 x another processor" in errors
