"""What every node of a network returns for an example, as shapes without numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from cprune.network.network import Network
from cprune.targets.errors import UserError


def sample(network: Network, inputs: tuple[Tensor, ...]) -> dict[str, object]:
    """Return every node's value by name, tensors on torch's meta device: their shapes without their numbers.

    UserError if the network does not run on these inputs.
    """
    try:
        return dict(network.to_meta().values(*(x.to("meta") for x in inputs)))
    except (RuntimeError, IndexError, ValueError):  # an operator without shapes alone, or a mistake: the numbers tell
        pass
    try:
        return {name: _bare(value) for name, value in network.values(*inputs).items()}
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(f"the model does not run on its example input: {error}") from error


def larger_sample(network: Network, inputs: tuple[Tensor, ...]) -> dict[str, object]:
    """Return the sample for a batch with one more; empty if the network takes no other batch."""
    try:
        return sample(network, tuple(torch.cat([x, x[:1]]) if x.dim() else x for x in inputs))
    except UserError:
        return {}


def _bare(value: object) -> object:
    if isinstance(value, Tensor):
        return value.to("meta")
    return [_bare(item) for item in value] if isinstance(value, (tuple, list)) else value
