"""What every reader of models returns, the zoo's and those of files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from cprune.network.capture import capture
from cprune.network.network import Network


@dataclass(frozen=True, eq=False)
class Opened:
    """A model in evaluation mode, with inputs for one inference.

    `model` takes tensors in the order of `input_names` and returns one tensor, or several in the order of
    `output_names`: the names that a file has for them, empty for a model in Python.  `trained` is False for random
    weights.  `outputs` is the number of classes it tells apart, None where it does not return logits [N, classes], or
    where nobody has looked yet (files).
    """

    model: nn.Module
    example_inputs: tuple[Tensor, ...]
    name: str
    trained: bool = True
    outputs: int | None = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()

    @cached_property
    def network(self) -> Network:
        """The graph of the model, captured when it is first asked for.  Raises UserError where that cannot be done."""
        return self.model if isinstance(self.model, Network) else capture(self.model, self.example_inputs)
