"""An ONNX graph as an `nn.Module`: what PyTorch exports, prunes and trains like any other model.

Weights are parameters under their names in the file ("_" for what a name may not hold, dots make modules), so that a
report speaks of what the user knows.  Half precision is computed in float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from cprune.models.formats.onnx.common import Unsupported
from cprune.models.formats.onnx.operators import OPERATORS, REASONS
from cprune.models.formats.onnx.read import Branch, OnnxGraph, Operator, branches
from cprune.models.formats.onnx.sizes import Sizes
from cprune.models.formats.onnx.tidy import as_given, compute, is_weight, tidied
from cprune.targets.errors import UserError, first_line


@dataclass(frozen=True)
class _Held:
    """A tensor of the module, by its path."""

    path: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Step:
    """An operator made ready: every input is a value's name, a `_Held`, `Sizes`, or None where it is missing.

    `call(function, …)` calls a function from a frame that bears the operator's name, see `_frame`.
    """

    operator: Operator
    inputs: tuple[Any, ...]
    bodies: Mapping[str, _Body]
    call: Any


@dataclass(frozen=True, eq=False)
class _Body:
    """Steps and where the results are."""

    steps: tuple[_Step, ...]
    outputs: tuple[Any, ...]


class OnnxModule(nn.Module):
    """Computes what the graph does; `fixed` are inputs that are constants from now on.

    Raises UserError for a graph with an operator that is not done here, naming it, or weights that are no numbers.
    """

    def __init__(self, graph: OnnxGraph, fixed: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        tidy = tidied(graph, fixed or {})
        self._where, self._opset = graph.file, graph.opset
        _check_known(tidy.operators, graph.file)
        self._names, self._held = _Names(), dict[Any, _Held]()
        self._known, self._origin = tidy.known, tidy.origin
        self._inputs = tuple(value.name for value in graph.inputs if value.name not in (fixed or {}))
        self._body = self._ready(tidy.operators, [value.name for value in graph.outputs])
        del self._names, self._held, self._known, self._origin

    def forward(self, *inputs: Tensor) -> Any:
        """Return the outputs: one tensor, or a tuple in the order of the file.

        Raises UserError, naming the operator, where it does not fit its input.
        """
        if len(inputs) != len(self._inputs):
            raise UserError(f"{self._where} takes {len(self._inputs)} input(s), {len(inputs)} were given")
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        found = self._run(self._body, values)
        tensors = [part.tensor() if isinstance(part, Sizes) else part for part in found]
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

    def _source(self, operator: Operator, index: int, name: str) -> Any:
        if not name:
            return None
        found = self._known.get(name)
        if found is None:
            return name
        given = as_given(operator, index, found) if operator.kind != "output" else found
        return given if isinstance(given, Sizes) else self._keep(operator, index, name, given)

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

    def _run(self, body: _Body, values: dict[str, Any]) -> list[Any]:
        for step in body.steps:
            given = [self._value(source, values) for source in step.inputs]
            try:
                if step.bodies:
                    found: Any = tuple(self._branch(step, given, values))
                else:
                    found = step.call(compute, step.operator, given, self._opset)
            except UserError:
                raise
            except (Unsupported, ValueError) as error:
                raise UserError(f"{self._where}: the operator {step.operator} {first_line(error)}") from error
            except Exception as error:  # PyTorch's, about shapes and types
                raise UserError(
                    f"{self._where}: the operator {step.operator} fails on {_told(given)} ({first_line(error)})"
                ) from error
            parts = found if isinstance(found, tuple) else (found,)
            values.update(zip(step.operator.outputs, parts, strict=False))
        return [self._value(source, values) for source in body.outputs]

    def _value(self, source: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(source, str):
            return values[source]
        if not isinstance(source, _Held):
            return source
        owner: Any = self
        for part in source.path:
            owner = getattr(owner, part)
        return owner

    def _branch(self, step: _Step, given: Sequence[Any], values: dict[str, Any]) -> list[Any]:
        """Run one branch of an If whose condition follows from shapes."""
        if step.operator.kind != "If":
            raise Unsupported(REASONS.get(step.operator.kind, "has a graph inside"))
        if not isinstance(given[0], Sizes):
            raise Unsupported(
                "chooses by the numbers of an input; give the model such an input as a constant, or without the choice"
            )
        return self._run(step.bodies["then_branch" if given[0].values[0] else "else_branch"], values)


def _check_known(operators: Iterable[Operator], where: str) -> None:
    """Raise UserError for operators that are not done here, with the reasons."""
    found: dict[str, Operator] = {}

    def look(some: Iterable[Operator]) -> None:
        for operator in some:
            if operator.kind not in OPERATORS and operator.kind != "If":
                found.setdefault(operator.kind, operator)
            for branch in branches(operator):
                look(branch.operators)

    look(operators)
    for kind, operator in found.items():
        if kind in REASONS:
            raise UserError(f"{where}: the operator {operator} {REASONS[kind]}")
    if found:
        first = next(iter(found.values()))
        raise UserError(
            f"{where} uses operators that cprune does not know: {', '.join(sorted(found))} "
            f"(the first is {first}, which makes {first.outputs[0]!r})"
        )


def _frame(operator: Operator, where: str) -> Any:
    """Return a function that calls another, in a frame named after the operator.

    `torch.export` keeps, for every node, the line of the `forward` that made it.  Here that is "conv1 in model.onnx:3",
    the third operator.
    """
    name = (operator.name or operator.kind).replace("/", ".").replace('"', "'").strip(".")
    plain = (lambda function, *given: function(*given)).__code__
    file = f"{name} in {Path(where).name}"
    return FunctionType(plain.replace(co_name="forward", co_filename=file, co_firstlineno=max(operator.number, 1)), {})


def _told(given: Sequence[Any]) -> str:
    def one(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{str(value.dtype).removeprefix('torch.')} {' x '.join(map(str, value.shape)) or 'scalar'}"
        return str(list(value.values)) if isinstance(value, Sizes) else "nothing"

    return ", ".join(map(one, given)) or "nothing"


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
