"""The sketch of a convolution of bfloat16 (`HalfConv2d`): that of bytes, with another instruction and no scales.

TVM's own bfloat16 becomes float32 before it is multiplied, so the numbers are their 16 bits here: the upper ones of a
float32.
"""

from __future__ import annotations

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
    sums = _sums(w, given["x"], given["weight"])

    def finish(n: Any, c: Any, y: Any, z: Any, b: Any) -> Any:
        value = sums(n, c, y, z, b) + given["bias"](c, b)
        if w.residual:
            value = value + widened(given["residual"](n, c, y, z, b))
        value = smooth.ACTIVATIONS[w.activation](value)
        return value if w.output == "float32" else halved(value)

    return [*given.values(), te.compute(w.arguments()[-1], finish, name="out")]


def _sums(w: HalfConv2d, x: Any, weight: Any) -> Any:
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
