"""How far two arrays, or two outputs of a model, are apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cprune.network.difference import difference
from cprune.targets.difference import apart

INFINITE = float("inf")


def test_the_difference_is_a_share_of_the_largest_magnitude() -> None:
    assert apart(np.array([2.0, -100.0]), np.array([1.0, -100.0])) == 0.01


def test_magnitudes_below_one_count_as_one() -> None:
    assert apart(np.array([0.25, 0.0]), np.array([0.125, 0.0])) == 0.125


def test_nan_and_infinity_may_stand_in_the_same_places_only() -> None:
    wanted = np.array([0.5, np.nan, np.inf])
    assert apart(wanted.copy(), wanted) == 0.0
    assert apart(np.array([0.75, np.nan, np.inf]), wanted) == 0.25
    for other in ([0.5, 0.0, np.inf], [0.5, np.nan, -np.inf], [0.5, np.nan, 1.0], [np.nan, np.nan, np.inf]):
        assert apart(np.array(other), wanted) == INFINITE


def test_another_shape_is_infinitely_far() -> None:
    assert apart(np.zeros((1, 3)), np.zeros(3)) == INFINITE


def test_arrays_without_numbers_are_alike() -> None:
    assert apart(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0


def test_the_worst_tensor_of_an_output_counts_with_its_own_magnitude() -> None:
    wanted = (torch.tensor([1.0, 100.0]), {"b": torch.tensor([0.5])})
    assert difference([np.array([2.0, 100.0]), np.array([0.5])], wanted) == 0.01
    assert difference([np.array([1.0, 100.0]), np.array([0.6])], wanted) == pytest.approx(0.1)


def test_an_output_with_another_count_of_tensors_is_infinitely_far() -> None:
    assert difference([np.array([1.0, 100.0])], (torch.tensor([1.0, 100.0]), torch.tensor([0.5]))) == INFINITE


def test_what_is_no_tensor_is_left_out() -> None:
    assert difference((torch.ones(2), None, 3), {"logits": np.ones(2)}) == 0.0


def test_bfloat16_and_complex_outputs_are_compared() -> None:
    assert difference(torch.tensor([1.5], dtype=torch.bfloat16), torch.tensor([1.0])) == 0.5
    assert difference(torch.tensor([1 + 2j]), torch.tensor([1 + 0j])) == 2.0
