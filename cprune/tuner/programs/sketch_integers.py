"""The sketch of a convolution of bytes (`QuantizedConv2d`).

The loops are those of a float convolution (`sketch_conv.py`); a tile of int32 sums stays in vector registers while the
instruction of `dots.py` walks the whole reduction, and the sums become bytes again on the way out.  A depthwise
convolution leaves the instruction to LLVM, which multiplies pairs of 16-bit numbers.

Georganas et al. (2018) for the tile; int8 kernels in this form: the convolutions of oneDNN and of Jain et al.,
"Efficient execution of quantized deep learning models" (2020), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te, tirx

from cprune.tuner.programs import dots, smooth
from cprune.tuner.programs.sketch_conv import pad_plane, parallel_pad, tiled
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import HalfConv2d, QuantizedConv2d, QuantizedMean, dtypes

LOWEST, HIGHEST = 0, 255


def computation(w: QuantizedConv2d) -> list[Any]:
    """Return the arguments and the output of the convolution as TVM's expressions."""
    given = given_to(w)
    sums = sums_of(w, given["x"], given["weight"], given["zero"](0))
    return [*given.values(), finished(w, sums, given)]


def given_to(w: QuantizedConv2d) -> dict[str, Any]:
    """Return the arguments of the convolution by name, as TVM's tensors."""
    names = ["x", *(["residual"] if w.residual else []), "weight", "scale", "bias", "numbers", "zero"]
    return {
        name: te.placeholder(size, kind, name=name)
        for name, size, kind in zip(names, w.arguments()[:-1], dtypes(w)[:-1], strict=True)
    }


def finished(w: QuantizedConv2d, sums: Any, given: Mapping[str, Any]) -> Any:
    """Return the tensor "out": the sums with scale, bias, residual and activation, as `w.output`."""

    def finish(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        value = sums(n, c, y, z, b).astype("float32") * given["scale"](c, b) + given["bias"](c, b)
        if w.residual:
            value = value + given["residual"](n, c, y, z, b).astype("float32") * given["numbers"](0)
        value = smooth.ACTIVATIONS[w.activation](value)
        if w.output == "float32":
            return value
        if w.activation != "none":
            value = value * given["numbers"](1) + given["numbers"](2)
        return to_byte(value)

    return te.compute(w.arguments()[-1], finish, name="out")


def sums_of(w: QuantizedConv2d, x: Any, weight: Any, zero: Any) -> Any:
    """Return the sums of the convolution, as TVM's tensor "conv"; `zero` is what padding is filled with."""
    x = pad_plane(x, w.pad, zero)
    (sh, sw), (dh, dw) = w.stride, w.dilation
    kh, kw = te.reduce_axis((0, w.kernel[0]), "kh"), te.reduce_axis((0, w.kernel[1]), "kw")
    ic = te.reduce_axis((0, w.in_channels // w.in_block), "ic")
    four = te.reduce_axis((0, w.in_block // dots.WORDS), "four")
    k = te.reduce_axis((0, dots.WORDS), "k")

    def each(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        read = x(n, c, y * sh + kh * dh, z * sw + kw * dw, b)
        return te.sum(read.astype("int32") * weight(c, kh, kw, b).astype("int32"), axis=[kh, kw])

    def all_of(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        read = x(n, ic, y * sh + kh * dh, z * sw + kw * dw, four * dots.WORDS + k)
        factor = weight(c, ic, kh, kw, four, b, k)
        return te.sum(read.astype("int32") * factor.astype("int32"), axis=[ic, kh, kw, four, k])

    return te.compute(w.arguments()[-1], each if w.depthwise else all_of, name="conv")


def mean(w: QuantizedMean) -> list[Any]:
    """Return the arguments and the output of a mean that becomes bytes as TVM's expressions."""
    shape, two, out = w.arguments()
    x, numbers = te.placeholder(shape, w.source, name="x"), te.placeholder(two, name="numbers")
    y, z = te.reduce_axis((0, w.height), "y"), te.reduce_axis((0, w.width), "z")
    sums = "int32" if w.source == "uint8" else "float32"
    acc = te.compute(out, lambda n, c, b: te.sum(x(n, c, y, z, b).astype(sums), axis=[y, z]), name="acc")

    def finish(n: Any, c: Any, b: Any) -> Any:
        return to_byte(acc(n, c, b).astype("float32") * numbers(0) + numbers(1))

    return [x, numbers, te.compute(out, finish, name="out")]


def to_byte(value: Any) -> Any:
    """Return a float32 expression, which is a whole number of 32 bits, rounded half to even and cut to 0 … 255."""
    whole = tirx.call_llvm_pure_intrin("int32", "llvm.lrint", value)  # cut as a float it takes two instructions more
    return cut(whole, "int32").astype("uint8")


def cut(value: Any, dtype: str) -> Any:
    """Return an expression of this type cut to 0 … 255."""
    return tirx.max(tirx.min(value, tirx.const(HIGHEST, dtype)), tirx.const(LOWEST, dtype))


def schedule(s: Any, w: QuantizedConv2d | HalfConv2d, knobs: Candidate) -> None:
    """Schedule `computation`, or that of `sketch_halves.py`."""
    piece, inner = tiled(s, knobs)
    conv = s.get_sblock("conv")
    s.compute_at(conv, inner, preserve_unit_loops=True)
    s.set_scope(conv, 0, "local")
    reductions = 2 if w.depthwise else 5
    loops = s.get_loops(conv)
    *spatial, lanes = loops[-reductions - 5 : -reductions]
    reduced = loops[-reductions:]
    if w.depthwise:
        s.reorder(*reduced, *spatial, lanes)
    else:
        s.reorder(*reduced[:-1], *spatial, lanes, reduced[-1])
    for loop in (*spatial, *(reduced if w.depthwise else ())):
        s.unroll(loop)
    if w.depthwise:
        s.vectorize(lanes)
    start = s.decompose_reduction(conv, reduced[0])
    parallel_pad(s, knobs, piece, vectorized=True)
    if w.depthwise:
        return
    s.vectorize(s.get_loops(start)[-1])
    name, text = dots.intrinsic(w.dot, w.out_block)
    s.tensorize(lanes, name)  # the last step: a pad stage cannot be moved any more after it
    s.annotate(s.get_loops(s.get_sblock("out"))[0], "pragma_import_llvm", text)
