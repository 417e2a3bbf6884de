"""A store that others write into as well: other spaces, other versions of cprune, records out of a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from test_tvm_database import matmul

from cprune.targets.mock import MockSession
from cprune.targets.session import Array, Program, Timed
from cprune.targets.target import Target
from cprune.tuner.programs import metaschedule, reference, space
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Elementwise, Tir, Workload, key
from cprune.tuner.records.record import Record
from cprune.tuner.records.store import Store
from cprune.tuner.tune import Tuner

# Of stride 2: no Winograd program, whose weights this mock could not read.
CONV = Conv2d(1, 16, 8, 8, 32, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1, False, "relu", 8, 8)
RELU = Elementwise(("relu", ("in", 0)), (((1, 20, 4, 4), 8),), (1, 20, 4, 4), 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "records.sqlite") as made:
        yield made


def tuner(workload: Workload, store: Store, target: Target, spaces: str = "sketch") -> Tuner:
    """Return a tuner whose every program takes a microsecond and is right."""

    def answer(_: Program, given: Sequence[Array] | None) -> Timed:
        if given is None:
            return Timed((1e-6,) * 3)
        right = metaschedule.expected if isinstance(workload, Tir) else reference.expected
        return Timed((1e-6,) * 3, right(workload, given))  # type: ignore[operator]

    return Tuner(MockSession(answer), store, target, spaces=spaces)


def test_a_program_that_two_spaces_have_is_known_to_both(store: Store, target: Target) -> None:
    for workload in (RELU, matmul()):
        first = tuner(workload, store, target).tune(workload, 8)
        again = tuner(workload, store, target, "metaschedule").tune(workload, 8)
        assert again.measured == 0
        assert again.candidate == first.candidate


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("text", ['{"warps":4}', '{"trace":"[]"}'])
def test_a_program_that_this_cprune_cannot_make_never_wins_and_is_not_condemned(
    text: str, checked: bool, store: Store, target: Target
) -> None:
    foreign = Record(key(CONV), target.fingerprint, text, (1e-9,), checked=checked)
    store.add([foreign])
    best = tuner(CONV, store, target).tune(CONV, 4)
    assert best.candidate in space.of_target(CONV, target)
    assert foreign in store.all()


def test_a_sibling_s_seed_may_have_found_the_best_trace(store: Store, target: Target) -> None:
    points = [p for p in metaschedule.candidates(matmul(), target, 7) if "trace" in dict(p.knobs)]
    foreign = next(p for p in points if p not in metaschedule.candidates(matmul(), target, 0))
    store.add([Record(key(matmul()), target.fingerprint, foreign.text(), (1e-9,) * 3)])
    best = tuner(matmul(), store, target).tune(matmul(), 4)
    assert best.candidate == Candidate.parse(foreign.text())
