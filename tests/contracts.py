"""One class of tests for every implementation of a seam: subclass it, say how to make one, and it must pass.

This file is not collected by itself; `test_records.py` and others subclass what is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from kernels import crashing, doubled, scaling, tripled

from cprune.targets.session import Array, Built, Failure, Program, Session, Timed
from cprune.tuner.records.record import Record
from cprune.tuner.records.store import Added, Store

TASK = '{"op":"conv2d","shape":[1,16,32,32]}'
OTHER = '{"op":"conv2d","shape":[1,12,32,32]}'
TARGET = "8f3a11c0"


def time_once(session: Session, program: Program, slow_s: float = math.inf) -> Timed | Failure:
    """Build one program and time it."""
    built = session.build([program])[0]
    return session.time([built], slow_s=slow_s)[0] if isinstance(built, Built) else built


def run_once(session: Session, program: Program, given: Sequence[Array]) -> Timed | Failure:
    """Build one program and run it on these arguments; its output comes back."""
    built = session.build([program])[0]
    return session.race([built], [given], 1)[0] if isinstance(built, Built) else built


def timed(candidate: str, *runs_s: float, task: str = TASK, target: str = TARGET, checked: bool = False) -> Record:
    """Return a record that ran."""
    return Record(task, target, candidate, runs_s, checked=checked, created=1.5)


def failed(candidate: str, stage: str, reason: str = "", task: str = TASK, target: str = TARGET) -> Record:
    """Return a record that failed at `stage`."""
    return Record(task, target, candidate, (), failure=stage, reason=reason, created=1.5)


def raced(candidate: str, stage: str, reason: str) -> Record:
    """Return a record that failed at `stage` when it was about to be compared with the reference."""
    return Record(TASK, TARGET, candidate, (), failure=stage, reason=reason, checked=True, created=1.5)


ONES, TWOS = np.ones(64, np.float32), np.full(64, 2, np.float32)


def built_in(session: Session, *programs: Program) -> list[Built]:
    """Build programs that can be built."""
    answers = session.build(programs)
    assert [type(answer) for answer in answers] == [Built] * len(programs)
    return [answer for answer in answers if isinstance(answer, Built)]


def outputs_of(answers: Sequence[Timed | Failure]) -> list[Array | None]:
    """Return what raced programs computed; None for one that failed."""
    return [answer.output if isinstance(answer, Timed) else None for answer in answers]


class SessionContract:
    """What every session does, whatever machine is behind it: the fixture `session` of the file that subclasses this.

    It takes two runs to time a program.
    """

    def test_a_program_is_timed_and_its_output_comes_back(self, session: Session) -> None:
        timed = time_once(session, doubled())
        assert isinstance(timed, Timed)
        assert len(timed.runs_s) == 2
        assert all(0 < run < 1e-2 for run in timed.runs_s)
        x = np.arange(64, dtype=np.float32)
        (output,) = outputs_of([run_once(session, doubled(), [x])])
        assert output is not None
        assert np.array_equal(output, 2 * x)

    def test_programs_race_on_their_own_arguments(self, session: Session) -> None:
        first, second = outputs_of(session.race(built_in(session, doubled(), tripled()), [[ONES], [TWOS]], 2))
        assert first is not None
        assert second is not None
        assert (first[0], second[0]) == (2.0, 6.0)

    def test_nothing_asked_for_is_nothing_done(self, session: Session) -> None:
        assert session.build([]) == session.time([]) == []

    def test_what_is_kept_outlasts_the_next_build(self, session: Session) -> None:
        (kept,) = built_in(session, doubled())
        session.build([tripled()], keep=[kept])
        (output,) = outputs_of(session.race([kept], [[TWOS]], 2))
        assert output is not None
        assert output[0] == 4.0

    def test_held_models_compute_and_take_turns(self, session: Session) -> None:
        assert session.load("double", scaling(2.0)) is None
        assert session.load("triple", scaling(3.0)) is None
        outputs = [session.run(key, [TWOS]) for key in ("double", "triple")]
        assert [output[0][0] for output in outputs if isinstance(output, tuple)] == [4.0, 6.0]
        seconds = session.time_models(["triple", "double"], [TWOS], 3, 0.1)
        assert isinstance(seconds, dict)
        assert {key: len(values) for key, values in seconds.items()} == {"triple": 3, "double": 3}
        assert all(0 < each < 1e-2 for values in seconds.values() for each in values)
        session.drop("double")
        session.drop("triple")

    def test_a_name_is_free_again_once_its_model_was_dropped(self, session: Session) -> None:
        session.drop("nobody")  # says nothing
        for factor in (2.0, 5.0):
            assert session.load("model", scaling(factor)) is None
            outputs = session.run("model", [ONES])
            assert isinstance(outputs, tuple)
            assert outputs[0][0] == factor
            session.drop("model")


class MachineContract(SessionContract):
    """What a session with a machine behind it survives as well."""

    def test_a_race_has_a_run_in_every_round(self, session: Session) -> None:
        answers = session.race(built_in(session, doubled(), tripled()), [[ONES], [ONES]], 4)
        assert [len(answer.runs_s) for answer in answers if isinstance(answer, Timed)] == [4, 4]

    def test_a_program_that_cannot_be_built_spoils_no_other(self, session: Session) -> None:
        answers = session.build([doubled(), Program('{"not": "a module"}', ((1,), (1,))), tripled()])
        assert [type(answer) for answer in answers] == [Built, Failure, Built]
        assert answers[1].stage == "build"  # type: ignore[union-attr]

    def test_a_slow_program_is_cut_short_after_one_call(self, session: Session) -> None:
        timed = time_once(session, doubled(), slow_s=1e-12)
        assert isinstance(timed, Timed)
        assert len(timed.runs_s) == 1

    def test_the_machine_code_comes_back_as_text_where_it_is_asked_for(self, session: Session) -> None:
        (built,) = session.build([doubled()], assembly=True)
        assert isinstance(built, Built)
        assert "ret" in built.assembly

    def test_a_kernel_that_crashes_is_a_failed_candidate_and_the_next_one_is_fine(self, session: Session) -> None:
        failed = time_once(session, crashing())
        assert isinstance(failed, Failure)
        assert failed.stage == "run"
        assert isinstance(time_once(session, doubled()), Timed)

    def test_a_crash_in_a_race_is_one_program_s_failure(self, session: Session) -> None:
        answers = session.race(built_in(session, doubled(), crashing(), tripled()), [[ONES]] * 3, 2)
        assert [type(answer) for answer in answers] == [Timed, Failure, Timed]

    def test_a_model_is_there_again_after_a_kernel_crashed(self, session: Session) -> None:
        assert session.load("model", scaling(2.0)) is None
        assert isinstance(time_once(session, crashing()), Failure)
        outputs = session.run("model", [ONES])
        assert isinstance(outputs, tuple)
        assert outputs[0][0] == 2.0
        session.drop("model")


class StoreContract:
    """What every record store does, whatever database is below."""

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        """Yield an empty store."""
        raise NotImplementedError

    def test_a_new_store_is_empty(self, store: Store) -> None:
        assert store.all() == []
        assert store.of_task(TASK, TARGET) == []

    def test_what_comes_out_is_what_went_in(self, store: Store) -> None:
        runs_s = (0.1 + 0.2, 1e-9)
        hidden = '{"instructions":1.5}'
        ran = Record(
            TASK, TARGET, '{"k":"ü\\u0000"}', runs_s, space="metaschedule", hidden=hidden, created=1234567890.123456
        )
        broke = Record(TASK, TARGET, "b", (), "build", "line 1\nline 2 €", space="sketch", created=2.5)
        store.add([ran, broke])
        assert store.of_task(TASK, TARGET) == [ran, broke]

    def test_adding_nothing_is_fine(self, store: Store) -> None:
        store.add([])
        assert store.all() == []

    def test_records_come_back_in_the_order_of_recording(self, store: Store) -> None:
        store.add([timed("c", 1.0), timed("a", 1.0)])
        store.add([timed("b", 1.0)])
        assert [record.candidate for record in store.of_task(TASK, TARGET)] == ["c", "a", "b"]

    def test_a_task_and_a_target_see_only_their_own_records(self, store: Store) -> None:
        store.add([timed("a", 1.0), timed("a", 2.0, task=OTHER), timed("a", 3.0, target="other")])
        assert len(store.all()) == 3
        assert [record.runs_s for record in store.of_task(TASK, TARGET)] == [(1.0,)]
        assert [record.runs_s for record in store.of_task(TASK, "other")] == [(3.0,)]
        assert store.of_task(TASK, "nobody") == []

    def test_adding_twice_changes_nothing(self, store: Store) -> None:
        store.add([timed("a", 1.0)])
        store.add([timed("a", 2.0), timed("a", 3.0)])
        assert [record.runs_s for record in store.of_task(TASK, TARGET)] == [(1.0,)]

    def test_a_timing_replaces_a_failure_and_never_the_other_way_round(self, store: Store) -> None:
        store.add([failed("a", "timeout"), timed("b", 1.0)])
        store.add([timed("a", 2.0), failed("b", "timeout")])
        assert [record.latency_s for record in store.of_task(TASK, TARGET)] == [2.0, 1.0]

    def test_more_runs_replace_fewer(self, store: Store) -> None:
        store.add([timed("a", 1.0)])
        store.add([timed("a", 2.0, 2.0)])
        assert [record.runs_s for record in store.of_task(TASK, TARGET)] == [(2.0, 2.0)]

    def test_a_winner_that_is_right_outlasts_any_timing(self, store: Store) -> None:
        store.add([timed("a", 1.0)])
        right = timed("a", 1.0, 2.0, checked=True)
        store.add([right])
        assert store.of_task(TASK, TARGET) == [right]
        store.add([timed("a", 2.0, 2.0, 2.0)])  # not compared with the reference: knows less
        assert store.of_task(TASK, TARGET) == [right]

    def test_a_wrong_winner_never_comes_back(self, store: Store) -> None:
        store.add([timed("a", 1.0, checked=True), timed("b", 2.0)])
        wrong = raced("a", "check", "differs by 3.0 at [0, 1]")
        store.add([wrong])
        store.add([timed("a", 0.5, 0.5, checked=True)])
        assert store.of_task(TASK, TARGET) == [wrong, timed("b", 2.0)]

    def test_a_winner_that_crashes_when_it_is_compared_is_out_for_good(self, store: Store) -> None:
        store.add([timed("a", 1.0)])
        store.add([raced("a", "run", "SIGSEGV")])
        store.add([timed("a", 1.0)])
        assert store.of_task(TASK, TARGET) == [raced("a", "run", "SIGSEGV")]

    def test_one_batch_may_hold_a_key_twice(self, store: Store) -> None:
        store.add([failed("a", "run"), timed("a", 1.0)])
        assert [record.failure for record in store.of_task(TASK, TARGET)] == [""]

    def test_a_thousand_records_go_in_at_once(self, store: Store) -> None:
        store.add([timed(str(i), 1.0 + i) for i in range(1000)])
        store.add([timed(str(i), 1.0 + i, 1.0 + i) for i in range(1000)])
        assert len(store.all()) == 1000
        assert all(len(record.runs_s) == 2 for record in store.of_task(TASK, TARGET))

    def test_a_huge_or_odd_reason_is_cut_not_refused(self, store: Store) -> None:
        store.add([failed("a", "build", "first\0\ud800" + "x" * 100_000 + "last")])
        reason = store.of_task(TASK, TARGET)[0].reason
        assert reason.startswith("first")
        assert reason.endswith("last")
        assert len(reason) < 5000

    def test_all_records_come_oldest_first_also_those_of_one_target(self, store: Store) -> None:
        records = [timed("c", 1.0), timed("a", 1.0, task=OTHER), timed("b", 1.0, target="other")]
        store.add(records)
        assert store.all() == records
        assert store.all("other") == records[2:]
        assert store.targets() == [TARGET, "other"]

    def test_records_that_fill_several_pages_come_once_each(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cprune.tuner.records.store._PAGE", 3)
        records = [timed(str(i), 1.0, target=TARGET if i % 2 else "other") for i in range(12)]
        store.add(records)
        assert list(store.each()) == records  # 12 are four pages exactly
        assert list(store.each("other")) == records[::2]

    def test_what_is_added_while_they_are_read_disturbs_nobody(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cprune.tuner.records.store._PAGE", 2)
        store.add([timed("a", 1.0), timed("b", 1.0), timed("c", 1.0)])
        seen = []
        for record in store.each():
            seen.append(record.candidate)
            store.add([timed("late", 1.0)])
        assert seen[:3] == ["a", "b", "c"]

    def test_adding_says_what_came_of_it(self, store: Store) -> None:
        assert store.add([timed("a", 1.0), failed("b", "run"), timed("a", 9.0)]) == Added(new=2, known=1)
        assert store.add([timed("a", 9.0), timed("b", 1.0), timed("c", 1.0)]) == Added(new=1, better=1, known=1)

    def test_hidden_features_are_added_to_a_record_that_lacks_them(self, store: Store) -> None:
        store.add([timed("a", 1.0)])
        store.add([replace(timed("a", 1.0), hidden='{"spills":2}')])
        assert store.of_task(TASK, TARGET) == [replace(timed("a", 1.0), hidden='{"spills":2}')]

    def test_a_better_timing_without_hidden_features_loses_none(self, store: Store) -> None:
        store.add([replace(timed("a", 1.0), hidden='{"spills":2}')])
        store.add([timed("a", 2.0, 2.0)])
        store.add([timed("a", 2.0, 2.0, checked=True)])
        (stored,) = store.of_task(TASK, TARGET)
        assert (stored.runs_s, stored.checked, stored.hidden) == ((2.0, 2.0), True, '{"spills":2}')
