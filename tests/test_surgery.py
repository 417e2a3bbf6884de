"""The law of surgery: the pruned network computes what the whole one does with those channels at zero."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule_nets import RULE_NETS
from small_nets import NETS, Captured, Chain, Net, captured_net, conv, randomised
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.channels.surgery import masked, prune
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.network.saving import load, save
from cprune.targets.errors import UserError

ALL = NETS | RULE_NETS
EXAMPLES = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


def captured(name: str) -> Captured:
    return captured_net(ALL[name])


def law(network: Network, graph: Graph, removed: dict[str, list[int]], inputs: tuple[Tensor, ...]) -> Network:
    """Assert the law and return the pruned network."""
    with torch.no_grad():
        smaller = prune(network, graph, removed)
        found, wanted = tree_leaves(smaller(*inputs)), tree_leaves(masked(network, graph, removed, *inputs))
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    return smaller


@st.composite
def choices(draw: st.DrawFn, graph: Graph) -> dict[str, list[int]]:
    """Some channels of some groups, never all of one."""
    removed = {}
    for group in graph.groups:
        channels = st.integers(0, group.channels - 1)
        removed[group.id] = draw(st.lists(channels, unique=True, max_size=group.channels - 1))
    return removed


@pytest.mark.parametrize("name", ALL)
@EXAMPLES
@given(data=st.data())
def test_any_choice_of_channels(name: str, data: st.DataObject) -> None:
    network, graph, x = captured(name).network, captured(name).graph, captured(name).example
    law(network, graph, data.draw(choices(graph)), x)


@pytest.mark.parametrize("name", ALL)
def test_every_single_channel_of_every_group(name: str) -> None:
    network, graph, x = captured(name).network, captured(name).graph, captured(name).example
    whole = tree_leaves(network(*x))
    for group in graph.groups:
        counts = False
        for channel in range(group.channels):
            smaller = law(network, graph, {group.id: [channel]}, x)
            after = tree_leaves(smaller(*x))
            counts |= any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(after, whole, strict=True))
        assert counts, f"no channel of {group.id} matters: this test would see nothing"


@pytest.mark.parametrize("name", ALL)
def test_all_but_one_channel_of_everything(name: str) -> None:
    network, graph, x = captured(name).network, captured(name).graph, captured(name).example
    law(network, graph, {g.id: list(range(1, g.channels)) for g in graph.groups}, x)


@pytest.mark.parametrize("name", ALL)
def test_the_smaller_network_takes_any_batch(name: str) -> None:
    network, graph = captured(name).network, captured(name).graph
    for batch in (1, 3):
        law(network, graph, {g.id: [0] for g in graph.groups}, ALL[name]().example(batch))


@pytest.mark.parametrize("name", ALL)
def test_groups_keep_their_names_and_lose_the_removed_channels(name: str) -> None:
    network, graph, x = captured(name).network, captured(name).graph, captured(name).example
    removed = {group.id: [1] for group in graph.groups if group.channels > 2}
    again = analyse(prune(network, graph, removed), x, raise_bugs=True)
    for before, after in zip(graph.groups, again.groups, strict=True):
        assert after.id == before.id
        assert (after.layers, after.consumers) == (before.layers, before.consumers)
        assert after.channels == before.channels - (before.id in removed)


@pytest.mark.parametrize("name", ALL)
def test_two_cuts_are_one(name: str) -> None:
    network, graph, x = captured(name).network, captured(name).graph, captured(name).example
    groups = [group for group in graph.groups if group.channels > 3]
    if not groups:
        return
    first = prune(network, graph, {group.id: [0] for group in groups})
    both = prune(first, analyse(first, x), {group.id: [1] for group in groups})
    once = prune(network, graph, {group.id: [0, 2] for group in groups})
    assert [node.args for node in both.nodes] == [node.args for node in once.nodes]
    for key, value in once.state_dict().items():
        assert torch.equal(both.state_dict()[key], value)


def test_by_hand_a_chain() -> None:
    model = randomised(Chain())
    network, graph, x = captured("Chain").network, captured("Chain").graph, captured("Chain").example
    smaller = prune(network, graph, {"conv1": [2], "conv2": [0, 4]})
    assert torch.equal(smaller.conv1.weight, model.conv1.weight[[0, 1, 3, 4, 5]])
    assert torch.equal(smaller.bn1.running_var, model.bn1.running_var[[0, 1, 3, 4, 5]])
    assert torch.equal(smaller.conv2.weight, model.conv2.weight[[1, 2, 3]][:, [0, 1, 3, 4, 5]])
    assert torch.equal(smaller.fc1.weight, model.fc1.weight[:, 16:64])

    model.bn1.register_forward_hook(lambda *a: a[2].index_fill(1, torch.tensor([2]), 0))
    model.bn2.register_forward_hook(lambda *a: a[2].index_fill(1, torch.tensor([0, 4]), 0))
    torch.testing.assert_close(smaller(*x), model(*x), rtol=1e-5, atol=1e-5)


def test_by_hand_a_shortcut_with_padding() -> None:
    network, graph = captured("Padded").network, captured("Padded").graph
    smaller = prune(network, graph, {"stem": [0], "b2": [0, 2, 3]})
    # b2 had 8 channels: two of padding, four of the stem, two of padding; 1 + 3 + 0 are left.
    pads = [node.args[1] for node in smaller.nodes if node.op == "aten.pad.default"]
    assert pads == [(0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 4, 4)]
    assert smaller.b2.weight.shape == (4, 8, 3, 3)
    assert smaller.c2.weight.shape == (12, 16, 3, 3)


def test_by_hand_groups_of_a_depthwise_convolution() -> None:
    network, graph = captured("Depthwise").network, captured("Depthwise").graph
    smaller = prune(network, graph, {"expand": [1, 5, 6], "stem": [3]})
    groups = [node.args[6] for node in smaller.nodes if len(node.args) == 7 and "conv" in node.op]
    assert groups == [5, 3]
    assert smaller.depth.weight.shape == (5, 1, 3, 3)
    assert smaller.twice.weight.shape == (6, 1, 3, 3)


def test_nothing_removed_changes_nothing() -> None:
    network, graph, x = captured("Sliced").network, captured("Sliced").graph, captured("Sliced").example
    same = prune(network, graph, {})
    assert same.nodes == network.nodes
    assert torch.equal(same(*x), network(*x))
    assert same.stem.weight.data_ptr() != network.stem.weight.data_ptr()


@pytest.mark.parametrize("name", ["Shuffled", "Tied", "Gated"])
def test_the_argument_is_left_as_it_was(name: str) -> None:
    network, graph = copy.deepcopy(captured(name).network), captured(name).graph
    nodes, before = network.nodes, copy.deepcopy(network.state_dict())
    smaller = prune(network, graph, {g.id: [0] for g in graph.groups})
    for parameter in smaller.parameters():
        parameter.data.fill_(7)
    assert network.nodes is nodes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_tied_weights_stay_tied() -> None:
    smaller = prune(captured("Tied").network, captured("Tied").graph, {"first": [0, 3]})
    assert smaller.a.weight is smaller.b.weight
    assert smaller.a.weight.shape == (6, 6)


def test_mode_and_frozen_parameters_are_kept() -> None:
    network = copy.deepcopy(captured("Chain").network).train()
    network.conv1.weight.requires_grad_(False)
    smaller = prune(network, captured("Chain").graph, {"conv1": [0]})
    assert smaller.training
    assert not smaller.conv1.weight.requires_grad
    assert smaller.conv2.weight.requires_grad


@pytest.mark.parametrize("name", ALL)
def test_a_pruned_network_trains_exports_and_comes_back_from_disk(name: str, tmp_path: Path) -> None:
    network, graph, x = captured(name).network, captured(name).graph, captured(name).example
    smaller = prune(network, graph, {g.id: [0] for g in graph.groups})
    wanted = tree_leaves(smaller(*x))
    save(smaller, tmp_path)
    for other in (load(tmp_path), torch.export.export(smaller, x).module()):
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(other(*x)), wanted, strict=True))
    smaller.train()
    sum(leaf.sum() for leaf in tree_leaves(smaller(*x))).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in smaller.parameters())


# -- mistakes


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"conv9": [0]}, "unknown group 'conv9'\nDid you mean 'conv"),
        ({"conv1": [6]}, "group 'conv1' has channels 0 to 5; 6 is not one of them"),
        ({"conv1": [-1]}, "-1 is not one of them"),
        ({"conv1": range(6)}, "all 6 channels of group 'conv1' would go; leave at least one"),
    ],
)
def test_wrong_channels_are_a_user_error(removed: dict[str, list[int]], message: str) -> None:
    network, graph, x = captured("Chain").network, captured("Chain").graph, captured("Chain").example
    with pytest.raises(UserError, match=message):
        prune(network, graph, removed)
    with pytest.raises(UserError, match=message):
        masked(network, graph, removed, *x)


class Peek(Net):
    """Two channels are also looked at on their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.fc = conv(3, 6), conv(6, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc(self.last(x).mean((2, 3))) * x[:, :2].flatten(2).mean(2).sum(1, keepdim=True)


def test_a_value_that_would_be_empty_is_a_user_error_or_frozen() -> None:
    model = randomised(Peek())
    network = capture(model, model.example())
    graph = analyse(network, model.example(), raise_bugs=True)
    # The two that are looked at are a group of their own, so that one of them is left.
    assert [(group.id, group.channels) for group in graph.groups][:2] == [("stem", 2), ("stem+2", 4)]
    law(network, graph, {"stem": [1], "stem+2": [0, 1, 2]}, model.example())


# -- operators with constants that depend on widths, one by one


class Wrap(Net):
    """conv, some expression, and a convolution behind it."""

    def __init__(self, expression: str, channels: int = 8) -> None:
        super().__init__()
        self.stem, self.expression = conv(3, 8), expression
        self.side = conv(3, 8)
        self.last, self.fc = conv(channels, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        scope = {"torch": torch, "F": F, "x": F.relu(self.stem(x)), "y": self.side(x)}
        return self.fc(self.last(eval(self.expression, scope)).mean((2, 3)))


# expression: (channels it has, channels of the group "stem" or 0 if frozen)
EXPRESSIONS = {
    "x.reshape(x.shape[0], 8, -1).unflatten(2, (8, 8))": (8, 8),
    "x.view(-1, 8, 64).view(-1, 8, 8, 8)": (8, 8),
    "x.reshape(x.shape[0] * 4, 2, 64).permute(1, 0, 2).reshape(2, -1, 4, 8, 8)[0]": (4, 0),
    "x.flatten(1).view(-1, 8, 8, 8)": (8, 8),
    "x.flatten(2).unflatten(2, (8, -1))": (8, 8),
    "x.permute(0, 2, 3, 1).permute(0, 3, 1, 2).contiguous()": (8, 8),
    "x.transpose(1, 3).transpose(3, 1)": (8, 8),
    "x[:, 1:]": (7, 7),
    "x[:, -6:-1]": (5, 5),
    "x[:, :4] + x[:, 4:]": (4, 4),
    "torch.cat([x[:, 4:], x[:, :4]], 1)": (8, 4),
    "x.chunk(2, 1)[1]": (4, 4),
    "x.split(3, 1)[1] * y[:, 1:4]": (3, 3),
    "torch.cat([t.relu() for t in x.split([1, 3, 4], dim=1)], 1)": (8, 4),
    "torch.cat(x.unbind(1), 0).view(-1, 8, 8, 8)": (8, 0),
    "x.narrow(1, -5, 4)": (4, 4),
    "x[:, 3].unsqueeze(1) + x[:, 5:6]": (1, 6),
    "x[:, 2].unsqueeze(1)": (1, 7),
    "torch.stack([x, y], 2).flatten(1, 2)": (16, 8),
    "torch.stack([x, y], 1).sum(1)": (8, 8),
    "x.repeat(1, 2, 1, 1)": (16, 8),
    "x.unsqueeze(2).expand(-1, 8, 3, 8, 8).flatten(1, 2)": (24, 8),
    "x.flip(1, 3)": (8, 8),
    "x.roll(1, 1)": (8, 0),
    "x.roll((1, -2), (2, 3))": (8, 8),
    "x.roll(1)": (8, 0),
    "x[:, :, [3, 1, 2]]": (8, 8),
    "x.index_select(2, torch.tensor([1, 0]))": (8, 8),
    "x.index_select(1, torch.tensor([1, 0]))": (2, 0),
    "x.unfold(2, 3, 1).amax(-1)": (8, 8),
    "x.repeat_interleave(2, 1)": (16, 8),
    "x.amax(1, keepdim=True) * y": (8, 0),
    "x.argmax(1, keepdim=True) * y": (8, 0),
    "x.topk(4, 1)[0]": (4, 0),
    "x.sort(1)[0]": (8, 0),
    "x * x.sum(1, keepdim=True)": (8, 8),
    "x / (1 + x.norm(p=1, dim=1, keepdim=True))": (8, 8),
    "x / (1 + x.norm(p=3, dim=1, keepdim=True))": (8, 0),
    "(x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()": (8, 8),
    "(x - x.mean((1, 2), keepdim=True)) / x.std((1, 2), keepdim=True)": (8, 8),
    "x.mean((1, 2, 3), keepdim=True) * y": (8, 8),
    "x - torch.var_mean(x, 1, unbiased=False, keepdim=True)[1]": (8, 8),
    "F.rms_norm(x.transpose(1, 3), (8,)).transpose(1, 3)": (8, 8),
    "F.group_norm(x, 4)": (8, 2),
    "F.group_norm(x, 8)": (8, 8),
    "F.layer_norm(x, x.shape[2:])": (8, 8),
    "(x.flatten(2) @ y.flatten(2).transpose(1, 2)).unsqueeze(1)": (1, 0),
    "(x.flatten(2).mT @ y.flatten(2)).unsqueeze(1)": (1, 8),
    "F.scaled_dot_product_attention(x, y, y)": (8, 8),
    "F.scaled_dot_product_attention(x.transpose(1, 2), y.transpose(1, 2), y.transpose(1, 2))": (8, 0),
    "F.scaled_dot_product_attention(x.flatten(2).mT, y.flatten(2).mT, y.flatten(2).mT).mT.unflatten(2, (8, 8))": (8, 8),
    "x[:, [1, 0, 2, 3, 4, 5, 6, 7]]": (8, 0),
    "F.pad(x, (1, 1, 2, 0), value=0.5)": (8, 8),
    "F.pad(x, (1, 1, 1, 1), mode='circular')": (8, 8),
    "F.pad(x, (0, 0, 0, 0, 3, 1), value=0.5)": (12, 8),
    "F.pad(x, (0, 0, 0, 0, -1, 0))": (7, 0),
    "F.pad(x[:, 2:6], (1, 1, 1, 1, 2, 2)) * x.new_ones(8, 10, 10)": (8, 4),
    "F.glu(x, 1)": (4, 4),
    "F.softmax(x, 1)": (8, 0),
    "F.softmax(x, 3)": (8, 8),
    "F.layer_norm(x, x.shape[1:])": (8, 8),
    "F.instance_norm(x)": (8, 8),
    "F.normalize(x, dim=1)": (8, 8),
    "x * torch.ones(8).view(8, 1, 1)": (8, 8),
    "x + torch.arange(8.0).view(1, 8, 1, 1)": (8, 0),
    "x + torch.zeros(x.shape[0], 8, 8, 8)": (8, 8),
    "torch.where(x > 0.1, x, y)": (8, 8),
    "torch.where(x > 0.1, x, torch.zeros_like(y))": (8, 8),
    "x / (1 + x.abs().mean((2, 3), keepdim=True))": (8, 8),
    "x * x.mean(1, keepdim=True)": (8, 8),
    "x * x.amax((1, 2, 3), keepdim=True)": (8, 0),
    "F.avg_pool2d(x, 3, 1, 1) - F.max_pool2d(x, 3, 1, 1)": (8, 8),
    "F.interpolate(F.adaptive_max_pool2d(x, 2), scale_factor=2.0)": (8, 8),
    "F.interpolate(x, size=(5, 5), mode='bilinear')": (8, 8),
    "F.pixel_unshuffle(x, 2)": (32, 8),
    "F.channel_shuffle(x, 2)": (8, 4),
    "F.max_pool2d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2)": (8, 0),
    "x.transpose(1, 2)": (8, 0),
    "x * F.adaptive_avg_pool2d(x, 1).squeeze()[:, :, None, None]": (8, 8),
    "x * F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(1).unsqueeze(3)": (8, 8),
    "(x[:, :, :1, :1] * y[:, :, :1, :1].transpose(1, 2)).expand(-1, -1, -1, 4)": (8, 0),
    "x * y[:, :, 0, 0][:, None, :, None]": (8, 8),
    "x[:, :, 0][:, None] * y": (8, 0),
    "x + x.new_zeros(8, 1, 1) * y.new_ones(1, 8, 1)": (8, 0),
    "x.view(-1, 2, 8, 8).relu().view(-1, 8, 8, 8)": (8, 2),
    "x.log().clamp(-3, 3)": (8, 8),
    "x.cumsum(1)": (8, 0),
    "x.cumsum(2)": (8, 8),
    "x.to(torch.float64).to(torch.float32)": (8, 8),
    "torch.einsum('bchw,bchw->bchw', x, y)": (8, 8),
    "x.view(x.shape[0] * 2, 4, 8, 8).relu().view(x.shape[0], 8, 8, 8)": (8, 4),
    "x.view(x.shape[0] * 4, 2, 8, 8).relu().view(x.shape[0], 8, 8, 8)": (8, 2),
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_law_behind_every_operator(expression: str) -> None:
    channels, wanted = EXPRESSIONS[expression]
    model = randomised(Wrap(expression, channels))
    network = capture(model, model.example())
    graph = analyse(network, model.example(), raise_bugs=True)
    found = {group.id: group.channels for group in graph.groups}
    if wanted >= 0:
        assert max((n for g, n in found.items() if g.startswith("stem")), default=0) == wanted, graph.frozen
    for seed in range(4):
        noise = torch.Generator().manual_seed(seed)
        removed = {g: torch.randperm(n, generator=noise)[: 1 + seed * (n - 2) // 3].tolist() for g, n in found.items()}
        law(network, graph, removed, model.example(3))
