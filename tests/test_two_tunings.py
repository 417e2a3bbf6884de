"""Two tunings of one task on one store, in two processes, at the same moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_tune import CONV, Table, rank

from cprune.targets.mock import MockSession
from cprune.targets.target import Target
from cprune.tuner import space, tune
from cprune.tuner.records import Store
from cprune.tuner.space import Candidate
from cprune.tuner.workload import key

POINTS = 24
OTHER = """
import sys
sys.path.insert(0, "tests")
from test_two_tunings import tuned
from cprune.targets.target import find

print("ready", flush=True)
sys.stdin.readline()
print(tuned(sys.argv[1], find("local"), 1).text(), flush=True)
"""


def tuned(place: str, target: Target, seed: int) -> Candidate:
    """Tune the first points of CONV against a table, without an early end, and return the winner."""
    points = space.of_target(CONV, target)[:POINTS]
    with pytest.MonkeyPatch.context() as patch, Store(place) as store:
        patch.setattr(space, "of_target", lambda *_: points)
        patch.setattr(tune, "LEAST", 1000)
        tuner = tune.Tuner(MockSession(Table(target, rank(points))), store, target, seed=seed)
        return tuner.tune(CONV, POINTS).candidate


def test_two_tunings_of_one_task_on_one_store_lose_nothing_and_agree(tmp_path: Path, target: Target) -> None:
    place, root = str(tmp_path / "records.sqlite"), Path(__file__).parents[1]
    command = [sys.executable, "-c", OTHER, place]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    assert other.stdin is not None
    other.stdin.write("go\n")
    other.stdin.flush()
    mine = tuned(place, target, 0)
    told, _ = other.communicate(timeout=60)
    assert other.returncode == 0
    points = space.of_target(CONV, target)[:POINTS]
    assert mine == Candidate.parse(told) == points[0]
    with Store(place) as store:
        records = store.of_task(key(CONV), target.fingerprint)
    assert sorted(r.candidate for r in records) == sorted(c.text() for c in points)
    assert [r.checked for r in records if r.candidate == points[0].text()] == [True]
