"""Every sketch computes what PyTorch computes, at any point of its space."""

from __future__ import annotations

import random

import numpy as np
import pytest
from contracts import run_once

from cprune.targets.local import LocalSession
from cprune.targets.session import Timed
from cprune.targets.target import Target
from cprune.tuner.programs import program as programs
from cprune.tuner.programs import reference, space, winograd
from cprune.tuner.programs.describing import describe
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Dense, Elementwise, Mean, Pool2d, Workload, from_key, key


def conv(ci: int, hw: int, co: int, stride: int = 1, k: int = 3, ib: int = 8, ob: int = 8, **more: object) -> Conv2d:
    given = {"groups": 1, "residual": False, "activation": "relu", "pad": (k // 2,) * 4, "dilation": (1, 1), **more}
    return Conv2d(
        1, ci, hw, hw, co, (k, k), (stride, stride), given["pad"], given["dilation"],  # type: ignore[arg-type]
        given["groups"], given["residual"], given["activation"], ib, ob,  # type: ignore[arg-type]
    )  # fmt: skip


WORKLOADS: list[Workload] = [
    conv(16, 8, 16),
    conv(16, 8, 32, ib=16, ob=16, residual=True),
    conv(16, 11, 48, ib=16, ob=16, activation="relu6", pad=(0, 1, 2, 1)),
    conv(32, 13, 32, ib=16, ob=16, residual=True, activation="none"),
    conv(16, 9, 16, stride=2, ib=8, ob=16),
    conv(3, 12, 16, ib=0, ob=16),
    conv(1, 28, 8, stride=2, ib=0),
    conv(24, 7, 40, k=1, activation="none"),
    conv(16, 11, 8, k=5, activation="relu6"),
    conv(8, 10, 8, dilation=(2, 2), pad=(2, 2, 2, 2)),
    conv(8, 6, 8, pad=(0, 1, 1, 0)),
    conv(16, 8, 16, groups=16),
    conv(32, 9, 32, stride=2, ib=16, ob=16, groups=32, activation="relu6"),
    conv(16, 8, 16, activation="silu", residual=True),
    conv(16, 9, 24, k=1, activation="hardswish"),
    conv(8, 7, 8, groups=8, activation="gelu"),
    conv(8, 7, 8, k=1, activation="gelu_tanh"),
    Dense(3, 24, 33, "gelu", 8),
    Dense(1, 64, 10, "none", 16),
    Dense(4, 24, 33, "relu", 8),
    Mean(2, 20, 5, 7, 8),
    Pool2d("max", 1, 16, 9, 9, (3, 3), (2, 2), (1, 1, 1, 1), True, 8),
    Pool2d("avg", 1, 16, 8, 8, (2, 2), (2, 2), (0, 0, 0, 0), True, 16),
    Pool2d("avg", 1, 8, 7, 7, (3, 3), (2, 2), (1, 1, 1, 1), False, 8),
    Elementwise(("in", 0), (((1, 20, 4, 4), 8),), (1, 20, 4, 4), 0),
    Elementwise(("relu", ("add", ("in", 0), ("in", 1))), (((1, 12, 5, 5), 8), ((1, 12, 5, 5), 0)), (1, 12, 5, 5), 8),
    Elementwise(("shift", ("sigmoid", ("scale", ("in", 0), 2.0)), 1.0), (((1, 6, 3, 3), 8),), (1, 6, 3, 3), 8),
    Elementwise(("tanh", ("erf", ("sigmoid", ("in", 0)))), (((1, 6, 3, 3), 8),), (1, 6, 3, 3), 0),
    Elementwise(("clip", ("sub", ("in", 0), ("in", 0)), 0.0, 6.0), (((1, 6, 3, 3), 8),), (1, 6, 3, 3), 8),
    Elementwise(
        ("pad", ("slice", ("in", 0), ((0, 1), (0, 1), (0, 2), (0, 2)), (1, 4, 3, 3)), (0, 2, 0, 0), (1, 4, 3, 3),
         (1, 8, 3, 3)),
        (((1, 4, 6, 6), 8),), (1, 8, 3, 3), 8,
    ),
    Elementwise(
        ("cat", 1, ((("in", 0), 5), (("relu", ("in", 1)), 7), (("in", 0), 5))),
        (((1, 5, 4, 4), 8), ((1, 7, 4, 4), 8)), (1, 17, 4, 4), 8,
    ),
    Elementwise(
        ("mul", ("in", 0), ("broadcast", ("in", 1), (1, 6, 1, 1), 4)),
        (((1, 6, 4, 4), 8), ((1, 6, 1, 1), 0)), (1, 6, 4, 4), 8,
    ),
    Elementwise(("reshape", ("in", 0), (2, 6, 2, 3), (2, 36)), (((2, 6, 2, 3), 8),), (2, 36), 0),
]  # fmt: skip


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: describe(w))
def test_points_of_the_space_compute_what_pytorch_computes(
    workload: Workload, session: LocalSession, target: Target
) -> None:
    points = list(space.of_target(workload, target))
    random.Random(0).shuffle(points)
    filtering = [p for p in points if programs.filtering(p)]
    given = reference.sample(workload, 3)
    wanted = reference.expected(workload, given)
    for candidate in [*points[:4], *filtering[:3]]:
        timed = run_once(session, programs.program(workload, candidate), programs.inputs_of(workload, candidate, given))
        assert isinstance(timed, Timed), (candidate, timed)
        assert timed.output is not None
        assert reference.agrees(timed.output, wanted) == "", candidate


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: describe(w))
def test_a_workload_comes_back_from_its_key(workload: Workload) -> None:
    assert from_key(key(workload)) == workload


def direct(w: Conv2d, vector: int, registers: int, threads: int) -> tuple[Candidate, ...]:
    return tuple(c for c in space.candidates(w, vector, registers, threads) if not programs.filtering(c))


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "erf"])
def test_a_smooth_function_is_what_it_should_be_from_end_to_end(name: str, session: LocalSession) -> None:
    ends = np.array([-3e38, -1e4, -104, -88, -4, -1e-30, 0, 1e-30, 4, 87, 88.8, 104, 1e4, 3e38], np.float32)
    x = np.concatenate([np.linspace(-10, 10, 4096 - len(ends), dtype=np.float32), ends])[None]
    w = Elementwise((name, ("in", 0)), (((1, 4096), 0),), (1, 4096), 0)
    timed = run_once(session, programs.program(w, Candidate.of(parallel="none")), [x])
    assert isinstance(timed, Timed), timed
    assert timed.output is not None
    np.testing.assert_allclose(timed.output, reference.expected(w, [x]), rtol=0, atol=5e-7)


def test_winograd_is_offered_where_it_may_pay_and_nowhere_else() -> None:
    def offered(w: Conv2d) -> set[int]:
        return {programs.filtering(c) for c in space.candidates(w, 16, 32, 2)} - {0}

    assert offered(conv(32, 16, 32, ib=16, ob=16)) == {2, 4}
    assert offered(conv(32, 3, 32, ib=16, ob=16)) == {2}  # a plane of 3x3 holds no tile of 4x4
    for other in (
        conv(32, 16, 32, ib=16, ob=16, stride=2),
        conv(32, 16, 32, k=1, ib=16, ob=16),
        conv(32, 16, 32, ib=16, ob=16, groups=32),
        conv(3, 16, 32, ib=0, ob=16),
        conv(32, 16, 32, ib=16, ob=16, dilation=(2, 2)),
    ):
        assert offered(other) == set()


def test_winograds_transformed_weight_is_g_times_the_kernel_times_g_transposed() -> None:
    w = conv(16, 8, 16, ib=16, ob=16)
    plain = np.zeros((16, 16, 3, 3), np.float32)
    plain[5, 2] = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    stored = winograd.transformed(plain, w, 2)
    assert stored.shape == (1, 16, 16, 16)
    # G k G^T with the rows (1,0,0), (1,1,1)/2, (1,-1,1)/2, (0,0,1): corners 1, 3, 7, 9; point (1,1) is the sum / 4.
    square = stored[0, :, 2, 5].reshape(4, 4)
    assert [square[0, 0], square[0, 3], square[3, 0], square[3, 3]] == [1, 3, 7, 9]
    assert square[1, 1] == pytest.approx(45 / 4)
    assert square[1, 2] == pytest.approx((12 - 15 + 18) / 4)  # column sums 12, 15, 18
    assert not stored[0, :, 3].any()


def test_every_way_to_parallelise_and_to_pad_is_in_the_space(target: Target) -> None:
    points = direct(conv(32, 16, 64, ib=16, ob=16), 16, 32, 2)
    assert {p["parallel"] for p in points} == {"rows", "channels", "both"}
    assert {p["pad"] for p in points} == {"inside", "separate"}


def test_a_register_tile_never_needs_more_registers_than_there_are() -> None:
    for p in direct(conv(64, 16, 64, ib=16, ob=16), 16, 32, 2):
        assert p["oc_tile"] * p["oh_tile"] * p["ow_tile"] <= 28
    for p in direct(conv(64, 16, 64, ib=8, ob=8), 4, 32, 2):  # NEON: a block of 8 is two registers
        assert 2 * p["oc_tile"] * p["oh_tile"] * p["ow_tile"] <= 28


def test_one_thread_has_nothing_parallel() -> None:
    assert {p["parallel"] for p in direct(conv(16, 8, 16), 8, 16, 1)} == {"none"}


def test_the_nearest_point_to_one_of_the_space_is_itself() -> None:
    points = space.candidates(conv(32, 16, 64, ib=16, ob=16), 16, 32, 2)
    assert all(space.nearest(p, points)[0] == p for p in points[::17])


def test_a_refitted_program_keeps_what_the_narrower_shape_allows() -> None:
    wide = direct(conv(32, 16, 64, ib=16, ob=16), 16, 32, 2)
    narrow = direct(conv(32, 16, 48, ib=16, ob=16), 16, 32, 2)
    source = next(p for p in wide if p["oc_tile"] == 1 and p["parallel"] == "rows" and p["ow_tile"] == 16)
    assert space.nearest(source, narrow)[0] == source  # three tiles of sixteen instead of four: all else stays


def test_padding_channels_are_zero_and_come_off_again() -> None:
    import torch

    x = torch.arange(2 * 5 * 3 * 3, dtype=torch.float32).reshape(2, 5, 3, 3)
    stored = reference.pack(x, 8)
    assert stored.shape == (2, 1, 3, 3, 8)
    assert (stored[..., 5:] == 0).all()
    assert torch.equal(reference.unpack(stored, 8, 5), x)


def test_packing_a_weight_and_back_gives_it_again() -> None:
    import torch

    for w in (conv(16, 8, 32, ib=8, ob=16), conv(3, 8, 16, ib=0, ob=16), conv(16, 8, 16, groups=16)):
        inputs = 1 if w.depthwise else w.in_channels
        weight = torch.randn(w.out_channels, inputs, 3, 3)
        assert torch.equal(reference.unpack_conv_weight(reference.pack_conv_weight(weight, w), w), weight)


def test_the_comparison_sees_a_wrong_value_and_a_nan() -> None:
    right = np.ones((2, 3), np.float32)
    wrong = right.copy()
    wrong[1, 2] = 1.01
    assert "differs" in reference.agrees(wrong, right)
    wrong[1, 2] = np.nan
    assert "NaN" in reference.agrees(wrong, right)
    assert reference.agrees(right + 1e-6, right) == ""


def test_the_root_of_a_negative_number_is_nan_on_both_sides() -> None:
    given = np.array([4, -4, 0], np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        right = 1 / np.sqrt(given)  # 1/2, NaN, infinity
    assert reference.agrees(right.copy(), right) == ""
    assert "NaN" in reference.agrees(np.array([0.5, 0, np.inf], np.float32), right)
    assert "NaN" in reference.agrees(np.array([0.5, np.nan, -np.inf], np.float32), right)
    assert "differs" in reference.agrees(np.array([0.6, np.nan, np.inf], np.float32), right)
