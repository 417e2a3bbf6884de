"""An ONNX file becomes the model it describes, or is refused with what is wrong with it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cprune.channels.groups import analyse
from cprune.models.formats.onnx import opened
from cprune.models.opened import Opened
from cprune.network.capture import capture
from cprune.targets.errors import UserError

X = ("N", 2, 4, 4)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), name=f"the_{kind}", **attributes)


def info(name: str, shape: Any = X, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def array(values: Any, dtype: Any = np.float32) -> Any:
    return np.array(values, dtype)


def model(
    nodes: list[onnx.NodeProto], weights: dict[str, Any] | None = None, inputs: Any = None, opset: int = 17
) -> onnx.ModelProto:
    """A model from x, unless `inputs` say other, to y."""
    arrays = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs or [info("x")], [info("y", None)], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def read(made: onnx.ModelProto, folder: Path, **options: Any) -> Opened:
    onnx.save(made, folder / "m.onnx")
    return opened(folder / "m.onnx", **options)


def run(made: onnx.ModelProto, folder: Path, *inputs: Any, **options: Any) -> Any:
    with torch.no_grad():
        return read(made, folder, **options).model(*(torch.as_tensor(x) for x in inputs))


def refused(made: onnx.ModelProto, folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as told:
        read(made, folder, **options)
    return str(told.value)


def convolution(**attributes: Any) -> onnx.ModelProto:
    weight = np.arange(3 * 2 * 3 * 3, dtype=np.float32).reshape(3, 2, 3, 3)
    return model([node("Conv", "x conv1.weight conv1.bias", "y", **attributes)],
                 {"conv1.weight": weight, "conv1.bias": array([1, 2, 3])})  # fmt: skip


ONES = torch.ones(1, 2, 4, 4)


# -- what it computes


def test_a_convolution_sums_weights_and_bias(tmp_path: Path) -> None:
    y = run(convolution(), tmp_path, ONES)
    assert y.shape == (1, 3, 2, 2)
    assert y[0, :, 0, 0].tolist() == [sum(range(18)) + 1, sum(range(18, 36)) + 2, sum(range(36, 54)) + 3]


def test_same_upper_pads_the_odd_one_behind(tmp_path: Path) -> None:
    made = model([node("Conv", "x w", "y", auto_pad="SAME_UPPER")], {"w": np.ones((1, 2, 2, 2), np.float32)})
    y = run(made, tmp_path, ONES)
    assert y[0, 0, :, 0].tolist() == [8, 8, 8, 4]
    made = model([node("Conv", "x w", "y", auto_pad="SAME_LOWER")], {"w": np.ones((1, 2, 2, 2), np.float32)})
    assert run(made, tmp_path, ONES)[0, 0, :, -1].tolist() == [4, 8, 8, 8]


def test_pads_may_differ_at_every_side(tmp_path: Path) -> None:
    made = model([node("Conv", "x w", "y", pads=[0, 1, 2, 3])], {"w": np.ones((1, 2, 1, 1), np.float32)})
    y = run(made, tmp_path, ONES)
    assert y.shape == (1, 1, 6, 8)
    assert y[0, 0].sum(1).tolist() == [8, 8, 8, 8, 0, 0]
    assert y[0, 0].sum(0).tolist() == [0, 8, 8, 8, 8, 0, 0, 0]


def test_an_average_leaves_padding_out_unless_told_to_count_it(tmp_path: Path) -> None:
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    out = run(model([node("AveragePool", "x", "y", **pool)]), tmp_path, ONES)
    counted = run(model([node("AveragePool", "x", "y", count_include_pad=1, **pool)]), tmp_path, ONES)
    assert out[0, 0, 0].tolist() == [1, 1, 1]
    assert counted[0, 0, 0].tolist() == [0.25, 0.5, 0.25]


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ({"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, [0, 0, 1, 1]),
        ({"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil"}, [0, 1, 1, 1]),
        ({"mode": "linear", "coordinate_transformation_mode": "half_pixel"}, [0, 0.25, 0.75, 1]),
        ({"mode": "linear", "coordinate_transformation_mode": "asymmetric"}, [0, 0.5, 1, 1]),
        ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, [0, 1 / 3, 2 / 3, 1]),
    ],
)
def test_resize_has_all_its_rules(tmp_path: Path, how: dict[str, str], wanted: list[float]) -> None:
    made = model([node("Resize", "x  scales", "y", **how)], {"scales": array([1, 1, 1, 2])}, [info("x", (1, 1, 1, 2))])
    made.graph.node[0].input[:] = ["x", "", "scales"]
    assert run(made, tmp_path, array([[[[0, 1]]]])).flatten().tolist() == pytest.approx(wanted)


def test_a_batch_norm_uses_the_files_statistics(tmp_path: Path) -> None:
    numbers = {"scale": array([2, 2]), "shift": array([1, 1]), "mean": array([1, 0]), "var": array([1, 1])}
    y = run(model([node("BatchNormalization", "x scale shift mean var", "y", epsilon=0.0)], numbers), tmp_path, ONES)
    assert y[0, :, 0, 0].tolist() == [1, 3]


def test_an_lstm_has_its_gates_sorted_for_pytorch(tmp_path: Path) -> None:
    # One number in, one out; only the cell's gate (the last of ONNX's four) sees the input.
    weights = {"w": array([[[0], [0], [0], [1]]]), "r": np.zeros((1, 4, 1), np.float32)}
    made = model([node("LSTM", "x w r", "y h c", hidden_size=1)], weights, [info("x", (1, 1, 1))])
    y = run(made, tmp_path, array([[[1.0]]]))
    assert y.shape == (1, 1, 1, 1)
    assert float(y) == pytest.approx(0.5 * np.tanh(0.5 * np.tanh(1)))


def test_a_recurrent_layer_with_a_state_of_the_wrong_size_is_refused_before_pytorch_runs_it(tmp_path: Path) -> None:
    weights = {"w": np.zeros((1, 4, 1), np.float32), "r": np.zeros((1, 4, 1), np.float32)}
    weights["h"] = np.zeros((1, 7, 1), np.float32)
    lstm = helper.make_node("LSTM", ["x", "w", "r", "", "", "h"], ["y"], hidden_size=1)
    assert "state of 1 x 7 x 1, not 1 x 2 x 1" in refused(model([lstm], weights, [info("x", (3, 2, 1))]), tmp_path)


def test_softmax_was_over_all_the_last_axes_before_opset_13(tmp_path: Path) -> None:
    old, new = (run(model([node("Softmax", "x", "y", axis=1)], opset=o), tmp_path, ONES) for o in (11, 13))
    assert float(old[0, 0, 0, 0]) == pytest.approx(1 / 32)
    assert float(new[0, 0, 0, 0]) == pytest.approx(1 / 2)


def test_half_precision_is_computed_in_float32(tmp_path: Path) -> None:
    made = model([node("Add", "x c", "y")], {"c": array(1, np.float16)}, [info("x", (1, 2), TensorProto.FLOAT16)])
    found = read(made, tmp_path)
    assert found.example_inputs[0].dtype == found.model(*found.example_inputs).dtype == torch.float32


# -- as a module that is pruned


def test_weights_are_parameters_under_their_names(tmp_path: Path) -> None:
    found = read(convolution(), tmp_path)
    assert [name for name, _ in found.model.named_parameters()] == ["conv1.weight", "conv1.bias"]
    assert found.input_names == ("x",)
    assert found.output_names == ("y",)


def test_names_that_python_cannot_hold_are_changed_and_stay_apart(tmp_path: Path) -> None:
    one = np.ones((2, 2, 1, 1), np.float32)
    weights = {"a/b:0": one, "a_b_0": 2 * one, "forward": 3 * one}
    nodes = [node("Conv", "x a/b:0", "p"), node("Conv", "p a_b_0", "q"), node("Conv", "q forward", "y")]
    assert list(read(model(nodes, weights), tmp_path).model.state_dict()) == ["a_b_0", "a_b_0_2", "forward_"]


def test_the_batch_stays_open(tmp_path: Path) -> None:
    flat = [node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Unsqueeze", "n first", "n1"),
            node("Concat", "n1 rest", "to", axis=0), node("Reshape", "x to", "y")]  # fmt: skip
    integers = {"zero": array(0, np.int64), "first": array([0], np.int64), "rest": array([-1], np.int64)}
    found = read(model(flat, integers), tmp_path)
    network = capture(found.model, found.example_inputs)
    assert network(torch.zeros(5, 2, 4, 4)).shape == (5, 32)


def test_a_product_and_a_sum_are_a_linear_layer(tmp_path: Path) -> None:
    weights = {"fc.weight": array([[1, 2, 3], [4, 5, 6]]), "fc.bias": array([10, 20, 30])}
    nodes = [node("MatMul", "x fc.weight", "p"), node("Add", "p fc.bias", "y")]
    found = read(model(nodes, weights, [info("x", ("N", 2))]), tmp_path)
    assert found.model(torch.ones(1, 2)).tolist() == [[15, 27, 39]]
    network = capture(found.model, found.example_inputs)
    assert [n.op for n in network.nodes if n.op.startswith("aten")] == ["aten.linear.default"]
    assert network.state_dict()["fc.weight"].tolist() == [[1, 4], [2, 5], [3, 6]]


def test_equal_biases_of_two_layers_do_not_tie_them(tmp_path: Path) -> None:
    one = np.ones((2, 2, 1, 1), np.float32)
    nodes = [node("Conv", "x a.weight zero", "p"), node("Relu", "p", "q"), node("Conv", "q b.weight zero", "y")]
    found = read(model(nodes, {"a.weight": one, "b.weight": 2 * one, "zero": array([0, 0])}), tmp_path)
    graph = analyse(capture(found.model, found.example_inputs), found.example_inputs, raise_bugs=True)
    assert [(g.id, g.channels) for g in graph.groups] == [("a", 2)]


def test_reasons_name_the_operator_of_the_file(tmp_path: Path) -> None:
    made = model(
        [node("Conv", "x w", "p"), node("Softmax", "p", "y", axis=1)], {"w": np.ones((3, 2, 1, 1), np.float32)}
    )
    found = read(made, tmp_path)
    (frozen,) = analyse(capture(found.model, found.example_inputs), found.example_inputs, raise_bugs=True).frozen
    assert frozen.reason == "aten.softmax.int (the_Softmax in m.onnx:2) works across channels"


# -- branches and constants


def choice(
    condition: list[onnx.NodeProto], weights: dict[str, Any] | None = None, inputs: Any = None
) -> onnx.ModelProto:
    branches = {
        f"{name}_branch": helper.make_graph([node(kind, "x", "out")], name, [], [info("out", None)])
        for name, kind in (("then", "Neg"), ("else", "Identity"))
    }
    return model([*condition, helper.make_node("If", ["if"], ["y"], **branches)], weights, inputs)


def test_an_if_on_a_constant_takes_its_branch(tmp_path: Path) -> None:
    for value, wanted in ((True, -1), (False, 1)):
        y = run(choice([], {"if": array(value, np.bool_)}), tmp_path, ONES)
        assert float(y.mean()) == wanted


def test_an_if_on_a_shape_takes_its_branch(tmp_path: Path) -> None:
    nodes = [node("Shape", "x", "s"), node("Gather", "s two", "height"), node("Equal", "height four", "if")]
    numbers = {"two": array(2, np.int64), "four": array(4, np.int64)}
    assert float(run(choice(nodes, numbers), tmp_path, ONES).mean()) == -1
    numbers["four"] = array(5, np.int64)
    assert float(run(choice(nodes, numbers), tmp_path, ONES).mean()) == 1


def test_an_if_without_two_fitting_branches_is_refused(tmp_path: Path) -> None:
    made = choice([], {"if": array(True, np.bool_)})
    made.graph.node[0].output.append("more")
    assert "If (number 1) has no condition, or not two fitting branches" in refused(made, tmp_path)
    made = choice([], {"if": array(True, np.bool_)})
    del made.graph.node[0].attribute[0]
    assert "not two fitting branches" in refused(made, tmp_path)


def test_an_if_on_an_input_needs_that_input_fixed(tmp_path: Path) -> None:
    inputs = [info("x"), info("rate", [], TensorProto.INT64)]
    made = choice([node("Equal", "rate wide", "if")], {"wide": array(16000, np.int64)}, inputs)
    assert "chooses by the numbers of an input" in refused(made, tmp_path)
    found = read(made, tmp_path, fixed={"rate": 16000})
    assert found.input_names == ("x",)
    assert float(found.model(ONES).mean()) == -1


def test_open_sizes_are_given_by_name(tmp_path: Path) -> None:
    made = model([node("Relu", "x", "y")], inputs=[info("x", ("N", 3, "H", "W"))])
    assert "Say it with --input x=1,3,SIZE,SIZE" in refused(made, tmp_path)
    assert read(made, tmp_path, shapes={"x": (1, 3, 8, 6)}).example_inputs[0].shape == (1, 3, 8, 6)
    assert "unknown input" in refused(made, tmp_path, shapes={"z": (1,)})
    assert "is ? x 3 x ? x ?, not 1 x 4 x 8 x 8" in refused(made, tmp_path, shapes={"x": (1, 4, 8, 8)})
    assert "not 1 x 3" in refused(made, tmp_path, shapes={"x": (1, 3)})
    assert "cannot have the shape 1 x 3 x -1 x 8" in refused(made, tmp_path, shapes={"x": (1, 3, -1, 8)})
    assert "is float32 ? x 3 x ? x ?, not" in refused(made, tmp_path, fixed={"x": [1.0, 2.0]})


# -- what is refused


def test_operators_that_are_not_done_are_named(tmp_path: Path) -> None:
    assert "does not know: Frobnicate (the first is Frobnicate 'the_Frobnicate', which makes 'y')" in refused(
        model([node("Frobnicate", "x", "y")]), tmp_path
    )
    theirs = helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft")
    assert "com.microsoft.FusedConv ('y'), which is not one of ONNX's own" in refused(model([theirs]), tmp_path)
    quantised = node("QuantizeLinear", "x scale", "y")
    assert "the operator QuantizeLinear 'the_QuantizeLinear' stands alone" in refused(
        model([quantised], {"scale": array(1.0)}), tmp_path
    )
    integers = node("ConvInteger", "x w", "y")
    assert "computes in integers itself: give the model with QuantizeLinear and DequantizeLinear" in refused(
        model([integers], {"w": array(1.0)}), tmp_path
    )
    assert "as many numbers as its input has" in refused(model([node("NonZero", "x", "y")]), tmp_path)


def test_an_operator_that_does_not_fit_its_input_is_named(tmp_path: Path) -> None:
    made = model([node("Conv", "x w", "y")], {"w": np.ones((3, 5, 1, 1), np.float32)})
    assert "the operator Conv 'the_Conv' fails on float32 1 x 2 x 4 x 4, float32 3 x 5 x 1 x 1" in refused(
        made, tmp_path
    )
    assert "lacks the attribute kernel_shape" in refused(model([node("MaxPool", "x", "y")]), tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, bad: float) -> None:
    weight = np.ones((3, 2, 1, 1), np.float32)
    weight[1, 1] = bad
    assert "the tensor 'conv.weight' holds NaN" in refused(
        model([node("Conv", "x conv.weight", "y")], {"conv.weight": weight}), tmp_path
    )


def test_a_cycle_and_names_of_nothing_are_refused(tmp_path: Path) -> None:
    cycle = [node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")]
    assert "Add 'the_Add' reads 'b', which nothing before it makes" in refused(model(cycle), tmp_path)
    assert "reads 'z', which nothing" in refused(model([node("Relu", "z", "y")]), tmp_path)
    assert "nothing makes its output 'y'" in refused(model([node("Relu", "x", "z")]), tmp_path)
    twice = [node("Relu", "x", "y"), node("Neg", "x", "y")]
    assert "the name 'y' is made twice" in refused(model(twice), tmp_path)


def test_opsets_that_are_too_old_or_too_new_are_refused(tmp_path: Path) -> None:
    assert "opset 6; cprune reads 7 and newer" in refused(model([node("Relu", "x", "y")], opset=6), tmp_path)
    assert "opset 999; onnx" in refused(model([node("Relu", "x", "y")], opset=999), tmp_path)


def test_a_tensor_out_of_nothing_has_a_limit(tmp_path: Path) -> None:
    made = model(
        [node("ConstantOfShape", "huge", "h"), node("Add", "x h", "y")], {"huge": array([10**9, 10**9], np.int64)}
    )
    assert "makes a tensor of 1000000000 x 1000000000" in refused(made, tmp_path)


WHOLE = convolution().SerializeToString()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.onnx"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(UserError, match=r"m\.onnx"):
        opened(path)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_file_with_a_wrong_byte_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int
) -> None:
    path = tmp_path_factory.mktemp("wrong") / "m.onnx"
    path.write_bytes(WHOLE[:place] + bytes([WHOLE[place] ^ change]) + WHOLE[place + 1 :])
    with contextlib.suppress(UserError):  # and nothing else
        opened(path)


def test_files_that_are_no_onnx_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for content in (b"", b"\0" * 1000, b"PK\3\4 a zip file", b"x" * 1000, np.random.default_rng(0).bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"m\.onnx"):
            opened(path)
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        opened(tmp_path / "none.onnx")
    with pytest.raises(UserError, match="cannot read"):
        opened(tmp_path)


def test_gigabytes_are_refused_without_reading_them(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for first, words in ((b"", "begins with zeros"), (WHOLE, "an ONNX file has 2 GiB at most")):
        with path.open("wb") as file:
            file.write(first)
            file.truncate(5 * 2**30)
        with pytest.raises(UserError, match=words):
            opened(path)


# -- weights beside the file


def beside(folder: Path) -> onnx.ModelProto:
    onnx.save(convolution(), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return onnx.load(folder / "m.onnx", load_external_data=False)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    beside(tmp_path)
    assert opened(tmp_path / "m.onnx").model.state_dict()["conv1.bias"].tolist() == [1, 2, 3]


def test_weights_beside_the_file_must_be_there(tmp_path: Path) -> None:
    beside(tmp_path)
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(data[:-4])
    with pytest.raises(UserError, match=r"m\.data is cut off: the weights of 'conv1\.bias' end at byte"):
        opened(tmp_path / "m.onnx")
    (tmp_path / "m.data").unlink()
    with pytest.raises(UserError, match=r"keeps the weights of 'conv1\.weight' in m\.data, which is missing"):
        opened(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["../m.data", "/etc/passwd", "", "link"])
def test_weights_outside_the_files_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    made = beside(folder)
    (tmp_path / "m.data").write_bytes((folder / "m.data").read_bytes())
    (folder / "link").symlink_to(tmp_path / "m.data")
    for tensor in made.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(UserError, match="lie outside its folder"):
        opened(folder / "m.onnx")
