from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprune.method.channel_step import channel_step, step_of
from cprune.tuner.programs.space import Candidate, channel_pieces, channel_splits, of_target
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


def test_three_pieces_keep_two_threads_busy_as_long_as_four() -> None:
    assert channel_step([(4, 1, 16)], pieces=1, threads=2) == 32
    # of three the first one less is enough: 2 + 1 pieces become 1 + 1
    assert channel_step([(3, 1, 16)], pieces=1, threads=2) == 16
    # 9 pieces on 4 threads are 3 + 2 + 2 + 2; 8 are 2 each
    assert channel_step([(9, 1, 16)], pieces=1, threads=4) == 16
    assert channel_step([(8, 1, 16)], pieces=1, threads=4) == 64


def test_where_every_piece_has_its_thread_one_iteration_goes() -> None:
    assert channel_step([(2, 1, 16)], pieces=1, threads=2) == 16
    assert channel_step([(2, 1, 16)], pieces=1, threads=8) == 16


def test_channels_times_bands_of_rows_are_finer_pieces() -> None:
    # 4 x 7 = 28 pieces on 2 threads are 14 each, 3 x 7 = 21 are 11
    assert channel_step([(4, 1, 16)], pieces=7, threads=2) == 16


def test_a_loop_within_a_thread_goes_piece_by_piece() -> None:
    assert channel_step([(4, 1, 16)], pieces=0, threads=2) == 16
    assert channel_step([(2, 4, 16)], pieces=1, threads=2) == 32  # the tile is the largest: 8 blocks / 4


def test_the_program_says_what_runs_in_parallel() -> None:
    w = Conv2d(1, 64, 14, 14, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "relu", 16, 16)
    knobs = {"oc_tile": 1, "oh_tile": 2, "ow_tile": 7, "pad": "inside", "unroll": 0}
    ways = {"channels": 7, "both": 1, "rows": 1, "none": 7}
    programs = {way: Candidate.of(parallel=way, rows=rows, **knobs) for way, rows in ways.items()}
    assert {way: channel_pieces(w, c) for way, c in programs.items()} == {
        "channels": 1,
        "both": 7,
        "rows": 0,
        "none": 0,
    }
    assert {way: step_of(w, c, 2) for way, c in programs.items()} == {
        "channels": 32,
        "both": 16,
        "rows": 16,
        "none": 16,
    }
    winograd = Candidate.of(winograd=4, oc_tile=1, p_tile=4, rows=1, oc_groups=2)
    assert step_of(w, winograd, 2) == 32  # one block of each group


@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 6))
def test_a_step_of_a_parallel_loop_leaves_the_busiest_thread_less(outer: int, pieces: int, threads: int) -> None:
    step = channel_step([(outer, 1, 16)], pieces=pieces, threads=threads)
    busiest = [-(-n * pieces // threads) for n in range(outer + 1)]
    left = outer - step // 16
    assert left == outer - 1 or busiest[left] < busiest[outer] == busiest[left + 1]


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
