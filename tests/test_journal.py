"""The run folder: made, opened, locked, written, torn, full; every one of these without losing what was
there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cprune.files import atomic_write, read_json, write_json
from cprune.method.history import History
from cprune.runs import journal
from cprune.runs.events import GroupChange, Renewed, SoFar, Start, Step, Trained
from cprune.runs.folder import RunFolder
from cprune.runs.journal import Journal
from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.interval import Interval
from cprune.targets.paired import Paired

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """A file cannot grow beyond 300 bytes: the kernel writes a part and then says no, like a full disk.

    Only around the writing itself: the limit holds for the log that pytest's own output goes to as well.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestCreate:
    def test_the_configuration_is_written_and_read(self, tmp_path: Path) -> None:
        folder = RunFolder.create(tmp_path / "a" / "run", {"seed": 7, "out": tmp_path, "lr": np.float32(0.5)})
        assert folder.config() == {"seed": 7, "out": str(tmp_path), "lr": 0.5}
        assert RunFolder.open(tmp_path / "a" / "run") == folder

    def test_the_names_are_those_of_the_contract(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path)
        paths = [folder.run_json, folder.journal, folder.records, folder.model_json]
        paths += [folder.result, folder.report_html, folder.report_md, folder.analysis, folder.step_dir(7)]
        assert [str(path.relative_to(tmp_path)) for path in paths] == [
            *("run.json", "journal.jsonl", "records.sqlite", "model.json"),
            *("result.json", "report.html", "report.md", "analysis.json", "steps/0007"),
        ]

    def test_a_run_is_never_overwritten(self, tmp_path: Path) -> None:
        RunFolder.create(tmp_path / "r", {"seed": 1})
        with pytest.raises(UserError, match=r"r is already a run\n.*cprune resume .*/r, or .*--out"):
            RunFolder.create(tmp_path / "r", {"seed": 2})
        assert RunFolder.open(tmp_path / "r").config() == {"seed": 1}

    def test_a_folder_with_other_things_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(UserError, match=r"not empty \(it holds thesis\.tex\)"):
            RunFolder.create(tmp_path, {})
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_an_empty_folder_is_taken(self, tmp_path: Path) -> None:
        assert RunFolder.create(tmp_path, {}).run_json.exists()

    def test_a_folder_whose_creation_was_killed_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_text("1\n")
        (tmp_path / ".run.json.123.0.tmp").write_text("{")
        assert RunFolder.create(tmp_path, {}).run_json.exists()

    def test_a_file_is_no_place_for_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "run"):
            with pytest.raises(UserError, match="cannot make a run in"):
                RunFolder.create(path, {})

    def test_a_name_that_is_too_long_is_a_message(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot make a run in"):
            RunFolder.create(tmp_path / ("x" * 300), {})

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
        with pytest.raises(UserError, match=r"cannot make a run in .*Permission denied"):
            RunFolder.create(tmp_path, {})


class TestOpen:
    def test_the_nearest_run_beside_it_is_suggested(self, tmp_path: Path) -> None:
        for name in ("fashion-1", "cifar-1"):
            RunFolder.create(tmp_path / name, {})
        with pytest.raises(UserError, match=r"no folder .*fashoin-1\nDid you mean .*/fashion-1\?"):
            RunFolder.open(tmp_path / "fashoin-1")

    def test_the_newest_run_inside_is_suggested(self, tmp_path: Path) -> None:
        for name, age in (("old", 100), ("new", 0), ("older", 200)):
            path = RunFolder.create(tmp_path / name, {}).run_json
            os.utime(path, (time.time() - age, time.time() - age))
        with pytest.raises(UserError, match=r"is not the folder of a run.*\nThe newest run in it is .*/new$"):
            RunFolder.open(tmp_path)

    def test_without_any_run_it_says_how_to_start_one(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="Start one with: cprune run"):
            RunFolder.open(tmp_path / "x" / "y")

    def test_a_file_is_no_run(self, tmp_path: Path) -> None:
        (tmp_path / "model.pt").touch()
        with pytest.raises(UserError, match=r"model\.pt is a file"):
            RunFolder.open(tmp_path / "model.pt")

    def test_a_broken_configuration_is_named(self, tmp_path: Path) -> None:
        folder = RunFolder.create(tmp_path / "r", {})
        folder.run_json.write_text("{")
        with pytest.raises(UserError, match=r"run\.json cannot be read as JSON"):
            folder.config()


HOLDER = textwrap.dedent(
    """
    import os, sys, time
    from cprune.runs.folder import RunFolder
    with RunFolder.open(sys.argv[1]).lock():
        there, here = os.pipe()
        child = os.fork() if sys.argv[2] == "fork" else 1
        if child == 0:
            os.close(1)
            os.write(here, b"x")
            time.sleep(60)
        if child != 1:
            os.read(there, 1)
        print(child, flush=True)
        time.sleep(60)
    """
)


class TestLock:
    def test_two_processes_never_work_on_one_run(self, tmp_path: Path) -> None:
        folder = RunFolder.create(tmp_path / "r", {})
        with folder.lock():
            message = rf"another cprune \(pid {os.getpid()}\) is working on this run.*\n.*kill {os.getpid()}"
            with pytest.raises(UserError, match=message), folder.lock():
                pass
        with folder.lock():
            pass

    def test_an_error_inside_frees_it(self, tmp_path: Path) -> None:
        folder = RunFolder.create(tmp_path / "r", {})
        with pytest.raises(KeyError), folder.lock():
            raise KeyError
        with folder.lock():
            pass

    @pytest.mark.parametrize("how", ["alone", "fork"])
    def test_kill_9_frees_it_even_if_a_worker_lives_on(self, tmp_path: Path, how: str) -> None:
        folder = RunFolder.create(tmp_path / "r", {})
        command = [sys.executable, "-c", HOLDER, str(folder.path), how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        with pytest.raises(UserError, match=f"pid {process.pid}"), folder.lock():
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        try:
            with folder.lock():
                pass
        finally:
            if how == "fork":
                os.kill(child, signal.SIGKILL)


class TestAtomicWrite:
    def test_text_and_bytes_replace_what_was_there(self, tmp_path: Path) -> None:
        for content in ("Grüße", b"\x00\xff"):
            atomic_write(tmp_path / "f", content)
            expected = content.encode() if isinstance(content, str) else content
            assert (tmp_path / "f").read_bytes() == expected
        assert [path.name for path in tmp_path.iterdir()] == ["f"]

    def test_the_file_is_as_readable_as_any_other(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        atomic_write(tmp_path / "f", "x")
        assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_a_full_disk_leaves_the_old_content(self, tmp_path: Path) -> None:
        atomic_write(tmp_path / "f", "old")
        told = r"disk full: cannot write .*/f .*[Nn]othing recorded.*resume"
        with small_files(), pytest.raises(BrokenWorld, match=told):
            atomic_write(tmp_path / "f", "x" * 1000)
        assert (tmp_path / "f").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["f"]

    def test_a_full_disk_at_the_last_moment_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fsync(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(BrokenWorld, match="disk full"):
            atomic_write(tmp_path / "f", "x")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_went_away_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BrokenWorld, match=r"cannot write .*gone/f"):
            atomic_write(tmp_path / "gone" / "f", "x")


class TestJson:
    def test_numbers_that_json_lacks_become_null(self, tmp_path: Path) -> None:
        write_json(tmp_path / "f", {"a": float("nan"), "b": [float("inf"), np.float64("nan")], "c": (1, 2)})
        assert json.loads((tmp_path / "f").read_text()) == {"a": None, "b": [None, None], "c": [1, 2]}

    def test_what_is_no_plain_value_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="object is no plain value"):
            write_json(tmp_path / "f", {"a": object()})

    def test_a_missing_file_is_none_and_a_list_is_a_message(self, tmp_path: Path) -> None:
        assert read_json(tmp_path / "f") is None
        (tmp_path / "f").write_text("[]")
        with pytest.raises(UserError, match="no JSON object"):
            read_json(tmp_path / "f")


def event(index: int) -> Renewed:
    """Return one event among others."""
    return Renewed(index, 0.9)


class TestJournal:
    @pytest.fixture
    def log(self, tmp_path: Path) -> Journal:
        return Journal(tmp_path / "journal.jsonl")

    def test_events_come_back_in_order_and_the_file_says_when(self, log: Journal) -> None:
        assert log.events() == []
        trained = Trained(0, before=0.91, accuracy=0.92, loss=Paired(0.01, 500, 8, 3))
        step = Step(
            1,
            "conv",
            8,
            (GroupChange("a", 64, 56),),
            Interval(1.5, 1, 2),
            Interval(2, 1, 3),
            None,
            None,
            "rejected",
            "zwei\nZeilen",
            4,
            {"tune": 1.5},
            "a",
            so_far=SoFar({"tune": 3.0}, {"loop": 4}),
        )
        log.append(trained)
        log.append(step)
        assert log.events() == [trained, step]
        first, second = map(json.loads, log.path.read_text().splitlines())
        assert list(first) == ["event", "time", "index", "before", "accuracy", "note", "loss"]
        assert first["loss"] == {
            "loss": 0.01,
            "images": 500,
            "lost": 8,
            "gained": 3,
            "se": pytest.approx(0.00661816, rel=1e-5),
        }
        assert abs(first["time"] - time.time()) < 60
        assert second["groups"] == [{"id": "a", "before": 64, "after": 56}]
        assert second["latency_ms"] == {"median": 1.5, "low": 1, "high": 2}

    def test_an_event_that_lacks_something_is_named_with_its_line(self, log: Journal) -> None:
        log.append(event(0))
        with log.path.open("a") as file:
            file.write('{"event": "renewed", "index": 1}\n{"event": "renewed", "index": 1, "accuracy": 0.5}\n')
        with pytest.raises(UserError, match=r"journal\.jsonl, line 2: the field accuracy is missing"):
            log.events()

    def test_an_event_of_a_later_version_is_not_passed_over(self, log: Journal) -> None:
        log.append(event(0))
        with log.path.open("a") as file:
            file.write('{"event": "quantized", "bits": 8}\n')
        with pytest.raises(UserError, match="line 2: not an event of a journal"):
            log.events()

    def test_what_an_event_has_beside_its_fields_is_left_out(self, log: Journal) -> None:
        log.path.write_text('{"event": "renewed", "index": 3, "accuracy": 0.9, "mood": "good"}\n')
        assert log.events() == [event(3)]

    def test_every_line_is_synced(self, log: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        synced = []
        monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
        log.append(event(0))
        log.append(event(1))
        assert synced == [str(log.path), str(log.path.parent), str(log.path)]

    def test_a_line_torn_anywhere_is_dropped_and_cut_away(self, log: Journal) -> None:
        log.append(event(0))
        whole = log.path.read_bytes()
        log.append(Start(0.9, 0.9, 0.8, 0.8, 16, 5, Interval(1, 1, 1)))
        both = log.path.read_bytes()
        for end in range(len(whole), len(both) - 1):
            log.path.write_bytes(both[:end])
            assert log.events() == [event(0)]
            log.append(event(1))
            assert log.events() == [event(0), event(1)]

    def test_a_last_line_that_lacks_only_its_end_is_kept(self, log: Journal) -> None:
        log.append(event(0))
        log.path.write_bytes(log.path.read_bytes()[:-1])
        assert log.events() == [event(0)]
        log.append(event(1))
        assert log.events() == [event(0), event(1)]

    def test_zeros_that_a_power_cut_left_are_dropped(self, log: Journal) -> None:
        log.append(event(0))
        with log.path.open("ab") as file:
            file.write(bytes(100))
        assert log.events() == [event(0)]
        log.append(event(1))
        assert log.events() == [event(0), event(1)]

    @pytest.mark.parametrize("bad", [b"{", b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
    def test_a_damaged_line_in_the_middle_is_named(self, log: Journal, bad: bytes) -> None:
        for index in range(3):
            log.append(event(index))
        lines = log.path.read_bytes().split(b"\n")
        log.path.write_bytes(b"\n".join([lines[0], bad, *lines[2:]]))
        with pytest.raises(UserError, match=r"journal\.jsonl, line 2: .*\n.*head -n 1"):
            log.events()

    def test_a_full_disk_leaves_the_journal_as_it_was(self, log: Journal) -> None:
        log.append(event(0))
        before = log.path.read_bytes()
        with small_files(), pytest.raises(BrokenWorld, match=r"disk full: cannot write .*journal\.jsonl"):
            log.append(Step(1, "x" * 1000, 8, (), None, None, None, None, "rejected", "", 0, {}, ""))
        assert log.path.read_bytes() == before
        log.append(event(2))
        assert log.events() == [event(0), event(2)]

    def test_kill_9_loses_at_most_the_event_being_written(self, log: Journal) -> None:
        code = (
            "import sys; from pathlib import Path; from cprune.runs.journal import Journal\n"
            "from cprune.runs.events import Renewed\n"
            "log = Journal(Path(sys.argv[1]))\n"
            "for i in range(1_000_000): log.append(Renewed(i, 0.9)); print(i, flush=True)"
        )
        command = [sys.executable, "-c", code, str(log.path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        for _ in range(30):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        acknowledged = 30 + len(process.stdout.read().splitlines())
        process.wait()
        events = log.events()
        assert events == [event(index) for index in range(len(events))]
        assert acknowledged <= len(events) <= acknowledged + 1


def test_a_journal_that_was_written_before_events_had_classes_is_read() -> None:
    events = Journal(ROOT / "tests" / "golden" / "journal_before_events.jsonl").events()
    history = History.of(events)
    assert history.start is not None
    assert history.start.report > 0  # it was called test then
    assert history.start.certify is None
    assert (history.start.block, history.start.narrow, history.start.trials) == (16, (), 5)
    assert [(step.index, step.verdict) for step in history.steps] == [(i, "accepted") for i in range(6)]
    assert history.steps[2].groups == (GroupChange("stem", 64, 32),)
    assert history.steps[2].ratio == Interval(0.471569, 0.459276, 0.499063)
    assert history.last == 5
    assert history.measured["0 a.0 (('a.0', 16),)"].comparison.new_ms.median == 0.205855
    assert history.trained == {5: Trained(5, before=0.15, accuracy=0.25)}
    assert history.accuracy == 0.15


def test_the_module_is_light() -> None:
    heavy = {"torch", "tvm", "numpy", "sqlalchemy", "jinja2"}
    code = "import sys, cprune.runs.journal; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert not heavy & set(loaded)
    assert journal.__name__ in loaded
