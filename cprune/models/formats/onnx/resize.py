"""ONNX's Resize and Upsample: every rule for coordinates and rounding, by PyTorch's operator where it does the same.

A resize is linear and works axis by axis: along an axis of n numbers that become m, it is a matrix m x n.  That matrix
is worked out from ONNX's definition.  If one of PyTorch's operators has the same, it is used (pruning and compiling
know it); else the numbers are looked up, or multiplied by the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cprune.models.formats.onnx.common import Call, Unsupported
from cprune.models.formats.onnx.sizes import Number, ints

Matrix = NDArray[np.float32]
_HALF, _CORNERS = ({"coordinate_transformation_mode": how} for how in ("half_pixel", "align_corners"))
_PYTORCH: dict[str, list[tuple[str, bool | None, dict[str, str]]]] = {
    "nearest": [
        ("nearest", None, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
        ("nearest-exact", None, {**_HALF, "nearest_mode": "round_prefer_ceil"}),
    ],
    "linear": [("linear", False, _HALF), ("linear", True, _CORNERS)],
    "cubic": [("bicubic", False, _HALF), ("bicubic", True, _CORNERS)],
}
"""PyTorch's modes of interpolation in ONNX's words."""
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(call: Call) -> Tensor:
    """Compute Resize, of any opset."""
    x, old = call.tensor(0), call.opset < 11
    scales = call.attributes.get("scales") or _maybe(call, 1 if old else 2)
    sizes = None if old else _maybe(call, 3)
    axes = [a % x.dim() for a in call.integers("axes", list(range(x.dim())))]
    if not sizes and not scales:
        raise Unsupported("has neither scales nor sizes")
    factors, shape = [1.0] * x.dim(), list(x.shape)
    if sizes:
        policy = call.text("keep_aspect_ratio_policy", "stretch")
        ratios = [size / x.shape[axis] for size, axis in zip(sizes, axes, strict=True)]
        if policy != "stretch":
            ratios = [min(ratios) if policy == "not_larger" else max(ratios)] * len(axes)
            sizes = [math.floor(x.shape[axis] * ratio + 0.5) for axis, ratio in zip(axes, ratios, strict=True)]
        resized = zip(axes, sizes, ratios, strict=True)
    else:
        assert scales is not None
        sizes = [math.floor(x.shape[axis] * scale + 1e-6) for axis, scale in zip(axes, scales, strict=True)]
        resized = zip(axes, sizes, scales, strict=True)
    for axis, size, factor in resized:
        if isinstance(x.shape[axis], int):
            shape[axis], factors[axis] = int(size), float(factor)
    plane = [i for i, n in enumerate(x.shape) if isinstance(n, int) and (shape[i] != n or factors[i] != 1)]
    if not plane:
        return x
    mode = call.text("mode", "nearest")
    matrices = {i: _matrix(call, mode, old, int(x.shape[i]), shape[i], factors[i]) for i in plane}
    if x.dim() in (3, 4, 5) and plane[0] >= 2:
        interpolated = _by_pytorch(x, mode, shape[2:], matrices)
        if interpolated is not None:
            return interpolated
    for axis, matrix in matrices.items():
        if mode == "nearest":
            x = x.index_select(axis, torch.from_numpy(matrix.argmax(1)))
        else:
            x = torch.matmul(x.movedim(axis, -1), torch.from_numpy(matrix.T.copy()).to(x.dtype)).movedim(-1, axis)
    return x


def upsample(call: Call) -> Tensor:
    """Compute Upsample, the forerunner of Resize."""
    return resize(Call(call.inputs, call.attributes, 10))


def _maybe(call: Call, index: int) -> list[Number] | None:
    return ints(call.at(index)) or None if call.at(index) is not None else None


def _by_pytorch(x: Tensor, mode: str, plane: Sequence[int], matrices: dict[int, Matrix]) -> Tensor | None:
    """Return what one of PyTorch's operators makes, None if none has these matrices."""
    count = x.dim() - 2

    def same(matrix: Matrix, how: dict[str, str]) -> bool:
        after, before = matrix.shape
        theirs = _matrix(Call([], how, 13), mode, False, before, after, after / before)
        return float(np.abs(theirs - matrix).max()) < 1e-4

    for name, corners, how in _PYTORCH[mode]:
        if (name != "bicubic" or count == 2) and all(same(matrix, how) for matrix in matrices.values()):
            its = _LINEAR[count] if name == "linear" else name
            return F.interpolate(x, size=list(plane), mode=its, align_corners=corners)
    return None


def _matrix(call: Call, mode: str, old: bool, before: int, after: int, factor: float) -> Matrix:
    """Return the matrix [after, before] of one axis, by ONNX's definition."""
    places = _places(call, old, before, after, factor)
    if mode == "nearest":
        index = _rounded("floor" if old else call.text("nearest_mode", "round_prefer_floor"), places)
        return np.eye(before, dtype=np.float32)[np.clip(index, 0, before - 1).astype(np.int64)]
    if call.integer("antialias", 0) and factor < 1:
        raise Unsupported("shrinks with antialias")
    if mode not in ("linear", "cubic"):
        raise Unsupported(f"resizes by {mode}")
    matrix = np.zeros((after, before), np.float32)
    for row, place in enumerate(places):
        left = math.floor(place)
        part = place - left
        near = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
        a = call.number("cubic_coeff_a", -0.75)
        weights = [1 - part, part] if mode == "linear" else [_cubic(abs(part - step), a) for step in near]
        if mode == "cubic" and call.integer("exclude_outside", 0):
            weights = [w if 0 <= left + step < before else 0.0 for w, step in zip(weights, near, strict=True)]
            weights = [w / sum(weights) for w in weights]
        for step, weight in zip(near, weights, strict=True):
            matrix[row, min(max(left + step, 0), before - 1)] += weight
    return matrix


def _places(call: Call, old: bool, before: int, after: int, factor: float) -> NDArray[np.float64]:
    """Return where among `before` numbers each of the `after` lies."""
    how = "asymmetric" if old else call.text("coordinate_transformation_mode", "half_pixel")
    index = np.arange(after, dtype=np.float64)
    half: NDArray[np.float64] = (index + 0.5) / factor - 0.5
    if how == "half_pixel":
        return half
    if how == "pytorch_half_pixel":
        return half if after > 1 else np.zeros(after)
    if how == "half_pixel_symmetric":
        return before / 2 * (1 - after / (factor * before)) + half
    if how == "align_corners":
        if abs(factor * before - after) > 1e-4:
            raise Unsupported("aligns corners after rounding, which runtimes do in two ways")
        return index * (before - 1) / (after - 1) if after > 1 else np.zeros(after)
    if how == "asymmetric":
        return index / factor
    if how == "tf_half_pixel_for_nn":
        return (index + 0.5) / factor
    raise Unsupported(f"finds coordinates by {how}")


def _rounded(how: str, places: NDArray[np.float64]) -> NDArray[np.float64]:
    if how == "floor":
        return np.floor(places + 1e-9)  # 2 / 0.6666667 lies a little below 3
    if how == "ceil":
        return np.ceil(places - 1e-9)
    if how == "round_prefer_ceil":
        return np.floor(places + 0.5)
    if how == "round_prefer_floor":
        return np.ceil(places - 0.5)
    raise Unsupported(f"rounds by {how}")


def _cubic(distance: float, a: float) -> float:
    d = distance
    if d <= 1:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
