"""What can be decided about a graph before it runs: constants, branches, and layers in the form PyTorch has them.

A matrix product with fixed weights becomes a linear layer, and a sum with a fixed vector behind a layer its bias, so
that pruning and compiling meet the operators they know.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cprune.models.formats.onnx.common import Call, Result
from cprune.models.formats.onnx.operators import OPERATORS
from cprune.models.formats.onnx.read import Array, Branch, OnnxGraph, Operator, branches
from cprune.models.formats.onnx.rounding import without_pairs
from cprune.models.formats.onnx.sizes import Operand, Sizes, computed
from cprune.targets.errors import UserError

WEIGHTS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Linear": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "PRelu": (1,),
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2), "RMSNormalization": (1,), "LSTM": (1, 2, 3), "GRU": (1, 2, 3), "RNN": (1, 2, 3),
}  # fmt: skip
"""Where operators take weights: what fine-tuning trains."""

_NUMBERS = ("Resize", "Upsample", "Clip", "Pad", "Range", "Dropout")
_EXTRAS = ("BatchNormalization", "LayerNormalization", "MaxPool", "Dropout")
_MOVES = ("Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True, eq=False)
class Tidy:
    """What is left to run.  `known` are the tensors it reads, `origin` the names that the file has for them."""

    operators: tuple[Operator, ...]
    known: Mapping[str, Tensor]
    origin: Mapping[str, str]


def tidied(graph: OnnxGraph, fixed: Mapping[str, Tensor]) -> Tidy:
    """Return the graph with constants folded; `fixed` are inputs whose value is known.

    Raises UserError for constants of a type that PyTorch has not.
    """
    folder = _Folder(graph, fixed)
    outputs = [value.name for value in graph.outputs]
    operators = without_pairs(graph.operators, folder.known, folder.origin)
    operators = _alive(folder.folded(operators), outputs)
    operators = _Layers(folder.known, folder.origin, operators, outputs).joined()
    return Tidy(tuple(_alive(operators, outputs)), folder.known, folder.origin)


def is_weight(operator: Operator, index: int) -> bool:
    """Tell whether an operator takes weights there."""
    return index in WEIGHTS.get(operator.kind, ())


def as_operand(operator: Operator, index: int, known: Tensor) -> Operand:
    """Return a known tensor as an operator takes it: numbers where it wants shapes, axes or a factor."""
    numbers = known.numel() == 1 or operator.kind in _NUMBERS or not known.is_floating_point()
    if is_weight(operator, index) or not numbers:
        return known
    return Sizes.of(known) or known


def compute(operator: Operator, operands: Sequence[Operand | None], opset: int) -> Result:
    """Return what an operator makes.  Raises whatever goes wrong."""
    numbers = computed(operator.kind, operands, operator.attributes)
    if numbers is not None:
        return numbers
    return OPERATORS[operator.kind](Call(operands, operator.attributes, opset, len(operator.outputs)))


def to_tensor(array: Array, name: str, where: str) -> Tensor:
    """Return an array as a tensor, half precision as float32.  UserError for a type that PyTorch has not."""
    if array.dtype.name in ("float16", "bfloat16"):
        array = array.astype(np.float32)
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        kind = "text" if array.dtype.kind in "OSU" else array.dtype.name
        raise UserError(f"{where}: the constant {name!r} is {kind}, which cprune does not take") from error


class _Folder:
    """Computes what follows from constants alone."""

    def __init__(self, graph: OnnxGraph, fixed: Mapping[str, Tensor]) -> None:
        self.graph = graph
        self.known = {name: to_tensor(array, name, graph.file) for name, array in graph.arrays.items()} | dict(fixed)
        self.origin: dict[str, str] = {}

    def folded(self, operators: Iterable[Operator]) -> list[Operator]:
        """Return the operators that are left; a branch takes the place of an If whose condition is known."""
        left: list[Operator] = []
        for operator in operators:
            if operator.kind == "If" and operator.inputs[0] in self.known:
                left += self.folded(self._chosen(operator))
            elif branches(operator):
                inside = {key: self._inside(value) for key, value in operator.attributes.items()}
                left.append(replace(operator, attributes=inside))
            elif not self._fold(operator):
                left.append(operator)
        return left

    def _inside(self, value: object) -> object:
        return replace(value, operators=tuple(self.folded(value.operators))) if isinstance(value, Branch) else value

    def _chosen(self, operator: Operator) -> list[Operator]:
        condition = self.known[operator.inputs[0]]
        branch = operator.attributes["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"]
        ends = [
            Operator(operator.name, "Identity", (inner,), (outer,), {}, operator.number)
            for inner, outer in zip(branch.outputs, operator.outputs, strict=True)
        ]
        return [*branch.operators, *ends]

    def _fold(self, operator: Operator) -> bool:
        if operator.kind not in OPERATORS or not all(name in self.known for name in operator.inputs if name):
            return False
        operands = [as_operand(operator, i, self.known[n]) if n else None for i, n in enumerate(operator.inputs)]
        try:
            with torch.no_grad():
                result = compute(operator, operands, self.graph.opset)
        except Exception:  # it will say so when the graph runs
            return False
        parts = result if isinstance(result, tuple) else (result,)
        for name, part in zip(operator.outputs, parts, strict=False):
            if name and part is not None:
                self.known[name] = part.tensor() if isinstance(part, Sizes) else part.contiguous()
                if operator.kind in _MOVES and operator.inputs:
                    self.origin[name] = self.origin.get(operator.inputs[0], operator.inputs[0])
        return True


def reads(operator: Operator) -> list[str]:
    """Return what an operator reads, the graphs inside it too."""
    names = list(operator.inputs)
    for branch in branches(operator):
        names += [name for inner in branch.operators for name in reads(inner)] + list(branch.outputs)
    return names


def _alive(operators: Sequence[Operator], outputs: Iterable[str]) -> list[Operator]:
    """Return the operators that the outputs need."""
    needed, kept = set(outputs), []
    for operator in reversed(operators):
        if needed.intersection(name for name in operator.outputs if name):
            needed.update(reads(operator))
            kept.append(_without_extras(operator, needed))
    return kept[::-1]


def _without_extras(operator: Operator, needed: set[str]) -> Operator:
    """Return the operator without the statistics, masks and indices that some return behind their result."""
    if operator.kind in _EXTRAS and not needed.intersection(name for name in operator.outputs[1:] if name):
        return replace(operator, outputs=operator.outputs[:1])
    return operator


class _Layers:
    """Makes linear layers of products with fixed weights, and biases of the sums behind layers."""

    def __init__(
        self, known: dict[str, Tensor], origin: dict[str, str], operators: Sequence[Operator], outputs: Sequence[str]
    ) -> None:
        self.known, self.origin, self.operators = known, origin, operators
        self.uses = Counter(name for operator in operators for name in reads(operator))
        self.uses.update(outputs)

    def joined(self) -> list[Operator]:
        """Return the operators that are left."""
        left: list[Operator] = []
        makers: dict[str, int] = {}  # where in `left` is what makes a value
        for operator in self.operators:
            biased = self._biased(operator, left, makers)
            if biased is None:
                makers.update(dict.fromkeys(operator.outputs, len(left)))
                left.append(self._linear(operator))
            else:
                place, layer = biased
                left[place] = layer
                makers[operator.outputs[0]] = place
        return left

    def _linear(self, operator: Operator) -> Operator:
        if operator.kind not in ("MatMul", "Gemm") or len(operator.inputs) < 2:
            return operator
        weight = self.known.get(operator.inputs[1])
        if weight is None or weight.dim() != 2 or not weight.is_floating_point() or operator.inputs[0] in self.known:
            return operator
        a, bias = operator.attributes, ""
        alpha, beta = float(a.get("alpha", 1)), float(a.get("beta", 1))
        matrix = (weight if a.get("transB", 0) else weight.t()) * alpha
        if len(operator.inputs) > 2 and operator.inputs[2]:
            bias = operator.inputs[2]
            added = self.known.get(bias)
            if added is None or added.numel() != len(matrix) or added.shape[-1:] != (len(matrix),):
                return operator
            bias = self._derived(bias, beta, added.reshape(-1) * beta)
        if a.get("transA", 0):
            return operator
        name = self._derived(operator.inputs[1], f"{alpha} {a.get('transB', 0)}", matrix.contiguous())
        inputs = (operator.inputs[0], name, bias) if bias else (operator.inputs[0], name)
        return replace(operator, kind="Linear", inputs=inputs, attributes={})

    def _derived(self, name: str, how: object, tensor: Tensor) -> str:
        """Return the name of a tensor made of another; the same for the same."""
        derived = f"{name} {how}"
        self.known.setdefault(derived, tensor)
        self.origin[derived] = self.origin.get(name, name)
        return derived

    def _biased(
        self, operator: Operator, left: Sequence[Operator], makers: Mapping[str, int]
    ) -> tuple[int, Operator] | None:
        """Return a layer with a bias and its place, if the operator adds a fixed vector to that layer's output."""
        if operator.kind != "Add":
            return None
        for value, added in (operator.inputs, operator.inputs[::-1]):
            vector = self.known.get(added)
            if value not in makers or vector is None or self.uses[value] != 1 or not vector.is_floating_point():
                continue
            layer = left[makers[value]]
            if layer.kind not in ("Conv", "ConvTranspose", "Linear") or any(layer.inputs[2:]):
                continue
            weight = self.known.get(layer.inputs[1])
            if weight is None:
                continue
            channels, shape = weight.shape[0], [-1]
            if layer.kind != "Linear":
                shape = [-1] + [1] * (weight.dim() - 2)
                if layer.kind == "ConvTranspose":
                    channels = weight.shape[1] * int(layer.attributes.get("group", 1))
            flat = vector.reshape(-1)
            if len(flat) != channels or vector.dim() > weight.dim() or math.prod(vector.shape[: -len(shape)]) != 1:
                continue
            if tuple(vector.shape[-len(shape) :]) != tuple(flat.reshape(shape).shape):
                continue
            name = self._derived(added, "as a bias", flat)
            return makers[value], replace(layer, inputs=(*layer.inputs[:2], name), outputs=operator.outputs)
        return None
