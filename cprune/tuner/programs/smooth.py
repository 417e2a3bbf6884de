"""Smooth functions in arithmetic that every vector unit has: e^x, the logistic function, tanh and the error function.

TVM hands them to the C library, one call for each number: thirty times as long as a ReLU for the logistic function, a
hundred times for the error function.  The polynomials were fitted here (least squares, weighted again and again until
the largest error was smallest): e^x to 1e-7 of its value, the error function to 4e-7, the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import pi
from typing import Any

from tvm import tirx

LN2_HIGH, LN2_LOW = 0.693359375, -0.00021219444  # their sum is ln 2, and the first one has few bits
EXP = (0.4999999403953552, 0.1666652113199234, 0.04166838899254799, 0.008368710055947304, 0.001381461275741458)
ERF_REACH = 4.0  # beyond it the error function is 1 in float32
ERF_ABOVE = (
    *(1.128378987312317, 0.19624894857406616, 0.05346742644906044),
    *(0.0040036276914179325, 0.0002880383108276874, 1.974798578885384e-06),
)
ERF_BELOW = (
    *(1.0, 0.5072522759437561, 0.11647637188434601),
    *(0.015444392338395119, 0.0012163501232862473, 3.748036397155374e-05),
)


def exp(x: Any) -> Any:
    """Return e^x; below -87 and above 88 what it is there."""
    return bound(_within(x, -87.0, 88.0), "x", _exp)


def _exp(x: Any) -> Any:
    power = tirx.floor(x * _real(1 / (LN2_HIGH + LN2_LOW)) + _real(0.5))

    def of_rest(rest: Any) -> Any:
        value = _polynomial(rest, EXP) * rest * rest + rest + _real(1.0)
        bits = (tirx.Cast("int32", power) + tirx.const(127, "int32")) << tirx.const(23, "int32")
        return value * tirx.reinterpret("float32", bits)

    return bound(x - power * _real(LN2_HIGH) - power * _real(LN2_LOW), "rest", of_rest)


def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + e^-x)."""
    return _real(1.0) / (_real(1.0) + exp(_real(0.0) - x))


def tanh(x: Any) -> Any:
    """Return the hyperbolic tangent."""
    return _real(2.0) * sigmoid(_real(2.0) * x) - _real(1.0)


def erf(x: Any) -> Any:
    """Return the error function: x P(x^2) / Q(x^2) for |x| up to 4."""

    def of(x: Any) -> Any:
        return bound(
            x * x, "square", lambda square: x * _polynomial(square, ERF_ABOVE) / _polynomial(square, ERF_BELOW)
        )

    return bound(_within(x, -ERF_REACH, ERF_REACH), "x", of)


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    value = _real(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + _real(coefficient)
    return value


def bound(value: Any, name: str, body: Any, dtype: str = "float32") -> Any:
    """Return `body` of a name for `value`: a text that repeats it would grow with every function inside another."""
    variable = tirx.Var(name, dtype)
    return tirx.Let(variable, value, body(variable))


def _within(x: Any, low: float, high: float) -> Any:
    return tirx.max(tirx.min(x, _real(high)), _real(low))


def _real(number: float) -> Any:
    return tirx.const(number, "float32")


def _once(curve: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: bound(x, "activated", curve)


ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {
    "none": lambda x: x,
    "relu": lambda x: tirx.max(x, _real(0.0)),
    "relu6": lambda x: _within(x, 0.0, 6.0),
    "hardswish": _once(lambda x: x * _within(x + _real(3.0), 0.0, 6.0) * _real(1 / 6)),
    "silu": _once(lambda x: x * sigmoid(x)),
    "gelu": _once(lambda x: _real(0.5) * x * (_real(1.0) + erf(_real(0.5**0.5) * x))),
    "gelu_tanh": _once(lambda x: x * sigmoid(_real(2 * (2 / pi) ** 0.5) * x * (_real(1.0) + _real(0.044715) * x * x))),
}
"""What `cprune.tuner.programs.reference.ACTIVATIONS` means by these names."""
