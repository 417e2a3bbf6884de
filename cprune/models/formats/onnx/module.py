"""An ONNX graph as an `nn.Module`: what PyTorch exports, prunes and trains like any other model.

Weights are parameters under their names in the file ("_" for what a name may not hold, dots make modules), so that a
report speaks of what the user knows.  Half precision is computed in float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import FunctionType

import torch
from torch import Tensor, nn

from cprune.models.formats.onnx.common import Result, Unsupported, as_tensor
from cprune.models.formats.onnx.operators import OPERATORS, REASONS
from cprune.models.formats.onnx.read import Branch, OnnxGraph, Operator, branches
from cprune.models.formats.onnx.sizes import Operand, Sizes
from cprune.models.formats.onnx.tidy import as_operand, compute, is_weight, tidied
from cprune.targets.errors import UserError, first_line


@dataclass(frozen=True)
class _Held:
    """A tensor of the module, by its path."""

    path: tuple[str, ...]


_Source = str | _Held | Sizes | None
"""Where an operator finds an input: the name of a value, a tensor of the module, numbers; None where it is missing."""


@dataclass(frozen=True, eq=False)
class _Step:
    """An operator made ready.

    `call(function, …)` calls a function from a frame that bears the operator's name, see `_frame`.
    """

    operator: Operator
    inputs: tuple[_Source, ...]
    bodies: Mapping[str, _Body]
    call: Callable[..., Result]


@dataclass(frozen=True, eq=False)
class _Body:
    """Steps and where the results are."""

    steps: tuple[_Step, ...]
    outputs: tuple[_Source, ...]


class OnnxModule(nn.Module):
    """Computes what the graph does; `fixed` are inputs that are constants from now on.

    Raises UserError for a graph with an operator that is not done here, naming it, or weights that are no numbers.
    """

    def __init__(self, graph: OnnxGraph, fixed: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        tidy = tidied(graph, fixed or {})
        self._where, self._opset = graph.file, graph.opset
        _check_known(tidy.operators, graph.file)
        self._names, self._held = _Names(), dict[tuple[object, ...], _Held]()
        self._known, self._origin = tidy.known, tidy.origin
        self._inputs = tuple(value.name for value in graph.inputs if value.name not in (fixed or {}))
        self._body = self._ready(tidy.operators, [value.name for value in graph.outputs])
        del self._names, self._held, self._known, self._origin

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs: one tensor, or a tuple in the order of the file.

        Raises UserError, naming the operator, where it does not fit its input.
        """
        if len(inputs) != len(self._inputs):
            raise UserError(f"{self._where} takes {len(self._inputs)} input(s), {len(inputs)} were given")
        values: dict[str, Operand | None] = dict(zip(self._inputs, inputs, strict=True))
        tensors = [as_tensor(output) for output in self._run(self._body, values)]
        return tensors[0] if len(tensors) == 1 else tuple(tensors)

    # -- making ready

    def _ready(self, operators: Iterable[Operator], outputs: Sequence[str]) -> _Body:
        steps = []
        for operator in operators:
            inputs = tuple(self._source(operator, index, name) for index, name in enumerate(operator.inputs))
            bodies = {
                key: self._ready(value.operators, value.outputs)
                for key, value in operator.attributes.items()
                if isinstance(value, Branch)
            }
            steps.append(_Step(operator, inputs, bodies, _frame(operator, self._where)))
        end = Operator("", "output", tuple(outputs), (), {})
        return _Body(tuple(steps), tuple(self._source(end, index, name) for index, name in enumerate(outputs)))

    def _source(self, operator: Operator, index: int, name: str) -> _Source:
        if not name:
            return None
        known = self._known.get(name)
        if known is None:
            return name
        operand = as_operand(operator, index, known) if operator.kind != "output" else known
        return operand if isinstance(operand, Sizes) else self._keep(operator, index, name, operand)

    def _keep(self, operator: Operator, index: int, name: str, tensor: Tensor) -> _Held:
        """Return where a tensor is held; what two layers share stays one, but for vectors.

        Optimisers of files make one of equal biases, which would tie layers that have nothing to do with another.
        """
        trained = is_weight(operator, index) and tensor.is_floating_point()
        its_own = (operator.kind, operator.inputs[1:]) if tensor.dim() == 1 and index else ()
        key = (tensor.data_ptr() if tensor.numel() else name, tuple(tensor.shape), trained, its_own)
        if key in self._held:
            return self._held[key]
        if trained and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{self._where}: the tensor {name!r} holds NaN or infinity", "Export the model again.")
        path = self._names.of(self._origin.get(name, name))
        owner: nn.Module = self
        for part in path[:-1]:
            if part not in owner._modules:
                owner._modules[part] = nn.Module()
            child = owner._modules[part]
            assert child is not None
            owner = child
        if trained:
            owner.register_parameter(path[-1], nn.Parameter(tensor.clone()))
        else:
            owner.register_buffer(path[-1], tensor.clone())
        self._held[key] = _Held(path)
        return self._held[key]

    # -- running

    def _run(self, body: _Body, values: dict[str, Operand | None]) -> list[Operand]:
        for step in body.steps:
            operands = [self._value(source, values) for source in step.inputs]
            try:
                if step.bodies:
                    result: Result = tuple(self._branch(step, operands, values))
                else:
                    result = step.call(compute, step.operator, operands, self._opset)
            except UserError:
                raise
            except (Unsupported, ValueError) as error:
                raise UserError(f"{self._where}: the operator {step.operator} {first_line(error)}") from error
            except Exception as error:  # PyTorch's, about shapes and types
                raise UserError(
                    f"{self._where}: the operator {step.operator} fails on {_described(operands)} ({first_line(error)})"
                ) from error
            parts = result if isinstance(result, tuple) else (result,)
            values.update(zip(step.operator.outputs, parts, strict=False))
        outputs = []
        for source in body.outputs:
            output = self._value(source, values)
            if output is None:
                raise UserError(f"{self._where} is damaged: it has an output that nothing makes")
            outputs.append(output)
        return outputs

    def _value(self, source: _Source, values: Mapping[str, Operand | None]) -> Operand | None:
        if isinstance(source, str):
            return values[source]
        if not isinstance(source, _Held):
            return source
        tensor: Tensor = attrgetter(".".join(source.path))(self)
        return tensor

    def _branch(
        self, step: _Step, operands: Sequence[Operand | None], values: dict[str, Operand | None]
    ) -> list[Operand]:
        """Run one branch of an If whose condition follows from shapes."""
        if step.operator.kind != "If":
            raise Unsupported(REASONS.get(step.operator.kind, "has a graph inside"))
        condition = operands[0]
        if not isinstance(condition, Sizes):
            raise Unsupported(
                "chooses by the numbers of an input; give the model such an input as a constant, or without the choice"
            )
        return self._run(step.bodies["then_branch" if condition.values[0] else "else_branch"], values)


def _check_known(operators: Iterable[Operator], where: str) -> None:
    """Raise UserError for operators that are not done here, with the reasons."""
    unknown: dict[str, Operator] = {}

    def look(some: Iterable[Operator]) -> None:
        for operator in some:
            if operator.kind not in OPERATORS and operator.kind != "If":
                unknown.setdefault(operator.kind, operator)
            for branch in branches(operator):
                look(branch.operators)

    look(operators)
    for kind, operator in unknown.items():
        if kind in REASONS:
            raise UserError(f"{where}: the operator {operator} {REASONS[kind]}")
    if unknown:
        first = next(iter(unknown.values()))
        raise UserError(
            f"{where} uses operators that cprune does not know: {', '.join(sorted(unknown))} "
            f"(the first is {first}, which makes {first.outputs[0]!r})"
        )


def _frame(operator: Operator, where: str) -> Callable[..., Result]:
    """Return a function that calls another, in a frame named after the operator.

    `torch.export` keeps, for every node, the line of the `forward` that made it.  Here that is "conv1 in model.onnx:3",
    the third operator.
    """
    name = (operator.name or operator.kind).replace("/", ".").replace('"', "'").strip(".")
    plain = (lambda function, *arguments: function(*arguments)).__code__
    file = f"{name} in {Path(where).name}"
    return FunctionType(plain.replace(co_name="forward", co_filename=file, co_firstlineno=max(operator.number, 1)), {})


def _described(operands: Sequence[Operand | None]) -> str:
    def one(value: Operand | None) -> str:
        if isinstance(value, Tensor):
            return f"{str(value.dtype).removeprefix('torch.')} {' x '.join(map(str, value.shape)) or 'scalar'}"
        return str(list(value.values)) if isinstance(value, Sizes) else "nothing"

    return ", ".join(map(one, operands)) or "nothing"


class _Names:
    """Names of the file as paths of attributes: each one time, and none of nn.Module's own."""

    def __init__(self) -> None:
        self.leaves: set[tuple[str, ...]] = set()
        self.inner: set[tuple[str, ...]] = set()
        self.methods = set(dir(OnnxModule)) | set(vars(nn.Module()))

    def of(self, name: str) -> tuple[str, ...]:
        """Return a path that is free."""
        parts = [re.sub(r"[^0-9A-Za-z_]", "_", part) for part in name.split(".") if part] or ["tensor"]
        path = tuple(f"{part}_" if part in self.methods else part for part in parts)
        if not self._free(path):
            path = ("_".join(path),)
        plain, number = path, 1
        while not self._free(path):
            number += 1
            path = (*plain[:-1], f"{plain[-1]}_{number}")
        self.leaves.add(path)
        self.inner.update(path[:i] for i in range(1, len(path)))
        return path

    def _free(self, path: tuple[str, ...]) -> bool:
        above = (path[:i] for i in range(1, len(path)))
        return path not in self.leaves and path not in self.inner and not self.leaves.intersection(above)
