"""Rounding that is learnt: which of two neighbours a weight goes to is found so that its layer's outputs stay.

FlexRound (Lee et al., ICML 2023, arXiv 2306.00317): a weight is divided by its step and by a number of its own, and
that by one of its output channel, before it is rounded; the numbers are learnt with Adam, a layer at a time, so that
the outputs for a few images are those of the layer in floats.  Ours keeps the step of a channel (theirs learns it too):
the largest weight of every channel stays, so that what is learnt rounds to itself again (`quantized_weight`), and files
and kernels need to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cprune.network.network import Network
from cprune.network.operators import lookup
from cprune.network.quantizing import LARGEST, scales, to_steps, weight_of

ITERATIONS, LR, LEAST = 200, 1e-4, 16  # images of a batch, at least


@dataclass(frozen=True)
class _Seen:
    """What a layer was called with, weight aside, and what it returned."""

    x: Tensor
    rest: tuple[Any, ...]
    output: Tensor


def learn_rounding(
    network: Network, plain: Network, layers: Sequence[str], batch: Sequence[Tensor], seed: int = 0
) -> None:
    """Round the weights of these layers of `network` in place, in their order, so that outputs are near `plain`'s.

    `network` is `plain` with rounded values; each layer reads what those before it, learnt already, make of `batch`.
    """
    generator = torch.Generator().manual_seed(seed)
    by_name, tensors = {node.name: node for node in network.nodes}, network.tensors()
    for name in layers:
        node = by_name[name]
        wanted = _seen(plain, name, batch).output
        given = _seen(network, name, batch)
        weight = weight_of(node, by_name, tensors)
        learnt = _learnt(lookup(node.op), weight.detach(), given, wanted, generator)
        with torch.no_grad():
            weight.copy_(to_steps(learnt))


def _seen(network: Network, name: str, batch: Sequence[Tensor]) -> _Seen:
    """Return what one layer of a network reads and returns."""
    operator = lookup(next(node.op for node in network.nodes if node.name == name))
    found: list[_Seen] = []

    def call(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Any:
        output = operator(x, weight, *rest, **named)
        found.append(_Seen(x, rest, output))
        return output

    with torch.no_grad():
        network.run_edited(tuple(batch), lambda _, value: value, {name: call})
    return found[0]


def _learnt(
    operator: Callable[..., Tensor], weight: Tensor, given: _Seen, wanted: Tensor, generator: torch.Generator
) -> Tensor:
    """Return a weight on its channels' steps: the nearest, or with less error on `wanted` if that is found."""
    axes = (-1, *[1] * (weight.dim() - 1))
    step = scales(weight).to(weight.dtype).reshape(axes)
    whole = weight / step
    stays = whole.abs() >= LARGEST - 0.5
    own, channel = torch.zeros_like(weight), torch.zeros(len(weight)).reshape(axes)
    learning: Mapping[str, Tensor] = {"own": own.requires_grad_(), "channel": channel.requires_grad_()}

    def rounded() -> Tensor:
        moved = torch.where(stays, whole, whole * torch.exp(-learning["own"] - learning["channel"]))
        nearest = moved.round().clamp(-LARGEST, LARGEST)
        return (moved + (nearest - moved).detach()) * step

    def error(one: Tensor, part: Tensor | slice) -> Tensor:
        return (operator(given.x[part], one, *given.rest) - wanted[part]).square().mean()

    everything = slice(None)
    with torch.no_grad():
        best = rounded()
        least = float(error(best, everything))
    size = max(min(len(given.x), LEAST), len(given.x) // 4)
    optimizer = torch.optim.Adam(learning.values(), lr=LR)
    for iteration in range(ITERATIONS):
        optimizer.param_groups[0]["lr"] = LR * (1 - iteration / ITERATIONS)
        chosen = torch.randperm(len(given.x), generator=generator)[:size]
        optimizer.zero_grad()
        error(rounded(), chosen).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        learnt = rounded()
        return learnt if float(error(learnt, everything)) < least else best
