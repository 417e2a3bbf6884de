"""Every ONNX operator that is done here.  The definitions are ONNX's operator specification, opset 7 and newer."""

from __future__ import annotations

from cprune.models.formats.onnx.common import Function
from cprune.models.formats.onnx.elements import ELEMENTS
from cprune.models.formats.onnx.layers import LAYERS
from cprune.models.formats.onnx.resize import resize, upsample
from cprune.models.formats.onnx.rounding import FAKE, fake_quantize
from cprune.models.formats.onnx.shapes import SHAPES

OPERATORS: dict[str, Function] = {
    **LAYERS, **ELEMENTS, **SHAPES, "Resize": resize, "Upsample": upsample, FAKE: fake_quantize
}  # fmt: skip
"""The function of every operator, by ONNX's name; "Linear" and "FakeQuantize" are the reader's own, see `tidy`."""

_ALONE = "stands alone: values are read as pairs of QuantizeLinear and DequantizeLinear of one scale and 8 bits"
_QUANTISED = "computes in integers itself: give the model with QuantizeLinear and DequantizeLinear (QDQ), or before"
_REPEATS = "repeats other operators: cprune needs a graph without loops"
_OPEN = "returns as many numbers as its input has of a kind: cut the graph before it"
_RANDOM = "draws random numbers"
REASONS = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), _ALONE),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"), _QUANTISED),
    **dict.fromkeys(("Loop", "Scan", "SequenceMap"), _REPEATS),
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Unique", "Compress"), _OPEN),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"), _RANDOM),
    **dict.fromkeys(("Multinomial", "Bernoulli"), _RANDOM),
}
"""Why some operators are not done, going on after the operator's name."""
