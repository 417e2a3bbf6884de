"""The sketches: a workload and a candidate become a scheduled TIR module.

A sketch is a schedule written by hand once per class of operators, with a few named knobs left open
(`space.py`).  A convolution's sketch holds a tile of outputs in vector registers while it walks the whole
reduction; bias, residual and activation are applied on the way out.

Working theory of the kernel: Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD
architectures" (2018), and Liu et al., "Optimizing CNN model inference on CPUs" (2019), for the blocked layout.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from cprune.tuner.programs import sketch_halves, sketch_integers, sketch_npu, smooth
from cprune.tuner.programs.dots import on_multiplier
from cprune.tuner.programs.sketch_conv import pad_plane, parallel_pad, tiled
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import (
    Conv2d,
    Dense,
    Elementwise,
    HalfConv2d,
    Mean,
    Pool2d,
    QuantizedConv2d,
    QuantizedMean,
    QuantizedPool2d,
    Workload,
    dtypes,
    stored_shape,
)

ZERO = tirx.const(0.0, "float32")


def module(workload: Workload, candidate: Candidate) -> Any:
    """Return the scheduled IRModule with one PrimFunc "main", for the simulated accelerator a second one, "finish".

    Raises ValueError or an error of TVM where the candidate does not fit the workload (stage "lower").
    """
    scheduled_module = scheduled(workload, candidate).mod
    return sketch_npu.with_finish(scheduled_module, workload) if on_multiplier(workload) else scheduled_module


def computation(workload: Workload) -> Any:
    """Return the IRModule of the workload before any schedule, as TVM's databases know it."""
    return Schedule(_computation(workload)).mod


def scheduled(workload: Workload, candidate: Candidate) -> Any:
    """Return the Schedule of `candidate`, whose trace leads from `computation` to `module`."""
    schedule = Schedule(_computation(workload))
    if on_multiplier(workload):
        sketch_npu.schedule(schedule, workload, candidate)
    elif isinstance(workload, QuantizedConv2d) or (isinstance(workload, HalfConv2d) and workload.paired):
        sketch_integers.schedule(schedule, workload, candidate)
    elif isinstance(workload, Conv2d):
        _schedule_conv(schedule, workload, candidate)
    elif isinstance(workload, Dense):
        _schedule_dense(schedule, candidate)
    elif isinstance(workload, Mean):
        _schedule_mean(schedule, candidate)
    elif isinstance(workload, Pool2d):
        _schedule_pool(schedule, candidate)
    elif isinstance(workload, Elementwise):
        _schedule_elementwise(schedule, candidate)
    else:
        raise ValueError(f"no sketch for {type(workload).__name__}")
    return schedule


@lru_cache(maxsize=512)
def _computation(workload: Workload) -> Any:
    build = {
        Conv2d: _conv,
        QuantizedConv2d: sketch_integers.computation,
        HalfConv2d: sketch_halves.computation,
        QuantizedPool2d: _pool,
        Dense: _dense,
        Mean: _mean,
        QuantizedMean: sketch_integers.mean,
        Pool2d: _pool,
        Elementwise: _elementwise,
    }[type(workload)]
    func = te.create_prim_func(build(workload))  # type: ignore[operator]
    return func.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)


# --- convolution -----------------------------------------------------------------------------------------------


def _conv(w: Conv2d) -> list[Any]:
    shapes = list(w.arguments())
    x = te.placeholder(shapes[0], name="x")
    residual = te.placeholder(shapes[1], name="residual") if w.residual else None
    weight = te.placeholder(shapes[-3], name="weight")
    bias = te.placeholder(shapes[-2], name="bias")
    padded = pad_plane(x, w.pad, ZERO)
    (sh, sw), (dh, dw) = w.stride, w.dilation
    kh = te.reduce_axis((0, w.kernel[0]), "kh")
    kw = te.reduce_axis((0, w.kernel[1]), "kw")
    if w.depthwise:

        def multiply(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
            return te.sum(padded(n, c, y * sh + kh * dh, z * sw + kw * dw, b) * weight(c, kh, kw, b), axis=[kh, kw])

    elif w.in_block:
        outer = te.reduce_axis((0, w.in_channels // w.in_block), "ic")
        inner = te.reduce_axis((0, w.in_block), "ic_in")

        def multiply(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
            read = padded(n, outer, y * sh + kh * dh, z * sw + kw * dw, inner)
            return te.sum(read * weight(c, outer, kh, kw, inner, b), axis=[outer, kh, kw, inner])

    else:
        outer = te.reduce_axis((0, w.in_channels), "ic")

        def multiply(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
            read = padded(n, outer, y * sh + kh * dh, z * sw + kw * dw)
            return te.sum(read * weight(c, outer, kh, kw, b), axis=[outer, kh, kw])

    conv = te.compute(shapes[-1], multiply, name="conv")

    def finish(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        value = conv(n, c, y, z, b) + bias(c, b)
        if residual is not None:
            value = value + residual(n, c, y, z, b)
        return smooth.ACTIVATIONS[w.activation](value)

    out = te.compute(shapes[-1], finish, name="out")
    return [x, *([residual] if residual is not None else []), weight, bias, out]


def _schedule_conv(s: Any, w: Conv2d, knobs: Candidate) -> None:
    piece, inner = tiled(s, knobs)
    conv = s.get_sblock("conv")
    s.compute_at(conv, inner, preserve_unit_loops=True)
    s.set_scope(conv, 0, "local")
    reductions = 2 if w.depthwise else 4 if w.in_block else 3
    loops = s.get_loops(conv)
    spatial, reduced = loops[-reductions - 5 : -reductions], loops[-reductions:]
    s.reorder(*reduced, *spatial)
    for loop in spatial[:-1]:
        s.unroll(loop)
    s.vectorize(spatial[-1])
    kernel_h, kernel_w = reduced[:2] if w.depthwise else reduced[1:3]
    if knobs.number("unroll") >= 1:
        s.unroll(kernel_w)
    if knobs.number("unroll") >= 2:
        s.unroll(kernel_h)
    s.decompose_reduction(conv, reduced[0])
    parallel_pad(s, knobs, piece, vectorized=bool(w.in_block))


# --- the small ones --------------------------------------------------------------------------------------------


def _dense(w: Dense) -> list[Any]:
    x_shape, w_shape, b_shape, out_shape = w.arguments()
    activate = smooth.ACTIVATIONS[w.activation]
    x, weight, bias = (te.placeholder(s, name=n) for s, n in ((x_shape, "x"), (w_shape, "weight"), (b_shape, "bias")))
    k = te.reduce_axis((0, w.in_features), "k")
    acc = te.compute(
        (w.batch, w_shape[0], w.block), lambda n, o, b: te.sum(x(n, k) * weight(o, k, b), axis=k), name="acc"
    )
    out = te.compute(
        out_shape,
        lambda n, o: activate(acc(n, o // w.block, o % w.block) + bias(o // w.block, o % w.block)),
        name="out",
    )
    return [x, weight, bias, out]


def _schedule_dense(s: Any, knobs: Candidate) -> None:
    acc = s.get_sblock("acc")
    n, o, b, k = s.get_loops(acc)
    n_out, n_in = s.split(n, [None, knobs["n_tile"]])
    o_out, o_in = s.split(o, [None, knobs["oc_tile"]])
    k_out, k_in = s.split(k, [None, knobs["k_tile"]])
    s.reorder(o_out, n_out, k_out, k_in, n_in, o_in, b)
    sums = s.cache_write(acc, 0, "local")
    s.reverse_compute_at(sums, n_out, preserve_unit_loops=True)
    *_, h_n, h_o, h_b = s.get_loops(sums)
    for loop in (n_in, o_in, k_in, h_n, h_o):
        s.unroll(loop)
    s.vectorize(b)
    s.vectorize(h_b)
    if knobs["parallel"] != "none":
        s.parallel(s.fuse(o_out, n_out))
    s.decompose_reduction(acc, k_out)
    s.fuse(*s.get_loops(s.get_sblock("out")))


def _mean(w: Mean) -> list[Any]:
    x_shape, out_shape = w.arguments()
    x = te.placeholder(x_shape, name="x")
    y, z = te.reduce_axis((0, w.height), "y"), te.reduce_axis((0, w.width), "z")
    acc = te.compute((w.batch, x_shape[1], w.block), lambda n, c, b: te.sum(x(n, c, y, z, b), axis=[y, z]), name="acc")
    scale = tirx.const(1.0 / (w.height * w.width), "float32")
    out = te.compute(out_shape, lambda n, c: acc(n, c // w.block, c % w.block) * scale, name="out")
    return [x, out]


def _schedule_mean(s: Any, knobs: Candidate) -> None:
    acc = s.get_sblock("acc")
    n, c, b, y, z = s.get_loops(acc)
    s.reorder(n, c, y, z, b)
    s.vectorize(b)
    if knobs["parallel"] != "none":
        s.parallel(s.fuse(n, c))
    s.decompose_reduction(acc, y)
    out = s.get_loops(s.get_sblock("out"))
    if len(out) == 3:  # in blocks, of bytes
        s.vectorize(out[-1])


def _pool(w: Pool2d) -> list[Any]:
    x_shape, out_shape = w.arguments()
    dtype = (*dtypes(w), "float32")[0]
    x = te.placeholder(x_shape, dtype, name="x")
    kh, kw = te.reduce_axis((0, w.kernel[0]), "kh"), te.reduce_axis((0, w.kernel[1]), "kw")
    low = tirx.min_value(dtype) if w.op == "max" else ZERO
    padded = pad_plane(x, w.pad, low)
    reduce = te.max if w.op == "max" else te.sum
    (sh, sw), (top, left, _, _) = w.stride, w.pad

    def window(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        return reduce(padded(n, c, y * sh + kh, z * sw + kw, b), axis=[kh, kw])

    if w.op == "max":
        return [x, te.compute(out_shape, window, name="out")]
    acc = te.compute(out_shape, window, name="acc")

    def average(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        if w.count_pad or not any(w.pad):
            return acc(n, c, y, z, b) * tirx.const(1.0 / (w.kernel[0] * w.kernel[1]), "float32")
        rows = tirx.min(y * sh - top + w.kernel[0], w.height) - tirx.max(y * sh - top, 0)
        columns = tirx.min(z * sw - left + w.kernel[1], w.width) - tirx.max(z * sw - left, 0)
        return acc(n, c, y, z, b) / tirx.Cast("float32", rows * columns)

    return [x, te.compute(out_shape, average, name="out")]


def _schedule_pool(s: Any, knobs: Candidate) -> None:
    blocks = [s.get(child) for child in s.get_child_blocks(s.get_sblock("root"))]
    names = [block.name_hint for block in blocks]
    root = s.get_sblock("acc" if "acc" in names else "out")
    if "pad" in names:
        s.compute_inline(s.get_sblock("pad"))
    n, c, y, z, b, kh, kw = s.get_loops(root)
    s.reorder(n, c, y, z, kh, kw, b)
    s.vectorize(b)
    for loop in (kh, kw):
        s.unroll(loop)
    if "acc" in names:
        s.reverse_compute_at(s.get_sblock("out"), z, preserve_unit_loops=True)
        s.vectorize(s.get_loops(s.get_sblock("out"))[-1])
    if knobs["parallel"] != "none":
        s.parallel(s.fuse(n, c, y))
    s.decompose_reduction(root, kh)


# --- element-wise chains ---------------------------------------------------------------------------------------


def _elementwise(w: Elementwise) -> list[Any]:
    kinds = dtypes(w) or ("float32",) * (len(w.inputs) + 1)
    inputs = [te.placeholder(stored_shape(s, b), kinds[i], name=f"x{i}") for i, (s, b) in enumerate(w.inputs)]

    def read(i: int, index: tuple[Any, ...]) -> Any:
        block = w.inputs[i][1]
        if not block:
            return inputs[i](*index)
        n, c, *plane = index
        return inputs[i](n, c // block, *plane, c % block)

    def value(e: tuple[Any, ...], index: tuple[Any, ...]) -> Any:
        op = e[0]
        if op == "in":
            return read(e[1], index)
        if op in ("add", "mul", "sub"):
            a, b = value(e[1], index), value(e[2], index)
            return a + b if op == "add" else a * b if op == "mul" else a - b
        if op == "slice":
            return value(e[1], tuple(i * step + start for i, (start, step) in zip(index, e[2], strict=True)))
        if op == "pad":
            moved = tuple(i - before for i, before in zip(index, e[2], strict=True))
            inside = [
                check
                for i, before, extent, whole in zip(moved, e[2], e[3], e[4], strict=True)
                if extent != whole
                for check in ((i >= 0, i < extent) if before else (i < extent,))
            ]
            zero = tirx.const(e[5], "uint8") if len(e) > 5 else ZERO
            return tirx.if_then_else(tirx.all(*inside), value(e[1], moved), zero) if inside else value(e[1], moved)
        if op == "cat":
            axis, parts = e[1], e[2]
            start = sum(extent for _, extent in parts[:-1])
            result = value(parts[-1][0], (*index[:axis], index[axis] - start, *index[axis + 1 :]))
            for part, extent in reversed(parts[:-1]):
                start -= extent
                moved = (*index[:axis], index[axis] - start, *index[axis + 1 :])
                result = tirx.if_then_else(index[axis] < start + extent, value(part, moved), result)
            return result
        if op == "broadcast":
            kept = [i if extent > 1 else 0 for i, extent in zip(index, e[2], strict=True)]
            return value(e[1], tuple(kept[len(kept) - e[3] :]))
        if op == "reshape":
            return value(e[1], _moved(index, e[3], e[2]))
        a = value(e[1], index)
        if op == "dequantize":
            return (a.astype("float32") - tirx.const(float(e[3]), "float32")) * tirx.const(e[2], "float32")
        if op == "quantize":
            moved = a * tirx.const(1.0 / e[2], "float32") + tirx.const(float(e[3]), "float32")
            return sketch_integers.to_byte(sketch_integers.cut(moved, "float32"))
        if op in sketch_halves.CASTS:
            return sketch_halves.CASTS[op](a)
        if op in smooth.ACTIVATIONS:
            return smooth.ACTIVATIONS[op](a)
        if op == "clip":
            return tirx.max(tirx.min(a, tirx.const(e[3], "float32")), tirx.const(e[2], "float32"))
        if op == "scale":
            return a * tirx.const(e[2], "float32")
        if op == "shift":
            return a + tirx.const(e[2], "float32")
        if op in ("sigmoid", "tanh", "erf"):
            return getattr(smooth, op)(a)
        raise ValueError(f"no element-wise operator {op!r}")

    shape, whole = stored_shape(w.shape, w.block), _bytes_moved(w.expression)
    if not w.block:
        return [*inputs, te.compute(shape, lambda *index: value(whole, index), name="out")]

    def blocked(n: Any, c: Any, *rest: Any) -> Any:
        *plane, b = rest
        channel = c * w.block + b
        inner = value(whole, (n, channel, *plane))
        if w.shape[1] % w.block == 0:
            return inner
        return tirx.if_then_else(channel < w.shape[1], inner, tirx.const(0, kinds[-1]))

    return [*inputs, te.compute(shape, blocked, name="out")]


def _bytes_moved(expression: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return an expression in which bytes that are only moved about do not become numbers on the way.

    That is one that quantizes in the end with the step of all that it reads.  Its pads have the byte that stands for 0
    as a last part.
    """
    if expression[0] != "quantize":
        return expression
    _, inside, *step = expression

    def moved(e: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if e[0] == "dequantize":
            return e[1] if list(e[2:]) == step and e[1][0] == "in" else None
        if e[0] == "cat":
            parts = [(moved(part), extent) for part, extent in e[2]]
            return None if any(part is None for part, _ in parts) else ("cat", e[1], tuple(parts))
        if e[0] not in ("slice", "pad", "reshape"):
            return None
        a = moved(e[1])
        return None if a is None else (e[0], a, *e[2:], *([step[1]] if e[0] == "pad" else []))

    return moved(inside) or expression


def _moved(index: tuple[Any, ...], shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[Any, ...]:
    """Return where the element `index` of `shape` lies in `other`, a shape of as many elements."""
    flat: Any = 0
    for i, extent in zip(index, shape, strict=True):
        flat = flat * extent + i
    place: list[Any] = []
    for extent in reversed(other):
        place.append(flat % extent)
        flat = flat // extent
    return tuple(reversed(place))


def _schedule_elementwise(s: Any, knobs: Candidate) -> None:
    *outer, inner = s.get_loops(s.get_sblock("out"))
    if not outer:
        return
    fused = s.fuse(*outer)
    if int(s.get(inner).extent) in (4, 8, 16, 32):
        s.vectorize(inner)
    if knobs["parallel"] != "none":
        s.parallel(fused)
