"""In which precision a network computes, and how far what computes it elsewhere may be from PyTorch."""

from __future__ import annotations

from cprune.network.difference import COMPILED_TOLERANCE, HALVED_TOLERANCE, QUANTIZED_TOLERANCE, WRITTEN_TOLERANCE
from cprune.network.halving import halves_in
from cprune.network.network import Network
from cprune.network.node import operator_name

ROUNDING = "fake_quantize_per_tensor_affine"
"""The operator that rounds a value to bytes."""
TOLERANCES = {
    "int8": QUANTIZED_TOLERANCE, "bf16": HALVED_TOLERANCE, "fp16": HALVED_TOLERANCE, "fp32": COMPILED_TOLERANCE,
}  # fmt: skip
"""How far a compiled model may be from PyTorch, by precision."""


def is_quantized(network: Network) -> bool:
    """Tell whether a network rounds values to bytes."""
    return any(operator_name(node) == ROUNDING for node in network.nodes)


def precision(network: Network) -> str:
    """Return int8, bf16 or fp16 for a network that rounds values to bytes or to these, fp32 for any other."""
    return "int8" if is_quantized(network) else halves_in(network) or "fp32"


def tolerance(network: Network) -> float:
    """Return how far a compiled model may be from PyTorch."""
    return TOLERANCES[precision(network)]


def written_tolerance(network: Network) -> float:
    """Return how far another runtime's answers of a written file may be from PyTorch.

    What rounds its values there may round some the other way, like a compiled model.
    """
    return WRITTEN_TOLERANCE if precision(network) == "fp32" else tolerance(network)
