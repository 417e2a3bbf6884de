"""Files in integers, as pairs of QuantizeLinear and DequantizeLinear (QDQ): read as rounding, written as bytes.

Read: a pair around a value becomes one operator that rounds it, a pair around a weight, or bytes with a scale, the
weight itself.  So the model is one of numbers, and its form in integers is found again when it is compiled.

Written: PyTorch's exporter makes pairs of the rounding of values; here the weights of layers that read such a pair
become bytes as well, one scale an output channel, and biases whole numbers of 32 bits, the form that runtimes look for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cprune.models.formats.onnx.common import Call
from cprune.models.formats.onnx.read import Operator
from cprune.network.quantizing import HIGHEST, LOWEST, MIDDLE, quantized_weight, to_steps

FAKE = "FakeQuantize"
_BYTES = (torch.uint8, torch.int8)


def without_pairs(operators: Iterable[Operator], known: dict[str, Tensor], origin: dict[str, str]) -> list[Operator]:
    """Return the operators with pairs made one; what becomes of a constant is put into `known`.

    Pairs that are none of one scale and zero point a value, or not of 8 bits, are left as they are.
    """
    left: list[Operator] = []
    makers: dict[str, Operator] = {}
    for operator in operators:
        data = operator.inputs[0] if operator.inputs else ""
        if operator.kind == "QuantizeLinear":
            makers[operator.outputs[0]] = operator
        elif operator.kind == "DequantizeLinear":
            value = _constant(operator, makers.get(data), known)
            if value is not None:
                source = makers[data].inputs[0] if data in makers else data
                known[operator.outputs[0]], origin[operator.outputs[0]] = value, source
                continue
            operator = _pair(makers.get(data), operator, known) or operator
        left.append(operator)
    return left


def _constant(operator: Operator, maker: Operator | None, known: dict[str, Tensor]) -> Tensor | None:
    """Return the numbers that a DequantizeLinear makes of constant bytes, or of a constant that was rounded to some."""
    whole = known.get(operator.inputs[0])
    if not all(name in known for name in operator.inputs[1:] if name):
        return None
    if whole is None:
        if maker is None or maker.inputs[0] not in known or not _is_same(maker, operator, known):
            return None
        scale, zero = _steps(maker, known)
        if zero.dtype not in _BYTES:
            return None
        weight, ends = known[maker.inputs[0]], torch.iinfo(zero.dtype)
        shape = _shape(maker, weight, scale)
        whole = (weight / scale.reshape(shape)).round() + zero.reshape(shape)
        whole = whole.clamp(ends.min, ends.max)
    scale, zero = _steps(operator, known)
    shape = _shape(operator, whole, scale)
    return ((whole.double() - zero.double().reshape(shape)) * scale.double().reshape(shape)).float()


def _steps(operator: Operator, known: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return scales and zero points, as many of the one as of the other."""
    scale = known[operator.inputs[1]].reshape(-1)
    if len(operator.inputs) > 2 and operator.inputs[2]:
        return scale, known[operator.inputs[2]].reshape(-1)
    return scale, torch.zeros(len(scale), dtype=torch.uint8)


def _shape(operator: Operator, x: Tensor, scale: Tensor) -> list[int]:
    """Return the shape in which the scales meet the axis that they are of."""
    axis = int(operator.attributes.get("axis", 1))
    return [-1 if i == axis % max(1, x.dim()) and len(scale) > 1 else 1 for i in range(x.dim())]


def _is_same(one: Operator, other: Operator, known: dict[str, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_steps(one, known), _steps(other, known), strict=True))


def _pair(maker: Operator | None, operator: Operator, known: dict[str, Tensor]) -> Operator | None:
    """Return the operator that rounds what `maker` quantizes and `operator` takes back; None where they are no pair."""
    names = [name for each in (maker, operator) if each is not None for name in each.inputs[1:] if name]
    if maker is None or not all(name in known for name in names) or not _is_same(maker, operator, known):
        return None
    scale, zero = _steps(maker, known)
    if len(scale) != 1 or zero.dtype not in _BYTES:
        return None
    moved = MIDDLE if zero.dtype == torch.int8 else 0
    attributes = {"scale": float(scale), "zero": int(zero) + moved}
    return Operator(operator.name, FAKE, maker.inputs[:1], operator.outputs, attributes, operator.number)


def fake_quantize(call: Call) -> Tensor:
    """Return the input rounded to the bytes of the operator's step."""
    step = call.number("scale"), call.integer("zero")
    return torch.fake_quantize_per_tensor_affine(call.tensor(), *step, LOWEST, HIGHEST)


# ----------------------------------------------------------------------------------------------------
# Writing


_SAME_STEP = ("MaxPool", "Flatten", "Reshape", "Identity")


def with_integers(model: Any) -> None:
    """Give the layers of a ModelProto that read rounded values weights of bytes and whole biases, in place."""
    graph = model.graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[Any] = []
    for node in graph.node:
        scale = _input_scale(node, makers, arrays)
        if scale is not None and node.input[1] in arrays:
            nodes += _in_bytes(graph, node, scale, arrays)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    unread = [tensor for tensor in graph.initializer if tensor.name not in read]
    for tensor in unread:
        graph.initializer.remove(tensor)


def _input_scale(node: Any, makers: dict[str, Any], arrays: dict[str, Any]) -> float | None:
    """Return the scale of the bytes that a layer reads; None for one that reads none, and for what is no layer."""
    from onnx import numpy_helper

    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "Gemm":
        plain = all(attributes[name].f == 1 for name in ("alpha", "beta") if name in attributes)
        if not plain or "transB" not in attributes or not attributes["transB"].i:
            return None
    elif node.op_type != "Conv":
        return None
    maker = makers.get(node.input[0])
    while maker is not None and maker.op_type in _SAME_STEP:
        maker = makers.get(maker.input[0])
    if maker is None or maker.op_type != "DequantizeLinear" or maker.input[1] not in arrays:
        return None
    return float(numpy_helper.to_array(arrays[maker.input[1]]))


def _in_bytes(graph: Any, layer: Any, scale: float, arrays: dict[str, Any]) -> list[Any]:
    """Let a layer read weight and bias from integers; return the operators that make numbers of them.

    There are none where the weight is not at whole multiples of its channels' scales.
    """
    from onnx import helper, numpy_helper

    weight = torch.from_numpy(numpy_helper.to_array(arrays[layer.input[1]]).copy())
    if not torch.allclose(to_steps(weight), weight, rtol=1e-5, atol=1e-7):
        return []
    whole, scales = quantized_weight(weight)
    made = []

    def integers(index: int, values: Any, steps: Any) -> None:
        name = f"{layer.input[index]}@{layer.output[0]}"  # two layers may share a bias, and not the scale of its steps
        parts = {"integers": values, "scale": steps.astype(np.float32), "zero": np.zeros(len(steps), values.dtype)}
        graph.initializer.extend(numpy_helper.from_array(array, f"{name}.{part}") for part, array in parts.items())
        made.append(helper.make_node("DequantizeLinear", [f"{name}.{part}" for part in parts], [name], axis=0))
        layer.input[index] = name

    integers(1, whole.numpy().astype(np.int8), scales.numpy())
    if len(layer.input) > 2 and layer.input[2] in arrays:
        bias = numpy_helper.to_array(arrays[layer.input[2]]).astype(np.float64)
        steps = scale * scales.numpy()
        numbers = np.rint(bias / steps)
        if np.abs(numbers).max() < 2**31:
            integers(2, numbers.astype(np.int32), steps)
    return made
