"""ONNX files in integers (QDQ): read as the rounding that they are, written as others run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime import quantization
from test_integers import residual
from test_onnx_read import array, model, node, read, refused, run

from cprune.models.formats.onnx import opened, runtime_difference, write
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.network.node import operator_name
from cprune.network.precision import precision
from cprune.network.quantizing import quantized, quantized_weight

PAIR = [node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "q scale zero", "y")]
X = torch.arange(32, dtype=torch.float32).reshape(1, 2, 4, 4) - 16


def steps(zero: Any) -> dict[str, Any]:
    return {"scale": array(0.5), "zero": zero}


def test_a_pair_around_a_value_rounds_it(tmp_path: Path) -> None:
    y = run(model(PAIR, steps(np.uint8(10))), tmp_path, X + 0.2)
    assert y[0, 0, 0].tolist() == [-5.0, -5.0, -5.0, -5.0]  # ten steps of a half below zero is the lowest byte
    assert y[0, 1, 0].tolist() == [0.0, 1.0, 2.0, 3.0]  # 0.2 is nearer to 0 than to a half


def test_signed_bytes_are_the_same_steps_moved_by_128(tmp_path: Path) -> None:
    made = model(PAIR, steps(np.int8(-118)))
    assert torch.equal(run(made, tmp_path, X + 0.2), run(model(PAIR, steps(np.uint8(10))), tmp_path, X + 0.2))


def test_without_a_zero_point_bytes_begin_at_zero(tmp_path: Path) -> None:
    pair = [node("QuantizeLinear", "x scale", "q"), node("DequantizeLinear", "q scale", "y")]
    assert run(model(pair, {"scale": array(0.5)}), tmp_path, X)[0, 0].max() == 0


def test_bytes_with_a_scale_are_a_weight_of_their_name(tmp_path: Path) -> None:
    whole = np.array([[1, -2], [3, 127]], np.int8).reshape(2, 2, 1, 1)
    nodes = [node("DequantizeLinear", "kernel s z", "w", axis=0), node("Conv", "x w", "y")]
    given = {"kernel": whole, "s": array([0.5, 2.0]), "z": np.zeros(2, np.int8)}
    network = read(model(nodes, given), tmp_path).model
    assert [name for name, _ in network.named_parameters()] == ["kernel"]
    assert network.get_parameter("kernel").flatten().tolist() == [0.5, -1.0, 6.0, 254.0]


def test_a_pair_around_a_weight_rounds_it_once(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", "w s z", "q", axis=0),
        node("DequantizeLinear", "q s z", "r", axis=0),
        node("Conv", "x r", "y"),
    ]
    weight = array([[0.6, -1.1], [1.2, 2.9]]).reshape(2, 2, 1, 1)
    given = {"w": weight, "s": array([0.5, 2.0]), "z": np.zeros(2, np.int8)}
    network = read(model(nodes, given), tmp_path).model
    assert network.get_parameter("w").flatten().tolist() == [0.5, -1.0, 2.0, 2.0]


@pytest.mark.parametrize("zero", [np.uint16(10), np.uint8(3)], ids=["16 bits", "another zero point"])
def test_a_pair_that_is_none_is_named(tmp_path: Path, zero: Any) -> None:
    other = [PAIR[0], node("DequantizeLinear", "q scale other", "y")]
    given = {**steps(zero), "other": zero if zero.dtype == np.uint16 else np.uint8(10)}
    assert "stands alone" in refused(model(other, given, opset=21), tmp_path)


def a_network() -> tuple[Network, torch.Tensor]:
    torchs, images = residual()
    return quantized(capture(torchs, (images[:1],)), [(images,)]).eval(), images


def test_what_is_written_is_of_bytes_and_others_answer_as_we_do(tmp_path: Path) -> None:
    network, images = a_network()
    path = tmp_path / "model.onnx"
    write(network, path, ["image"], ["scores"], (images[:1],))
    graph = onnx.load(path).graph
    makers = {name: each for each in graph.node for name in each.output}
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    layers = [each for each in graph.node if each.op_type in ("Conv", "Gemm")]
    assert len(layers) == 5
    for layer in layers:
        assert kinds[makers[layer.input[1]].input[0]] == onnx.TensorProto.INT8
        if len(layer.input) > 2:
            assert kinds[makers[layer.input[2]].input[0]] == onnx.TensorProto.INT32
    assert runtime_difference(path, network, (images[:1],)) < 0.02


def test_what_was_written_is_read_as_the_same_network(tmp_path: Path) -> None:
    network, images = a_network()
    path = tmp_path / "model.onnx"
    write(network, path, ["image"], ["scores"], (images[:1],))
    again = opened(path)
    back = capture(again.model, again.example_inputs)
    assert precision(back) == "int8"
    roundings = [sum(operator_name(n).startswith("fake_quantize") for n in each.nodes) for each in (network, back)]
    assert roundings[0] == roundings[1]
    with torch.no_grad():
        assert torch.allclose(back(images[:1]), network(images[:1]), atol=1e-3)


def test_a_file_that_onnx_runtime_quantized_answers_as_there(tmp_path: Path) -> None:
    torchs, images = residual()
    plain = capture(torchs, (images[:1],))
    write(plain, tmp_path / "plain.onnx", ["image"], ["scores"], (images[:1],))

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"image": image[None].numpy()} for image in images]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    quantization.quantize_static(
        str(tmp_path / "plain.onnx"), str(tmp_path / "int8.onnx"), Images(), per_channel=True,
        quant_format=quantization.QuantFormat.QDQ, activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"image": images[:1].numpy()})
    again = opened(tmp_path / "int8.onnx")
    network = capture(again.model, again.example_inputs).eval()
    assert precision(network) == "int8"
    with torch.no_grad():
        ours = network(images[:1]).numpy()
        before = plain(images[:1]).numpy()
    assert np.abs(ours - theirs).max() < 0.5 * np.abs(theirs - before).max()
    weight = next(value for value in network.parameters() if value.dim() == 4)
    whole, scale = quantized_weight(weight)
    assert torch.allclose((whole * scale.reshape(-1, 1, 1, 1)).float(), weight, rtol=1e-5)
