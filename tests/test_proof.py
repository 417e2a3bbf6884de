"""The proof: what is typed for every run, and how its folders become tables."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cprune.runs.events import (
    Chosen,
    CostSoFar,
    Event,
    Final,
    Measured,
    Planned,
    Reported,
    Scouted,
    SoFar,
    Step,
    Trained,
)
from cprune.targets.interval import Interval
from cprune.targets.paired import Paired
from experiments import proof
from experiments.proof_table import Row, elsewhere, forecast_error, told

ONE = Interval(1.0, 1.0, 1.0)


def timed(seconds: float, event: Event) -> Event:
    """Return an event with the seconds of training so far."""
    return replace(event, so_far=SoFar({"train": seconds}, {}))


def scouted(round_: int, number: int, share: float = 0.5, forecast: float = 0.5) -> Scouted:
    return Scouted(round_, number, share, forecast, 0.1, 1.0, Paired(0.01), (), ())


def chosen(round_: int, number: int = 0, share: float = 0.5) -> Chosen:
    return Chosen(round_, number, share, 3.0, 0.01, (), ())


def step(index: int, verdict: str = "accepted") -> Step:
    return Step(index, "", 0, (), ONE, ONE, ONE, 0.9, verdict, "", 0, {}, "")  # type: ignore[arg-type]


def ended(index: int | None) -> list[Event]:
    reported = [Reported(index, 0.9, Paired(0.0))] if index is not None else []
    return [*reported, Final("unpruned" if index is None else "pruned", 0.9)]


TWO_ROUNDS = [
    timed(2, Planned(100.0, 8)),
    timed(6, scouted(0, 0)),
    timed(8, CostSoFar()),
    timed(10, scouted(0, 1)),
    timed(10, chosen(0, 1)),
    timed(40, Trained(0, 0.9, 0.9)),
    timed(40, step(0)),
    timed(44, scouted(1, 0)),
    timed(45, chosen(1, 0)),
    timed(100, Trained(1, 0.9, 0.9)),
    timed(100, step(1)),
]


def test_training_of_the_rounds_and_scouts_that_led_to_the_delivered_model_is_in_it() -> None:
    # elsewhere: 2 s of measuring, scout 0 of the first round 4 s, 1 s of measuring before the second round
    assert elsewhere([*TWO_ROUNDS, *ended(1)], "tables") == pytest.approx(0.07)


def test_what_came_after_a_model_that_is_delivered_is_elsewhere() -> None:
    # in it: scout 1 of the first round, 4 s, and the long training, 30 s
    assert elsewhere([*TWO_ROUNDS, *ended(0)], "tables") == pytest.approx(0.66)


def test_what_was_looked_at_and_failed_is_not_what_is_delivered() -> None:
    looks = [Reported(0, 0.9, Paired(0.0)), Reported(1, 0.88, Paired(0.02)), Final("stepped-back", 0.9)]
    assert elsewhere([*TWO_ROUNDS, *looks], "tables") == pytest.approx(0.66)


def test_a_method_that_begins_anew_in_every_round_delivers_the_training_of_one_round() -> None:
    assert elsewhere([*TWO_ROUNDS, *ended(1)], "uniform") == pytest.approx(0.45)


def test_all_of_the_training_is_elsewhere_where_the_unpruned_model_is_delivered() -> None:
    assert elsewhere([*TWO_ROUNDS, *ended(None)], "tables") == 1.0


def test_steps_of_algorithm_1_are_in_the_model_that_goes_on_from_them() -> None:
    steps = [timed(3, step(0)), timed(5, step(1, "excluded")), timed(8, step(2)), timed(20, Trained(2, 0.9, 0.9))]
    assert elsewhere([*steps, *ended(2)], "cprune") == pytest.approx(0.1)
    assert elsewhere([*steps, *ended(0)], "cprune") == pytest.approx(0.85)


def test_a_run_without_training_has_none_elsewhere() -> None:
    assert elsewhere(ended(None), "tables") == 0.0


def test_the_error_of_the_forecast_is_the_median_over_what_was_timed() -> None:
    scouts = [scouted(0, 0, 0.55, 0.5), scouted(0, 1, 0.5, 0.5), scouted(1, 0, 0.49, 0.5)]
    assert forecast_error(scouts, "tables") == pytest.approx(0.02)  # of 10, 0 and 2 %
    rounds = [chosen(0, share=0.5), Measured("step0", ONE, ONE, Interval(0.6, 0.6, 0.6)), chosen(1)]
    assert forecast_error(rounds, "uniform") == pytest.approx(0.2)
    assert forecast_error([], "cprune") is None


def row(model: str, method: str, speedup: float, seed: int = 0, error: float | None = 0.031) -> Row:
    low, high = speedup - 0.1, speedup + 0.1
    return Row(model, method, seed, "pruned", speedup, low, high, 0.9, 0.895, 5.04, 300.0, 0.25, error, 9)


def test_the_tables_show_every_run_the_means_and_the_ratio_to_the_best_other_method() -> None:
    rows = [
        row("built-in", "tables", 2.0),
        row("built-in", "tables", 4.5, seed=1),  # the geometric mean of 2 and 4.5 is 3
        row("built-in", "uniform", 1.5),
        replace(row("built-in", "cprune", 1.0, error=None), status="unpruned"),
        row("vgg16", "tables", 3.0),
        row("vgg16", "uniform", 6.0),
    ]
    assert told(rows).splitlines() == [
        "| model | method | seed | speed-up | accuracy in the report | minutes | elsewhere | forecast's error |",
        "|---|---|---|---|---|---|---|---|",
        "| built-in | tables | 0 | 2.00x (1.90 to 2.10) | 90.00% → 89.50% | 5.0 | 25% | 3.1% |",
        "| built-in | tables | 1 | 4.50x (4.40 to 4.60) | 90.00% → 89.50% | 5.0 | 25% | 3.1% |",
        "| built-in | uniform | 0 | 1.50x (1.40 to 1.60) | 90.00% → 89.50% | 5.0 | 25% | 3.1% |",
        "| built-in | cprune | 0 | 1.00x (0.90 to 1.10) (unpruned) | 90.00% → 89.50% | 5.0 | 25% |  |",
        "| vgg16 | tables | 0 | 3.00x (2.90 to 3.10) | 90.00% → 89.50% | 5.0 | 25% | 3.1% |",
        "| vgg16 | uniform | 0 | 6.00x (5.90 to 6.10) | 90.00% → 89.50% | 5.0 | 25% | 3.1% |",
        "",
        "| speed-up, geometric mean of the seeds | tables | uniform | cprune | tables / best other |",
        "|---|---|---|---|---|",
        "| built-in | 3.00x | 1.50x | 1.00x | 2.00 |",
        "| vgg16 | 3.00x | 6.00x |  | 0.50 |",
        "| all models, geometric mean | 3.00x | 3.00x |  | 1.00 |",
    ]
    assert told([]) == "no run is finished"


# -- what is typed


def typed(folder: Path, *arguments: str) -> list[proof.Job]:
    return proof.jobs(proof.parsed(["--out", str(folder / "proof"), *arguments]))


def test_every_method_gets_the_same_seconds_of_training(tmp_path: Path) -> None:
    found = typed(tmp_path, "--models", "built-in", "--methods", "tables", "uniform", "--seeds", "3", "--threads", "2")
    assert [(job.method, job.command()[1:]) for job in found] == [
        (
            method,
            ["-m", "cprune.cli", "run", "-m", "resnet-fashion", "--train-time", "5m", "--precision", "fp32",
             "--threads", "2", "--method", method, "--seed", "3",
             "--out", str(tmp_path / "proof" / f"built-in.{method}.3")],
        )
        for method in ("tables", "uniform")
    ]  # fmt: skip


def test_a_run_that_was_stopped_is_resumed(tmp_path: Path) -> None:
    (job,) = typed(tmp_path, "--models", "built-in", "--methods", "netadapt", "--seeds", "0")
    job.folder.mkdir(parents=True)
    (job.folder / "run.json").touch()
    assert job.command()[1:] == ["-m", "cprune.cli", "resume", str(job.folder)]


def test_models_whose_weights_are_not_there_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vgg16.safetensors").touch()
    (tmp_path / "cifar.npz").touch()
    found = typed(
        tmp_path, "--weights-dir", str(tmp_path), "--cifar", str(tmp_path / "cifar.npz"),
        "--models", "vgg16", "resnet18", "--methods", "tables", "cprune", "--seeds", "0", "--train-time", "90s",
    )  # fmt: skip
    assert [job.folder.name for job in found] == ["vgg16.tables.0", "vgg16.cprune.0"]
    data = ("--weights", str(tmp_path / "vgg16.safetensors"), "-d", f"npz:{tmp_path / 'cifar.npz'}")
    assert found[0].arguments[:10] == ("-m", "vgg16_bn", "--train-time", "90s", "--precision", "fp32", *data)
    assert found[1].arguments[-2:] == ("--config", str(proof.CIFAR_STEPS))
    assert "resnet18 is left out" in capsys.readouterr().err


def test_a_length_of_time_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        typed(tmp_path, "--train-time", "soon")
    assert "'soon' is no length of time" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_proof_runs_and_does_not_run_again(tmp_path: Path) -> None:
    script = Path(proof.__file__)
    arguments = [sys.executable, str(script), "--out", str(tmp_path), "--quick", "--json", str(tmp_path / "rows.json")]
    first = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=True)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["method"] for row in rows] == list(proof.QUICK_METHODS), first.stderr
    assert "| tables / best other |" in first.stdout
    again = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert (again.stdout, again.stderr) == (first.stdout, "")
