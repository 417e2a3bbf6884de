"""How far two outputs of a model are apart, and how far they may be.

Every tolerance is a share of the largest magnitude of a tensor, of 1 where that is smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from cprune.targets.difference import apart

COMPILED_TOLERANCE = 1e-3
"""A compiled model or another runtime against PyTorch: other programs, sums in another order, layer after layer."""
QUANTIZED_TOLERANCE = 0.1
"""The same of a model in integers: a value that float32 cannot tell from a tie between two steps is one step apart, and
so is what follows from it.  (Single programs are held to one step: `cprune.tuner.programs.reference.agrees`.)"""
HALVED_TOLERANCE = 0.03
"""The same of a model in bfloat16, whose neighbours are 1/128 to 1/256 apart: one more or less, layer after layer.  Of
one in float16 as well, whose neighbours are nearer, but so are those of its sums."""
PRUNED_TOLERANCE = 1e-4
"""A pruned network against the whole one with the same channels held at zero: the same sums in another order."""
CAPTURED_TOLERANCE = 1e-4
"""A captured network against the module it was made from: the same operators in the same order."""
OPENED_TOLERANCE = 1e-4
"""A batch against its images one by one."""
WRITTEN_TOLERANCE = 1e-4
"""What was read again from a written file against the network."""


def difference(outputs: object, wanted: object) -> float:
    """Return the largest difference between the outputs of two models, over the magnitude of each tensor.

    Both are tensors or arrays in tuples, lists and dicts.  Infinite where numbers are missing on one side: another
    count, another shape, NaN.
    """
    ours, theirs = _arrays(outputs), _arrays(wanted)
    if len(ours) != len(theirs):
        return float("inf")
    return max((apart(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _arrays(output: object) -> list[NDArray[Any]]:
    leaves = pytree.tree_leaves(output)
    return [_array(leaf) for leaf in leaves if isinstance(leaf, (Tensor, np.ndarray))]


def _array(value: Tensor | NDArray[Any]) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    plain = value.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()  # NumPy has no bfloat16
