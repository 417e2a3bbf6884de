"""Quantization-aware training: a network whose forward pass rounds what its form in integers will round.

Weights are rounded to the steps of their channel, values to bytes; gradients go through as if nothing were rounded, and
stop where a value lies outside its range (the straight-through estimator: Jacob et al. 2018, section 3).  BatchNorm
stays as it is and learns.  Folding it multiplies a channel of the weight by a number, and so the channel's scale: the
weights that are trained here round to the same integers as the folded ones, so nothing of the folding is imitated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cprune.network.folding import norms
from cprune.network.network import Network
from cprune.network.operators import lookup
from cprune.network.quantizing import HIGHEST, LARGEST, LOWEST, measured, rounded, scales


class Rounding(nn.Module):
    """A network, and how it rounds; parameters and statistics are the network's own, so training this trains it."""

    def __init__(self, network: Network, batches: Sequence[Sequence[Tensor]]) -> None:
        """Take the ranges of all values from `batches` of inputs, as `quantized` does; they stay as they are."""
        super().__init__()
        self.network = network
        means, steps = measured(network, batches)
        norm_of = norms(network)
        self._steps = {norm_of.get(name, name): step for name, step in steps.items()}
        self._layers = tuple(means)
        by_name = {node.name: node for node in network.nodes}
        self._instead = {name: partial(_rounding, lookup(by_name[name].op)) for name in self._layers}
        self._inputs = [node.name for node in network.nodes if node.op == "input"]

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the network returns, in the precision of its form in integers."""
        rounded_inputs = [self._value(name, value) for name, value in zip(self._inputs, inputs, strict=True)]
        return self.network.run_edited(rounded_inputs, self._value, self._instead, self.training)

    def _value(self, name: str, value: Any) -> Any:
        step = self._steps.get(name)
        return value if step is None else torch.fake_quantize_per_tensor_affine(value.float(), *step, LOWEST, HIGHEST)

    def settle(self) -> None:
        """Put the network's weights where they are rounded to, in place: it answers as it was trained to."""
        rounded(self.network, self._layers)


def _rounding(operator: Callable[..., Any], value: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Any:
    """Call a convolution or a linear layer with its weight rounded."""
    scale = scales(weight).to(weight.dtype)
    zero = torch.zeros(len(scale), dtype=torch.int32)
    weight = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -LARGEST, LARGEST)
    return operator(value, weight, *rest, **named)
