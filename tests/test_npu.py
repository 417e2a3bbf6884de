"""The simulated accelerator: what a program is there, how many cycles it takes, what it computes, and how it fails."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="the simulated accelerator needs numba (extra npu)")

from cprune.method.channel_step import step_of
from cprune.targets.connect import connect
from cprune.targets.errors import UserError
from cprune.targets.npu import stream as at
from cprune.targets.npu.cycles import DEADLOCK, DONE, FAULT, LIMIT, cycles_of, cycles_together
from cprune.targets.npu.lower import lowered
from cprune.targets.npu.machine import VTA, Costs, NpuMachine, preset
from cprune.targets.npu.session import NpuSession, executed
from cprune.targets.npu.stream import Code, Stream, told
from cprune.targets.npu.walk import stream_of
from cprune.targets.session import Array, Built, Failure, Timed, arguments, forms
from cprune.targets.target import find
from cprune.tuner.programs import program as programs
from cprune.tuner.programs import reference, space
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import QuantizedConv2d, dtypes, key
from cprune.tuner.records.store import Store
from cprune.tuner.search.assembly import hidden
from cprune.tuner.search.features import Machine
from cprune.tuner.search.npu import expected_s
from cprune.tuner.search.strategy import strategy
from cprune.tuner.tune import Tuner

FREE = replace(VTA, costs=Costs(0, 0, 0, 0, 1, 0, 0))  # nothing costs more than the cycles that it works


def conv(
    size: int, channels: int, outputs: int, kernel: int = 1, stride: int = 1, residual: bool = False
) -> QuantizedConv2d:
    pad = kernel // 2
    return QuantizedConv2d(
        batch=1, in_channels=channels, height=size, width=size, out_channels=outputs, kernel=(kernel, kernel),
        stride=(stride, stride), pad=(pad,) * 4, dilation=(1, 1), groups=1, residual=residual, activation="none",
        in_block=16, out_block=16, output="uint8", dot="npu",
    )  # fmt: skip


def point(h: int, w: int, ci: int = 1, co: int = 1, threads_co: int = 1, threads_h: int = 1) -> Candidate:
    return Candidate.of(tile_h=h, tile_w=w, tile_ci=ci, tile_co=co, threads_co=threads_co, threads_h=threads_h)


def program_of(w: QuantizedConv2d, candidate: Candidate, machine: NpuMachine = VTA) -> Stream:
    import tvm

    module = tvm.IRModule({"main": programs.module_of(w, candidate)["main"]})
    return stream_of(lowered(module), machine)


def sums(w: QuantizedConv2d, values: list[Array]) -> Array:
    """Return the sums of a convolution by PyTorch, as they lie in memory."""
    x, weight, zero = values[0], values[-5], values[-1]
    plain = torch.from_numpy(x).double().movedim(-1, 2).reshape(1, w.in_channels, w.height, w.width)
    plain = torch.nn.functional.pad(plain, (w.pad[1], w.pad[3], w.pad[0], w.pad[2]), value=float(zero[0]))
    matrix = torch.from_numpy(weight).double().permute(0, 5, 1, 4, 6, 2, 3)
    matrix = matrix.reshape(w.out_channels, w.in_channels, *w.kernel)
    out = torch.nn.functional.conv2d(plain, matrix, stride=w.stride)
    blocked = out.reshape(1, w.out_channels // 16, 16, *out.shape[2:]).movedim(2, -1)
    found: Array = blocked.numpy().astype(np.int32)
    return found


def given_to(w: QuantizedConv2d, seed: int = 0) -> list[Array]:
    return arguments(forms(w.arguments(), dtypes(w)), seed)


def computed(w: QuantizedConv2d, candidate: Candidate, machine: NpuMachine = VTA) -> tuple[Array, Array]:
    """Return the sums that a program stores, and those that it should."""
    values = given_to(w)
    stream = program_of(w, candidate, machine)
    return executed(stream, machine, values, forms(w.arguments(), dtypes(w))), sums(w, values)


# --- instructions and cycles by hand


def test_a_convolution_of_one_tile_is_nine_instructions() -> None:
    stream = program_of(conv(2, 16, 16), point(2, 2))
    ops = [at.NAMES[op] for op in stream.code[:, at.OP]]
    assert ops == ["reset", "load input", "load weight", "gemm", "alu", "alu", "alu", "alu", "store"]
    assert "load weight" in told(stream)
    gemm = stream.code[3]
    assert gemm[at.UOPS] * gemm[at.OUTER] * gemm[at.INNER] == 4  # one product for each of the four outputs


def test_cycles_of_one_tile_are_those_worked_out_by_hand() -> None:
    # Nine instructions come in 144 / 8 = 18 cycles, the input's 64 bytes in 8, the weights' 256 in 32; 4 products,
    # four passes over 4 vectors, and 64 bytes go out in 8.
    found = cycles_of(program_of(conv(2, 16, 16), point(2, 2)), FREE)
    assert (found.end, found.cycles) == (DONE, 18 + 8 + 32 + 4 + 16 + 8)
    assert (found.write_beats, found.write_bursts) == (8, 2)
    assert found.read_bursts == 1 + 1 + 2 + 1  # instructions, micro-operations, two rows of input, a block of weights


def test_two_accelerators_wait_for_one_port() -> None:
    # Both fetch 18 beats and load 8 and 32, one after the other; what is left of the second one nobody else needs.
    stream = program_of(conv(2, 16, 16), point(2, 2))
    found = cycles_together([stream, stream], FREE)
    assert (found.end, found.cycles) == (DONE, 2 * (18 + 8 + 32) + 4 + 16 + 8)
    assert found.read_bursts == 2 * cycles_of(stream, FREE).read_bursts


def test_every_burst_and_every_instruction_costs_what_the_machine_says() -> None:
    # Instructions are there after 18 + 10; then the sums are cleared in 104, with the loads in the shade of it, and
    # multiplied in 104; four passes take 16, and two rows go out in 8 + 2 * 10.
    dear = replace(FREE, costs=replace(FREE.costs, burst=10.0, gemm=100.0))
    found = cycles_of(program_of(conv(2, 16, 16), point(2, 2)), dear)
    assert found.cycles == 28 + 104 + 104 + 16 + 28


def test_a_row_ends_a_burst_at_every_multiple_of_2048_bytes() -> None:
    # A plane of 56 columns: a row of 896 bytes; of the first 16 rows 7 cross a multiple of 2048.
    stream = program_of(conv(56, 16, 16), point(56, 56))
    found = cycles_of(stream, FREE)
    crossed = sum((896 * r) // 2048 != (896 * r + 895) // 2048 for r in range(56))
    assert (crossed, found.write_bursts) == (21, 56 + 21)


def test_padding_is_not_read() -> None:
    # 3x3 on 4x4, whole: 16 vectors are read, 6 * 6 - 16 are padding.
    load = program_of(conv(4, 16, 16, kernel=3), point(4, 4)).code[1]
    assert load[at.ROWS] * load[at.COLUMNS] == 16
    assert load[[at.TOP, at.BOTTOM, at.LEFT, at.RIGHT]].tolist() == [1, 1, 1, 1]


def test_two_threads_load_while_they_multiply() -> None:
    w = conv(28, 128, 128, kernel=3)
    one = cycles_of(program_of(w, point(14, 14, 2, 2)), FREE).cycles
    two = cycles_of(program_of(w, point(14, 14, 2, 2, threads_co=2)), FREE).cycles
    assert two < 0.9 * one


def test_the_multiplier_is_the_limit_that_no_program_is_below() -> None:
    w = conv(14, 64, 64, kernel=3)
    for candidate in space.candidates(w, 16, 32, 1)[::37]:
        stream = program_of(w, candidate)
        found = cycles_of(stream, VTA)
        if found.end == DONE:
            assert found.cycles > w.macs / 256


def test_threads_whose_blocks_do_not_come_out_even_wait_for_ever() -> None:
    stream = program_of(conv(7, 64, 48, kernel=3), point(1, 7, threads_co=2))  # three blocks for two threads
    assert stream.facts["left_out"] > 0
    assert cycles_of(stream, VTA).end == DEADLOCK


def test_threads_whose_rows_do_not_come_out_even_leave_the_queues_out_of_step() -> None:
    assert cycles_of(program_of(conv(7, 16, 16), point(1, 7, threads_h=2)), VTA).end == FAULT


def test_a_program_that_takes_too_long_is_stopped() -> None:
    w, limit = conv(2, 16, 16), replace(VTA, limit_cycles=50)
    assert cycles_of(program_of(w, point(2, 2)), limit).end == LIMIT


# --- what is computed


@settings(max_examples=15, deadline=None)
@given(
    size=st.sampled_from([4, 6, 7]),
    channels=st.sampled_from([16, 32, 64]),
    outputs=st.sampled_from([16, 32, 64]),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    number=st.integers(0, 10_000),
)
def test_every_program_that_ends_and_fits_computes_the_convolution(
    size: int, channels: int, outputs: int, kernel: int, stride: int, number: int
) -> None:
    w = conv(size, channels, outputs, kernel, stride)
    points = space.candidates(w, 16, 32, 1)
    candidate = points[number % len(points)]
    stream = program_of(w, candidate)
    if cycles_of(stream, VTA).end == DONE:
        found, wanted = computed(w, candidate)
        assert np.array_equal(found, wanted)


def test_a_program_that_needs_more_than_there_is_computes_something_else() -> None:
    w, candidate = conv(8, 16, 16), point(8, 8)  # 8 * 8 vectors of input
    assert np.array_equal(*computed(w, candidate, replace(VTA, input_bytes=64 * 16)))
    assert not np.array_equal(*computed(w, candidate, replace(VTA, input_bytes=63 * 16)))


def test_more_micro_operations_than_there_are_compute_something_else() -> None:
    w, candidate = conv(4, 16, 32, kernel=3), point(4, 4, co=2)
    uops = int(program_of(w, candidate).facts["gemm_uops"])
    assert uops == 3 * 2 * 4  # the columns of the output and of the kernel are loops: three rows, two blocks, four rows
    assert np.array_equal(*computed(w, candidate, replace(VTA, uops=24)))
    assert not np.array_equal(*computed(w, candidate, replace(VTA, uops=23)))


# --- the session


def built(session: NpuSession, w: QuantizedConv2d, *candidates: Candidate) -> list[Built]:
    made = session.build([programs.program(w, c) for c in candidates], assembly=True)
    assert all(isinstance(one, Built) for one in made), made
    return [one for one in made if isinstance(one, Built)]


@pytest.mark.parametrize("residual", [False, True])
def test_a_raced_program_gives_the_bytes_that_pytorch_does(residual: bool) -> None:
    w = conv(6, 32, 32, kernel=3, residual=residual)
    values = reference.sample(w, 0)
    with NpuSession(VTA) as session:
        timed = session.race(built(session, w, point(3, 6, 2, 1, threads_co=2)), [values], 5)[0]
    assert isinstance(timed, Timed)
    assert timed.output is not None
    assert not reference.agrees(timed.output, reference.expected(w, values))
    assert len(timed.runs_s) == 1  # all rounds would be the same


def test_a_program_without_an_end_is_a_failure_and_says_why() -> None:
    with NpuSession(VTA) as session, NpuSession(replace(VTA, limit_cycles=50)) as hasty:
        stuck = session.time(built(session, conv(7, 64, 48, kernel=3), point(1, 7, threads_co=2)))[0]
        slow = hasty.time(built(hasty, conv(2, 16, 16), point(2, 2)))[0]
    assert isinstance(stuck, Failure)
    assert stuck.stage == "run"
    assert "deadlock" in stuck.reason
    assert slow == Failure("timeout", "more than 50 cycles")


def test_what_the_walk_found_out_are_the_hidden_features() -> None:
    with NpuSession(VTA) as session:
        features = hidden(built(session, conv(2, 16, 16), point(2, 2))[0].assembly)
    assert features["instructions"] == 9
    assert features["use_input"] == 4 / 2048
    assert all(math.isfinite(value) for value in features.values())


def test_presets_are_machines_of_their_own() -> None:
    assert find("npu-sim").simulated
    assert find("npu-sim").fingerprint != find("npu-sim:vta-half").fingerprint
    assert preset("vta-half").input_bytes == VTA.input_bytes // 2
    with pytest.raises(UserError, match="vta-half"):
        find("npu-sim:vta-halv")
    with pytest.raises(UserError, match="one program at a time"):
        find("npu-sim", threads=2)


# --- tuning


def test_a_task_is_tuned_and_programs_that_compute_something_else_are_recorded_as_failures(tmp_path: Path) -> None:
    w = conv(14, 64, 48, kernel=3)
    target = find("npu-sim:vta-quarter")  # whose memories many tiles exceed
    with Store(tmp_path / "records.sqlite") as store, connect(target) as (session, _):
        tuner = Tuner(session, store, target, seed=0, search="random")
        best = tuner.tune(w, 60)
        records = store.of_task(key(w), target.fingerprint)
        fastest = min((r for r in records if not r.failure), key=lambda r: r.latency_s)
        again = Tuner(session, store, target, seed=0, search="random").tune(w, 60)
    assert best.latency_s == fastest.latency_s
    assert {r.failure for r in records} >= {"", "check", "run"}
    assert all(r.checked for r in records)
    assert again.measured == 0


def test_what_the_description_says_of_a_program_is_near_what_it_takes() -> None:
    w = conv(14, 64, 64, kernel=3)
    candidates = space.candidates(w, 16, 32, 1)[::23]
    expected = expected_s(w, candidates, VTA)
    for candidate, seconds in zip(candidates, expected, strict=True):
        found = cycles_of(program_of(w, candidate), VTA)
        if math.isfinite(seconds):
            assert found.end == DONE
            assert seconds * VTA.clock_hz == pytest.approx(found.cycles, rel=0.35)
        else:  # all of these tiles fit: what cannot work are threads that do not come out even
            assert found.end in (DEADLOCK, FAULT)


def test_a_search_that_knows_the_description_tries_the_most_promising_first_and_nothing_that_cannot_work() -> None:
    w = conv(14, 64, 64, kernel=3)
    points = space.candidates(w, 16, 32, 1)
    prior = expected_s(w, points, VTA).tolist()
    search = strategy("P", w, points, random.Random(0), 64, Machine(16, 32, 1), prior_s=prior)
    batch = search.ask(4)
    best = points[min(range(len(points)), key=prior.__getitem__)]
    assert batch[0] == best
    every = [*batch, *(c for _ in range(400) for c in search.ask(4))]
    assert {prior[points.index(c)] < math.inf for c in every} == {True}
    assert len(set(every)) == sum(p < math.inf for p in prior)


def test_the_channel_step_of_a_program_is_that_of_its_threads_and_tiles() -> None:
    w = conv(14, 64, 128)
    # eight blocks of 16: two iterations of four (two threads, tiles of two); four is the larger loop, and one of its
    # iterations less are 2 * 16 channels
    assert step_of(w, point(7, 7, 1, 2, threads_co=2), 1) == 32
    assert step_of(w, point(7, 7, 1, 1), 1) == 16


def test_a_code_of_no_instruction_ends_at_once() -> None:
    nothing: Code = np.zeros((0, at.WIDTH), np.int64)
    found = cycles_of(Stream(nothing, np.zeros((3, 0), np.int64), 1, {}), VTA)
    assert (found.end, found.cycles) == (DONE, 0)


def test_facts_are_plain_numbers_for_the_store() -> None:
    facts: dict[str, Any] = program_of(conv(4, 16, 16, kernel=3), point(2, 4)).facts
    assert json.loads(json.dumps(facts)) == facts
