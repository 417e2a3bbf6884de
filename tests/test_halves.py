"""Convolutions of bfloat16 and float16, and networks whose values are of these in memory."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_integers import Branches, Fire, agrees_with_pytorch, assembly, compiled, residual
from torch import nn

from cprune.cli import main as cli
from cprune.commands.check_integers import as_simulated
from cprune.compiling.halves_or_floats import fastest
from cprune.compiling.lowered import Layout, Lowered
from cprune.compiling.lowering import lower
from cprune.compiling.tuned import layout_in, precision_of, tune
from cprune.models.formats.onnx import runtime_difference, write
from cprune.network import saving
from cprune.network.capture import capture
from cprune.network.halving import halved, layers_of
from cprune.network.precision import precision
from cprune.progress import Progress
from cprune.targets.errors import UserError
from cprune.targets.local import LocalSession
from cprune.targets.target import find
from cprune.tuner.programs import dots, reference
from cprune.tuner.programs.describing import describe
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import FMLA, Conv2d, Elementwise, HalfConv2d, Workload, dtypes, from_key, key
from cprune.tuner.records.store import Store
from cprune.tuner.tune import Tuner

TARGET = find("local")
DOT = dots.of_target(TARGET, "bf16")
BLOCK = max(8, TARGET.vector)
multiplies_halves = pytest.mark.skipif(not DOT, reason="this processor has no instruction that multiplies bfloat16")


def conv(
    channels: int = 32,
    out: int = 64,
    size: int = 14,
    kernel: int = 3,
    stride: int = 1,
    depthwise: bool = False,
    residual: bool = False,
    activation: str = "none",
    output: str = "uint16",
    in_block: int = BLOCK,
) -> HalfConv2d:
    side = kernel // 2
    return HalfConv2d(
        1, channels, size, size, out, (kernel, kernel), (stride, stride), (side,) * 4, (1, 1),
        out if depthwise else 1, residual, activation, in_block, BLOCK, output, DOT or "bf16x512",
    )  # fmt: skip


def test_a_half_is_the_upper_bits_of_a_number_rounded_half_to_even() -> None:
    value = torch.tensor([1.0, 1.00390625, 1.01171875, -3.0])  # one, one and a half a step of 1/128 more, …
    stored = reference.halves(value).numpy()
    assert [hex(bits) for bits in stored.tolist()] == ["0x3f80", "0x3f80", "0x3f82", "0xc040"]
    assert reference.numbers(stored).tolist() == [1.0, 1.0, 1.015625, -3.0]


def float16(w: HalfConv2d) -> HalfConv2d:
    return replace(w, dot=FMLA, output="float16" if w.output == "uint16" else w.output)


def test_the_key_of_a_convolution_of_halves_reads_back() -> None:
    w = conv(residual=True)
    assert from_key(key(w)) == w
    assert dtypes(w) == ("uint16", "uint16", "uint16", "float32", "uint16")
    assert dtypes(conv(depthwise=True, channels=64)) == ("uint16", "float32", "float32", "uint16")
    assert dtypes(float16(w)) == ("float16", "float16", "float16", "float32", "float16")
    assert (describe(w), describe(float16(w))) == (
        "conv 3x3/1 32→64 @14x14 + residual bf16",
        "conv 3x3/1 32→64 @14x14 + residual fp16",
    )


def test_weights_are_packed_two_input_channels_to_a_word() -> None:
    w = conv(channels=8, out=BLOCK, kernel=1, in_block=8)
    plain = (torch.arange(8 * BLOCK).reshape(BLOCK, 8, 1, 1) % 100).float()
    stored = reference.pack_halves(plain, w)
    assert stored.shape == (1, 1, 1, 1, 4, BLOCK, 2)
    assert reference.numbers(stored)[0, 0, 0, 0, 1, 3].tolist() == [26.0, 27.0]  # channel 3, of the inputs 2 and 3
    assert torch.equal(reference.unpack_halves(stored, w), plain)


def test_weights_of_float16_are_packed_like_those_of_float32() -> None:
    w = float16(conv(channels=8, out=BLOCK, kernel=1, in_block=8))
    plain = (torch.arange(8 * BLOCK).reshape(BLOCK, 8, 1, 1) % 100).float()
    stored = reference.pack_halves(plain, w)
    assert (stored.dtype, stored.shape) == (np.float16, (1, 1, 1, 1, 8, BLOCK))
    assert stored[0, 0, 0, 0, 2, 3] == 26.0  # channel 3, of the input 2
    assert torch.equal(reference.unpack_halves(stored, w), plain)


def test_outputs_agree_to_a_step_of_the_largest_number() -> None:
    wanted = reference.halves(torch.tensor([1.0, 0.5])).numpy()
    near = reference.halves(torch.tensor([1.0078125, 0.5])).numpy()
    far = reference.halves(torch.tensor([1.015625, 0.5])).numpy()
    assert reference.agrees(near, wanted, reference.HALF_TOLERANCE) == ""
    assert reference.agrees(far, wanted, reference.HALF_TOLERANCE) == "differs from PyTorch by 0.0156 of its magnitude"


def test_processors_are_asked_before_an_instruction_is_used() -> None:
    assert dots.of_target(find("linux-arm64:neoverse-v1"), "bf16") == "bfdot"
    assert dots.of_target(find("android-arm64:cortex-a76"), "bf16") == ""
    assert dots.of_target(find("linux-x86_64"), "bf16") == ""
    assert dots.of_target(find("android-arm64:cortex-a76"), "fp16") == FMLA
    assert dots.of_target(find("linux-arm64:cortex-a72"), "fp16") == ""
    with pytest.raises(UserError, match="no instruction that multiplies bfloat16: bf16 would be no faster there"):
        layout_in("bf16", find("linux-x86_64"))


@pytest.mark.parametrize(
    "workload",
    [
        float16(conv()),
        float16(conv(stride=2, residual=True, activation="relu")),
        float16(conv(activation="hardswish", output="float32")),
        float16(conv(channels=4, out=32, kernel=7, stride=2, size=28, in_block=4)),
        float16(conv(channels=64, out=64, depthwise=True, activation="relu6")),
        float16(conv(channels=128, out=96, kernel=1, size=1, output="float32")),
        Elementwise(("to_float16", ("in", 0)), (((1, 30, 9, 9), BLOCK),), (1, 30, 9, 9), BLOCK),
        Elementwise(("from_float16", ("in", 0)), (((1, 30, 9, 9), BLOCK),), (1, 30, 9, 9), 0),
        Elementwise(("from_float16", ("to_float16", ("in", 0))), (((1, 30), 0),), (1, 30), 0),
    ],
    ids=key,
)
def test_programs_of_float16_compute_what_pytorch_does(workload: Workload) -> None:
    agrees_with_pytorch(workload, 2)


@multiplies_halves
@pytest.mark.parametrize(
    "workload",
    [
        conv(),
        conv(stride=2, residual=True),
        conv(residual=True, activation="relu"),
        conv(activation="hardswish", output="float32"),
        conv(channels=4, out=32, kernel=7, stride=2, size=28, in_block=4),
        conv(channels=64, out=64, depthwise=True),
        conv(channels=64, out=64, depthwise=True, stride=2, activation="relu6"),
        conv(channels=128, out=96, kernel=1, size=1, output="float32"),
        Elementwise(("halve", ("in", 0)), (((1, 30, 9, 9), BLOCK),), (1, 30, 9, 9), BLOCK),
        Elementwise(("halve", ("in", 0)), (((1, 3, 9, 9), 0),), (1, 3, 9, 9), 4),
        Elementwise(("widen", ("in", 0)), (((1, 30, 9, 9), BLOCK),), (1, 30, 9, 9), 0),
        Elementwise(("widen", ("halve", ("in", 0))), (((1, 30), 0),), (1, 30), 0),
        Elementwise(
            ("halve", ("cat", 1, ((("widen", ("in", 0)), 24), (("in", 1), 8)))),
            (((1, 24, 5, 5), BLOCK), ((1, 8, 5, 5), BLOCK)),
            (1, 32, 5, 5),
            BLOCK,
        ),
    ],
    ids=key,
)
def test_programs_compute_what_pytorch_does(workload: Workload) -> None:
    agrees_with_pytorch(workload, 3)


def test_what_layers_read_and_what_sums_add_is_rounded_and_so_are_weights() -> None:
    model, images = residual()
    network = halved(capture(model, (images[:1],)), (images[:1],))
    rounded = [node.name for node in network.nodes if node.name.endswith(".half")]
    assert rounded == ["x.half", "relu.half", "relu_1.half", "max_pool2d.half", "mean.half"]
    weights = {name: tensor for name, tensor in network.tensors().items() if name.endswith("weight")}
    kept = [name for name, tensor in weights.items() if not torch.equal(tensor, tensor.bfloat16().float())]
    assert kept == ["depthwise.weight"]
    with torch.no_grad():
        apart = (network(images) - model(images)).abs().max()
        assert 0 < apart < 0.02 * model(images).abs().max()


def test_layers_that_are_named_stay_in_float32() -> None:
    model, images = residual()
    network = halved(capture(model, (images[:1],)), (images[:1],), floats=("first", "linear"))
    weight = network.tensors()["first.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())
    assert not any(node.name == "mean.half" for node in network.nodes)


def test_a_halved_network_is_saved_and_read(tmp_path: Path) -> None:
    model, images = residual()
    network = halved(capture(model, (images[:1],)), (images[:1],))
    saving.save(network, tmp_path)
    again = saving.load(tmp_path)
    assert precision(again) == "bf16"
    with torch.no_grad():
        assert torch.equal(again(images), network.eval()(images))


def test_a_halved_network_is_written_as_others_read_it(tmp_path: Path) -> None:
    model, images = residual()
    network = halved(capture(model, (images[:1],)), (images[:1],)).eval()
    write(network, tmp_path / "model.onnx", ["image"], ["scores"], (images[:1],))
    assert runtime_difference(tmp_path / "model.onnx", network, (images[:1],)) < 0.01


@multiplies_halves
@pytest.mark.parametrize(
    ("model", "convs"),
    [(residual()[0], 5), (Fire().eval(), 4), (Branches().eval(), 6)],
    ids=["residual", "fire", "gate"],
)
def test_a_network_in_bfloat16_is_compiled_to_what_pytorch_computes(model: nn.Module, convs: int) -> None:
    torch.manual_seed(1)
    images = torch.randn(1, 3, 16, 16)
    network = halved(capture(model, (images,)), (images,)).eval()
    tuned, output = compiled(network, (images,))
    kinds = Counter(type(call.workload).__name__ for call in tuned.lowered.calls)
    assert kinds["HalfConv2d"] == convs
    assert precision_of(tuned.lowered.layout) == "bf16"
    with torch.no_grad():
        wanted = network(images).numpy()
    assert np.abs(output - wanted).max() < 0.01 * np.abs(wanted).max()


@multiplies_halves
def test_every_value_in_bfloat16_is_compared_with_what_pytorch_simulates() -> None:
    model, images = residual()
    network = halved(capture(model, (images[:1],)), (images[:1],)).eval()
    with Store("sqlite://") as store, LocalSession(TARGET) as session:
        tuned = tune(network, (images[:1],), Tuner(session, store, TARGET, 0), 1, Progress())
        compared = list(as_simulated(tuned, session))
        bias = next(array for name, array in tuned.lowered.weights.items() if name.startswith("first.bias"))
        bias += 1.0
        wrong = list(as_simulated(tuned, session))
    names = ["x.half", "relu.single", "relu_1.single", "max_pool2d.half", "mean.half"]
    assert [one.value for one in compared] == names
    assert max(one.steps or 0 for one in compared) <= 1
    assert [one.value for one in wrong if (one.steps or 0) > 1] == ["relu_1.single"]


def test_where_no_bfloat16_is_multiplied_the_same_network_is_compiled_in_floats() -> None:
    model, images = residual()
    network = halved(capture(model, (images[:1],)), (images[:1],)).eval()
    calls = lower(network, (images[:1],), Layout(BLOCK)).calls
    assert all(not dtypes(call.workload) for call in calls)


def test_arm_programs_are_written_for_its_instruction() -> None:
    target = find("linux-arm64:neoverse-v1")
    dot = dots.of_target(target, "bf16")
    w = HalfConv2d(
        1, 16, 8, 8, 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "none", 8, 8, "uint16", dot
    )  # fmt: skip
    candidate = Candidate.of(oc_tile=2, oh_tile=1, ow_tile=4, rows=8, parallel="none", pad="inside", unroll=0)
    assert "\tbfdot\t" in assembly(w, candidate, target)
    text = assembly(replace(w, dot=FMLA, output="float16"), candidate, find("android-arm64:cortex-a76"))
    assert re.search(r"\tfmla\tv\d+\.8h, v\d+\.8h, v\d+\.h\[\d\]", text)


def test_a_network_in_float16_is_compiled_to_what_pytorch_computes_on_processors_without_it_too() -> None:
    model, images = residual()
    network = halved(capture(model, (images[:1],)), (images[:1],), precision="fp16").eval()
    kept = [n for n, t in network.tensors().items() if n.endswith("weight") and not torch.equal(t, t.half().float())]
    assert (kept, precision(network)) == ([], "fp16")
    lowered = lower(network, (images[:1],), Layout(8, dot=FMLA))
    halves = [call.workload for call in lowered.calls if isinstance(call.workload, HalfConv2d)]
    assert len(halves) == 5
    assert {kind for w in halves for kind in dtypes(w)} == {"float16", "float32"}
    tuned, output = compiled(network, (images[:1],))  # this processor does not multiply float16
    assert not any(isinstance(call.workload, HalfConv2d) for call in tuned.lowered.calls)
    with torch.no_grad():
        wanted = network(images[:1]).numpy()
    assert np.abs(output - wanted).max() < 0.01 * np.abs(wanted).max()


@multiplies_halves
def test_layers_that_are_faster_in_float32_stay_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = residual()
    network = capture(model, (images[:1],))
    with Store("sqlite://") as store, LocalSession(TARGET) as session:
        tuner = Tuner(session, store, TARGET, 0)
        found = fastest(network, (images[:1],), session, tuner, 1, Progress())
        monkeypatch.setattr("cprune.compiling.halves_or_floats.CLEARLY", 0.0)
        halves = fastest(network, (images[:1],), session, tuner, 1, Progress())
    assert halves.floats == ()
    layers = {node.name for node in network.nodes if node.name in layers_of(network, (images[:1],))}
    assert len(found.floats) <= len(layers)
    assert halves_of(found.tuned.lowered).isdisjoint(found.floats)


class Forked(nn.Module):
    """Two convolutions that read one value, whose results are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.left, self.right = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return torch.cat([self.left(x), self.right(x)], 1).mean((2, 3))


@pytest.mark.parametrize(("bits", "dot"), [("bf16", "bf16x512"), ("fp16", FMLA)])
def test_a_layer_in_float32_may_read_what_a_neighbour_has_rounded(bits: str, dot: str) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 8, 8)
    network = halved(capture(Forked().eval(), (image,)), (image,), ("left",), bits).eval()
    lowered = lower(network, (image,), Layout(16, dot=dot))
    assert halves_of(lowered) == {"stem", "right"}
    (left,) = [call.workload for call in lowered.calls if call.layers == ("left",)]
    assert type(left) is Conv2d


def halves_of(lowered: Lowered) -> set[str]:
    """Return the layers of 16 bits, but for depthwise ones."""
    convs = [call for call in lowered.calls if isinstance(call.workload, HalfConv2d) and not call.workload.depthwise]
    return {call.layers[0] for call in convs}


@pytest.mark.slow
@multiplies_halves
def test_a_model_is_tuned_in_bfloat16_without_data_and_its_folder_is_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, records = str(tmp_path / "compiled"), str(tmp_path / "records.sqlite")
    given = ["tune", "-m", "small_nets:tiny", "--precision", "bf16", "--trials", "2"]
    assert cli.main([*given, "--records", records, "--out", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["precision"] == "bf16"
    assert "accuracy" not in told
    assert cli.main(["verify", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_difference"] < 0.03
