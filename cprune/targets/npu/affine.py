"""Integer expressions of TIR over whole loops at once: every loop is an axis of an array.

An expression that reads two of five loops has an array of extents (n, 1, 1, m, 1): numpy spreads it where that is
needed, so that thousands of instructions cost as little as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Values = Mapping[Any, Numbers]
"""What every variable of a program is: arrays that spread to one another."""

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "FloorDiv": np.floor_divide,
    "FloorMod": np.mod,
    "Min": np.minimum,
    "Max": np.maximum,
    "EQ": np.equal,
    "NE": np.not_equal,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
}


def value(expression: Any, values: Values) -> Any:
    """Return what an integer or Boolean expression is, as an array.

    Raises ValueError for an operator that is none of whole numbers.
    """
    kind = type(expression).__name__
    if kind == "IntImm":
        return np.int64(int(expression.value))
    if kind in ("Var", "SizeVar"):
        return values[expression]
    if kind in _BINARY:
        return _BINARY[kind](value(expression.a, values), value(expression.b, values))
    if kind == "Not":
        return np.logical_not(value(expression.a, values))
    if kind == "Cast":
        return value(expression.value, values)
    if kind == "Select":
        parts = (expression.condition, expression.true_value, expression.false_value)
        return np.where(*(value(part, values) for part in parts))
    name = operator(expression)
    if name == "likely":
        return value(expression.args[0], values)
    if name == "if_then_else":
        return np.where(*(value(part, values) for part in expression.args))
    raise ValueError(f"the accelerator has no address like {name or kind}")


def conditions(expression: Any) -> list[Any]:
    """Return the parts of a condition that must all hold."""
    kind = type(expression).__name__
    if kind == "And":
        return [*conditions(expression.a), *conditions(expression.b)]
    if operator(expression) == "likely":
        return conditions(expression.args[0])
    return [expression]


def axes(extents: Sequence[int]) -> list[Numbers]:
    """Return for every loop the numbers that it goes through, along an axis of its own."""
    rank = len(extents)
    return [
        np.arange(extent, dtype=np.int64).reshape([extent if i == at else 1 for i in range(rank)])
        for at, extent in enumerate(extents)
    ]


def spread(numbers: Any, extents: Sequence[int]) -> Numbers:
    """Return numbers along the axes of these loops as one list, in the order in which the loops are gone through."""
    return np.broadcast_to(np.asarray(numbers, np.int64), extents).reshape(-1)


def strides(expression: Any, variables: Sequence[Any], extents: Sequence[int], values: Values) -> list[int]:
    """Return by how much an expression grows with each of some loops, whatever the others are.

    Raises ValueError where it does not grow by one and the same number.
    """
    zero = dict(values) | {variable: np.int64(0) for variable in variables}
    at_zero = value(expression, zero)
    found = []
    for variable, extent in zip(variables, extents, strict=True):
        if extent == 1:
            found.append(0)
            continue
        grown = np.unique(value(expression, {**zero, variable: np.int64(1)}) - at_zero)
        whole = np.unique(value(expression, {**zero, variable: np.int64(extent - 1)}) - at_zero)
        if len(grown) != 1 or len(whole) != 1 or int(whole[0]) != int(grown[0]) * (extent - 1):
            raise ValueError("the accelerator walks its memories in steps of one size")
        found.append(int(grown[0]))
    return found


def parts(expression: Any) -> Iterator[Any]:
    """Yield an expression and everything that it is made of; the addresses that it reads as well."""
    yield expression
    for name in ("a", "b", "value", "condition", "true_value", "false_value"):
        part = getattr(expression, name, None)
        if part is not None and not isinstance(part, (int, float)):
            yield from parts(part)
    for name in ("args", "indices"):
        for part in getattr(expression, name, None) or ():
            yield from parts(part)


def loads(expression: Any) -> Iterator[Any]:
    """Yield everything that an expression reads out of a buffer."""
    return (part for part in parts(expression) if type(part).__name__ == "TensorLoad")


def operator(expression: Any) -> str:
    """Return the name of the operator that an expression calls, without TVM's prefix; "" where it calls none."""
    return str(getattr(getattr(expression, "op", None), "name", "")).rpartition(".")[2]


def reads(expression: Any, variable: Any) -> bool:
    """Tell whether an expression reads a variable."""
    return variable is not None and any(part.same_as(variable) for part in parts(expression))
