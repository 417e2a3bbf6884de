"""What counting tells of a model: its size, which other pruners optimise and the report shows, and its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cprune.network.network import Network
from cprune.targets.errors import UserError, first_line


@dataclass(frozen=True)
class Size:
    """Multiply-accumulates of one inference of the example, and trained parameters."""

    macs: int
    params: int


def size_of(network: Network, example_inputs: Sequence[Tensor]) -> Size:
    """Return the size of `network`.  Convolutions and linear layers count, nothing else multiplies enough."""
    values = network.values(*example_inputs)
    macs = 0
    for node in network.nodes:
        if node.op.startswith(("aten.conv", "aten.linear")):
            weight, out = values[node.args[1].name], values[node.name]
            macs += out.numel() * weight[0].numel()
    return Size(macs, sum(p.numel() for p in network.parameters()))


def class_count(model: nn.Module, inputs: tuple[Tensor, ...], name: str) -> int | None:
    """Return how many classes a model tells apart, None if it does not return logits [N, classes].

    It runs once on its example, so that a wrong shape is found here and not in the compiler: UserError with `name`.
    """
    shapes = ", ".join("x".join(map(str, value.shape)) for value in inputs)
    try:
        with torch.no_grad():
            output = model(*inputs)
    except Exception as error:
        raise UserError(
            f"{name} cannot run on an input of {shapes}: {first_line(error)}",
            "Return (model, example_input) with an input the model takes, or choose data of another size.",
        ) from error
    return int(output.shape[1]) if isinstance(output, Tensor) and output.ndim == 2 else None
