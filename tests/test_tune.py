"""The tuner against a table: which candidates it asks for, what it keeps, whom it believes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.local import LocalSession
from cprune.targets.mock import MockSession
from cprune.targets.session import Array, Failure, Program, Timed
from cprune.targets.target import Target
from cprune.tuner import batch, task
from cprune.tuner.programs import metaschedule, reference, space
from cprune.tuner.programs import program as programs
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Elementwise, key
from cprune.tuner.records.record import Record
from cprune.tuner.records.store import Store
from cprune.tuner.rig import Rig
from cprune.tuner.task import OpenTask, stalled
from cprune.tuner.tune import Job, Tuner

CONV = Conv2d(1, 16, 8, 8, 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "relu", 8, 8)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "records.sqlite") as made:
        yield made


class Table:
    """Latency by candidate; the output is right unless the candidate is among `wrong`."""

    def __init__(self, target: Target, cost: Callable[[Candidate], float], wrong: set[Candidate] = frozenset()):  # type: ignore[assignment]
        self.points = {programs.program(CONV, c).module: c for c in space.of_target(CONV, target)[:40]}
        self.cost, self.wrong = cost, wrong

    def __call__(self, program: Program, given: Sequence[Array] | None) -> Timed | Failure:
        candidate = self.points[program.module]
        output = None
        if given is not None:
            output = reference.expected(CONV, given)
            if candidate in self.wrong:
                output = output + 1
        seconds = self.cost(candidate)
        return Failure("run", "SIGSEGV") if seconds < 0 else Timed((seconds,) * 3, output)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, target: Target) -> tuple[Candidate, ...]:
    """Cut the space to its first 40 points, so that the table stays small."""
    points = space.of_target(CONV, target)[:40]
    monkeypatch.setattr(space, "of_target", lambda *_: points)
    return points


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no task end before its trials are spent."""
    monkeypatch.setattr(task, "LEAST", 1000)


def rank(points: tuple[Candidate, ...]) -> Callable[[Candidate], float]:
    return lambda c: 1e-6 * (1 + points.index(c))


def test_with_as_many_trials_as_points_the_fastest_is_found(
    few: tuple[Candidate, ...], store: Store, target: Target, patient: None
) -> None:
    best = Tuner(MockSession(Table(target, rank(few))), store, target).tune(CONV, 40)
    assert best.candidate == few[0]
    assert best.latency_s == pytest.approx(1e-6)
    assert best.measured == 40


def test_tuning_again_measures_nothing(few: tuple[Candidate, ...], store: Store, target: Target) -> None:
    first = Tuner(MockSession(Table(target, rank(few))), store, target).tune(CONV, 16)
    again = MockSession(Table(target, rank(few)))
    tuner = Tuner(again, store, target)
    assert tuner.left(CONV, 16) == 0
    assert tuner.tune(CONV, 16).candidate == first.candidate
    assert again.asked == 0


def test_more_trials_only_add_what_is_missing(
    few: tuple[Candidate, ...], store: Store, target: Target, patient: None
) -> None:
    Tuner(MockSession(Table(target, rank(few))), store, target).tune(CONV, 16)
    assert Tuner(MockSession(Table(target, rank(few))), store, target).tune(CONV, 24).measured == 8


def test_a_winner_with_a_wrong_result_is_never_returned(
    few: tuple[Candidate, ...], store: Store, target: Target, patient: None
) -> None:
    table = Table(target, rank(few), wrong={few[0], few[1]})
    best = Tuner(MockSession(table), store, target).tune(CONV, 40)
    assert best.candidate == few[2]
    wrong = [r for r in store.of_task(key(CONV), target.fingerprint) if r.failure == "check"]
    assert {Candidate.parse(r.candidate) for r in wrong} == {few[0], few[1]}
    assert "differs from PyTorch" in wrong[0].reason


def test_failures_are_kept_with_stage_and_reason_and_never_win(
    few: tuple[Candidate, ...], store: Store, target: Target, patient: None
) -> None:
    table = Table(target, lambda c: -1.0 if c == few[0] else rank(few)(c))
    best = Tuner(MockSession(table), store, target).tune(CONV, 40)
    assert best.candidate == few[1]
    failed = [r for r in store.of_task(key(CONV), target.fingerprint) if r.failure]
    assert [(r.failure, r.reason) for r in failed] == [("run", "SIGSEGV")]


def test_a_task_of_which_nothing_works_is_said(few: tuple[Candidate, ...], store: Store, target: Target) -> None:
    table = Table(target, lambda _: -1.0)
    with pytest.raises(BrokenWorld, match="conv 3x3/1 16→32 @8x8"):
        Tuner(MockSession(table), store, target).tune(CONV, 8)


def test_one_seed_asks_for_the_same_candidates(few: tuple[Candidate, ...], tmp_path: Path, target: Target) -> None:
    asked = []
    for name in ("a", "b"):
        with Store(tmp_path / name) as store:
            Tuner(MockSession(Table(target, rank(few))), store, target, seed=3).tune(CONV, 12)
            asked.append([r.candidate for r in store.of_task(key(CONV), target.fingerprint)])
    assert asked[0] == asked[1]


def test_a_candidate_comes_back_from_its_text(target: Target) -> None:
    for candidate in space.of_target(CONV, target):
        assert Candidate.parse(candidate.text()) == candidate
        assert json.loads(candidate.text()) == dict(candidate.knobs)


def record(latency_us: float) -> Record:
    failed = latency_us == float("inf")
    runs = () if failed else (latency_us * 1e-6,)
    return Record("task", "target", f"candidate {latency_us}", runs, failure="run" if failed else "")


def test_a_task_ends_early_when_its_last_dozen_of_trials_brought_less_than_one_percent() -> None:
    first = [record(us) for us in (9, 8, 7, 6, 5.5, 5.01, 7.1, 7.2, 7.3, 7.4, 7.6)]
    last = [record(us) for us in (7.7, 7.5, 6.5, 8.1, 9.5, 7.8, 7.9, 6.1, 6.2, 6.3, 6.4)]
    assert not stalled([*first, *last])  # 22 trials are too few to tell
    assert stalled([*first, record(7.05), *last, record(5)])  # 5 instead of 5.01
    assert not stalled([*first, record(7.05), *last, record(4.9)])


def test_a_task_of_which_nothing_worked_yet_does_not_end_early() -> None:
    assert not stalled([record(float("inf"))] * 40)


def test_trials_go_to_the_task_from_which_the_model_gains_most(store: Store, target: Target) -> None:
    # Both tasks improve alike; the second is called nine times as often, so it must be asked for first.
    other = replace(CONV, height=4, width=4)
    asked: list[str] = []

    class Told(Tuner):
        def _try(self, task: OpenTask, on_trial: Callable[[], object]) -> None:
            asked.append(task.key)
            super()._try(task, on_trial)

    tried: dict[Any, int] = {}

    def faster_and_faster(program: Program, given: Sequence[Array] | None) -> Timed | Failure:
        tried[program.shapes] = tried.get(program.shapes, 0) + 1
        return Timed((1e-3 * 0.9 ** tried[program.shapes],) * 3, right(program, given))

    session = MockSession(faster_and_faster)

    def right(program: Program, given: Sequence[Array] | None) -> Array | None:
        workload = CONV if program.shapes == CONV.arguments() else other
        return None if given is None else reference.expected(workload, given)

    Told(session, store, target).tune_all([Job(CONV), Job(other, uses=9)], 48)
    spent = asked[12:]  # the first six batches of each are everybody's
    assert spent[0] == key(other)


def test_after_the_time_limit_every_task_still_has_a_program(
    few: tuple[Candidate, ...], store: Store, target: Target
) -> None:
    best = Tuner(MockSession(Table(target, rank(few))), store, target).tune_all([Job(CONV)], 40, time_limit_s=0.0)
    assert best[key(CONV)].measured == batch.BATCH


def test_runs_that_spread_are_noise_and_steady_ones_are_not(
    few: tuple[Candidate, ...], store: Store, target: Target
) -> None:
    tuner = Tuner(MockSession(Table(target, rank(few))), store, target)
    tuner.tune(CONV, 12)
    assert tuner.noise == 0.0
    steady = Table(target, rank(few))

    def spread(program: Program, given: Sequence[Array] | None) -> Timed | Failure:
        timed = steady(program, given)
        assert isinstance(timed, Timed)
        return Timed((timed.runs_s[0], 1.2 * timed.runs_s[0], 1.4 * timed.runs_s[0]), timed.output)

    with Store("sqlite://") as other:
        noisy = Tuner(MockSession(spread), other, target)
        noisy.tune(CONV, 12)
    assert noisy.noise == pytest.approx(0.4 / 1.2)


OTHER_TUNING = """
import sys
sys.path.insert(0, "tests")
from test_tune import CONV, Table, rank
from cprune.targets.mock import MockSession
from cprune.targets.target import find
from cprune.tuner.programs import space; from cprune.tuner import task
from cprune.tuner.records.store import Store
from cprune.tuner.tune import Tuner

target = find("local")
points = space.of_target(CONV, target)[:40]
space.of_target = lambda *_: points
task.LEAST = 1000
with Store(sys.argv[1]) as store:
    tuner = Tuner(MockSession(Table(target, rank(points))), store, target, seed=1)
    print("ready", flush=True)
    sys.stdin.readline()
    print(tuner.tune(CONV, 40).candidate.text(), flush=True)
"""


def test_two_tunings_of_one_task_on_one_store_lose_nothing_and_agree(
    few: tuple[Candidate, ...], tmp_path: Path, target: Target, patient: None
) -> None:
    path = tmp_path / "records.sqlite"
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_TUNING, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    with Store(path) as store:
        tuner = Tuner(MockSession(Table(target, rank(few))), store, target, seed=0)
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        assert other.stdin is not None
        other.stdin.write("go\n")
        other.stdin.flush()
        best = tuner.tune(CONV, 40)
        told, _ = other.communicate(timeout=60)
        assert other.returncode == 0
        records = store.of_task(key(CONV), target.fingerprint)
    assert best.candidate == Candidate.parse(told) == few[0]
    assert sorted(r.candidate for r in records) == sorted(c.text() for c in few)
    assert [r.checked for r in records if r.candidate == few[0].text()] == [True]


def shifted_relu() -> Any:
    """Return a kernel for RELU that writes every value one place too far, the last one behind the output."""
    import tvm
    from tvm import tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        x = T.arg("x", T.buffer((1, 1, 4, 4, 16), "float32", layout=None))
        out = T.arg("out", T.buffer((1, 1, 4, 4, 16), "float32", layout=None))
        with T.serial(0, 256) as i:
            j = i + 1
            value = tirx.max(x[0, 0, i // 64, i // 16 % 4, i % 16], tirx.const(0.0, "float32"))
            T.buffer_store(out, value, [0, 0, j // 64, j // 16 % 4, j % 16])
    return tvm.IRModule({"main": builder.get()})


def test_a_kernel_that_writes_out_of_bounds_is_caught_by_the_comparison(
    store: Store, session: LocalSession, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    relu = Elementwise(("relu", ("in", 0)), (((1, 16, 4, 4), 16),), (1, 16, 4, 4), 16)
    right = programs.module_of
    monkeypatch.setattr(programs, "module_of", lambda w, c: shifted_relu() if c["parallel"] == "none" else right(w, c))
    best = Tuner(session, store, replace(target, threads=2)).tune(relu, 2)
    assert best.candidate["parallel"] == "outer"
    (wrong,) = (r for r in store.of_task(key(relu), replace(target, threads=2).fingerprint) if r.failure)
    assert (wrong.failure, wrong.candidate) == ("check", '{"parallel":"none"}')


def test_an_unknown_search_is_answered_with_the_nearest(store: Store, target: Target) -> None:
    with pytest.raises(UserError, match="Did you mean 'evolutionary'"):
        Tuner(MockSession(lambda *_: Failure("run", "")), store, target, search="evolution").tune(CONV, 4)


@pytest.mark.parametrize(("search", "known"), [("P", False), ("P+A", True)])
def test_the_hidden_features_of_what_was_measured_are_recorded_where_they_were_read(
    few: tuple[Candidate, ...], store: Store, target: Target, search: str, known: bool
) -> None:
    session = MockSession(Table(target, rank(few)), assembly="main:\n\tvfmadd231ps %zmm0, %zmm1, %zmm2\n\tretq\n")
    Tuner(session, store, target, search=search).tune(CONV, 8)
    records = store.of_task(key(CONV), target.fingerprint)
    assert {json.loads(r.hidden)["fma"] if r.hidden else None for r in records} == {1.0 if known else None}


@pytest.mark.parametrize("mistake", [TypeError, AttributeError, NameError, KeyError, IndexError, AssertionError])
def test_a_bug_of_ours_in_a_sketch_surfaces_and_is_not_recorded(
    mistake: type[Exception], few: tuple[Candidate, ...], store: Store, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> None:
        raise mistake("ours")

    monkeypatch.setattr(programs, "module_of", wrong)
    with pytest.raises(mistake, match="ours"):
        Tuner(MockSession(lambda *_: Failure("run", "")), store, target).tune(CONV, 4)
    assert store.all() == []


def test_a_candidate_that_does_not_fit_is_data(
    few: tuple[Candidate, ...], store: Store, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tvm
    from tvm.s_tir import Schedule

    table, right, failing = Table(target, rank(few)), programs.module_of, list(few[:3])

    def some(workload: Conv2d, candidate: Candidate) -> object:
        module = right(workload, candidate)
        if candidate == failing[0]:
            return Schedule(module).get_sblock("nowhere")  # ScheduleError
        if candidate == failing[1]:
            raise ValueError("no program")
        if candidate == failing[2]:
            tvm.get_global_func("runtime.NumThreads")("one", "too", "many")  # TypeError, but TVM's
        return module

    monkeypatch.setattr(programs, "module_of", some)
    Tuner(MockSession(table), store, target).tune(CONV, 40)
    failed = {r.candidate: r.reason for r in store.all() if r.failure == "lower"}
    assert failed.keys() == {c.text() for c in failing}
    assert failed[failing[1].text()] == "no program"


def test_every_point_of_the_generic_space_is_a_program(target: Target) -> None:
    points = metaschedule.candidates(CONV, target, 0, 4)
    assert len(points) == 4
    assert all(programs.program(CONV, point).module for point in points)


@pytest.mark.parametrize(
    "text",
    [
        '{"parallel":"none"}',
        '{"oc_groups":1,"oc_tile":1,"p_tile":4,"rows":1,"winograd":6}',
        '{"oc_groups":"all","oc_tile":1,"p_tile":4,"rows":1,"winograd":2}',
    ],
)
def test_a_program_of_a_later_version_never_wins(text: str, store: Store, target: Target) -> None:
    foreign = Record(key(CONV), target.fingerprint, text, (1e-9,))
    store.add([foreign])
    assert not Rig(MockSession(lambda *_: Timed((1.0,) * 3)), store, target).makes(CONV, foreign)


def test_programs_that_take_turns_are_timed_and_not_recorded(
    few: tuple[Candidate, ...], store: Store, target: Target
) -> None:
    table = Table(target, lambda c: -1.0 if c == few[2] else rank(few)(c))
    tuner = Tuner(MockSession(table), store, target)
    runs = tuner.in_turns([(CONV, few[1]), (CONV, few[2]), (CONV, few[0])], 3)
    assert runs == [(2e-6,) * 3, (), (1e-6,) * 3]
    assert tuner.clock.measuring > 0
    assert not store.of_task(key(CONV), target.fingerprint)


def test_a_program_that_is_not_built_takes_no_turn(few: tuple[Candidate, ...], store: Store, target: Target) -> None:
    class Unbuilt(MockSession):
        def build(self, programs: Sequence[Program], **_: Any) -> list[Any]:  # type: ignore[override]
            return [Failure("build", "no")] * len(programs)

    assert Tuner(Unbuilt(), store, target).in_turns([(CONV, few[0])], 3) == [()]
