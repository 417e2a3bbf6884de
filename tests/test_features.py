"""Features worked out by hand: visible ones of small layers, hidden ones of small pieces of assembly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprune.tuner.programs import space
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Dense, Elementwise, Mean, Pool2d, Tir, Workload
from cprune.tuner.search.assembly import HIDDEN, hidden
from cprune.tuner.search.features import (
    Machine,
    Table,
    aligned,
    hidden_table,
    knobs,
    unlike,
    visible,
    work,
)

AVX512 = Machine(16, 32, 2)
CONV = Conv2d(1, 32, 16, 16, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "relu", 16, 16)
POINT = Candidate.of(oc_tile=2, oh_tile=1, ow_tile=8, rows=4, parallel="rows", pad="inside", unroll=1)


def with_knobs(**changed: object) -> Candidate:
    return Candidate.of(**{**dict(POINT.knobs), **changed})


def columns(workload: Workload, candidate: Candidate, machine: Machine = AVX512) -> dict[str, float]:
    names, values = visible(workload, (candidate,), *machine)
    return dict(zip(names, values[0].tolist(), strict=True))


# --- visible ---------------------------------------------------------------------------------------------------


def test_numbers_are_columns_and_words_are_ones_and_zeros() -> None:
    table = knobs((Candidate.of(tile=4, way="rows"), Candidate.of(tile=8, way="both")))
    assert table.names == ("knob.tile", "knob.way=both", "knob.way=rows")
    assert table.values.tolist() == [[4, 0, 1], [8, 1, 0]]


def test_a_knob_that_a_candidate_lacks_is_nan() -> None:
    table = knobs((Candidate.of(tile=4), Candidate.of(way="rows")))
    assert table.names == ("knob.tile", "knob.way=rows")
    np.testing.assert_array_equal(table.values, [[4, np.nan], [np.nan, 1]])


def test_of_a_trace_the_decisions_are_taken() -> None:
    trace = json.dumps(
        [[["GetSBlock", [], ["conv"]], ["SamplePerfectTile"], ["SampleCategorical"]], [[1, [4, 8]], [2, 3]]]
    )
    table = knobs((Candidate.of(trace=trace), Candidate.of(parallel="none")))
    assert table.names == (
        *("knob.trace.001.0", "knob.trace.001.1", "knob.trace.002.0", "knob.trace.length"),
        "knob.parallel=none",
    )
    assert table.values[0, :4].tolist() == [4, 8, 3, len(trace)]


@pytest.mark.parametrize(
    "text", ["[1, 2, 3, " + "4, " * 30, "[[], [[1, {}]], 3]" + " " * 30, '[[], [["x", 1], [2]]]' + " " * 30]
)
def test_of_any_other_long_text_only_the_length_is_taken(text: str) -> None:
    assert knobs((Candidate.of(trace=text),)).names == ("knob.trace.length",)


def test_the_tile_of_a_convolution_in_registers_loads_and_unrolled_code() -> None:
    found = columns(CONV, POINT)
    assert found["accumulators"] == 16 / 32  # 2 x 1 x 8 vectors of 32
    assert found["spilled"] == 0
    assert found["fma_per_load"] == pytest.approx(16 / 10)  # 2 weights and 8 inputs are read
    assert found["body"] == pytest.approx(math.log2(16 * 3))  # the kernel's columns are unrolled
    assert found["trips"] == pytest.approx(math.log2(32 * 3))  # 32 channels x 3 rows are left


def test_a_block_of_two_vectors_takes_twice_the_registers() -> None:
    avx2 = Machine(8, 16, 2)
    assert columns(CONV, POINT, avx2)["accumulators"] == 32 / 16
    assert columns(CONV, POINT, avx2)["spilled"] == 32 + 2 - 16


def test_three_pieces_on_two_threads_leave_a_quarter_idle() -> None:
    found = columns(replace(CONV, height=12), with_knobs(oh_tile=4, ow_tile=4, rows=1))  # 12 rows: 3 bands
    assert found["pieces"] == pytest.approx(math.log2(3))
    assert found["slowest_share"] == pytest.approx(2 / 3)
    assert found["idle_share"] == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("way", "rows", "pieces"),
    [("none", 16, 1), ("rows", 4, 4), ("channels", 16, 2), ("both", 4, 8)],
)
def test_the_pieces_of_every_way_to_run_in_parallel(way: str, rows: int, pieces: int) -> None:
    # 16 bands of one row, 2 tiles of 32 channels
    assert columns(CONV, with_knobs(parallel=way, rows=rows))["pieces"] == math.log2(pieces)


def test_bytes_against_the_caches() -> None:
    found = columns(CONV, POINT)
    weights = 4 * 32 * 288  # 32 channels x (32 x 3 x 3)
    tile_in = 4 * 3 * 10 * 32  # 3 rows, 10 columns
    piece_in = 4 * 6 * 18 * 32  # 4 + 2 rows, 16 + 2 columns
    assert found["weights_l1"] == pytest.approx(math.log2(weights / 32768))
    assert found["l1"] == pytest.approx(math.log2((weights + tile_in) / 32768))
    assert found["l2"] == pytest.approx(math.log2((2 * weights + piece_in) / 524288))  # a band walks all channels


def test_bands_pad_the_rows_between_them_twice_and_channel_pieces_pad_everything() -> None:
    assert columns(CONV, POINT)["pad_share"] == pytest.approx(4 * 6 / 18)  # 4 pieces of 6 rows of 18
    assert columns(CONV, with_knobs(parallel="channels", rows=16))["pad_share"] == 2
    separate = columns(CONV, with_knobs(pad="separate"))
    assert (separate["pad_share"], separate["launches"]) == (1, 2)
    assert columns(CONV, with_knobs(pad="none"))["pad_share"] == 0


def test_winograd_multiplies_a_quarter_with_tiles_of_four() -> None:
    point = Candidate.of(winograd=4, oc_tile=2, p_tile=4, rows=2, oc_groups=2)
    names, values = visible(CONV, (POINT, point), *AVX512)
    direct, fast = (dict(zip(names, row.tolist(), strict=True)) for row in values)
    assert (direct["multiplied"], fast["multiplied"]) == (0, -2)  # 16 tiles x 36 of 256 x 9
    assert (direct["accumulators"], fast["accumulators"]) == (0.5, 0.25)
    assert fast["pieces"] == 2  # 2 bands x 2 groups
    assert math.isnan(fast["tile_columns"])


def test_a_family_of_candidates_that_is_not_known_has_its_knobs_and_no_derived_columns() -> None:
    found = columns(CONV, Candidate.of(fancy=3))
    assert found["knob.fancy"] == 3
    assert math.isnan(found["accumulators"])


def test_a_dense_layer_of_ten_outputs_wastes_six_of_sixteen() -> None:
    found = columns(Dense(1, 64, 10, "none", 16), Candidate.of(oc_tile=1, n_tile=1, k_tile=4, parallel="none"))
    assert found["waste"] == pytest.approx(6 / 16)
    assert found["pieces"] == 0
    assert found["body"] == 2  # 1 x 1 accumulator, 4 unrolled


@pytest.mark.parametrize(
    "workload",
    [
        CONV,
        replace(CONV, groups=32, out_channels=32),
        replace(CONV, in_channels=3, in_block=0),
        Dense(4, 64, 10, "none", 16),
        Pool2d("max", 1, 32, 8, 8, (2, 2), (2, 2), (0, 0, 0, 0), False, 16),
        Mean(1, 32, 8, 8, 16),
        Elementwise(("relu", ("in", 0)), (((1, 32, 8, 8), 16),), (1, 32, 8, 8), 16),
        Tir("softmax", "{}" * 50, ((1, 10), (1, 10))),
    ],
)
def test_every_kind_has_one_row_a_candidate_and_nothing_infinite(workload: Workload) -> None:
    points = space.candidates(workload, *AVX512)
    names, values = visible(workload, points, *AVX512)
    assert values.shape == (len(points), len(names))
    assert values.dtype == np.float32
    assert len(set(names)) == len(names)
    assert not np.isinf(values).any()
    assert work(workload) > 0


def test_what_costs_is_multiply_adds_or_else_bytes() -> None:
    assert work(CONV) == 64 * 16 * 16 * 32 * 9
    assert work(Mean(1, 32, 8, 8, 16)) == 4 * (32 * 64 + 32)


def test_the_wider_sibling_is_more_alike_than_another_kernel() -> None:
    assert unlike(CONV, CONV) == 0
    assert unlike(CONV, replace(CONV, out_channels=48)) < unlike(CONV, replace(CONV, kernel=(1, 1)))


def test_aligning_fills_missing_columns_with_nan_and_missing_words_with_zero() -> None:
    table = Table(("knob.way=rows", "knob.tile"), np.array([[1, 4]], np.float32))
    found = aligned(table, ("knob.tile", "knob.way=both", "knob.other=x", "new"))
    np.testing.assert_array_equal(found, [[4, 0, np.nan, np.nan]])


# --- hidden ----------------------------------------------------------------------------------------------------

ATT = """
	.text
	.globl	main
main:                                   # @main
	pushq	%rbp
	movq	%rsp, %rbp
	vxorps	%xmm0, %xmm0, %xmm0
.LBB0_1:                                # rows
	xorl	%eax, %eax
.LBB0_2:                                # the reduction
	vmovups	(%rsi,%rax), %zmm1
	vfmadd231ps	(%rdi){1to16}, %zmm1, %zmm2 # zmm2 = (zmm1 * mem) + zmm2
	vfmadd231ps	4(%rdi){1to16}, %zmm1, %zmm3
	vmovaps	%zmm3, -64(%rbp)
	addq	$64, %rax
	cmpq	$1024, %rax
	jne	.LBB0_2
	vmovaps	-64(%rbp), %zmm3
	vmovups	%zmm2, (%rdx)
	decq	%rcx
	jne	.LBB0_1
	callq	memset@PLT
	retq
"""


def test_att_syntax_counted_by_hand() -> None:
    found = hidden(ATT)
    assert tuple(found) == HIDDEN
    assert found == pytest.approx(
        {
            "instructions": 17,
            "fma": 2,
            "loads": 4,  # the weights, two broadcasts, the reload
            "stores": 2,
            "broadcasts": 2,
            "vector_bits": 512,
            "vector_share": 7 / 17,
            "spill_loads": 1,
            "spill_stores": 1,
            "branches": 2,
            "loops": 2,
            "depth": 2,
            "calls": 1,
            "hot_instructions": 7,
            "hot_fma": 2,
            "hot_loads": 3,
            "hot_spills": 1,
            "hot_fma_per_load": 2 / 3,
            "hot_fma_share": 2 / 7,
        }
    )


def test_intel_syntax_gives_the_same_numbers() -> None:
    intel = """
	.intel_syntax noprefix
main:
	push	rbp
	mov	rbp, rsp
	vxorps	xmm0, xmm0, xmm0
.LBB0_1:
	xor	eax, eax
.LBB0_2:
	vmovups	zmm1, zmmword ptr [rsi + rax]
	vfmadd231ps	zmm2, zmm1, dword ptr [rdi]{1to16}
	vfmadd231ps	zmm3, zmm1, dword ptr [rdi + 4]{1to16}
	vmovaps	zmmword ptr [rbp - 64], zmm3
	add	rax, 64
	cmp	rax, 1024
	jne	.LBB0_2
	vmovaps	zmm3, zmmword ptr [rbp - 64]
	vmovups	zmmword ptr [rdx], zmm2
	dec	rcx
	jne	.LBB0_1
	call	memset@PLT
	ret
"""
    assert hidden(intel) == hidden(ATT)


def test_aarch64_counted_by_hand() -> None:
    found = hidden(
        """
main:                                   // @main
	stp	x29, x30, [sp, #-16]!
	mov	x29, sp
	movi	v2.2d, #0000000000000000
.LBB0_1:                                // the reduction
	ldr	q0, [x1], #16
	ldp	s3, s4, [x0]
	fmla	v2.4s, v0.4s, v3.s[0]
	fmla	v5.4s, v0.4s, v4.s[0]
	str	q5, [x29, #-32]
	subs	x2, x2, #1
	b.ne	.LBB0_1
	str	q2, [x3]
	bl	memset
	ldp	x29, x30, [sp], #16
	ret
"""
    )
    assert (found["instructions"], found["fma"], found["loads"], found["stores"]) == (14, 2, 3, 3)
    assert (found["vector_bits"], found["broadcasts"], found["calls"]) == (128, 2, 1)
    assert (found["spill_loads"], found["spill_stores"], found["hot_spills"]) == (1, 2, 1)
    assert (found["branches"], found["loops"], found["depth"]) == (1, 1, 1)
    assert (found["hot_instructions"], found["hot_fma_per_load"]) == (7, 1)


@pytest.mark.parametrize(
    ("line", "loads", "stores"),
    [
        ("vmovups (%rsi), %ymm0", 1, 0),
        ("vmovups %ymm0, (%rsi)", 0, 1),
        ("addl $1, (%rsi)", 1, 1),
        ("cmpl $0, 8(%rsi)", 1, 0),
        ("leaq 8(%rsi), %rax", 0, 0),
        ("prefetcht0 (%rsi)", 0, 0),
        ("jmpq *(%rax)", 0, 0),
        ("vaddps (%rsi,%rax,4), %ymm1, %ymm2", 1, 0),
        ("movq foo(%rip), %rax", 1, 0),
    ],
)
def test_what_an_instruction_does_to_memory(line: str, loads: int, stores: int) -> None:
    found = hidden(f"main:\n\t{line}\n")
    assert (found["loads"], found["stores"]) == (loads, stores)


def test_scalar_floats_in_vector_registers_are_no_vectors() -> None:
    found = hidden("main:\n\tvaddss %xmm0, %xmm1, %xmm2\n\tvbroadcastss (%rdi), %ymm3\n")
    assert (found["vector_bits"], found["vector_share"], found["broadcasts"]) == (256, 0.5, 1)


def test_a_frame_register_that_is_none_is_no_spill() -> None:
    assert hidden("main:\n\tvmovups (%rbp), %zmm0\n")["spill_loads"] == 0


def test_without_a_loop_the_function_with_the_most_multiply_adds_is_hot() -> None:
    found = hidden("wrapper:\n\tmovl %eax, %ebx\n\tretq\nkernel:\n\tvfmadd231ps %zmm0, %zmm1, %zmm2\n\tretq\n")
    assert (found["hot_instructions"], found["hot_fma"], found["loops"]) == (2, 1, 0)


def test_a_machine_without_fused_multiply_adds_is_counted_by_its_multiplies() -> None:
    assert hidden("main:\n\tmulps %xmm0, %xmm1\n\taddps %xmm1, %xmm2\n")["fma"] == 1


@given(st.text(alphabet=st.sampled_from("abjmpvx%rsp()[]{},.:#/$ \t\n0123456789")))
def test_any_text_gives_finite_numbers(text: str) -> None:
    found = hidden(text)
    assert tuple(found) == HIDDEN
    assert all(math.isfinite(value) and value >= 0 for value in found.values())


def test_nothing_gives_zeros() -> None:
    assert set(hidden("").values()) == {0.0}


def test_unknown_assembly_is_a_row_of_nan() -> None:
    table = hidden_table([hidden(ATT), None])
    assert table.names[0] == "asm.instructions"
    assert table.values[0, 0] == 17
    assert np.isnan(table.values[1]).all()


def test_a_kernel_of_tvm_is_read_as_a_person_reads_it() -> None:
    # The compute function of conv 3x3 32→32 @16x16 for AVX-512, with a register tile of 2 x 1 x 8 vectors, without its
    # directives.  The two blocks of input channels and the kernel's three columns are unrolled: 6 innermost loops, and
    # each does two input channels: 2 x 16 multiply-adds, 2 x 8 broadcasts out of memory, 2 x 2 vectors of weights.
    found = hidden((Path(__file__).parent / "golden" / "conv_avx512.s").read_text(encoding="utf-8"))
    assert found["fma"] == 6 * 32
    assert found["broadcasts"] == 6 * 16
    assert (found["hot_fma"], found["hot_loads"], found["hot_instructions"]) == (32, 16 + 4, 55)
    assert (found["hot_fma_per_load"], found["hot_spills"], found["vector_bits"]) == (1.6, 0, 512)
    # pieces > rows > columns > 2 x kernel rows > 2 x 3 x input channels
    assert (found["loops"], found["depth"]) == (11, 5)
