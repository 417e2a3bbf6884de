"""What a convolution of numbers of 16 bits (`HalfConv2d`) computes: bfloat16 and float16.

TVM's own bfloat16 becomes float32 before it is multiplied, so these numbers are their 16 bits here, the upper ones of a
float32, and the schedule is that of bytes with another instruction.  float16 is TVM's, its schedule that of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import te, tirx

from cprune.tuner.programs import dots, smooth
from cprune.tuner.programs.sketch_conv import pad_plane
from cprune.tuner.programs.workload import HalfConv2d, dtypes


def computation(w: HalfConv2d) -> list[Any]:
    """Return the arguments and the output of the convolution as TVM's expressions."""
    names = ["x", *(["residual"] if w.residual else []), "weight", "bias"]
    given = {
        name: te.placeholder(size, kind, name=name)
        for name, size, kind in zip(names, w.arguments()[:-1], dtypes(w)[:-1], strict=True)
    }
    sums = (_paired if w.paired else _sums)(w, given["x"], given["weight"])
    single, half = (widened, halved) if w.paired else (_single, _half)

    def finish(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        value = sums(n, c, y, z, b).astype("float32") + given["bias"](c, b)
        if w.residual:
            value = value + single(given["residual"](n, c, y, z, b))
        value = smooth.ACTIVATIONS[w.activation](value)
        return value if w.output == "float32" else half(value)

    return [*given.values(), te.compute(w.arguments()[-1], finish, name="out")]


def _single(value: Any) -> Any:
    return value.astype("float32")


def _half(value: Any) -> Any:
    return value.astype("float16")


def _sums(w: HalfConv2d, x: Any, weight: Any) -> Any:
    """Return the sums of products of float16, in float16."""
    x = pad_plane(x, w.pad, tirx.const(0, "float16"))
    (sh, sw), (dh, dw) = w.stride, w.dilation
    kh, kw = te.reduce_axis((0, w.kernel[0]), "kh"), te.reduce_axis((0, w.kernel[1]), "kw")
    ic = te.reduce_axis((0, w.in_channels // w.in_block), "ic")
    inner = te.reduce_axis((0, w.in_block), "ic_in")

    def each(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        return te.sum(x(n, c, y * sh + kh * dh, z * sw + kw * dw, b) * weight(c, kh, kw, b), axis=[kh, kw])

    def all_of(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        read = x(n, ic, y * sh + kh * dh, z * sw + kw * dw, inner)
        return te.sum(read * weight(c, ic, kh, kw, inner, b), axis=[ic, kh, kw, inner])

    return te.compute(w.arguments()[-1], each if w.depthwise else all_of, name="conv")


def _paired(w: HalfConv2d, x: Any, weight: Any) -> Any:
    """Return the sums of products of bfloat16, in float32."""
    x = pad_plane(x, w.pad, tirx.const(0, "uint16"))
    (sh, sw), (dh, dw) = w.stride, w.dilation
    kh, kw = te.reduce_axis((0, w.kernel[0]), "kh"), te.reduce_axis((0, w.kernel[1]), "kw")
    ic = te.reduce_axis((0, w.in_channels // w.in_block), "ic")
    pair = te.reduce_axis((0, w.in_block // dots.PAIR), "pair")
    k = te.reduce_axis((0, dots.PAIR), "k")

    def each(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        read = x(n, c, y * sh + kh * dh, z * sw + kw * dw, b)
        return te.sum(widened(read) * weight(c, kh, kw, b), axis=[kh, kw])

    def all_of(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        read = x(n, ic, y * sh + kh * dh, z * sw + kw * dw, pair * dots.PAIR + k)
        return te.sum(widened(read) * widened(weight(c, ic, kh, kw, pair, b, k)), axis=[ic, kh, kw, pair, k])

    return te.compute(w.arguments()[-1], each if w.depthwise else all_of, name="conv")


def widened(bits: Any) -> Any:
    """Return the float32 number of the bits of a bfloat16."""
    return tirx.reinterpret("float32", tirx.shift_left(bits.astype("uint32"), tirx.const(16, "uint32")))


def halved(value: Any) -> Any:
    """Return the bits of the bfloat16 that is nearest to a float32 expression, half to even."""
    sixteen = tirx.const(16, "uint32")

    def rounded(bits: Any) -> Any:
        odd = tirx.bitwise_and(tirx.shift_right(bits, sixteen), tirx.const(1, "uint32"))
        return tirx.shift_right(bits + tirx.const(0x7FFF, "uint32") + odd, sixteen)

    return smooth.bound(tirx.reinterpret("uint32", value), "bits", rounded, "uint32").astype("uint16")


CASTS: Mapping[str, Callable[[Any], Any]] = {
    "widen": widened, "halve": halved, "from_float16": _single, "to_float16": _half,
}  # fmt: skip
"""What makes float32 of numbers of 16 bits and the other way round, by the names of `Elementwise`."""
