from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprune.method.channel_step import channel_step
from cprune.tuner.programs.space import channel_splits, of_target
from cprune.tuner.programs.workload import Conv2d


def test_four_tiles_of_sixteen_lose_one_tile() -> None:
    # 64 = 4 x 1 x 16: three of the four outer iterations stay, the vector of 16 is never narrowed
    assert channel_step([(4, 1, 16)]) == 16


def test_a_register_tile_of_two_vectors_goes_as_a_whole() -> None:
    assert channel_step([(4, 2, 16)]) == 32


def test_stages_that_agree_have_one_step_for_both_joins() -> None:
    # 512 = 4 x 8 x 16 computed, 8 x 4 x 16 written: 512 / 8 = 64 each
    splits = [(4, 8, 16), (8, 4, 16)]
    assert channel_step(splits) == channel_step(splits, "max") == 64


def test_lcm_keeps_both_stages_where_max_breaks_one() -> None:
    # 480 = 5 x 6 x 16 has step 80; 480 = 4 x 120 (120 lanes kept) has step 120
    assert channel_step([(5, 6, 16), (4, 120)]) == math.lcm(80, 120) == 240
    assert channel_step([(5, 6, 16), (4, 120)], "max") == 120


def test_a_program_without_output_channels_has_no_step() -> None:
    assert channel_step([]) == 0


@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.sampled_from([4, 8, 16]))
def test_taking_one_step_leaves_all_but_one_loop_as_they_are(outer: list[int], vector: int) -> None:
    split = (*outer, vector)
    left = math.prod(split) - channel_step([split])
    largest = max(outer)
    assert left == math.prod(split) // largest * (largest - 1)


@pytest.mark.parametrize("channels", [16, 32, 64, 96, 128])
def test_every_candidate_of_a_convolution_splits_all_its_channels(channels: int, target: object) -> None:
    w = Conv2d(1, 32, 8, 8, channels, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "relu", 16, 16)
    for candidate in of_target(w, target):  # type: ignore[arg-type]
        for split in channel_splits(w, candidate):
            assert math.prod(split) == channels
