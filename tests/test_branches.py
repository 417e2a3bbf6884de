"""A network without a residual branch computes what the whole one does with that branch's value at zero."""

from __future__ import annotations

import functools

import pytest
import torch
from rule_nets import RULE_NETS
from small_nets import NETS, Captured, captured_net
from torch import Tensor

from cprune.channels.branches import Branch, branches, without
from cprune.network.difference import PRUNED_TOLERANCE, difference
from cprune.network.network import Network

ALL = NETS | RULE_NETS


@functools.cache
def found(name: str) -> tuple[Captured, tuple[Branch, ...]]:
    whole = captured_net(ALL[name])
    return whole, branches(whole.network, whole.example)


RESIDUAL = [name for name in ALL if found(name)[1]]


def zeroed(network: Network, chosen: list[Branch], *inputs: Tensor) -> object:
    """The whole network's output with the values of these branches at zero."""
    by_name = {node.name: node for node in network.nodes}
    operands = {by_name[branch.add].args[branch.operand].name for branch in chosen}
    return network.run_edited(inputs, lambda name, value: value * 0 if name in operands else value)


def law(network: Network, chosen: list[Branch], *inputs: Tensor) -> Network:
    with torch.no_grad():
        shorter = without(network, chosen)
        assert difference(shorter(*inputs), zeroed(network, chosen, *inputs)) <= PRUNED_TOLERANCE
    return shorter


@pytest.mark.parametrize("name", RESIDUAL)
def test_every_branch_alone_and_all_together(name: str) -> None:
    whole, all_of_them = found(name)
    for chosen in [*([branch] for branch in all_of_them), list(all_of_them)]:
        law(whole.network, chosen, *whole.example)
