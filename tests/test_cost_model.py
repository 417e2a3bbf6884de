"""The levels: what they learn from, and when they are silent."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from cprune.tuner.programs import space
from cprune.tuner.programs.workload import Conv2d, Mean, Workload, key
from cprune.tuner.records.record import Record
from cprune.tuner.search import cost_model
from cprune.tuner.search.cost_model import Memory, Samples
from cprune.tuner.search.features import Machine, Table, visible, work

AVX512 = Machine(16, 32, 2)
CONV = Conv2d(1, 32, 16, 16, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "relu", 16, 16)


def made(n: int, columns: int = 4, seed: int = 0) -> Samples:
    """Return samples whose rate is the first column twice plus the second one."""
    values = np.random.default_rng(seed).random((n, columns)).astype(np.float32)
    names = tuple(f"c{i}" for i in range(columns))
    rate = 2.0 * values[:, 0] + values[:, 1]
    return Samples(Table(names, values), rate.astype(np.float64), np.ones(n))


def agreement(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Return the correlation of the ranks."""
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def records_of(workload: Workload, n: int, latency_us: float = 10.0) -> list[Record]:
    return [
        Record(key(workload), "t", candidate.text(), (latency_us * 1e-6 * (1 + i),))
        for i, candidate in enumerate(space.candidates(workload, *AVX512)[:n])
    ]


def test_the_order_of_unseen_rows_is_learnt() -> None:
    seen, unseen = made(300), made(200, seed=1)
    p = cost_model.performance(seen, seed=0)
    assert p is not None
    assert agreement(p(unseen.features), unseen.rate) > 0.8


def test_fewer_than_a_dozen_valid_rows_train_nothing() -> None:
    samples = made(12)
    assert cost_model.performance(samples, seed=0) is not None
    samples.rate[3] = np.nan
    assert cost_model.performance(samples, seed=0) is None


def test_a_failed_row_never_enters_the_regression() -> None:
    with_failures, without = made(60), made(60)
    with_failures.rate[40:] = np.nan
    without = Samples(without.features.rows(range(40)), without.rate[:40], without.weight[:40])
    p, q = cost_model.performance(with_failures, seed=5), cost_model.performance(without, seed=5)
    assert p is not None
    assert q is not None
    np.testing.assert_array_equal(p(with_failures.features), q(with_failures.features))


def test_one_seed_gives_one_model() -> None:
    samples = made(100)
    p, q, other = (cost_model.performance(samples, seed) for seed in (1, 1, 2))
    assert p is not None
    assert q is not None
    assert other is not None
    np.testing.assert_array_equal(p(samples.features), q(samples.features))
    assert not np.array_equal(p(samples.features), other(samples.features))


def test_columns_are_found_by_name_in_any_order() -> None:
    samples = made(100)
    p = cost_model.performance(samples, seed=0)
    assert p is not None
    turned = Table(samples.features.names[::-1], np.ascontiguousarray(samples.features.values[:, ::-1]))
    np.testing.assert_array_equal(p(samples.features), p(turned))


def test_v_says_nothing_while_nine_of_ten_work() -> None:
    samples = made(100)
    samples.rate[:10] = np.nan
    assert cost_model.validity(samples, seed=0) is None
    samples.rate[:11] = np.nan
    assert cost_model.validity(samples, seed=0) is not None


def test_v_learns_which_rows_fail() -> None:
    seen, unseen = made(300), made(200, seed=1)
    seen.rate[seen.features.values[:, 2] > 0.5] = np.nan
    v = cost_model.validity(seen, seed=0)
    assert v is not None
    works = v(unseen.features) >= 0.5
    assert float((works == (unseen.features.values[:, 2] <= 0.5)).mean()) > 0.95


def test_the_rate_is_work_over_time_and_a_failure_has_none() -> None:
    rate = cost_model.rates(CONV, [1e-6, math.inf])
    assert rate[0] == pytest.approx(math.log(work(CONV) * 1e6))
    assert math.isnan(rate[1])


def test_history_is_of_the_same_kind_without_the_workload_itself() -> None:
    wider = replace(CONV, out_channels=128)
    mean = Mean(1, 32, 8, 8, 16)
    found = Memory(AVX512, [*records_of(CONV, 5), *records_of(wider, 7), *records_of(mean, 2)]).recall(CONV)
    assert found is not None
    assert len(found) == 7
    assert Memory(AVX512, records_of(mean, 2)).recall(CONV) is None


def test_the_most_similar_task_is_remembered_first() -> None:
    wider, other = replace(CONV, out_channels=128), replace(CONV, kernel=(1, 1), pad=(0, 0, 0, 0))
    found = Memory(AVX512, [*records_of(other, 9), *records_of(wider, 9)]).recall(CONV, limit=12)
    assert found is not None
    assert len(found) == 12
    channels = found.features.values[:, found.features.names.index("shape.out_channels")]
    np.testing.assert_allclose(channels, [math.log2(129)] * 9 + [math.log2(65)] * 3, rtol=1e-6)


def test_records_of_a_kind_from_another_version_are_skipped() -> None:
    strange = Record('["conv2d",{"sides":7}]', "t", "{}", (1e-6,))
    assert Memory(AVX512, [strange]).recall(CONV) is None


def test_one_model_learns_from_shapes_with_different_columns() -> None:
    parts = []
    for workload in (CONV, replace(CONV, kernel=(1, 1), pad=(0, 0, 0, 0))):
        points = space.candidates(workload, *AVX512)
        parts.append(cost_model.samples(workload, points, records_of(workload, len(points)), AVX512))
    both = cost_model.joined(parts)
    assert len(both) == len(parts[0]) + len(parts[1])
    assert cost_model.performance(both, seed=0) is not None
    assert set(both.features.names) == {n for part in parts for n in part.features.names}
    assert visible(CONV, space.candidates(CONV, *AVX512), *AVX512)[0] == parts[0].features.names


def test_a_newer_record_of_a_candidate_takes_the_place_of_the_older_one() -> None:
    wider = replace(CONV, out_channels=128)
    memory = Memory(AVX512, records_of(wider, 3))
    memory.add(records_of(wider, 1, latency_us=5.0))
    found = memory.recall(CONV)
    assert found is not None
    assert len(memory) == len(found) == 3
    assert found.rate[0] == pytest.approx(math.log(work(wider) / 5e-6))
