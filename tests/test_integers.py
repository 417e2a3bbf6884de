"""Convolutions of bytes, and networks whose values are bytes in memory."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cprune.commands.check_integers import as_simulated
from cprune.compiling.lowered import Layout
from cprune.compiling.lowering import lower
from cprune.compiling.tuned import Tuned, tune
from cprune.network.capture import capture
from cprune.network.folding import folded
from cprune.network.network import Network
from cprune.network.quantizing import Range, channel_means, measured, places, quantized, quantized_weight, to_steps
from cprune.progress import Progress
from cprune.targets.local import LocalSession
from cprune.targets.session import Array, Built, Timed
from cprune.targets.target import Target, find
from cprune.tuner.programs import dots, reference
from cprune.tuner.programs import program as programs
from cprune.tuner.programs.space import Candidate, of_target
from cprune.tuner.programs.workload import (
    Elementwise,
    QuantizedConv2d,
    QuantizedMean,
    QuantizedPool2d,
    Workload,
    dtypes,
    from_key,
    key,
)
from cprune.tuner.records.store import Store
from cprune.tuner.tune import Tuner

TARGET = find("local")
DOT = dots.of_target(TARGET, "int8")
BLOCK = max(8, TARGET.vector)
multiplies_bytes = pytest.mark.skipif(not DOT, reason="this processor has no instruction that multiplies bytes")


def conv(
    channels: int = 32,
    out: int = 64,
    size: int = 14,
    kernel: int = 3,
    stride: int = 1,
    depthwise: bool = False,
    residual: bool = False,
    activation: str = "none",
    output: str = "uint8",
    in_block: int = BLOCK,
) -> QuantizedConv2d:
    side = kernel // 2
    return QuantizedConv2d(
        1, channels, size, size, out, (kernel, kernel), (stride, stride), (side,) * 4, (1, 1),
        out if depthwise else 1, residual, activation, in_block, BLOCK, output, DOT,
    )  # fmt: skip


def test_a_byte_stands_for_a_number_and_zero_is_one_of_them() -> None:
    assert Range(0.0, 5.1).step == (pytest.approx(0.02), 0)
    assert Range(-1.0, 4.1).step == (pytest.approx(0.02), 50)
    assert Range(2.0, 5.1).step == (pytest.approx(0.02), 0)  # 0 belongs to every range: padding needs it
    assert Range(-5.1, -2.0).step == (pytest.approx(0.02), 255)
    assert Range(0.0, 0.0).step == (1.0, 0)


def test_a_weight_has_a_scale_for_every_output_channel() -> None:
    whole, scale = quantized_weight(torch.tensor([[1.27, -0.5], [0.0, 0.0], [-254.0, 3.0]]))
    assert whole.tolist() == [[127, -50], [0, 0], [-127, 2]]  # 3 is 1.5 steps of 2: half to even
    assert scale.tolist() == pytest.approx([0.01, 1 / 127, 2.0])


def test_a_rounded_weight_is_rounded_to_itself() -> None:
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    once = to_steps(weight)
    whole, scale = quantized_weight(once)
    assert torch.equal(to_steps(once), once)
    assert torch.equal((whole * scale[:, None, None, None]).float(), once)
    assert (once - weight).abs().max() <= weight.abs().max() / 254 * 1.0001


def test_the_key_of_a_convolution_of_bytes_reads_back() -> None:
    w = conv(residual=True)
    assert from_key(key(w)) == w
    assert dtypes(w) == ("uint8", "uint8", "int8", "float32", "float32", "float32", "uint8", "uint8")


def test_weights_are_packed_four_input_channels_to_a_word() -> None:
    w = conv(channels=8, out=BLOCK, kernel=1, in_block=8)
    plain = torch.arange(8 * BLOCK).reshape(BLOCK, 8, 1, 1) % 100
    stored = reference.pack_bytes(plain, w)
    assert stored.shape == (1, 1, 1, 1, 2, BLOCK, 4)
    assert stored[0, 0, 0, 0, 1, 3].tolist() == [28, 29, 30, 31]  # channel 3 of the output, 4 to 7 of the input
    assert torch.equal(reference.unpack_bytes(stored, w), plain.to(torch.int8))


def test_only_an_instruction_for_signed_factors_moves_bytes_and_a_depthwise_program_has_none() -> None:
    workloads = [replace(conv(channels=32, out=32, depthwise=each), dot="sdot") for each in (False, True)]
    assert [dots.moved_by(w) for w in workloads] == [128, 0]
    x = np.full(workloads[1].arguments()[0], 3, np.uint8)
    weight = np.ones(workloads[1].arguments()[1], np.int8)
    ones, none = np.ones((32 // BLOCK, BLOCK), np.float32), np.zeros((32 // BLOCK, BLOCK), np.float32)
    arguments = [x, weight, ones, none, np.zeros(3, np.float32), np.zeros(1, np.uint8)]
    assert reference.expected(workloads[1], arguments)[0, 0, 5, 5, 0] == 27  # nine times 3, whatever `dot` says


def test_processors_are_asked_before_an_instruction_is_used() -> None:
    assert dots.of_target(find("android-arm64:cortex-a76"), "int8") == "sdot"
    assert dots.of_target(find("linux-arm64:neoverse-v1"), "int8") == "usdot"
    assert dots.of_target(find("linux-arm64:cortex-a72"), "int8") == ""  # LLVM would end the process there
    assert dots.of_target(find("linux-x86_64"), "int8") == ""


@multiplies_bytes
@pytest.mark.parametrize(
    "workload",
    [
        conv(),
        conv(stride=2, residual=True),
        conv(residual=True, activation="relu"),
        conv(activation="hardswish"),
        conv(kernel=1, output="float32"),
        conv(channels=4, out=32, kernel=7, stride=2, size=28, in_block=4),
        conv(channels=64, out=64, depthwise=True),
        conv(channels=64, out=64, depthwise=True, stride=2, activation="relu6"),
        conv(channels=128, out=96, kernel=1, size=1, output="float32"),
        QuantizedMean(1, 64, 8, 8, BLOCK, "uint8"),
        QuantizedMean(2, 32, 7, 5, BLOCK, "float32"),
        QuantizedPool2d("max", 1, 32, 14, 14, (3, 3), (2, 2), (1, 1, 1, 1), True, BLOCK),
        Elementwise(("quantize", ("in", 0), 0.02, 7), (((1, 30, 9, 9), BLOCK),), (1, 30, 9, 9), BLOCK),
        Elementwise(("quantize", ("in", 0), 0.02, 7), (((1, 3, 9, 9), 0),), (1, 3, 9, 9), 4),
        Elementwise(  # the shortcut of a CIFAR ResNet: every second pixel, 8 channels of zeros before and behind
            (
                "quantize",
                (
                    "pad",
                    ("slice", ("dequantize", ("in", 0), 0.02, 7), ((0, 1), (0, 1), (0, 2), (0, 2)), (1, 16, 6, 6)),
                    (0, 8, 0, 0),
                    (1, 16, 6, 6),
                    (1, 32, 6, 6),
                ),
                0.02,
                7,
            ),
            (((1, 16, 12, 12), BLOCK),),
            (1, 32, 6, 6),
            BLOCK,
        ),
        Elementwise(
            (
                "quantize",
                ("cat", 1, ((("dequantize", ("in", 0), 0.02, 7), 24), (("dequantize", ("in", 1), 0.02, 7), 8))),
                0.02,
                7,
            ),
            (((1, 24, 5, 5), BLOCK), ((1, 8, 5, 5), BLOCK)),
            (1, 32, 5, 5),
            BLOCK,
        ),
        Elementwise(("quantize", ("in", 0), 1e-12, 0), (((1, 30), 0),), (1, 30), BLOCK),  # beyond any integer
        Elementwise(
            ("quantize", ("add", ("dequantize", ("in", 0), 0.02, 7), ("in", 1)), 0.03, 9),
            (((1, 30, 9, 9), BLOCK), ((1, 30, 9, 9), BLOCK)),
            (1, 30, 9, 9),
            BLOCK,
        ),
    ],
    ids=key,
)
def test_programs_compute_what_pytorch_does_to_one_step(workload: Workload) -> None:
    wanted = agrees_with_pytorch(workload, 3)
    if wanted.dtype == np.uint8:
        assert wanted.min() < 60 and wanted.max() > 100  # an error would show  # noqa: PT018


def agrees_with_pytorch(workload: Workload, candidates: int) -> Array:
    """Compare some programs of a workload with PyTorch, and return what they must give."""
    space = of_target(workload, TARGET)
    chosen = random.Random(0).sample(space, min(candidates, len(space)))
    arguments = reference.sample(workload, 3)
    wanted = programs.expected(workload, arguments)
    with LocalSession(TARGET) as session:
        built = session.build([programs.program(workload, candidate) for candidate in chosen])
        ready = [answer for answer in built if isinstance(answer, Built)]
        assert len(ready) == len(chosen), built
        raced = session.race(ready, [arguments] * len(ready), 1)
        timed = session.time(ready)
    for answer in raced:
        assert isinstance(answer, Timed), answer
        assert answer.output is not None
        assert answer.output.dtype == wanted.dtype
        assert reference.agrees(answer.output, wanted, reference.tolerance(workload)) == ""
    assert all(isinstance(answer, Timed) for answer in timed), timed
    return wanted


@pytest.mark.parametrize(("size", "most"), [(10, 1), (1280, 6), (1_000_000, 1127)])
def test_a_few_bytes_may_be_at_a_tie_and_a_larger_share_of_few(size: int, most: int) -> None:
    wanted = np.full(size, 100, np.uint8)
    for differing, agreed in ((most, True), (most + 1, False)):
        output = wanted.copy()
        output[:differing] += 1
        assert (reference.agrees(output, wanted) == "") is agreed
    output[0] = 102
    assert "by up to 2 steps" in reference.agrees(output, wanted)


def test_tiles_leave_room_for_what_is_loaded_ahead() -> None:
    tiles = {(c.number("oc_tile"), c.number("oh_tile") * c.number("ow_tile")) for c in of_target(conv(size=56), TARGET)}
    if TARGET.vector_registers == 32:
        assert (2, 7) in tiles  # 14 sums, 7 bytes broadcast, 2 weights
        assert (2, 14) not in tiles  # 28 + 14 + 2


class Residual(nn.Module):
    """A stem, a block with a sum, a pool, a layer that reads its plane's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.first = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.second = nn.Conv2d(24, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.linear = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.second(torch.relu(self.first(x))))
        x = nn.functional.max_pool2d(x, 2)
        x = nn.functional.hardswish(self.depthwise(x))
        answer: torch.Tensor = self.linear(x.mean((2, 3)))
        return answer


def compiled(network: Network, example: tuple[torch.Tensor, ...], trials: int = 1) -> tuple[Tuned, Array]:
    """Return a network tuned for this machine, and what its compiled code answers to the example."""
    with Store("sqlite://") as store, LocalSession(TARGET) as session:
        tuned = tune(network, example, Tuner(session, store, TARGET, 0), trials, Progress())
        (output,) = tuned.load(session, "model")
    return tuned, output


def residual() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        model.norm.running_mean.normal_()  # type: ignore[union-attr, operator]
        model.norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr, operator]
    return model.eval(), torch.randn(8, 3, 16, 16)


def test_a_folded_network_answers_as_before_and_has_no_norm() -> None:
    model, images = residual()
    network = capture(model, (images[:1],))
    plain = folded(network)
    assert not [node for node in plain.nodes if "batch_norm" in node.op]
    with torch.no_grad():
        assert torch.allclose(plain(images[:1]), model(images[:1]), atol=1e-5)
        assert torch.allclose(network(images[:1]), model(images[:1]), atol=1e-5)  # it was copied


def test_a_convolution_that_reads_a_norm_reads_the_convolution_before_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[each for _ in range(2) for each in (nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))])
    plain = folded(capture(model.eval(), (torch.randn(1, 3, 4, 4),)))
    assert [node.op for node in plain.nodes if node.op.startswith("aten")] == ["aten.conv2d.default"] * 2


def test_what_layers_read_and_what_sums_add_become_bytes() -> None:
    model, images = residual()
    plain = folded(capture(model, (images[:1],)))
    by_name = {node.name: node for node in plain.nodes}
    kinds = [by_name[name].op for name in places(plain, channel_means(plain, (images,)))]
    # the image, two sums' ends, the pool's input (its bytes pass), the mean; not the value that only hard-swish reads
    assert [kind.split(".")[1] if "." in kind else kind for kind in kinds] == ["input", "relu", "relu", "relu", "mean"]


class Branches(nn.Module):
    """What has no bytes of its own: concatenation, a gate, a convolution to three channels and from them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.gate = nn.Conv2d(16, 16, 1)
        self.narrow, self.wide = nn.Conv2d(16, 3, 1), nn.Conv2d(3, 20, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(20, 20, 3, padding=1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = torch.relu(self.wide(torch.relu(self.narrow(x))))
        return torch.relu(self.grouped(x)).mean((2, 3))


class Fire(nn.Module):
    """Two convolutions side by side, one behind the other in memory, and one that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(40, 12, 1)
        self.small, self.large = nn.Conv2d(16, 24, 1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.last(torch.cat((torch.relu(self.small(x)), torch.relu(self.large(x))), 1))  # type: ignore[no-any-return]


class Widened(nn.Module):
    """The shortcut of a CIFAR ResNet where the plane is halved: every second pixel, and zeros for the new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.last = nn.Conv2d(32, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        return self.last(torch.relu(self.body(x) + shortcut))  # type: ignore[no-any-return]


def test_what_is_only_moved_keeps_its_bytes() -> None:
    torch.manual_seed(0)
    network = capture(Widened().eval(), (torch.randn(1, 3, 12, 12),))
    _, steps = measured(network, [(torch.randn(4, 3, 12, 12),)])
    assert list(steps) == ["x", "relu", "pad", "relu_1"]
    assert steps["pad"] == steps["relu"]


@multiplies_bytes
def test_what_is_put_one_behind_the_other_is_of_bytes_before() -> None:
    torch.manual_seed(0)
    model, images = Fire().eval(), torch.randn(4, 3, 12, 12)
    network = quantized(capture(model, (images[:1],)), [(images,)]).eval()
    tuned, output = compiled(network, (images[:1],))
    convs = [call.workload for call in tuned.lowered.calls if isinstance(call.workload, QuantizedConv2d)]
    assert [conv.output for conv in convs] == ["uint8", "uint8", "uint8", "float32"]
    with torch.no_grad():
        wanted, before = network(images[:1]).numpy(), model(images[:1]).numpy()
    assert np.abs(output - wanted).max() < 0.5 * np.abs(wanted - before).max()


@multiplies_bytes
def test_what_has_no_form_in_integers_reads_bytes_as_numbers() -> None:
    torch.manual_seed(0)
    model, images = Branches().eval(), torch.randn(8, 3, 16, 16)
    network = quantized(capture(model, (images[:1],)), [(images,)]).eval()
    tuned, output = compiled(network, (images[:1],))
    kinds = [type(call.workload).__name__ for call in tuned.lowered.calls]
    assert kinds.count("QuantizedConv2d") == 6  # all but the grouped one
    with torch.no_grad():
        wanted, before = network(images[:1]).numpy(), model(images[:1]).numpy()
    assert np.abs(wanted - before).max() < 0.05 * np.abs(before).max()
    assert np.abs(output - wanted).max() < 0.02 * np.abs(before).max()


def test_every_channel_keeps_its_mean() -> None:
    model, images = residual()
    plain = folded(capture(model, (images[:1],)))
    before = channel_means(plain, (images,))
    after = channel_means(quantized(plain, [(images,)]).eval(), (images,))
    biased = {node.name for node in plain.nodes if node.name in before and len(node.args) > 2 and node.args[2]}
    assert len(before) == 5
    assert len(biased) == 4  # the layer without a bias is left as it is
    for name in biased:
        assert torch.allclose(after[name], before[name], atol=1e-4)


@multiplies_bytes
def test_a_network_in_integers_is_compiled_to_what_pytorch_computes() -> None:
    model, images = residual()
    network = quantized(capture(model, (images[:1],)), [(images,)]).eval()
    with torch.no_grad():
        apart = (network(images[:1]) - model(images[:1])).abs().max()
        assert 0 < apart < 0.05 * model(images[:1]).abs().max()
    lowered = lower(network, (images[:1],), Layout(BLOCK, dot=DOT))
    kinds = [type(call.workload).__name__ for call in lowered.calls]
    assert kinds.count("QuantizedConv2d") == 5  # the linear layer among them
    assert "QuantizedPool2d" in kinds
    assert "QuantizedMean" in kinds
    assert kinds.count("Elementwise") == 2  # the image becomes bytes, the answer is taken out of its block
    assert not {"Conv2d", "Mean"} & set(kinds)
    tuned, output = compiled(network, (images[:1],), trials=2)
    assert tuned.lowered.layout == Layout(BLOCK, dot=DOT)
    with torch.no_grad():
        assert np.abs(output - network(images[:1]).numpy()).max() < float(apart)


@multiplies_bytes
def test_every_value_in_bytes_is_compared_with_what_pytorch_simulates() -> None:
    model, images = residual()
    network = quantized(capture(model, (images[:1],)), [(images,)]).eval()
    with Store("sqlite://") as store, LocalSession(TARGET) as session:
        tuned = tune(network, (images[:1],), Tuner(session, store, TARGET, 0), 1, Progress())
        compared = list(as_simulated(tuned, session))
        scales = next(array for name, array in tuned.lowered.weights.items() if name == "first.scale@relu_1.bytes")
        scales *= 1.2
        wrong = list(as_simulated(tuned, session))
    names = ["x.bytes", "relu.bytes", "relu_1.bytes", "relu_2.bytes", "max_pool2d", "mean.bytes"]
    assert [one.value for one in compared] == names
    assert max(one.steps or 0 for one in compared) <= 1
    assert [one.value for one in wrong if (one.steps or 0) > 1] == ["relu_1.bytes"]  # what reads it is given PyTorch's


def test_where_no_bytes_are_multiplied_the_same_network_is_compiled_in_floats() -> None:
    model, images = residual()
    network = quantized(capture(model, (images[:1],)), [(images,)]).eval()
    calls = lower(network, (images[:1],), Layout(BLOCK)).calls
    assert all(not dtypes(call.workload) for call in calls)


def test_relu_is_left_out_where_bytes_end_at_zero() -> None:
    model, images = residual()
    network = quantized(capture(model, (images[:1],)), [(images,)]).eval()
    calls = lower(network, (images[:1],), Layout(16, dot="vnni512")).calls
    activations = [call.workload.activation for call in calls if isinstance(call.workload, QuantizedConv2d)]
    assert activations == ["none", "none", "none", "hardswish", "none"]


def test_arm_programs_are_written_for_its_instructions() -> None:
    for name, instruction in (("android-arm64:cortex-a76", "sdot"), ("linux-arm64:neoverse-v1", "usdot")):
        target = find(name)
        w = QuantizedConv2d(
            1, 16, 8, 8, 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "none", 8, 8, "uint8",
            dots.of_target(target, "int8"),
        )  # fmt: skip
        candidate = Candidate.of(oc_tile=2, oh_tile=1, ow_tile=4, rows=8, parallel="none", pad="inside", unroll=0)
        assert f"\t{instruction}\t" in assembly(w, candidate, target)


def assembly(workload: Workload, candidate: Candidate, target: Target) -> str:
    import json

    import tvm

    module = programs.module_of(workload, candidate)
    library = tvm.driver.build(module, tvm.target.Target(json.loads(target.compiler)))
    return str(library.inspect_source("asm"))
