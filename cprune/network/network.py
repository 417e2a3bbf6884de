"""The one form in which cprune holds a model: the ATen graph of `torch.export` as plain data.

A `Network` runs it with an interpreter and trains like any module.  `cprune.network.saving` writes and
reads it without unpickling code, it can be exported again for the compiler, and `cprune.channels.surgery` edits
it as a tuple of frozen nodes.

What differs from the `nn.Module` it was captured from: the forward pass is the one of evaluation mode (a
branch `if self.training:` of the author is gone, stochastic depth with it), but batch normalisation and
dropout obey `train()` and `eval()` as always.  `num_batches_tracked` is not kept.  A weight that the
original computes from its parameters (standardised, normalised) is a parameter `….computed_weight` here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cprune.network.node import Node
from cprune.network.operators import on_meta
from cprune.network.program import Program
from cprune.targets.errors import UserError


class Network(nn.Module):
    """A model as a tuple of nodes; parameters and buffers keep the state-dict names of the original.

    Constants and non-persistent buffers of the original are non-persistent buffers here too, so
    `state_dict()` has the original's keys (without `num_batches_tracked`), and a checkpoint of the original
    loads.
    """

    nodes: tuple[Node, ...]

    def __init__(self, nodes: Sequence[Node], tensors: Mapping[str, Tensor], constants: Sequence[str] = ()) -> None:
        """Take `tensors` by state-dict name, `nn.Parameter` or buffer, without copying them.

        Two names of one tensor object stay tied.  `constants` names the buffers that `state_dict()` leaves
        out.  UserError if the nodes do not make a graph (unknown operator, value or tensor that is not
        there).
        """
        super().__init__()
        self.nodes = tuple(nodes)
        for name, tensor in tensors.items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                # Straight into the dicts: the author may call a layer like one of our methods ("values").
                child = owner._modules.get(part)
                if child is None:
                    child = owner._modules[part] = nn.Module()
                owner = child
            if isinstance(tensor, nn.Parameter):
                owner._parameters[leaf] = tensor
            else:
                owner._buffers[leaf] = tensor
                if name in constants:
                    owner._non_persistent_buffers_set.add(leaf)
        self._program: Program | None = Program(self.nodes, self._holder)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_program": None}  # it holds the tensors' dicts: a copy must make its own

    def _ready(self) -> Program:
        if self._program is None:
            self._program = Program(self.nodes, self._holder)
        return self._program

    def _holder(self, name: str) -> Mapping[str, Tensor | None]:
        *path, leaf = name.split(".")
        owner: nn.Module | None = self
        for part in path:
            owner = owner._modules.get(part) if owner is not None else None
        for tensors in (owner._parameters, owner._buffers) if owner is not None else ():
            if leaf in tensors:
                return tensors
        raise UserError(f"the graph uses the tensor {name!r}, which the weights do not have")

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the original model returns: a tensor, or tuples and dicts of them; lists become tuples.

        In training mode batch_norm uses and updates its statistics and dropout is active; else neither.
        """
        return self._ready().run(inputs, self.training)

    def values(self, *inputs: Tensor) -> dict[str, Any]:
        """Return every node's value by name (bar the output's), in evaluation mode, without gradients."""
        kept: dict[str, Any] = {}
        with torch.no_grad():
            self._ready().run(inputs, False, kept)
        return kept

    def run_edited(
        self,
        inputs: Sequence[Tensor],
        edit: Callable[[str, Any], Any],
        instead: Mapping[str, Callable[..., Any]] | None = None,
        training: bool = False,
    ) -> Any:
        """Return the output, every node's value replaced by `edit(name, value)`; in evaluation mode, or in training.

        The nodes in `instead` call the function given there with the arguments of their operator.
        """
        return self._ready().run(inputs, training, edit=edit, instead=instead or {})

    def to_meta(self) -> Network:
        """Return the same network without numbers, on torch's meta device: it computes shapes only."""
        bare = {name: t.detach().to("meta") for name, t in self.tensors().items()}
        return Network([on_meta(node) for node in self.nodes], bare)

    def tensors(self) -> dict[str, Tensor]:
        """Return every parameter, buffer and constant by name; tied names give one and the same object."""
        tensors: dict[str, Tensor] = dict(self.named_parameters(remove_duplicate=False))
        tensors.update(self.named_buffers(remove_duplicate=False))
        return tensors

    def constants(self) -> tuple[str, ...]:
        """Return the names of the tensors that `state_dict()` leaves out."""
        kept = self.state_dict(keep_vars=True).keys()
        return tuple(name for name in self.tensors() if name not in kept)
