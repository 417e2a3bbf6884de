"""The report of a made-up run: complete, stopped half-way, empty, hostile, of an older version."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

from cprune.files import write_json
from cprune.runs.events import CostSoFar, Event, Final, GroupChange, Measured, SoFar, Start, Status, Step, Verdict
from cprune.runs.folder import RunFolder
from cprune.runs.front import Front, FrontPoint, Unpruned, write_front
from cprune.runs.journal import Journal
from cprune.runs.report import numbers, plots, write_report
from cprune.runs.report.headline import HEADLINES, headline, table
from cprune.runs.report.run import read_result, read_run
from cprune.targets.errors import UserError
from cprune.targets.interval import Interval

ROOT = Path(__file__).parents[1]

RESULT: dict[str, Any] = {
    "status": "pruned",
    "model": "resnet20",
    "target": "local",
    "accuracy": {
        **{"required": 0.9027, "before": 0.9127, "after": 0.9051},
        "images": {"decide": 3000, "certify": 3000, "report": 4000},
        "loss": {"loss": 0.0076, "images": 4000, "lost": 60, "gained": 30, "se": 0.00237},
        "bound": {"confidence": 0.95, "loss": 0.01234},
        "memorised": False,
    },
    "latency_ms": {
        "before": {"median": 1.8312, "low": 1.8244, "high": 1.8391},
        "after": {"median": 0.9874, "low": 0.9812, "high": 0.9931},
    },
    "speedup": {"median": 1.8546, "low": 1.8391, "high": 1.8702},
    "macs": {"before": 40_813_184, "after": 19_113_472},
    "params": {"before": 272_474, "after": 139_218},
    "trials": {"before": 424, "loop": 1180, "final": 388},
    "seconds": {"tune": 212.4, "measure": 21.0, "train": 171.0, "evaluate": 12.1, "other": 15.3, "total": 431.8},
    "steps": {"accepted": 9, "rejected": 2, "excluded": 1},
    "notes": [],
}
CONFIG: dict[str, Any] = {
    "model": "resnet20",
    "data": "npz:cifar10.npz",
    "target": {
        **{"name": "local", "fingerprint": "8f3a11c0", "threads": 2, "cpu": "x86-64-v4, AVX-512"},
        "timing": {"repeats": 5, "min_run_ms": 2.0},
    },
    "records": None,
    "settings": {"max_drop": 0.01, "trials": 64, "rounds": 12, "run_ms": 20.0, "ignore": []},
    "seed": 0,
    "versions": {"cprune": "0.1.0", "apache-tvm": "0.27.0", "torch": "2.13.0", "python": "3.11.7"},
}


def layers() -> list[tuple[str, int, int]]:
    """ResNet-20: every convolution with its channels before and after."""
    found = [("conv1", 16, 16)]
    for stage, (width, narrow) in enumerate([(16, 12), (32, 20), (64, 36)], start=1):
        for block in range(3):
            name = f"layer{stage}.{block}"
            found += [(f"{name}.conv1", width, narrow - 2 * block), (f"{name}.conv2", width, width)]
    return [*found, ("linear", 10, 10)]


def around(latency_ms: float) -> Interval:
    return Interval(latency_ms, latency_ms * 0.99, latency_ms * 1.01)


START = Start(
    report=0.9127,
    decide=0.9108,
    required=0.9027,
    floor=0.9008,
    block=16,
    trials=424,
    latency_ms=around(1.85),
    seconds={"tune": 60.0, "measure": 2.0, "train": 0.0, "evaluate": 1.0, "other": 1.0, "total": 64.0},
)
SECONDS = {"tune": 12.0, "measure": 2.5, "train": 14.0, "evaluate": 1.0, "other": 0.4, "total": 29.9}


def step(index: int, verdict: Verdict, latency_ms: float | None, accuracy: float | None, why: str) -> Step:
    return Step(
        index=index,
        task=f"conv 3x3/1 64→{index} @32x32",
        step=4,
        groups=(GroupChange(f"layer{index % 3 + 1}.0.conv1", 64, 60),),
        latency_ms=None if latency_ms is None else around(latency_ms),
        before_ms=None if latency_ms is None else around(1.83),
        ratio=None if latency_ms is None else around(latency_ms / 1.83),
        accuracy=accuracy,
        verdict=verdict,
        reason=why,
        trials=96,
        seconds=SECONDS,
        key=f"layer{index % 3 + 1}.0.conv1",
    )


def so_far(factor: int) -> SoFar:
    """Return what a run has cost after `factor` steps."""
    return SoFar({kind: factor * seconds for kind, seconds in SECONDS.items()}, {"before": 424, "loop": 96, "final": 0})


def course() -> list[Event]:
    """Return the events of twelve steps: nine accepted, two rejected, one excluded."""
    latency_ms = 1.83
    events: list[Event] = [START]
    for index in range(12):
        if index in (3, 8):
            tried = step(index, "rejected", latency_ms * 1.01, None, "not clearly faster: 1.010 of the time")
        elif index == 10:
            tried = step(index, "excluded", latency_ms * 0.97, 0.871, "accuracy 87.10% is below 90.08%")
        else:
            latency_ms *= 0.935
            tried = step(index, "accepted", latency_ms, 0.9108 - 0.0006 * index, "1.070x faster")
        assert tried.before_ms is not None
        assert tried.latency_ms is not None
        assert tried.ratio is not None
        events.append(Measured(f"{index} {tried.key}", tried.before_ms, tried.latency_ms, tried.ratio))
        events.append(tried)
    return events


def tasks(narrow: bool) -> list[dict[str, Any]]:
    found = []
    for number, (name, before, after) in enumerate(layers()):
        width = after if narrow else before
        found.append(
            {
                "id": f"{'dense' if name == 'linear' else 'conv2d'}-{number}",
                "layers": [name],
                "latency_us": 12.0 + 1.4 * width,
                "uses": 1,
                "step": 4,
                "macs": width * 147_456,
            }
        )
    return [*found, {"id": "avgpool", "layers": [], "latency_us": 3.1, "uses": 1, "step": 0, "macs": 0}]


ANALYSIS: dict[str, Any] = {
    "tasks_before": tasks(narrow=False),
    "tasks_after": tasks(narrow=True),
    "channels": [
        {"layer": name, "before": before, "after": after, "bits": 32 if name == "conv1" else 8}
        for name, before, after in layers()
    ],
    "frozen": [
        {"layers": ["linear"], "reason": "the model returns it", "channels": 10},
        {
            "layers": ["conv1", "layer1.0.conv2"],
            "reason": "the padded shortcut of layer2.0 ties them to the next stage",
        },
    ],
}


def make_run(path: Path) -> RunFolder:
    """Write a complete run."""
    folder = RunFolder.create(path, CONFIG)
    journal = Journal(folder.journal)
    for event in course():
        journal.append(event)
    journal.append(Final("pruned", 0.9051, so_far(15)))
    write_json(folder.result, RESULT)
    write_json(folder.analysis, ANALYSIS)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run")


class Page(HTMLParser):
    """Reads a page: the text of each section, every attribute, every tag that is left open."""

    VOID = ("meta", "br", "img", "link", "input", "path", "rect", "use", "g")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.section = "head"
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            known = self.sections.get(self.section, "")
            self.sections[self.section] = known + data.replace("\N{NO-BREAK SPACE}", " ")


def page(folder: RunFolder) -> Page:
    write_report(folder)
    return Page(folder.report_html.read_text())


class TestTable:
    def test_before_and_after_of_a_result(self) -> None:
        assert table(read_result(RESULT)) == [
            ("Latency", "1.831 ms (1.824 to 1.839)", "0.987 ms (0.981 to 0.993)"),
            ("Speedup", "1x", "1.85x (1.84 to 1.87)"),
            ("Accuracy (4,000 images)", "91.27 %", "90.51 %"),
            ("Accuracy asked for", "", "90.27 %"),
            ("Lost on new images", "", "at most 1.23 points (95 % sure)"),
            ("Parameters", "0.272 M", "0.139 M"),
            ("MACs", "40.8 M", "19.1 M"),
            ("Trials", "424", "1,568"),
            ("Steps", "", "9 accepted, 2 rejected, 1 excluded"),
            ("Time", "", "7 min 12 s"),
        ]

    def test_a_model_in_integers_is_said_to_be(self) -> None:
        told = {**RESULT, "precision": {"before": "fp32", "after": "int8"}}
        assert ("Precision", "fp32", "int8") in table(read_result(told))
        told = {**RESULT, "precision": {"before": "fp32", "after": "int8", "alone": 1.8}}
        assert ("Speedup of int8 alone", "", "1.80x") in table(read_result(told))

    def test_what_is_missing_is_a_dash(self) -> None:
        rows = table(read_result({"status": "pruned", "macs": {"before": None}}))
        assert rows[0] == ("Latency", "–", "–")
        assert {cell for _, before, after in rows for cell in (before, after)} == {"–", "", "1x"}


class TestPage:
    """The page as a file, with its plots; it is drawn once for all of these."""

    @pytest.fixture(scope="class")
    def html(self, tmp_path_factory: pytest.TempPathFactory) -> str:
        folder = make_run(tmp_path_factory.mktemp("page") / "run")
        write_report(folder)
        return folder.report_html.read_text()

    def test_it_is_well_formed(self, html: str) -> None:
        read = Page(html)
        assert read.open == []
        assert len(read.ids) == len(set(read.ids))
        assert len(html) < 500_000

    def test_it_loads_nothing(self, html: str) -> None:
        read = Page(html)
        assert "//" not in html  # no address of any kind
        assert not {tag for tag, _, _ in read.attributes} & {"script", "link", "img", "iframe", "object"}
        for tag, name, value in read.attributes:
            if name in ("href", "src", "xlink:href"):
                assert value.startswith("#"), (tag, name, value)

    def test_plots_take_their_colours_and_their_font_from_the_page(self, html: str) -> None:
        drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
        assert html.count("<svg") == 6  # three plots, each for wide and for narrow screens
        for of_the_page in ("style", "font-family", "fill=", "stroke=", "#"):
            assert of_the_page not in drawn
        for kind in set(re.findall(r'class="(\w+)"', drawn)):
            assert f".{kind} {{" in plots.STYLE, kind
        for variable in set(re.findall(r"var\((--\w+)\)", html)):
            assert html.count(f"{variable}:") == 2, variable  # light and dark


class TestPlots:
    def test_the_limit_is_the_one_on_the_images_that_decide(self, folder: RunFolder) -> None:
        write_report(folder)
        assert "limit: 90.08 %" in folder.report_html.read_text()  # not the 90.27 % of the report

    def test_bars_are_as_long_as_their_values(self) -> None:
        drawn = plots.bars([plots.Bar("conv1", 16, 12), plots.Bar("conv2", 8, None)], "channels", "t", 300)
        lengths = [(kind, float(long)) for kind, long in re.findall(r'class="(\w+)" x.*?width="([\d.]+)"', drawn)]
        left = 6 + 6.1 * len("conv1")
        whole = 300 - 12 - left
        assert lengths == [
            ("before", pytest.approx(whole, abs=0.1)),
            ("after", pytest.approx(whole * 12 / 16, abs=0.1)),
            ("before", pytest.approx(whole * 8 / 16, abs=0.1)),
        ]

    def test_what_got_slower_is_in_the_colour_of_bad_news(self) -> None:
        faster, slower = (plots.bars([plots.Bar("a", 10, now)], "µs", "t", 300) for now in (9, 11))
        assert 'class="more"' in slower
        assert 'class="more"' not in faster

    def test_a_long_name_keeps_its_ends(self) -> None:
        drawn = plots.bars([plots.Bar("backbone.stage3.block11.conv2.weight", 8, None)], "", "t", 300)
        assert "backb…nv2.weight" in drawn

    @pytest.mark.parametrize(
        ("first", "last", "ticks"),
        [
            (0, 64, ["0", "20", "40", "60"]),
            (0, 1.9, ["0.0", "0.5", "1.0", "1.5"]),
            (88.2, 91.3, ["89", "90", "91"]),
            (0, 0.0021, ["0.0000", "0.0005", "0.0010", "0.0015", "0.0020"]),
            (0, 12_000, ["0", "5,000", "10,000"]),
        ],
    )
    def test_an_axis_has_round_numbers(self, first: float, last: float, ticks: list[str]) -> None:
        assert [text for _, text in plots._Axis(first, last, 0, 100).ticks(5)] == ticks

    def test_steps_are_counted_in_whole_numbers(self) -> None:
        assert [text for _, text in plots._Axis(0, 2, 0, 100).ticks(8, whole=True)] == ["0", "1", "2"]

    def test_nothing_but_rejected_steps_can_be_drawn(self) -> None:
        points = [plots.Point(1, "rejected", Interval(2.0, 1.9, 2.1), None), plots.Point(2, "excluded", None, 0.5)]
        drawn = plots.steps(points, None, 300)
        assert "circle" not in drawn
        assert drawn.count('class="rejected"') == drawn.count('class="excluded"') == 1


class TestWholeRun:
    def test_the_headline_says_what_came_of_it(self, folder: RunFolder) -> None:
        head = page(folder).sections["head"]
        for text in (
            *("resnet20 on local", "pruned", HEADLINES["pruned"].meaning, "1.85×", "1.84× to 1.87×"),
            *("0.987 ms", "90.51 %", "before: 91.27 %", "asked for: 90.27 %", "−49 %", "−53 %"),
        ):
            assert text in head

    def test_every_section_has_its_facts(self, folder: RunFolder) -> None:
        sections = page(folder).sections
        assert list(sections) == [
            *("head", "summary", "course", "channels", "tasks", "steps", "frozen", "measured", "versions")
        ]
        assert "9 of 20 layers are narrower" in sections["channels"]
        assert "layer3.2.conv1643250 %8" in sections["channels"]  # 64 → 32, in bytes
        assert "19 of 20 have weights of 8 bits" in sections["channels"]
        assert "9 accepted, 2 rejected, 1 excluded" in sections["steps"]
        assert "accuracy 87.10% is below 90.08%" in sections["steps"]
        assert "the padded shortcut of layer2.0" in sections["frozen"]
        for fact in ("threads2", "timing runs5", "rounds of a comparison12", "seed0", "time to tune3 min 32 s"):
            assert fact in sections["measured"]
        for fact in ("fingerprint8f3a11c0", "apache-tvm0.27.0", "settings.max_drop0.01"):
            assert fact in sections["versions"]

    def test_a_step_takes_the_time_of_its_parts_once(self, folder: RunFolder) -> None:
        write_report(folder)
        rows = [line for line in folder.report_md.read_text().splitlines() if "1.070x faster" in line]
        assert {row.split(" | ")[-1] for row in rows} == {"30 s |"}  # 29.9 in all, not that and its parts as well

    def test_both_reports_say_the_same(self, folder: RunFolder) -> None:
        sections = page(folder).sections
        text = folder.report_md.read_text()
        assert text.startswith("# resnet20 on local\n\n**pruned**: The pruned model is faster")
        assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
            *("Summary", "Accuracy and latency along the steps", "Channels per layer", "Latency per task"),
            *("Steps", "Frozen, and why", "How it was measured", "Target and versions"),
        ]
        assert "| layer3.2.conv1 | 64 | 32 | 50 % |" in text
        assert "accuracy 87.10% is below 90.08%" in text
        assert "accuracy 87.10% is below 90.08%" in sections["steps"]

    def test_a_task_that_fell_apart_is_added_up_by_its_layers(self, folder: RunFolder) -> None:
        before = [{"id": "t", "layers": ["a", "b"], "latency_us": 50.0, "uses": 2, "step": 8}]
        after = [
            {"id": "u", "layers": ["a"], "latency_us": 20.0, "uses": 1, "step": 8},
            {"id": "v", "layers": ["b", "c"], "latency_us": 30.0, "uses": 2, "step": 8},
        ]
        write_json(folder.analysis, {"tasks_before": before, "tasks_after": after})
        write_report(folder)
        # a: 20; b: half of 2 x 30; so 100 before and 50 after
        assert "| t | a, b | 2 | 8 | 100.0 | 50.0 | 2.00× |" in folder.report_md.read_text()

    def test_notes_are_shown_once(self, folder: RunFolder) -> None:
        note = "stepping back to an earlier model"
        write_json(folder.result, {**RESULT, "notes": [note, note]})
        assert page(folder).sections["summary"].count(note) == 1

    @pytest.mark.parametrize("status", get_args(Status))
    def test_however_a_run_ends_the_headline_says_what_that_means(self, folder: RunFolder, status: Status) -> None:
        write_json(folder.result, {**RESULT, "status": status})
        head = " ".join(page(folder).sections["head"].split())
        meaning = {
            "pruned": "The pruned model is faster",
            "stepped-back": "this is an earlier pruned model, which keeps it and is faster",
            "unpruned": "this is the unpruned model, tuned",
        }[status]
        assert status in head
        assert meaning in head
        assert meaning in folder.report_md.read_text()
        mood = {"pruned": "good", "stepped-back": "warn", "unpruned": "bad"}[status]
        assert f'class="status {mood}"' in folder.report_html.read_text()

    def test_both_promises_stand_beside_each_other_and_are_not_mixed(self, folder: RunFolder) -> None:
        told = (
            "On these 4,000 images, which no decision saw: 91.27 % before, 90.51 % after, 0.76 points lost (60 images "
            "lost, 30 gained; standard error 0.24 points).",
            "On new images at most 1.23 points are lost, with 95 % confidence.",
            "Decisions were made on 3,000 images, models were certified with 3,000 others, and this report is about "
            "4,000 that are in neither.",
        )
        summary = " ".join(page(folder).sections["summary"].split())
        text = folder.report_md.read_text().replace("\N{NO-BREAK SPACE}", " ")
        for sentence in told:
            assert sentence in summary
            assert sentence in text

    def test_of_functions_that_say_only_how_many_were_right_nothing_is_said_of_new_images(
        self, folder: RunFolder
    ) -> None:
        accuracy = {"required": 0.8, "before": 0.9, "after": 0.91, "loss": {"loss": -0.01}, "bound": None}
        write_json(folder.result, {**RESULT, "accuracy": accuracy})
        summary = " ".join(page(folder).sections["summary"].split())
        assert (
            "On the images that the test function looks at, which no decision saw: 90.00 % before, 91.00 % after, 1.00 "
            "points gained."
        ) in summary
        assert "On new images nothing can be said: which images the model got right is not known." in summary
        assert "Decisions were made on" not in summary

    def test_of_memorised_images_nothing_is_said_of_new_ones(self, folder: RunFolder) -> None:
        write_json(folder.result, {**RESULT, "accuracy": {**RESULT["accuracy"], "bound": None, "memorised": True}})
        assert "the images that certify the model look memorised" in page(folder).sections["summary"]

    def test_the_unpruned_model_lost_nothing(self, folder: RunFolder) -> None:
        same = {"loss": {"loss": 0.0, "images": 4000}, "bound": {"confidence": 0.95, "loss": 0.0}, "after": 0.9127}
        write_json(folder.result, {**RESULT, "status": "unpruned", "accuracy": {**RESULT["accuracy"], **same}})
        summary = " ".join(page(folder).sections["summary"].split())
        assert "91.27 % before, 91.27 % after, nothing lost." in summary
        assert "On new images at most 0.00 points are lost, with 95 % confidence." in summary

    def test_the_result_of_an_earlier_version_has_a_report(self, folder: RunFolder) -> None:
        write_json(folder.result, {**RESULT, "accuracy": {"required": 0.9027, "before": 0.9127, "after": 0.9051}})
        read = page(folder)
        assert "On new images" not in read.sections["summary"]
        assert "90.51 %" in read.sections["head"]

    def test_a_newer_result_may_say_more(self, folder: RunFolder) -> None:
        write_json(folder.result, {**RESULT, "joules": {"before": 3.0, "after": 2.0}})
        assert page(folder).open == []


class TestUnfinishedRun:
    def test_without_a_result_it_says_how_to_go_on(self, folder: RunFolder) -> None:
        folder.result.unlink()
        read = page(folder)
        assert f"not finished. Go on with it: cprune resume {folder.path}" in " ".join(read.sections["head"].split())
        assert "1.83× as fast as at the start" in read.sections["head"]  # 0.935 ** -9
        assert "There is no result yet." in read.sections["summary"]
        assert "of 12 tried" in read.sections["head"]

    def test_its_channels_and_tasks_are_those_of_the_start(self, folder: RunFolder) -> None:
        told = "this shows the model as it was at the start"
        assert told not in page(folder).sections["channels"]
        folder.result.unlink()
        assert told in page(folder).sections["channels"]
        assert told in page(folder).sections["tasks"]

    def test_it_has_cost_what_its_newest_event_says(self, folder: RunFolder) -> None:
        folder.result.unlink()
        Journal(folder.journal).append(CostSoFar(so_far(20)))
        measured = page(folder).sections["measured"]
        assert "time to tune4 min 00 s so far" in measured  # 20 x 12
        assert "time in all9 min 58 s so far" in measured  # 20 x 29.9

    def test_an_older_journal_is_added_up(self, tmp_path: Path) -> None:
        folder = RunFolder.create(tmp_path / "run", CONFIG)
        for event in (START, step(0, "accepted", 1.7, 0.91, ""), step(1, "rejected", 1.7, None, "")):
            Journal(folder.journal).append(event)
        assert read_run(folder).seconds["tune"] == 60 + 12 + 12
        assert read_run(folder).seconds["total"] == pytest.approx(64 + 29.9 + 29.9)
        Journal(folder.journal).append(replace(step(2, "rejected", 1.7, None, ""), so_far=so_far(9)))
        assert read_run(folder).seconds["tune"] == 9 * 12  # a later version went on with it

    def test_a_run_that_has_just_begun(self, tmp_path: Path) -> None:
        folder = RunFolder.create(tmp_path / "run", {})
        read = page(folder)
        assert read.open == []
        for section, text in (
            ("course", "No step has been tried yet."),
            ("channels", "Nothing is known of the channels"),
            ("tasks", "Nothing is known of the tasks"),
            ("frozen", "Nothing is known of it"),
            ("versions", "Nothing is known of them"),
        ):
            assert text in read.sections[section]

    def test_an_empty_list_of_frozen_groups_is_good_news(self, folder: RunFolder) -> None:
        write_json(folder.analysis, {"frozen": []})
        assert "Nothing is frozen." in page(folder).sections["frozen"]

    def test_a_step_that_was_never_measured_has_its_row(self, folder: RunFolder) -> None:
        Journal(folder.journal).append(step(12, "rejected", None, None, "the changed tasks are slower"))
        assert "the changed tasks are slower" in page(folder).sections["steps"]

    def test_if_the_first_step_was_not_measured_the_start_was(self, tmp_path: Path) -> None:
        folder = RunFolder.create(tmp_path / "run", CONFIG)
        for event in (START, step(0, "rejected", None, None, ""), step(1, "accepted", 0.925, 0.91, "")):
            Journal(folder.journal).append(event)
        assert "2.00× as fast as at the start" in page(folder).sections["head"]  # 1.85 / 0.925


class TestDamage:
    @pytest.mark.parametrize(
        ("file", "values", "message"),
        [
            ("result.json", {**RESULT, "status": "wild"}, r"result\.json: the field status must be one of pruned"),
            ("result.json", {**RESULT, "speedup": 3}, r"result\.json: the field speedup must be named values"),
            ("result.json", {**RESULT, "accuracy": {"after": "high"}}, r"result\.json: the field accuracy"),
            ("analysis.json", {"channels": [{"layer": "a"}]}, r"analysis\.json: the field channels"),
            ("run.json", {"seed": "x"}, r"run\.json: the field seed must be a whole number"),
        ],
    )
    def test_a_file_with_odd_values_is_named(
        self, folder: RunFolder, file: str, values: dict[str, Any], message: str
    ) -> None:
        write_json(folder.path / file, values)
        with pytest.raises(UserError, match=message):
            write_report(folder)

    def test_a_damaged_result_is_named(self, folder: RunFolder) -> None:
        folder.result.write_text("{")
        with pytest.raises(UserError, match=r"result\.json"):
            write_report(folder)


class TestRunOfTheLoop:
    """What the loop wrote on fakes, whose models take 1 ms a channel: 64 + 128 of them at the start."""

    @pytest.fixture(scope="class")
    def stepped_back(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Page]:
        """Return the report before and after the end of three accepted steps, of which only the first is certified."""
        from fakes import DEFAULT, EXAMPLE, FakeBench, FakeTrainer, tiny

        from cprune.method.ending import finish
        from cprune.method.kept import FolderKeeper
        from cprune.method.loop import Loop
        from cprune.method.result import analysis, result_of
        from cprune.method.state import RunState
        from cprune.progress import Progress

        folder = RunFolder.create(tmp_path_factory.mktemp("loop") / "run", CONFIG)
        trainer = FakeTrainer(lambda _: 0.9, certifying=lambda model: 0.9 if model.stem >= 48 else 0.1, images=1000)
        settings = replace(DEFAULT, max_steps=3)
        state = RunState(tiny(), EXAMPLE, trainer, FakeBench(), settings, FolderKeeper(folder), Progress())
        loop = Loop(state)
        loop.begin()
        write_json(folder.analysis, analysis(loop.before, loop.before, settings, 1))
        assert [step.verdict for step in loop.steps()] == ["accepted"] * 3
        before = page(folder)
        outcome = finish(state, loop.current)
        write_json(folder.analysis, analysis(outcome.before, outcome.after, settings, 1))
        write_json(folder.result, result_of(outcome, CONFIG))
        return before, page(folder)

    def test_before_the_end_it_says_where_the_run_is(self, stepped_back: tuple[Page, Page]) -> None:
        before, _ = stepped_back
        assert "1.33× as fast as at the start" in before.sections["head"]  # 192 channels, 144 after three times 16
        assert "stem 48 → 32" in before.sections["steps"]
        assert "limit: 89.00 %" in before.sections["course"]
        assert "so far" in before.sections["measured"]

    def test_at_the_end_it_says_what_came_of_it(self, stepped_back: tuple[Page, Page]) -> None:
        _, after = stepped_back
        for fact in ("stepped-back", "1.09×", "176.0 ms", "before: 192.0 ms", "90.00 %"):  # one step is left
            assert fact in after.sections["head"]
        assert after.sections["summary"].count("nothing faster is looked at") == 1
        assert "On these 1,000 images, which no decision saw" in after.sections["summary"]
        assert "3 accepted, 0 rejected, 0 excluded" in after.sections["summary"]
        assert "2 of 4 layers are narrower" in after.sections["channels"]  # stem and b go together
        assert "time in all" in after.sections["measured"]


class TestHostileText:
    EVIL = '<script>alert("1")</script>$x_1^{$ | `a` **b** --> "\' &lt; \x00'

    def test_nothing_of_a_run_is_taken_for_markup(self, folder: RunFolder) -> None:
        write_json(folder.result, {**RESULT, "notes": [self.EVIL]})
        channels = [{"layer": self.EVIL, "before": 8, "after": 4}]
        frozen = [{"layers": [self.EVIL], "reason": self.EVIL}]
        named = {"id": self.EVIL, "layers": [self.EVIL], "latency_us": 1.0, "uses": 1, "step": 1}
        write_json(
            folder.analysis,
            {"channels": channels, "frozen": frozen, "tasks_before": [named], "tasks_after": [named]},
        )
        write_json(folder.run_json, {"model": self.EVIL, "target": {self.EVIL: self.EVIL}, self.EVIL: 1})
        evil = replace(step(12, "accepted", 1.0, 0.9, self.EVIL), groups=(GroupChange(self.EVIL, 8, 4),))
        Journal(folder.journal).append(evil)
        read = page(folder)
        assert read.open == []
        assert "script" not in {tag for tag, _, _ in read.attributes}
        assert "<script" not in folder.report_html.read_text()
        assert 'alert("1")' in read.sections["frozen"]

    def test_markdown_keeps_its_tables(self, folder: RunFolder) -> None:
        write_json(folder.analysis, {"frozen": [{"layers": ["a|b", "c_1"], "reason": "two\nlines | <b>"}]})
        write_report(folder)
        assert "| a\\|b, c\\_1 | two lines \\| &lt;b&gt; |" in folder.report_md.read_text()


def test_numbers_are_for_people() -> None:
    assert [numbers.duration(seconds) for seconds in (0.41, 59.4, 200, 7500)] == [
        *("0.4 s", "59 s", "3 min 20 s", "2 h 05 min")
    ]
    assert [numbers.count(count) for count in (12, 1234, 272_474, 41e6, 1.8e9)] == [
        *("12", "1,234", "0.272 M", "41.0 M", "1.80 G")
    ]


def test_writing_a_report_loads_neither_torch_nor_tvm(folder: RunFolder) -> None:
    code = (
        "import sys, json; from cprune.runs.folder import RunFolder; from cprune.runs.report import write_report\n"
        "write_report(RunFolder.open(sys.argv[1])); print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"torch", "tvm", "sqlalchemy"} & set(json.loads(done.stdout))


# -- the front


def front() -> Front:
    certified = FrontPoint(
        "certified", around(0.9874), 1.8546, 0.0076, 139_218, 19_113_472, 1, {"conv1": 12}, se=0.0024, step=9,
        delivered=True, meets=True,
    )  # fmt: skip
    trained = replace(certified, status="trained", speedup=2.4, step=1000, delivered=False, afterwards=True)
    forecast = FrontPoint("forecast", Interval(0.6, 0.6, 0.6), 3.05, 0.021, 90_000, 9_000_000, 2, {}, meets=False)
    return Front(Unpruned(around(1.8312), 0.9127, 272_474, 40_813_184), (certified, trained, forecast), "a guess")


def test_the_front_is_a_table_and_a_plot(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    for event in course():
        Journal(folder.journal).append(event)
    write_front(folder.front, front())
    write_report(folder)
    text = folder.report_md.read_text()
    rows = [
        line for line in text.splitlines() if line.startswith(("| certified", "| trained", "| forecast", "| unpru"))
    ]
    assert rows[0].startswith("| unpruned | 1.831 (1.813 to 1.850) | 1x | 0 | 0.272 M | 40.8 M | 0 |")
    assert rows[1].startswith(
        "| certified | 0.987 (0.978 to 0.997) | 1.85x | 0.76 ± 0.24 | 0.139 M | 19.1 M | 1 | deliv"
    )
    assert "asked for when the run was over" in rows[2]
    assert rows[3].startswith("| forecast | 0.6 | 3.05x | about 2.10 | 90,000 | 9.00 M | 2 | does not meet the limits")
    assert "a guess" in text
    assert "may be lost: 1.00" in folder.report_html.read_text()


def test_a_front_of_one_point_that_gains_is_drawn() -> None:
    point = replace(front().points[0], loss=-0.002, se=None)
    assert plots.front([point], None, 720).count("<circle") == 1
    assert plots.front([], 0.01, 310).startswith("<svg")


def test_a_limit_that_was_missed_is_in_the_headline_and_the_table(tmp_path: Path) -> None:
    limits = [{"name": "speedup", "asked": 2.0, "reached": 1.8546, "met": False},
              {"name": "params", "asked": 2e5, "reached": 139_218, "met": True}]  # fmt: skip
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    write_json(folder.result, {**RESULT, "limits": limits})
    run = read_run(folder)
    assert headline(run).status == "pruned, limit missed"
    assert "speed-up 1.85x, at least 2x was asked for: missed by 7.3 %" in headline(run).meaning
    assert run.result is not None
    rows = table(run.result)
    assert ("Speed-up asked for", "", "2x, missed by 7.3 %") in rows
    assert ("Parameters asked for", "", "200,000, met") in rows
