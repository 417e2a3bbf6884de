"""ONNX operators that move numbers: reshaping, cutting, joining, padding, looking up."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cprune.models.formats.onnx.common import Call, Function, Unsupported, as_tensor
from cprune.models.formats.onnx.sizes import DTYPES, Number, Sizes, ints, number

MOST_NUMBERS = 2**28
"""How many numbers an operator may make out of nothing: 1 GiB."""


def _reshape(call: Call) -> Tensor:
    x = call.tensor(0)
    shape = ints(call.at(1)) if call.at(1) is not None else call.integers("shape")
    if not call.integer("allowzero", 0):
        shape = [x.shape[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _flatten(call: Call) -> Tensor:
    x, axis = call.tensor(), call.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() > 1:
        return torch.flatten(x, 1)
    return x.reshape(math.prod(x.shape[:axis]), -1 if x.numel() else math.prod(x.shape[axis:]))


def _transpose(call: Call) -> Tensor:
    x = call.tensor()
    return x.permute(call.integers("perm", list(reversed(range(x.dim())))))


def _squeeze(call: Call) -> Tensor:
    x, axes = call.tensor(), call.axes()
    if axes is None:
        axes = [i for i, size in enumerate(x.shape) if isinstance(size, int) and size == 1]
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.squeeze(axis)
    return x


def _unsqueeze(call: Call) -> Tensor:
    x, axes = call.tensor(), call.axes() or []
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(call: Call) -> Tensor:
    return torch.cat([call.tensor(i) for i in range(len(call.inputs))], call.integer("axis"))


def _split(call: Call) -> tuple[Tensor, ...]:
    x, axis = call.tensor(0), call.integer("axis", 0)
    if call.at(1) is not None:
        sizes = ints(call.at(1))
    elif "split" in call.attributes:
        sizes = call.integers("split")
    else:
        size = -(-x.shape[axis] // call.integer("num_outputs", call.outputs))
        sizes = [min(size, x.shape[axis] - begin) for begin in range(0, x.shape[axis], size)]
    return tuple(torch.split(x, [int(size) for size in sizes], axis))


def _slice(call: Call) -> Tensor:
    x = call.tensor(0)
    if len(call.inputs) > 1:
        starts, ends = ints(call.at(1)), ints(call.at(2))
        axes = call.axes(3)
        steps = ints(call.at(4)) if call.at(4) is not None else [1] * len(starts)
    else:
        starts, ends, axes = call.integers("starts"), call.integers("ends"), call.axes()
        steps = [1] * len(starts)
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        x = _part(x, axis % x.dim(), starts[i], ends[i], steps[i])
    return x


def _part(x: Tensor, axis: int, start: Number, end: Number, step: int) -> Tensor:
    if step > 0:
        index = [slice(None)] * x.dim()
        index[axis] = slice(start, None if isinstance(end, int) and end >= 2**31 - 1 else end, step)
        return x[tuple(index)]
    size = x.shape[axis]
    if not isinstance(size, int) or not isinstance(start, int) or not isinstance(end, int):
        raise Unsupported("takes a part backwards along an axis of open size")
    if (start, step) == (-1, -1) and end < -size:
        return x.flip(axis)
    end = -size - 1 if end < -size else end
    return x.index_select(axis, torch.tensor(list(range(size))[start : None if end < -size else end : step]))


def _gather(call: Call) -> Tensor:
    x, index = call.tensor(0), call.operand(1)
    axis = call.integer("axis", 0) % x.dim()
    if isinstance(index, Sizes) and index.scalar:
        return x.select(axis, index.values[0])
    places = _from_start(as_tensor(index), x.shape[axis])
    if isinstance(index, Tensor) and axis == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(places, x)
    parts = x.index_select(axis, places.reshape(-1))
    return parts.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def _from_start(index: Tensor, size: int) -> Tensor:
    """Return indices with those counted from the end (negative ones) counted from the start."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


def _gather_elements(call: Call) -> Tensor:
    x, axis = call.tensor(0), call.integer("axis", 0)
    return x.gather(axis, _from_start(call.tensor(1), x.shape[axis]))


def _gather_nd(call: Call) -> Tensor:
    if call.integer("batch_dims", 0):
        raise Unsupported("looks up batch by batch (batch_dims)")
    x, index = call.tensor(0), call.tensor(1)
    return x[tuple(index.long().unbind(-1))]


def _scatter_elements(call: Call) -> Tensor:
    x, axis = call.tensor(0), call.integer("axis", 0)
    index, more = _from_start(call.tensor(1), x.shape[axis]), call.tensor(2)
    how = {"none": "", "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[call.text("reduction", "none")]
    return x.scatter_reduce(axis, index, more, how) if how else x.scatter(axis, index, more)


def _scatter_nd(call: Call) -> Tensor:
    how = call.text("reduction", "none")
    if how not in ("none", "add"):
        raise Unsupported(f"combines by {how}")
    x, index = call.tensor(0), call.tensor(1)
    return x.index_put(tuple(index.long().unbind(-1)), call.tensor(2), how == "add")


def _expand(call: Call) -> Tensor:
    x, shape = call.tensor(0), ints(call.at(1))
    rank = max(x.dim(), len(shape))
    own = [1] * (rank - x.dim()) + list(x.shape)
    larger = [1] * (rank - len(shape)) + shape
    return x.expand([new if isinstance(o, int) and o == 1 else o for o, new in zip(own, larger, strict=True)])


def _tile(call: Call) -> Tensor:
    return call.tensor(0).repeat([int(n) for n in ints(call.at(1))])


def _pad(call: Call) -> Tensor:
    x = call.tensor(0)
    pads = [int(p) for p in (ints(call.at(1)) if len(call.inputs) > 1 else call.integers("pads"))]
    axes = call.axes(3) if call.at(3) is not None else None
    sides, count = [(0, 0)] * x.dim(), len(pads) // 2
    for i, axis in enumerate(axes if axes is not None else range(count)):
        sides[axis % x.dim()] = (pads[i], pads[count + i])
    while len(sides) > 1 and sides[0] == (0, 0):
        sides = sides[1:]
    mode, amounts = call.text("mode", "constant"), [amount for pair in reversed(sides) for amount in pair]
    if mode == "constant":
        value = call.number("value", 0.0) if call.at(2) is None else number(call.at(2))
        return F.pad(x, amounts, value=value)
    return _mirrored(x, sides, mode) if x.dim() < 3 or len(sides) > x.dim() - 2 else _torch_pad(x, sides, mode)


_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _torch_pad(x: Tensor, sides: list[tuple[int, int]], mode: str) -> Tensor:
    while len(sides) < x.dim() - 2:  # PyTorch wants all of the plane
        sides = [(0, 0), *sides]
    if mode not in _MODES or any(amount < 0 for pair in sides for amount in pair):
        raise Unsupported(f"pads by {mode}, with less than nothing")
    return F.pad(x, [amount for pair in reversed(sides) for amount in pair], mode=_MODES[mode])


def _mirrored(x: Tensor, sides: list[tuple[int, int]], mode: str) -> Tensor:
    """Pad axes that PyTorch's padding does not reach, by looking up."""
    for axis, (before, after) in zip(range(x.dim() - len(sides), x.dim()), sides, strict=True):
        if not before and not after:
            continue
        size = x.shape[axis]
        places = range(-before, size + after)
        if mode == "edge":
            index = [min(max(p, 0), size - 1) for p in places]
        elif mode == "wrap":
            index = [p % size for p in places]
        else:
            around = max(2 * (size - 1), 1)
            index = [min(p % around, around - p % around) for p in places]
        x = x.index_select(axis, torch.tensor(index))
    return x


def _depth_to_space(call: Call) -> Tensor:
    x, b = call.tensor(), call.integer("blocksize")
    if call.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, b)
    n, c, h, w = x.shape
    x = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth(call: Call) -> Tensor:
    x, b = call.tensor(), call.integer("blocksize")
    if call.text("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, b)
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b * b, h // b, w // b)


# ----------------------------------------------------------------------------------------------------
# Made out of shapes


def _shape(call: Call) -> Sizes:
    x = call.operand(0)
    sizes = list(x.shape) if isinstance(x, Tensor) else [] if x.scalar else [len(x.values)]
    return Sizes(tuple(sizes[call.integer("start", 0) : call.integer("end", len(sizes))]))


def _size(call: Call) -> Sizes:
    return Sizes((math.prod(call.tensor().shape),), True)


def _constant_of_shape(call: Call) -> Tensor:
    value, shape = call.attributes.get("value"), ints(call.at(0))
    like = torch.zeros(1) if value is None else torch.from_numpy(value.reshape(-1))
    if math.prod(size for size in shape if isinstance(size, int)) > MOST_NUMBERS:
        raise Unsupported(f"makes a tensor of {' x '.join(map(str, shape))}")
    return torch.full(shape, like[0].item(), dtype=like.dtype)


def _range(call: Call) -> Tensor:
    start, end, step = (number(x) for x in call.inputs)
    if step and abs((end - start) / step) > MOST_NUMBERS:
        raise Unsupported(f"counts from {start} to {end}")
    return torch.arange(start, end, step, dtype=call.operand(0).dtype)


def _eye_like(call: Call) -> Tensor:
    x, k = call.tensor(), call.integer("k", 0)
    rows, columns = x.shape
    diagonal = torch.arange(rows).unsqueeze(1) + k == torch.arange(columns)
    return diagonal.to(DTYPES.get(call.integer("dtype", 0), x.dtype))


def _one_hot(call: Call) -> Tensor:
    index, depth, values = call.tensor(0).long(), int(number(call.at(1))), call.tensor(2)
    axis = call.integer("axis", -1)
    rank = index.dim() + 1
    shape = [1] * rank
    shape[axis % rank] = depth
    hit = torch.where(index < 0, index + depth, index).unsqueeze(axis) == torch.arange(depth).reshape(shape)
    return torch.where(hit, values[1], values[0])


def _trilu(call: Call) -> Tensor:
    k = 0 if call.at(1) is None else int(number(call.at(1)))
    return (torch.triu if call.integer("upper", 1) else torch.tril)(call.tensor(0), k)


def _grid_sample(call: Call) -> Tensor:
    how = call.text("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(how, how)
    corners = bool(call.integer("align_corners", 0))
    return F.grid_sample(call.tensor(0), call.tensor(1), mode, call.text("padding_mode", "zeros"), corners)


SHAPES: dict[str, Function] = {
    "Identity": lambda call: call.operand(0),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Shape": _shape,
    "Size": _size,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "EyeLike": _eye_like,
    "OneHot": _one_hot,
    "Trilu": _trilu,
    "GridSample": _grid_sample,
}
