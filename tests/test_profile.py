"""The staircase: which widths, which workloads, and files that other tools can read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cprune.cli import main as cli
from cprune.cli import show
from cprune.commands import profile
from cprune.compiling.lowered import Layout
from cprune.tuner.programs.workload import Conv2d

CONV = Conv2d(1, 32, 8, 8, 48, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "relu", 16, 16)


def test_widths_are_multiples_of_the_grain_and_end_with_the_full_one() -> None:
    assert profile.widths(48, 8, 12) == [8, 16, 24, 32, 40, 48]
    assert profile.widths(20, 8, 12) == [8, 16, 20]
    assert profile.widths(4, 8, 12) == [4]


def test_many_widths_are_thinned_out_evenly() -> None:
    assert profile.widths(512, 8, 5) == [8, 136, 264, 384, 512]
    assert profile.widths(512, 8, 1) == [512]


def test_a_narrower_layer_is_stored_in_the_blocks_of_the_layout() -> None:
    narrow = profile.narrowed(CONV, 32, 24, Layout(16))
    assert (narrow.out_channels, narrow.out_block, narrow.in_channels) == (32, 16, 32)
    half = profile.narrowed(CONV, 32, 24, Layout(16, narrow=(24,)))
    assert (half.out_channels, half.out_block) == (24, 8)


def test_a_narrower_depthwise_layer_has_fewer_inputs_too() -> None:
    depthwise = Conv2d(1, 48, 8, 8, 48, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 48, False, "relu", 16, 16)
    narrow = profile.narrowed(depthwise, 48, 32, Layout(16))
    assert (narrow.in_channels, narrow.out_channels, narrow.groups) == (32, 32, 32)


def test_a_side_that_stays_keeps_its_block_and_an_image_its_channels() -> None:
    padded = Conv2d(1, 24, 8, 8, 48, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "relu", 8, 16)  # 20 channels
    assert profile.narrowed(padded, 24, 16, Layout(16, narrow=(20,))).in_block == 8
    assert profile.narrowed(CONV, 16, 48, Layout(16)).in_channels == 16


def test_both_axes_give_a_row_for_every_pair(tmp_path: Path) -> None:
    options = ["--trials", "2", "--width-trials", "1", "--widths", "2", "--records", str(tmp_path / "r.sqlite")]
    out = tmp_path / "table"
    assert cli.main(["profile", "-m", "small_nets:tiny", *options, "--both-axes", "--out", str(out), "--json"]) == 0
    rows = [(row["in_channels"], row["out_channels"]) for row in csv.DictReader((out / "latency.csv").open())]
    assert rows == [("3", "8"), ("3", "16"), ("8", "8"), ("8", "32"), ("16", "8"), ("16", "32")]


def test_profile_prints_the_staircase_and_writes_files_that_others_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--trials", "2", "--width-trials", "2", "--widths", "3", "--records", str(tmp_path / "r.sqlite")]
    out = tmp_path / "staircase"
    assert cli.main(["profile", "-m", "small_nets:tiny", *options, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [[row["channels"] for row in task["widths"]] for task in told["tasks"]] == [[8, 16], [8, 24, 32]]
    for task in told["tasks"]:
        assert task["step"] in (8, 16, 32)
        assert all(0 < row["low_us"] <= row["median_us"] <= row["high_us"] for row in task["widths"])
    rows = list(csv.DictReader((out / "latency.csv").open()))
    assert list(rows[0]) == list(profile.COLUMNS)
    assert [row["out_channels"] for row in rows] == ["8", "16", "8", "24", "32"]
    for svg in sorted(out.glob("*.svg")):
        assert ElementTree.parse(svg).getroot().tag.endswith("svg")
        assert "var(--" not in svg.read_text()
    assert cli.main(["profile", "-m", "small_nets:tiny", *options]) == 0
    shown = capsys.readouterr().out
    assert "conv 3x3/1" in shown
    assert "█" in shown


def test_with_estimate_only_the_whole_width_is_tuned_and_the_others_are_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--trials", "2", "--width-trials", "1", "--widths", "2", "--records", str(tmp_path / "r.sqlite")]
    asked, out = ["profile", "-m", "small_nets:tiny", *options, "--estimate"], tmp_path / "table"
    assert cli.main([*asked, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [[row["estimated"] for row in task["widths"]] for task in told["tasks"]] == [[True, False], [True, False]]
    assert all(low["median_us"] <= high["median_us"] for low, high in (task["widths"] for task in told["tasks"]))
    assert told["estimate_error"] is None  # three tasks tell nothing of that
    rows = [(row["out_channels"], row["estimated"]) for row in csv.DictReader((out / "latency.csv").open())]
    assert rows == [("8", "1"), ("16", "0"), ("8", "1"), ("32", "0")]
    assert cli.main(["profile", "-m", "small_nets:tiny", *options]) == 0
    capsys.readouterr()
    assert cli.main([*asked, "--json"]) == 0  # now they are known
    told = json.loads(capsys.readouterr().out)
    assert not any(row["estimated"] for task in told["tasks"] for row in task["widths"])


def test_the_staircase_says_what_is_estimated_and_how_good_estimates_are(capsys: pytest.CaptureFixture[str]) -> None:
    shape = profile.LayerShape("conv2d", 1, 16, 8, 8, "3x3", 1, 1)
    widths = (profile.Width(8, 5.0, 5.0, 5.0, estimated=True), profile.Width(16, 9.0, 8.5, 9.5))
    task = profile.Staircase("conv", ("a",), 1, 8, shape, widths)
    show.staircases(profile.Staircases("net", "local", 2, (task,), 0.083))
    shown = capsys.readouterr().out
    assert "5.00 us estimated" in shown
    assert "9.00 us [8.50, 9.50]" in shown
    assert "median error 8.3%" in shown
