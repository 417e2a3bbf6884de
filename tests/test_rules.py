"""The rules beyond plain layers, by hand: what goes with a channel, and what the smaller operator computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rule_nets import RULE_NETS, LayerNorms, Standardised, Vit
from small_nets import Captured, captured_net, conv, randomised
from torch import Tensor, nn

from cprune.channels.flow import Flow
from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.channels.labels import Spread
from cprune.channels.rules import REPAIRS, RULES
from cprune.channels.rules.elementwise import ELEMENTWISE_RULES
from cprune.channels.rules.layers import LAYER_RULES
from cprune.channels.rules.moves import MOVE_RULES
from cprune.channels.rules.products import PRODUCT_RULES
from cprune.channels.surgery import masked, prune
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.network.node import Node, operator_name


def captured(name: str) -> Captured:
    return captured_net(RULE_NETS[name])


def analysed(model: nn.Module, *shape: int) -> tuple[Network, Graph, tuple[Tensor, ...]]:
    x = (torch.randn(*shape, generator=torch.Generator().manual_seed(1)),)
    network = capture(randomised(model), x)
    return network, analyse(network, x, raise_bugs=True), x


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def positions(graph: Graph, group: str, layer: str) -> list[list[int]]:
    return [at.tolist() for at in graph.positions(group, layer)]


def nodes(network: Network, op: str) -> list[tuple[object, ...]]:
    return [node.args for node in network.nodes if node.op.startswith(f"aten.{op}.")]


def test_an_operator_s_repair_stands_under_the_name_of_its_rule() -> None:
    assert set(REPAIRS) <= set(RULES)


def test_no_operator_has_two_rules() -> None:
    assert len(RULES) == sum(map(len, (LAYER_RULES, ELEMENTWISE_RULES, MOVE_RULES, PRODUCT_RULES)))


# -- normalisations


def test_a_layer_norm_is_taken_over_the_channels_that_stay() -> None:
    model = randomised(LayerNorms())
    network, graph, (x,) = (
        captured("LayerNorms").network,
        captured("LayerNorms").graph,
        captured("LayerNorms").example,
    )
    keep = [0, 2, 3, 5, 6]
    with torch.no_grad():
        y = F.layer_norm(model.a(x)[..., keep], (5,), model.norm.weight[keep], model.norm.bias[keep])
        y = F.linear(F.gelu(y), model.b.weight[:, keep], model.b.bias)
        wanted = model.fc(model.bare(F.silu(model.c(model.rms(y)))).mean(1))
    same(prune(network, graph, {"a": [1, 4, 7]})(x), wanted)
    same(masked(network, graph, {"a": [1, 4, 7]}, x), wanted)


def test_the_shape_of_a_layer_norm_follows() -> None:
    smaller = prune(captured("LayerNorms").network, captured("LayerNorms").graph, {"a": [1], "b": [0, 1], "c": [2]})
    assert [args[1] for args in nodes(smaller, "layer_norm")] == [(7,), (6,)]
    assert [args[1] for args in nodes(smaller, "rms_norm")] == [(4,)]


def test_a_group_norm_loses_one_channel_in_every_group() -> None:
    graph = captured("GroupNorms").graph
    assert positions(graph, "a", "a") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    smaller = prune(captured("GroupNorms").network, graph, {"a": [0], "b": [0], "c": [0, 1]})
    assert [args[1] for args in nodes(smaller, "group_norm")] == [2, 1, 3]


def test_a_group_norm_computes_on_its_groups_without_the_channel() -> None:
    torch.manual_seed(0)
    network, graph, (x,) = analysed(nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), conv(8, 2)), 2, 3, 6, 6)
    keep = [0, 1, 3, 4, 5, 7]
    with torch.no_grad():
        t = network.tensors()
        y = F.conv2d(x, t["0.weight"], t["0.bias"], padding=1)[:, keep]
        y = F.group_norm(y, 2, t["1.weight"][keep], t["1.bias"][keep])
        wanted = F.conv2d(y, t["2.weight"][:, keep], t["2.bias"], padding=1)
    same(prune(network, graph, {"0": [2]})(x), wanted)
    same(masked(network, graph, {"0": [2]}, x), wanted)


def test_a_mean_over_channels_is_the_mean_of_those_that_stay() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x - x.mean(1, keepdim=True))

    network, graph, (x,) = analysed(Mean(), 4, 3)
    t, keep = network.tensors(), [0, 1, 4]
    with torch.no_grad():
        y = F.linear(x, t["a.weight"], t["a.bias"])[:, keep]
        wanted = F.linear(y - y.mean(1, keepdim=True), t["b.weight"][:, keep], t["b.bias"])
    same(prune(network, graph, {"a": [2, 3, 5]})(x), wanted)
    same(masked(network, graph, {"a": [2, 3, 5]}, x), wanted)


# -- attention


def test_the_width_of_all_heads_of_q_k_and_v_goes_together() -> None:
    assert positions(captured("Vit").graph, "qkv", "qkv") == [[c + 4 * head for head in range(6)] for c in range(4)]


def test_the_scale_of_an_attention_stays_the_one_of_the_whole_heads() -> None:
    smaller = prune(captured("Vit").network, captured("Vit").graph, {"qkv": [1, 2]})
    scales = [dict(node.kwargs)["scale"] for node in smaller.nodes if "attention" in node.op]
    assert scales == [0.5]  # 4 ** -0.5, and the heads are 2 wide now


def test_attention_by_hand() -> None:
    model = randomised(Vit())
    network, graph, (x,) = captured("Vit").network, captured("Vit").graph, captured("Vit").example
    keep = [0, 3]
    with torch.no_grad():
        y = model.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([model.cls.expand(2, -1, -1), y], 1) + model.place
        q, k, v = model.qkv(model.norm1(y)).view(2, 5, 3, 2, 4)[..., keep].permute(2, 0, 3, 1, 4)
        q = F.layer_norm(q, (2,), model.q_norm.weight[keep], model.q_norm.bias[keep])
        z = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 4)
        y = y + model.gamma * F.linear(z, model.proj.weight[:, [0, 3, 4, 7]], model.proj.bias)
        y = y + model.down(F.gelu(model.up(model.norm2(y))))
        wanted = model.fc(model.norm(y)[:, 0])
    same(prune(network, graph, {"qkv": [1, 2]})(x), wanted)


def heads(name: str) -> tuple[Network, Graph, tuple[Tensor, ...]]:
    whole = captured(name)
    return whole.network, analyse(whole.network, whole.example, whole_heads=True, raise_bugs=True), whole.example


def test_a_whole_head_is_its_q_k_and_v() -> None:
    _, graph, _ = heads("Vit")
    assert positions(graph, "qkv", "qkv") == [
        [*range(first, first + 4), *range(8 + first, 12 + first), *range(16 + first, 20 + first)] for first in (0, 4)
    ]
    assert graph.group("qkv").consumers == ("proj",)


def test_attention_with_one_head_less_by_hand() -> None:
    model = randomised(Vit())
    network, graph, (x,) = heads("Vit")
    with torch.no_grad():
        y = model.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([model.cls.expand(2, -1, -1), y], 1) + model.place
        q, k, v = model.qkv(model.norm1(y)).view(2, 5, 3, 2, 4)[..., 1, :].permute(2, 0, 1, 3)
        q = F.layer_norm(q, (4,), model.q_norm.weight, model.q_norm.bias)
        z = (q @ k.mT / 2).softmax(-1) @ v
        y = y + model.gamma * F.linear(z, model.proj.weight[:, 4:], model.proj.bias)
        y = y + model.down(F.gelu(model.up(model.norm2(y))))
        wanted = model.fc(model.norm(y)[:, 0])
    same(prune(network, graph, {"qkv": [0]})(x), wanted)
    same(masked(network, graph, {"qkv": [0]}, x), wanted)


def test_a_table_of_biases_loses_the_column_of_a_head() -> None:
    network, graph, (x,) = heads("Windows")
    assert graph.group("qkv").channels == 2
    smaller = prune(network, graph, {"qkv": [0]})
    assert smaller.tensors()["table"].shape == (9, 1)
    assert torch.equal(smaller.tensors()["table"][:, 0], network.tensors()["table"][:, 1])
    same(smaller(x), masked(network, graph, {"qkv": [0]}, x))


def test_where_heads_and_images_share_an_axis_the_width_of_the_heads_goes_all_the_same() -> None:
    network, graph, (x,) = heads("TorchAttention")  # nn.MultiheadAttention
    assert graph.group("attention.in_proj_weight").channels == 4
    removed = {"attention.in_proj_weight": [1, 2]}
    same(prune(network, graph, removed)(x), masked(network, graph, removed, x))


def test_embeddings_and_layer_scale_go_with_the_stream() -> None:
    smaller = prune(captured("Vit").network, captured("Vit").graph, {"patch": [0, 5]})
    shapes = {name: tuple(t.shape) for name, t in smaller.tensors().items()}
    assert (shapes["cls"], shapes["place"], shapes["gamma"]) == ((1, 1, 6), (1, 5, 6), (6,))


def test_a_softmax_over_channels_freezes_them() -> None:
    class Channels(nn.Module):  # every channel attends to every channel
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.last = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores = (self.a(x).mT @ self.b(x)).softmax(-1)
            return self.last((scores @ self.c(x).mT).mT)

    _, graph, _ = analysed(Channels(), 2, 4, 6)
    assert graph.groups == ()
    assert {layer for frozen in graph.frozen for layer in frozen.layers} == {"a", "b", "c", "last"}


# -- convolutions


def test_groups_with_one_output_each_go_as_wholes() -> None:
    graph = captured("Ratios").graph
    assert positions(graph, "between", "between") == [[0, 1], [2, 3], [4, 5]]
    assert positions(graph, "between", "single") == [[0], [1], [2]]
    smaller = prune(captured("Ratios").network, graph, {"between": [1]})
    assert smaller.single.weight.shape == (2, 2, 3, 3)
    assert [args[6] for args in nodes(smaller, "conv2d") if len(args) == 7] == [3, 2, 2]


def test_a_grouped_convolution_with_more_outputs_than_inputs_keeps_its_groups() -> None:
    smaller = prune(captured("Ratios").network, captured("Ratios").graph, {"stem": [0], "more": [1]})
    assert smaller.more.weight.shape == (6, 1, 3, 3)
    assert smaller.fewer.weight.shape == (6, 3, 3, 3)


def test_transposed_convolutions_in_groups() -> None:
    graph = captured("Ratios").graph
    assert positions(graph, "wide", "wide") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    smaller = prune(captured("Ratios").network, graph, {"wide": [0], "up": [2]})
    assert smaller.up.weight.shape == (6, 2, 2, 2)  # inputs x outputs of one group of two
    assert smaller.up.bias.shape == (4,)
    assert smaller.each.weight.shape == (4, 2, 2, 2)  # one group a channel, two outputs each
    assert [args[6] for args in nodes(smaller, "conv_transpose2d")] == [2, 4]


def test_a_convolution_that_slides_along_the_channels_freezes_them() -> None:
    class Eca(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.slide, self.b = conv(3, 6), nn.Conv1d(1, 1, 3, padding=1), conv(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            gate = self.slide(x.mean((2, 3)).unsqueeze(1)).sigmoid()
            return self.b(x * gate.view(-1, 6, 1, 1))

    _, graph, _ = analysed(Eca(), 1, 3, 6, 6)
    assert graph.groups == ()
    assert any("slides along the channels" in frozen.reason for frozen in graph.frozen if "a" in frozen.layers)


# -- weights that are computed


def test_a_weight_computed_from_parameters_is_computed_once_and_trained() -> None:
    model, network = randomised(Standardised()), captured("Standardised").network
    names = network.state_dict().keys()
    assert "second.computed_weight" in names
    assert "third.computed_weight" in names
    assert not any(name.startswith(("gain", "second.weight", "third.parametrizations")) for name in names)
    assert network.tensors()["third.computed_weight"].requires_grad
    same(network.tensors()["third.computed_weight"], model.third.weight)
    smaller = prune(network, captured("Standardised").graph, {"stem": [0, 1], "second": [4]})
    assert smaller.second.computed_weight.shape == (4, 4, 3, 3)


# -- other axes


def test_a_layer_along_the_positions_lets_the_channels_through() -> None:
    graph = captured("Mixer").graph
    assert not [group.id for group in graph.groups if "across" in group.consumers]
    frozen = {layer: one.reason for one in graph.frozen for layer in one.layers}
    assert frozen["across"].endswith("runs along another axis than the channels'")
    smaller = prune(captured("Mixer").network, graph, {"stem": [0, 1, 2]})
    assert smaller.across.weight.shape == (4, 5)


class Writes(nn.Module):
    """A mask filled window by window, and planes changed in place, as shifted windows do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        mask = x.new_zeros((8, 8))
        for i, rows in enumerate((slice(0, 4), slice(4, 8))):
            for j, columns in enumerate((slice(0, -2), slice(-2, 8))):
                mask[rows, columns] = 2 * i + j
        mask[3] = 5.0
        y = x.clone()
        y[:, :, 1:3] += 1
        y[:, :, 0] = x[:, :, 1]
        return self.b(y * mask)


def test_what_is_written_into_a_slice_is_put_back() -> None:
    network, graph, x = analysed(Writes(), 2, 3, 8, 8)
    assert [(group.id, group.channels) for group in graph.groups] == [("a", 4)]
    with torch.no_grad():
        same(network(*x), randomised(Writes())(*x))
        same(prune(network, graph, {"a": [0, 2]})(*x), masked(network, graph, {"a": [0, 2]}, *x))


@pytest.mark.parametrize("name", RULE_NETS)
def test_one_channel_left_of_every_group_still_computes_what_masking_does(name: str) -> None:
    net = captured(name)
    removed = {group.id: range(group.channels - 1) for group in net.graph.groups}
    with torch.no_grad():
        same(
            prune(net.network, net.graph, removed)(*net.example), masked(net.network, net.graph, removed, *net.example)
        )


# -- pixels


class Shuffled(nn.Module):
    """Eight channels become two of twice the size, and eight again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(2, 5), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(self.a(x), 2)
        return self.c(F.pixel_unshuffle(y, 2)) + F.max_pool2d(self.b(y), 2)[:, :4]


def test_the_four_channels_of_a_pixel_go_together() -> None:
    network, graph, x = analysed(Shuffled(), 2, 3, 4, 4)
    group = graph.group("a")
    assert (group.channels, group.consumers) == (2, ("c", "b"))
    assert positions(graph, "a", "a") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    same(prune(network, graph, {"a": [0]})(*x), masked(network, graph, {"a": [0]}, *x))


def test_a_single_pixel_s_channels_stay_however_large_the_plane() -> None:
    # Rows and columns are no channels, though labels differ along them: the network could not run with half of them.
    model = nn.Sequential(conv(3, 4), nn.PixelShuffle(2), nn.PixelUnshuffle(2), conv(4, 2))
    _, graph, _ = analysed(model, 2, 3, 4, 4)
    assert graph.groups == ()
    assert [f.reason for f in graph.frozen if f.layers == ("0",)] == ["one channel must be left"]


def test_a_rule_that_stumbles_freezes_and_raises_where_bugs_are_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumbles(flow: Flow, node: Node) -> tuple[Spread, ...]:
        return (flow.spread(node.args[7]),)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    x = (torch.randn(1, 3, 4, 4),)
    network = capture(model, x)
    name = next(operator_name(n) for n in network.nodes if "relu" in n.op)
    monkeypatch.setitem(RULES, name, stumbles)
    graph = analyse(network, x)
    assert not graph.groups
    assert any("reads it in a way that has no pruning rule" in frozen.reason for frozen in graph.frozen)
    with pytest.raises(IndexError):
        analyse(network, x, raise_bugs=True)


def test_a_rule_whose_result_has_another_shape_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    x = (torch.randn(1, 3, 4, 4),)
    network = capture(model, x)
    name = next(operator_name(n) for n in network.nodes if "relu" in n.op)
    monkeypatch.setitem(RULES, name, lambda flow, node: (flow.frozen((1, 2), "x"),))
    assert not analyse(network, x).groups
    with pytest.raises(ValueError, match="for other shapes"):
        analyse(network, x, raise_bugs=True)
