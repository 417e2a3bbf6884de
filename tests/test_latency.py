"""Latency tables: what a call becomes at other widths, what is measured and what is estimated."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import captured
from torch import nn

from cprune.channels.branches import branches
from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.channels.surgery import prune
from cprune.compiling.lowered import Layout
from cprune.compiling.lowering import lower
from cprune.compiling.narrowing import narrowed
from cprune.compiling.tuned import Tuned
from cprune.method.chain import Chain
from cprune.method.comparable import ratios, whole_seconds
from cprune.method.latency import LatencyTable
from cprune.method.planning import parts
from cprune.method.terms import Axis, Term, Widths, terms
from cprune.models.zoo import load_model
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.network.quantizing import quantized
from cprune.targets.target import Target, find
from cprune.tuner.estimate import Entry, estimate, size
from cprune.tuner.programs.space import Candidate, of_target
from cprune.tuner.programs.workload import Conv2d, Elementwise, QuantizedConv2d, Workload, from_key, key
from cprune.tuner.tune import Best, Job

BLOCK = 16
TARGET = replace(find("local"), threads=2, vector=16, vector_registers=32)
CONV = Conv2d(1, 64, 8, 8, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "relu", 16, 16)


@dataclass(frozen=True)
class Case:
    network: Network
    example: tuple[torch.Tensor, ...]
    graph: Graph

    @property
    def full(self) -> dict[str, int]:
        return {group.id: group.channels for group in self.graph.groups}


@functools.cache
def case(name: str) -> Case:
    side = 28 if name == "resnet-fashion" else 32
    opened = load_model(name, shape=(1, 1 if side == 28 else 3, side, side))
    network = capture(opened.model, opened.example_inputs)
    return Case(network, opened.example_inputs, analyse(network, opened.example_inputs))


@dataclass
class Counting:
    """A tuner that knows what every workload takes, and counts what it was asked to tune.

    In a slow minute, `slow` times 1, all takes longer.  `turns` are the workloads that took turns.
    """

    cost: Callable[[Workload], float]
    target: Target = TARGET
    slow: float = 1.0
    turns: list[list[Workload]] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    tuned: dict[str, Best] = field(default_factory=dict)

    def best(self, workload: Workload) -> Best:
        return Best(key(workload), of_target(workload, self.target)[0], self.slow * self.cost(workload), 1)

    def known(self, workload: Workload, trials: int) -> Best | None:
        return self.tuned.get(key(workload))

    def entries(self) -> list[Entry]:
        return []

    def tune_all(
        self,
        jobs: Sequence[Job],
        trials: int,
        time_limit_s: float = float("inf"),
        on_trial: Callable[[], object] = lambda: None,
    ) -> dict[str, Best]:
        self.jobs += jobs
        found = {key(job.workload): self.best(job.workload) for job in jobs}
        self.tuned |= found
        for _ in jobs:
            on_trial()
        return found

    def in_turns(self, entries: Sequence[tuple[Workload, Candidate]], rounds: int) -> list[tuple[float, ...]]:
        self.turns.append([workload for workload, _ in entries])
        return [(self.slow * self.cost(workload),) * rounds for workload, _ in entries]


def elements(workload: Workload) -> float:
    ins, outs = size(workload)
    return 1e-5 + 1e-9 * ins * outs


HALF = {"features.0": 32, "features.30": 256}


def works(t: LatencyTable, widths: Widths) -> list[Workload]:
    """Return what every call computes at these widths."""
    found = [t.workload(term, widths) for term in t.terms]
    return [workload for workload in found if workload is not None]


def table(name: str, cost: Callable[[Workload], float] = elements) -> tuple[LatencyTable, Counting]:
    tuner = Counting(cost)
    c = case(name)
    lowered = lower(c.network, c.example, BLOCK)
    best = {task.key: tuner.best(task.workload) for task in lowered.tasks()}
    return LatencyTable(Tuned(c.network, c.example, lowered, best), c.graph, tuner), tuner


def test_a_width_that_fills_no_block_may_be_stored_as_a_wider_one() -> None:
    def conv(ins: int, outs: int) -> nn.Conv2d:
        return nn.Conv2d(ins, outs, 3, padding=1)

    layers = (conv(3, 24), nn.ReLU(), conv(24, 24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    example = (torch.randn(1, 3, 12, 12),)
    network = capture(nn.Sequential(*layers, nn.Linear(24, 5)).eval(), example)
    graph, tuner = analyse(network, example), Counting(elements)
    lowered = lower(network, example, Layout(16, (24,)))  # 3 blocks of 8
    tuned = Tuned(network, example, lowered, {task.key: tuner.best(task.workload) for task in lowered.tasks()})
    t = LatencyTable(tuned, graph, tuner)
    narrower = [{group.id: 20 for group in graph.groups}]  # 2 blocks of 16
    assert [w.out_channels for w in works(t, narrower[0]) if isinstance(w, Conv2d)] == [32, 32]
    assert t.forecast_s(narrower[0]) > t.forecast_s({})  # nothing as wide is known
    assert t.measure(narrower) == len(tuner.jobs) > 0
    assert t.settled(narrower)


def the_pruned(
    c: Case, seed: int, layout: Layout, form: Callable[[Network], Network] = lambda network: network
) -> tuple[dict[str, int], list[Workload]]:
    """Return random widths and the workloads of the network that was really pruned to them, in this form."""
    chosen = random.Random(seed)
    removed = {g.id: chosen.sample(range(g.channels), chosen.randrange(g.channels)) for g in c.graph.groups}
    smaller = prune(c.network, c.graph, removed)
    calls = lower(form(smaller), c.example, layout).calls
    return {g: c.full[g] - len(channels) for g, channels in removed.items()}, [call.workload for call in calls]


# -- what a call becomes


@pytest.mark.parametrize("name", ["resnet-fashion", "resnet20", "resnet18", "mobilenetv2", "vgg16_bn"])
@pytest.mark.parametrize("layout", [Layout(16), Layout(8, (12, 20, 44))])
def test_every_call_is_what_lowering_the_pruned_network_gives(name: str, layout: Layout) -> None:
    c = case(name)
    with torch.no_grad():
        widths, expected = the_pruned(c, 1, layout)
        found = terms(lower(c.network, c.example, layout), c.graph)
    assert len(found) == len(expected)
    for term, workload in zip(found, expected, strict=True):
        ours = narrowed(term.workload, term.inputs.at(widths), term.outputs.at(widths), layout)
        assert _but_for_zeros_in_front(ours) == _but_for_zeros_in_front(workload), term.call


@pytest.mark.parametrize("name", ["resnet-fashion", "resnet20", "resnet18", "mobilenetv2", "vgg16_bn"])
def test_so_is_every_call_in_integers(name: str) -> None:
    c, layout = case(name), Layout(16, dot="vnni512")

    def form(network: Network) -> Network:
        return quantized(network, [c.example])

    with torch.no_grad():
        widths, expected = the_pruned(c, 1, layout, form)
        found = terms(lower(form(c.network), c.example, layout), c.graph)
    assert len(found) == len(expected)
    assert any(isinstance(workload, QuantizedConv2d) for workload in expected)
    for term, workload in zip(found, expected, strict=True):
        ours = narrowed(term.workload, term.inputs.at(widths), term.outputs.at(widths), layout)
        assert _but_for_steps(ours) == _but_for_steps(workload), term.call


def _but_for_steps(workload: Workload | None) -> object:
    """The scale and the zero point of bytes are other ones in another network."""
    if isinstance(workload, Elementwise) and workload.expression[0] == "quantize":
        return workload.inputs, workload.shape, workload.block
    return workload


def _but_for_zeros_in_front(workload: Workload | None) -> object:
    """How many zeros lie in front of a widened stream and how many behind is not told by widths."""
    if isinstance(workload, Elementwise) and workload.expression[0] == "pad":
        return workload.inputs, workload.shape, workload.block
    return workload


def test_a_flattened_plane_counts_each_channel_as_often_as_it_has_places() -> None:
    chain = captured("Chain")
    found = {t.call: t for t in terms(lower(chain.network, chain.example, Layout(4)), chain.graph)}
    first = next(t for t in found.values() if t.layers == ("fc1",))
    assert first.inputs == Axis(0, (("conv2", 16),))  # 5 channels of 4 x 4 places
    assert first.inputs.at({"conv2": 3}) == 48
    assert first.outputs == Axis(0, (("fc1", 1),))


def test_a_stream_that_was_widened_by_zeros_is_made_of_several_groups() -> None:
    term = _terms("resnet20")["linear"]  # 64 channels: 16 of the first stage, 16 more, then 32 more
    assert sorted(term.inputs.groups) == [("conv1", 1), ("layer2.0.conv2", 1), ("layer3.0.conv2", 1)]
    assert term.outputs == Axis(10)
    assert term.inputs.at({"conv1": 10, "layer2.0.conv2": 16, "layer3.0.conv2": 4}) == 30


def test_a_depthwise_call_is_as_wide_where_it_reads_as_where_it_writes() -> None:
    term = _terms("mobilenetv2")["hardtanh_1"]
    assert term.inputs == term.outputs == Axis(0, (("stem.0", 1),))


@functools.cache
def _terms(name: str) -> dict[str, Term]:
    c = case(name)
    return {t.call: t for t in terms(lower(c.network, c.example, BLOCK), c.graph)}


# -- what is measured


def test_the_full_width_is_measured_and_is_the_forecast_of_the_tuned_model() -> None:
    t, tuner = table("resnet20")
    assert t.forecast_s({}) == pytest.approx(sum(elements(term.workload) for term in t.terms))
    assert all(t.measured(term, {}) for term in t.terms)
    assert not tuner.jobs


def test_an_entry_is_measured_once_however_many_allocations_use_it() -> None:
    t, tuner = table("vgg16_bn")
    half = {"features.0": 32}
    assert t.measure([half, half, {"features.0": 20}]) == 2 == len(tuner.jobs)  # 20 channels are stored in 32
    assert t.measure([half]) == 0
    again, _ = table("vgg16_bn")
    again._tuner = tuner  # another run on the same store
    assert again.measure([half]) == 0
    assert again.forecast_s(half) == t.forecast_s(half)


def test_an_entry_starts_from_its_nearest_wider_sibling() -> None:
    t, tuner = table("vgg16_bn")
    t.measure([{"features.0": 48}])
    t.measure([{"features.0": 32}])
    wide, narrow = [job for job in tuner.jobs if size(job.workload)[0] == 3]
    assert narrow.start == (tuner.tuned[key(wide.workload)].candidate,)


def test_a_removed_branch_takes_its_calls_along() -> None:
    t, _ = table("resnet20")
    branch = ("layer1.1.conv1", "layer1.1.conv2")
    lost = sum(t.seconds(term, {}) for term in t.terms if set(branch) & set(term.layers))
    assert t.forecast_s({}, branch) == pytest.approx(t.forecast_s({}) - lost)
    assert t.forecast_s({}, ["linear"]) < t.forecast_s({})


def test_what_was_estimated_before_it_was_measured_is_told() -> None:
    t, _ = table("vgg16_bn")
    t.measure([{"features.30": 256}])
    convs = [entry for entry in t.later if isinstance(entry.workload, Conv2d)]
    assert len(convs) == 2
    # Each has half the blocks: 1e-5 + 1e-9 * 512 * 256 = 141 us, for 272 us whole with a launch of 3 us.
    assert [e.measured_s for e in convs] == [pytest.approx(141.07e-6, rel=1e-3)] * 2
    assert [e.estimated_s for e in convs] == [pytest.approx((3 + 269.14 / 2) * 1e-6, rel=1e-3)] * 2


# -- what can be compared


def test_an_entry_of_a_slow_minute_counts_as_one_of_the_minute_in_which_the_whole_model_was_tuned() -> None:
    t, tuner = table("vgg16_bn")
    usual, _ = table("vgg16_bn")
    usual.measure([HALF])
    tuner.slow = 1.3
    t.measure([HALF])
    assert all(best.latency_s == 1.3 * elements(from_key(task)) for task, best in tuner.tuned.items())  # as recorded
    assert t.forecast_s(HALF) == pytest.approx(usual.forecast_s(HALF))
    assert t.forecast_s({}) == pytest.approx(usual.forecast_s({}))


def test_a_known_entry_of_a_slow_minute_is_compared_before_it_is_used() -> None:
    slow, tuner = table("vgg16_bn")
    tuner.slow = 1.3
    slow.measure([HALF])
    tuner.slow = 1.0
    t, _ = table("vgg16_bn")
    t._tuner = tuner  # the same store
    assert not t.settled([HALF])
    assert t.measure([HALF]) == 0
    assert t.settled([HALF])
    usual, _ = table("vgg16_bn")
    assert t.forecast_s(HALF) == pytest.approx(sum(elements(w) for w in works(usual, HALF)))


def test_whole_tasks_of_slow_and_fast_minutes_are_compared_and_their_sum_stays() -> None:
    conv, dense = CONV, replace(CONV, kernel=(1, 1), pad=(0, 0, 0, 0))
    pool = replace(CONV, height=4, width=4)
    took = {key(conv): 130e-6, key(dense): 50e-6, key(pool): 20e-6}  # the first in a slow minute: it takes 100 us
    truth = {key(conv): 100e-6, key(dense): 50e-6, key(pool): 20e-6}
    tuner = Counting(lambda w: truth[key(w)])
    tasks = [Entry(w, of_target(w, TARGET)[0], took[key(w)]) for w in (conv, dense, pool)]
    found = whole_seconds(tuner, tasks, {key(conv): 1, key(dense): 2, key(pool): 1})
    # Together 130 + 2 * 50 + 20 = 250 us were known; in turns it is 100 + 2 * 50 + 20 = 220.
    assert found == {task: pytest.approx(seconds * 250 / 220) for task, seconds in truth.items()}


def test_a_ratio_is_the_median_over_rounds_and_none_of_what_does_not_run_again() -> None:
    class Phases(Counting):
        def in_turns(self, entries: Sequence[tuple[Workload, Candidate]], rounds: int) -> list[tuple[float, ...]]:
            # The machine is twice as slow from the third round on; one round of the second was disturbed.
            return [(1.0, 1.0, 2.0, 2.0, 2.0), (0.5, 0.9, 1.0, 1.0, 1.0), ()]

    whole, half, quarter = entries(lambda _: 1e-6, (64, 64), (64, 32), (64, 16))
    assert ratios(Phases(elements), whole, [half, quarter]) == {key(half.workload): 0.5}


def test_nothing_is_compared_with_what_does_not_run_again() -> None:
    class Broken(Counting):
        def in_turns(self, entries: Sequence[tuple[Workload, Candidate]], rounds: int) -> list[tuple[float, ...]]:
            return [(), (1.0, 1.0)]

    whole, half = entries(lambda w: 1e-6 * w.out_channels, (64, 64), (64, 32))
    assert ratios(Broken(elements), whole, [half]) == {}
    assert whole_seconds(Broken(elements), [whole, half], {key(whole.workload): 1, key(half.workload): 1}) == {
        key(whole.workload): pytest.approx(64e-6),
        key(half.workload): pytest.approx(32e-6),
    }


def test_no_more_than_eight_programs_take_turns_at_once_and_the_whole_one_is_always_among_them() -> None:
    whole, *narrow = entries(elements, (64, 64), *((16 * a, 16 * b) for a in range(1, 4) for b in range(1, 5)))
    tuner = Counting(elements)
    found = ratios(tuner, whole, narrow)
    assert [len(turn) for turn in tuner.turns] == [8, 6]
    assert all(turn[0] == whole.workload for turn in tuner.turns)
    assert found == {key(e.workload): pytest.approx(e.seconds / whole.seconds) for e in narrow}


# -- options


def test_options_are_eighths_in_whole_blocks_the_smallest_in_half_a_one() -> None:
    t, _ = table("vgg16_bn")
    assert t.options("features.0") == (64, 48, 32, 16, 8)
    assert t.options("features.7") == (128, 112, 96, 80, 64, 48, 32, 16)
    assert t.options("features.40") == (512, 448, 384, 320, 256, 192, 128, 64)


def test_groups_that_share_an_axis_have_options_of_their_own() -> None:
    t, _ = table("resnet20")
    # 16 + 8 channels fill two blocks like 16 + 16, but 8 + 8 fill one.
    assert t.options("conv1") == t.options("layer2.0.conv2") == (16, 8)
    assert t.options("layer3.0.conv2") == (32, 16, 8)


# -- estimates


def entries(cost: Callable[[Conv2d], float], *widths: tuple[int, int]) -> list[Entry]:
    made = [narrowed(CONV, *pair, Layout(16)) for pair in widths]
    convs = [w for w in made if isinstance(w, Conv2d)]
    return [Entry(w, of_target(w, TARGET)[0], cost(w)) for w in convs]


def test_half_the_work_takes_half_the_time_beyond_the_launch() -> None:
    (full,) = entries(lambda w: 103e-6, (64, 64))
    half = narrowed(CONV, 32, 64, Layout(16))
    assert half is not None
    assert estimate(half, [full], 1, 16) == pytest.approx(53e-6)


def test_three_blocks_on_two_threads_take_as_long_as_four() -> None:
    over_channels = next(c for c in of_target(CONV, TARGET) if dict(c.knobs).get("parallel") == "channels")
    full = Entry(CONV, over_channels, 100e-6)
    seconds = []
    for width in (64, 48, 32):
        narrow = narrowed(CONV, 64, width, Layout(16))
        assert narrow is not None
        seconds.append(estimate(narrow, [full], 2, 16))
    assert seconds[0] == seconds[1] > seconds[2]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_estimate_never_falls_when_a_call_gets_wider(data: st.DataObject) -> None:
    grid = st.tuples(st.integers(1, 4), st.integers(1, 4))
    places = data.draw(st.sets(grid, max_size=4)) | {(4, 4)}
    known = entries(
        lambda w: 1e-6 * (3 + w.in_channels * w.out_channels) ** 0.8, *((16 * a, 16 * b) for a, b in places)
    )
    a, b = data.draw(grid)
    more_a, more_b = data.draw(st.integers(a, 4)), data.draw(st.integers(b, 4))
    narrow, wide = (narrowed(CONV, 16 * x, 16 * y, Layout(16)) for x, y in ((a, b), (more_a, more_b)))
    assert narrow is not None
    assert wide is not None
    threads = data.draw(st.integers(1, 3))
    assert estimate(narrow, known, threads, 16) <= estimate(wide, known, threads, 16) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "resnet-fashion"])
def test_the_calls_of_a_residual_branch_vanish_with_it(name: str) -> None:
    t, _ = table(name)
    c = case(name)
    found = branches(c.network, c.example)
    assert len(found) > 1
    within = {branch.id: [part for part in parts(t, found, Chain()) if branch.id in part.branches] for branch in found}
    assert {name: len(some) for name, some in within.items()} == {branch.id: len(branch.layers) for branch in found}
    gone = found[1]
    alone_s = sum(part.seconds(tuple(t.full[g] for g in part.groups)) for part in within[gone.id])
    assert t.forecast_s({}) - t.forecast_s({}, gone=gone.layers) == pytest.approx(alone_s)
