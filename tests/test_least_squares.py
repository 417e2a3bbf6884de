"""Which inputs of a linear map can go, and what takes their place: numbers worked out by hand, and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprune.channels.least_squares import Elimination, Reader, order, replacement

FEW = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def drawn(seed: int, count: int, inputs: int, outputs: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [count, inputs] that depend on each other somewhat, and a matrix [outputs, inputs]."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((inputs, inputs)) * (0.7 ** np.arange(inputs))[:, None]
    return random.standard_normal((count, inputs)) @ mixing, random.standard_normal((outputs, inputs))


def reader(x: np.ndarray, weight: np.ndarray, columns: np.ndarray | None = None) -> Reader:
    every = np.arange(x.shape[1])[:, None] if columns is None else columns
    return Reader(x.T @ x / len(x), weight.T @ weight, every)


def loss(x: np.ndarray, weight: np.ndarray, kept: list[int]) -> float:
    """The least E|y - y'|^2 that any map of the kept inputs leaves."""
    best = np.linalg.lstsq(x[:, kept], x @ weight.T, rcond=None)[0]
    return float(np.square(x @ weight.T - x[:, kept] @ best).sum() / len(x))


# -- what takes their place


def test_by_hand_a_copy_stands_in_for_its_original_and_a_half_for_a_half() -> None:
    # x2 = x0 and x3 = 2 x1; E x0^2 = 1, E x1^2 = 4, E x0 x1 = 0
    gram = np.array([[1, 0, 1, 0], [0, 4, 0, 8], [1, 0, 1, 0], [0, 8, 0, 16]], dtype=float)
    found = replacement(gram, np.array([True, True, False, False]), 0)
    np.testing.assert_allclose(found, [[1, 0], [0, 2]], atol=1e-5)


def test_by_hand_the_ridge_is_a_share_of_the_mean_diagonal() -> None:
    # kept: E x0^2 = 1, E x1^2 = 3, mean 2; ridge 0.5 adds 1 to both: 2 and 4.  E x2 x0 = 1, E x2 x1 = 2.
    gram = np.array([[1, 0, 1], [0, 3, 2], [1, 2, 9]], dtype=float)
    found = replacement(gram, np.array([True, True, False]), 0.5)
    np.testing.assert_allclose(found, [[0.5, 0.5]])


def test_where_nothing_stands_in_there_are_zeros() -> None:
    dead = np.diag([0.0, 0.0, 5.0])
    assert replacement(dead, np.array([True, True, False])).tolist() == [[0, 0]]
    assert replacement(dead, np.array([True, True, True])).shape == (0, 3)
    assert replacement(np.ones((1, 1)), np.array([True])).shape == (0, 1)


@FEW
@given(seed=st.integers(0, 999), ridge=st.sampled_from([0, 1e-3, 1.0, 100.0]), data=st.data())
def test_no_direction_of_what_goes_is_further_from_its_replacement_than_from_zero(
    seed: int, ridge: float, data: st.DataObject
) -> None:
    x, _ = drawn(seed, 60, 6)
    stays = np.array(data.draw(st.lists(st.booleans(), min_size=6, max_size=6)))
    left = x[:, ~stays] - x[:, stays] @ replacement(x.T @ x / 60, stays, ridge).T
    less = x[:, ~stays].T @ x[:, ~stays] - left.T @ left
    assert np.linalg.eigvalsh(less).min(initial=0) >= -1e-6 * np.abs(less).max(initial=1)


@FEW
@given(seed=st.integers(0, 999))
def test_inputs_that_depend_on_each_other_give_finite_numbers(seed: int) -> None:
    x, _ = drawn(seed, 3, 8)  # three samples of eight inputs
    x[:, 5] = 0
    found = replacement(x.T @ x / 3, np.arange(8) % 2 == 0, 0)
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 1e3


# -- which of them go


def test_by_hand_independent_inputs_go_by_their_share_of_the_output() -> None:
    # |W_j|^2 E x_j^2: 1 * 9 = 9, 16 * 1 = 16, 4 * 1 = 4
    gram, products = np.diag([9.0, 1.0, 1.0]), np.diag([1.0, 16.0, 4.0])
    one = Reader(gram, products, np.arange(3)[:, None])
    assert order([one], 0) == (2, 0, 1)
    np.testing.assert_allclose(Elimination(one, 0).costs(np.arange(3)) * 29, [9, 16, 4], rtol=1e-4)


def test_by_hand_a_large_input_that_has_a_copy_goes_before_a_small_one_without() -> None:
    # x1 = x0: either can go for nothing; after one of the pair the other carries both and is the last to go.
    gram = np.array([[9, 9, 0], [9, 9, 0], [0, 0, 1]], dtype=float)
    found = order([Reader(gram, np.eye(3), np.arange(3)[:, None])])
    assert found is not None
    assert set(found[:1]) <= {0, 1}
    assert found[1] == 2


def test_the_weights_that_others_have_taken_over_count() -> None:
    # x1 = x0, of which the layer reads nothing but x1: when x1 goes x0 inherits its weight, and x2 (0.5) goes next.
    gram = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=float)
    products = np.diag([0.0, 1.0, 0.5])
    running = Elimination(Reader(gram, products, np.arange(3)[:, None]), 1e-4)
    running.remove(1)
    np.testing.assert_allclose(running.costs(np.array([0, 2])) * 1.5, [1, 0.5], rtol=1e-2)


def test_a_channel_of_two_inputs_costs_what_both_cost_together() -> None:
    # independent: 4 + 1 = 5 against 3 + 3 = 6
    columns = np.array([[0, 2], [1, 3]])
    one = Reader(np.eye(4), np.diag([4.0, 3.0, 1.0, 3.0]), columns)
    np.testing.assert_allclose(Elimination(one, 0).costs(np.arange(2)) * 11, [5, 6], rtol=1e-4)
    assert order([one]) == (0, 1)


def test_readers_vote_by_shares_of_their_energy_and_a_reader_of_zeros_has_none() -> None:
    big = Reader(np.eye(2), np.diag([300.0, 100.0]), np.arange(2)[:, None])  # 0.75, 0.25
    small = Reader(np.eye(2), np.diag([1.0, 9.0]), np.arange(2)[:, None])  # 0.1, 0.9
    dead = Reader(np.zeros((2, 2)), np.eye(2), np.arange(2)[:, None])
    assert order([big]) == (1, 0)
    assert order([big, small, dead]) == (0, 1)
    assert order([dead]) is None
    assert order([]) is None


def test_a_lone_channel_is_its_own_order() -> None:
    assert order([Reader(np.eye(1), np.eye(1), np.zeros((1, 1), dtype=np.int64))]) == (0,)


@FEW
@given(seed=st.integers(0, 999), pair=st.booleans())
def test_costs_add_up_to_what_the_best_map_of_the_rest_loses(seed: int, pair: bool) -> None:
    x, weight = drawn(seed, 80, 8)
    columns = np.arange(8).reshape(4, 2) if pair else np.arange(8)[:, None]
    one = reader(x, weight, columns)
    running, left, total = Elimination(one, 0), np.arange(len(columns)), 0.0
    for channel in np.random.default_rng(seed).permutation(len(columns))[:-1].tolist():
        total += float(running.costs(np.array([channel]))[0]) * one.energy
        running.remove(channel)
        left = left[left != channel]
        wanted = loss(x, weight, columns[left].reshape(-1).tolist())
        assert total == pytest.approx(wanted, rel=2e-2, abs=1e-4 * one.energy)


@FEW
@given(seed=st.integers(0, 999))
def test_the_order_is_that_of_trying_every_channel_at_every_step(seed: int) -> None:
    x, weight = drawn(seed, 80, 6)
    found = order([reader(x, weight)], 0)
    assert found is not None
    assert sorted(found) == list(range(6))
    left = list(range(6))
    for channel in found[:-1]:
        losses = {one: loss(x, weight, [other for other in left if other != one]) for one in left}
        energy = float(np.square(x @ weight.T).sum() / 80)
        assert losses[channel] == pytest.approx(min(losses.values()), rel=2e-2, abs=1e-4 * energy)
        left.remove(channel)
