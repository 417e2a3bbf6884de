"""A network is written as ONNX under the names it was read with, and computes the same there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cprune.channels.groups import analyse
from cprune.channels.surgery import prune
from cprune.models.formats.onnx import opened, runtime_difference, write
from cprune.models.opened import Opened
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.targets.errors import UserError


def residual(path: Path) -> Opened:
    """A small residual network as other exporters write it, with a batch of any size."""
    draw = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape).astype(np.float32)

    weights = {"stem.weight": weight(6, 3, 3, 3), "body.weight": weight(6, 6, 3, 3), "body.bias": weight(6),
               "norm.scale": weight(6), "norm.shift": weight(6), "norm.mean": weight(6), "norm.var": weight(6) ** 2 + 1,
               "head.weight": weight(6, 4), "head.bias": weight(4)}  # fmt: skip
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image:0", "stem.weight"], ["a"], **same),
        helper.make_node("BatchNormalization", ["a", "norm.scale", "norm.shift", "norm.mean", "norm.var"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "body.weight", "body.bias"], ["d"], **same),
        helper.make_node("Add", ["c", "d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("MatMul", ["g", "head.weight"], ["h"]),
        helper.make_node("Add", ["h", "head.bias"], ["scores/logits"]),
    ]
    image = helper.make_tensor_value_info("image:0", TensorProto.FLOAT, ("N", 3, 8, 8))
    scores = helper.make_tensor_value_info("scores/logits", TensorProto.FLOAT, ("N", 4))
    arrays = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "residual", [image], [scores], arrays)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return opened(path)


def put(network: Network, path: Path, model: Opened) -> bool:
    return write(network, path, model.input_names, model.output_names, model.example_inputs)


def names(path: Path) -> tuple[list[str], list[str], set[str]]:
    graph = onnx.load(path).graph
    return [v.name for v in graph.input], [v.name for v in graph.output], {w.name for w in graph.initializer}


def test_a_file_read_pruned_and_written_keeps_names_and_computes_the_same(tmp_path: Path) -> None:
    model = residual(tmp_path / "whole.onnx")
    network = capture(model.model, model.example_inputs)
    assert runtime_difference(tmp_path / "whole.onnx", network, model.example_inputs) < 1e-5

    graph = analyse(network, model.example_inputs, raise_bugs=True)
    assert [(group.id, group.channels) for group in graph.groups] == [("stem", 6)]
    small = prune(network, graph, {"stem": [1, 4]})
    assert put(small, tmp_path / "small.onnx", model)
    inputs, outputs, weights = names(tmp_path / "small.onnx")
    assert (inputs, outputs) == (["image:0"], ["scores/logits"])
    assert {"stem.weight", "body.weight", "body.bias", "head.weight", "head.bias"} <= weights
    assert runtime_difference(tmp_path / "small.onnx", small, model.example_inputs) < 1e-5

    again = opened(tmp_path / "small.onnx")
    for batch in (1, 3):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(again.model(x), small(x))
        assert runtime_difference(tmp_path / "small.onnx", small, (x,)) < 1e-5
    twice = capture(again.model, again.example_inputs)
    assert [(g.id, g.channels) for g in analyse(twice, again.example_inputs, raise_bugs=True).groups] == [("stem", 4)]


class Doubled(nn.Module):
    """Two inputs and two outputs."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a + b, a - b


def test_several_inputs_and_outputs_keep_their_order(tmp_path: Path) -> None:
    x = (torch.ones(1, 2), torch.full((1, 2), 3.0))
    assert write(capture(Doubled(), x), tmp_path / "m.onnx", ["left", "right"], ["sum", "difference"], x)
    assert names(tmp_path / "m.onnx")[:2] == (["left", "right"], ["sum", "difference"])
    total, apart = opened(tmp_path / "m.onnx").model(*x)
    assert (total.tolist(), apart.tolist()) == ([[4, 4]], [[-2, -2]])


class Fixed(nn.Module):
    """Its batch cannot be open."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 6) * 2


def test_a_batch_that_is_closed_stays_closed(tmp_path: Path) -> None:
    x = (torch.ones(2, 2, 3),)
    assert not write(capture(Fixed(), x), tmp_path / "m.onnx", ["x"], ["y"], x)
    (value,) = onnx.load(tmp_path / "m.onnx").graph.input
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [2, 2, 3]


def test_two_states_of_a_recurrent_layer_are_no_batch(tmp_path: Path) -> None:
    class Stateful(nn.Module):
        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return x + state[0], torch.stack([state[1], state[0]])

    example = (torch.ones(1, 4), torch.ones(2, 1, 4))
    write(capture(Stateful(), example), tmp_path / "m.onnx", ["x", "state"], ["y", "next"], example)
    shapes = [tuple(x.shape) for x in opened(tmp_path / "m.onnx").example_inputs]
    assert shapes == [(1, 4), (2, 1, 4)]


def test_names_must_be_as_many_as_inputs_and_outputs_and_differ(tmp_path: Path) -> None:
    x = (torch.ones(1, 2), torch.ones(1, 2))
    network = capture(Doubled(), x)
    for inputs, outputs, words in (
        (["a"], ["c", "d"], r"2 input\(s\), 1 name\(s\)"),
        (["a", "b"], ["c"], r"2 output\(s\), 1 name"),
        (["a", "a"], ["c", "d"], "'a' is none"),
        (["a", "b"], ["b", "c"], "'b' cannot name an input and an output"),
    ):
        with pytest.raises(UserError, match=words):
            write(network, tmp_path / "m.onnx", inputs, outputs, x)
    assert not list(tmp_path.iterdir())


def test_a_network_that_onnx_cannot_hold_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    class Strange(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.airy_ai(x)

    x = (torch.eye(3),)
    with pytest.raises(UserError, match="the network cannot be written as ONNX"):
        write(capture(Strange(), x), tmp_path / "m.onnx", ["x"], ["y"], x)
    assert not list(tmp_path.iterdir())


def test_a_difference_is_seen(tmp_path: Path) -> None:
    model = residual(tmp_path / "m.onnx")
    network = capture(model.model, model.example_inputs)
    with torch.no_grad():
        dict(network.named_parameters())["head.bias"][0] += 0.5
        largest = float(network(*model.example_inputs).abs().max())
    found = runtime_difference(tmp_path / "m.onnx", network, model.example_inputs)
    assert 0.5 / (largest + 0.5) - 1e-3 <= found <= 0.501


def test_without_the_package_it_is_said_what_to_install(tmp_path: Path) -> None:
    residual(tmp_path / "m.onnx")
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from pathlib import Path\n"
        "from cprune.models.formats.onnx import opened\n"
        f"opened(Path({str(tmp_path / 'm.onnx')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "reading ONNX files needs the package onnx\nType: pip install 'cprune[onnx]'" in done.stderr
