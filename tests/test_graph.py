"""What shrinks together, by hand, for every small network; and what is frozen, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rule_nets import RULE_NETS
from small_nets import NETS, Captured, captured_net, conv
from torch import Tensor, nn

from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.channels.labels import Labels
from cprune.network.capture import capture
from cprune.targets.errors import UserError

LOGITS = "the model returns it"
ALL = NETS | RULE_NETS


def captured(name: str) -> Captured:
    return captured_net(ALL[name])


# network: {group: (channels, producing layers, reading layers)}
GROUPS: dict[str, dict[str, tuple[int, str, str]]] = {
    "Chain": {"conv1": (6, "conv1", "conv2"), "conv2": (5, "conv2", "fc1"), "fc1": (7, "fc1", "fc2")},
    "Residual": {
        "stem": (6, "stem a2 b2", "a1 b1 c1 short"),
        "a1": (4, "a1", "a2"),
        "b1": (5, "b1", "b2"),
        "c1": (4, "c1", "c2"),
        "c2": (8, "c2 short", "fc"),
    },
    # The stem's 4 channels lie in the middle of b2's 8 and of c2's 16; the padding around them is b2's, then
    # c2's.
    "Padded": {
        "stem": (4, "stem a2 b2 c2", "a1 b1 c1 linear"),
        "a1": (4, "a1", "a2"),
        "b1": (8, "b1", "b2"),
        "b2": (4, "b2 c2", "c1 linear"),
        "c1": (16, "c1", "c2"),
        "c2": (8, "c2", "linear"),
    },
    "Depthwise": {
        "stem": (4, "stem project twice", "expand twice last"),
        "expand": (8, "expand depth", "depth project"),
        "last": (6, "last", "fc"),
    },
    # Channel j of all three groups goes at once: 12 / 3 into the grouped convolution, 6 / 3 out of it.
    "Grouped": {
        "stem": (6, "stem restore", "reduce fc"),
        "reduce": (4, "reduce", "groups"),
        "groups": (2, "groups", "restore"),
    },
    "Dense": {
        "a": (4, "a", "b c d"),
        "b": (3, "b", "c d"),
        "c": (5, "c", "d"),
        "d": (4, "d", "e"),
        "e": (3, "e", "fc"),
    },
    "UsedTwice": {"stem": (6, "stem again", "again last"), "last": (5, "last", "fc")},
    # 4 = 8 channels in two groups.  The shuffle mixes g1's 4 with the next 2 groups: 2 are left.
    "Shuffled": {
        "stem": (4, "stem", "g1"),
        "g1": (2, "g1", "g2"),
        "g2": (4, "g2", "left right"),
        "left": (4, "left", "fc"),
        "right": (6, "right", "fc"),
    },
    "Gated": {"stem": (6, "stem up", "down plane fc"), "down": (3, "down", "up")},
    "Heads": {"stem": (6, "stem", "shown hidden"), "hidden": (4, "hidden", "fc2")},
    "Upward": {
        "down": (5, "down", "inner"),
        "inner": (6, "inner", "up"),
        "up": (4, "up", "join"),
        "skip": (3, "skip", "join"),
        "join": (2, "join", "last"),  # 8 channels, 4 to a pixel
        "last": (3, "last", "fc"),
    },
    "Sequence": {
        "conv1": (6, "conv1", "conv2"),
        "conv2": (5, "conv2", "per_step"),
        "per_step": (6, "per_step", "fc"),
    },
    "NewZeros": {"stem": (4, "stem a", "a b"), "a": (2, "a", "b"), "b": (5, "b", "fc")},
    "Tied": {"first": (8, "first b", "b last")},  # a and b are one layer, known by its last name
    "Unknown": {"free": (6, "free", "mixed chances every")},
    # Channels 0-1 are read by c and one, 2 by a c one, 3 by a d one, 4-6 by a b d one, 7 by b d one, 8 by d
    # one.
    "Sliced": {
        "stem": (3, "stem", "a b d one"),
        "stem+5": (2, "stem", "c one"),
        "a": (4, "a", "fc"),
        "b": (4, "b", "fc"),
        "c": (2, "c", "fc"),
        "d+2": (2, "d", "fc"),
        "one": (5, "one", "two"),
    },
    "LayerNorms": {"a": (8, "a", "b"), "b": (6, "b", "c"), "c": (7, "c", "fc")},
    # The first norm has two groups of four: channel j of both goes at once.
    "GroupNorms": {"a": (4, "a", "b"), "b": (6, "b", "c"), "c": (5, "c", "d"), "d": (4, "d", "fc")},
    # 24 outputs are 3 for q, k, v times 2 heads times a width of 4, and the width is what goes.
    "Vit": {
        "patch": (8, "patch proj down", "qkv up fc"),
        "qkv": (4, "qkv", "proj"),
        "up": (10, "up", "down"),
    },
    # q and k meet in a product; v has a width of its own.
    "Attention": {"q": (3, "q k", ""), "v": (5, "v", "proj"), "proj": (7, "proj", "fc")},
    "TorchAttention": {
        "stem": (8, "stem attention.out_proj", "attention.in_proj_weight mlp"),
        "attention.in_proj_weight": (4, "attention.in_proj_weight", "attention.out_proj"),
        "mlp": (7, "mlp", "fc"),
    },
    "Products": {"a": (5, "a b", ""), "d": (4, "d e", ""), "c": (7, "c", "fc")},
    "ConvNext": {"stem": (6, "stem depth down", "depth up fc"), "up": (9, "up", "down")},
    # stem: channel j of 3 groups of 2; more: 12 outputs in 3 groups of 4 are read in 2 groups of 6: 2 classes.
    # single: 3 groups of two inputs and one output go as wholes.  up: channel j of 2 groups of 4, then of 3.
    "Ratios": {
        "stem": (2, "stem", "more"),
        "more": (2, "more", "fewer"),
        "fewer": (3, "fewer", "between"),
        "between": (3, "between single", "single wide"),
        "wide": (4, "wide", "up"),
        "up": (3, "up each", "each fc"),
    },
    "Mixer": {"stem": (8, "stem down", "up fc"), "up": (9, "up", "down")},
    "Windows": {"stem": (6, "stem proj", "qkv merge"), "qkv": (4, "qkv", "proj"), "merge": (7, "merge", "fc")},
    "Standardised": {"stem": (6, "stem", "second"), "second": (5, "second", "third"), "third": (5, "third", "fc")},
    # two: 12 channels are halves of 6, read in 2 groups of 3; the shuffle keeps 2 groups of 4.
    "Gates": {
        "stem": (8, "stem", "plane two"),
        "two": (3, "two", "groups"),
        "groups": (4, "groups", "patches"),
        "patches": (3, "patches", "fc"),
    },
    "Pooled": {"a": (4, "a", "c"), "b": (3, "b", "c"), "c": (5, "c", "pooled plane")},
}


def table(graph: Graph) -> dict[str, tuple[int, str, str]]:
    return {g.id: (g.channels, " ".join(g.layers), " ".join(g.consumers)) for g in graph.groups}


def reasons(graph: Graph) -> dict[str, str]:
    return {" ".join(frozen.layers): frozen.reason for frozen in graph.frozen}


def graph_of(model: nn.Module, *shape: int) -> Graph:
    x = torch.randn(*shape)
    return analyse(capture(model, (x,)), (x,), raise_bugs=True)


@pytest.mark.parametrize("name", ALL)
def test_groups(name: str) -> None:
    assert table(captured(name).graph) == GROUPS[name]


@pytest.mark.parametrize("name", ALL)
def test_the_last_layer_is_frozen_because_the_model_returns_it(name: str) -> None:
    assert LOGITS in reasons(captured(name).graph).values()


@pytest.mark.parametrize("name", ALL)
def test_every_output_channel_of_every_layer_is_in_a_group_or_frozen(name: str) -> None:
    network, graph = captured(name).network, captured(name).graph
    tensors = network.tensors()
    for layer in graph.layers.values():
        along = graph.axes[layer.weight, layer.out_axis]
        assert len(along) == tensors[layer.weight].shape[layer.out_axis]
        mine = graph.groups_of(layer.name)
        assert mine or any(layer.name in frozen.layers for frozen in graph.frozen)
        grouped = np.concatenate([at for g in mine for at in graph.positions(g, layer.name)] or [np.zeros(0)])
        assert len(grouped) == len(set(grouped.tolist()))


# -- single facts, each a known fault of a tool of this kind


def test_a_convolution_with_one_output_channel_is_not_depthwise() -> None:
    graph = captured("Gated").graph
    assert graph.layers["plane"].in_axis == 1
    assert graph.groups_of("plane") == ()
    assert [group.id for group in graph.groups if "plane" in group.consumers] == ["stem"]


def test_a_value_concatenated_with_itself_has_every_channel_at_two_places() -> None:
    graph = captured("Dense").graph
    along = graph.axes["e.weight", 1]
    assert [np.flatnonzero(along == one).tolist() for one in graph.classes["d"]] == [
        [0, 4],
        [1, 5],
        [2, 6],
        [3, 7],
    ]


def test_a_flattened_channel_has_as_many_places_as_pixels() -> None:
    graph = captured("Chain").graph
    along = graph.axes["fc1.weight", 1]
    assert np.flatnonzero(along == graph.classes["conv2"][3]).tolist() == list(range(48, 64))


def test_the_padded_shortcut_puts_the_narrow_stream_in_the_middle_of_the_wide_one() -> None:
    graph = captured("Padded").graph
    assert [at.tolist() for at in graph.positions("stem", "b2")] == [[2], [3], [4], [5]]
    assert [at.tolist() for at in graph.positions("stem", "c2")] == [[6], [7], [8], [9]]
    assert [at.tolist() for at in graph.positions("b2", "c2")] == [[4], [5], [10], [11]]
    assert graph.groups_of("c2") == ("stem", "b2", "c2")


def test_a_depthwise_layer_with_two_filters_a_channel_ties_both_to_it() -> None:
    graph = captured("Depthwise").graph
    assert [at.tolist() for at in graph.positions("stem", "twice")] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert graph.layers["twice"].in_axis is None
    assert [group.id for group in graph.groups if "twice" in group.consumers] == ["stem"]


def test_a_shuffle_ties_channels_across_its_groups() -> None:
    graph = captured("Shuffled").graph
    assert [at.tolist() for at in graph.positions("g1", "g1")] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_squeeze_excitation_ties_the_gate_to_what_it_gates() -> None:
    assert captured("Gated").graph.groups_of("up") == ("stem",)


def test_an_operator_without_a_rule_freezes_with_its_name_and_line() -> None:
    found = reasons(captured("Unknown").graph)
    lines = (Path(__file__).parent / "small_nets.py").read_text().splitlines()
    for layer, op, code in (
        ("stem", "aten.softmax.int", "F.softmax(self.stem(x), 1)"),
        ("mixed", "aten.matmul.default", "mixed @ mixed"),
        ("chances", "aten.softmax.int", "F.softmax(self.chances(x), 1)"),
        ("every", "aten.slice.Tensor", "[:, ::2]"),
    ):
        assert found[layer].startswith(f"{op} (small_nets.py:")
        line = int(found[layer].split("small_nets.py:")[1].split(")")[0])
        assert code in lines[line - 1]


def test_channels_that_the_caller_sees_are_frozen() -> None:
    assert reasons(captured("Heads").graph)["shown"] == LOGITS


def test_a_layer_that_is_added_to_the_input_is_frozen() -> None:
    class OnInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = conv(3, 3), conv(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.conv(x) + x))

    graph = graph_of(OnInput(), 1, 3, 6, 6)
    assert graph.groups == ()
    assert reasons(graph)["conv"] == "it is an input of the model"


def test_a_convolution_with_computed_weights_freezes_what_it_reads() -> None:
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = conv(3, 6), conv(6, 5), conv(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.second.weight * x.mean()
            return self.last(F.conv2d(F.relu(self.first(x)), weight))

    graph = graph_of(Standardised(), 1, 3, 6, 6)
    assert graph.groups == ()
    assert "aten.conv2d.default (test_graph.py:" in reasons(graph)["first"]


def test_a_gate_spread_by_hand_binds_nothing() -> None:
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate, self.last = conv(3, 6), conv(6, 1), conv(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.last(x * self.gate(x).sigmoid().expand_as(x))

    assert table(graph_of(Spread(), 1, 3, 6, 6)) == {"stem": (6, "stem", "gate last")}


def test_two_convolutions_joined_along_the_height_go_together() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top, self.bottom, self.last = conv(3, 4), conv(3, 4), conv(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([self.top(x), self.bottom(x)], 2))

    assert table(graph_of(Stacked(), 1, 3, 6, 6)) == {"top": (4, "top bottom", "last")}


def test_one_input_channel_is_not_depthwise() -> None:
    graph = graph_of(nn.Sequential(conv(1, 4), conv(4, 2)), 1, 1, 6, 6)
    assert table(graph) == {"0": (4, "0", "1")}


def test_a_weight_that_is_also_used_as_a_number_is_frozen() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.last(F.relu(self.second(F.relu(self.first(x)))))
            return x * self.second.weight.sum()

    graph = graph_of(Both(), 1, 6)
    assert graph.groups == ()
    assert reasons(graph)["second"] == "it is used outside a convolution or linear layer"


def test_the_operand_that_is_spread_over_channels_is_frozen_and_not_the_other() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = conv(3, 6), conv(3, 6), conv(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.a(x) * self.b(x).mean((2, 3))[:, None, :, None])

    graph = graph_of(Crossed(), 1, 3, 6, 6)
    assert table(graph) == {"a": (6, "a", "last")}
    assert reasons(graph)["b"].endswith("spreads it over other channels")


def test_a_model_that_is_one_layer() -> None:
    graph = graph_of(conv(3, 4), 1, 3, 6, 6)
    assert graph.groups == ()
    assert reasons(graph) == {"weight": LOGITS}


def test_unknown_names_suggest_the_nearest() -> None:
    graph = captured("Residual").graph
    with pytest.raises(UserError, match="unknown group 'stemm'\nDid you mean 'stem'"):
        graph.group("stemm")
    with pytest.raises(UserError, match="unknown layer 'sort'\nDid you mean 'short'"):
        graph.groups_of("sort")


def test_an_example_of_the_wrong_shape_is_a_user_error() -> None:
    with pytest.raises(UserError, match="an input has shape 1 x 3 x 12 x 12"):
        analyse(captured("Chain").network, (torch.randn(1, 3, 12, 12),))


# -- labels


def test_united_labels_are_one_class_and_keep_the_first_reason() -> None:
    labels = Labels()
    a, b = labels.fresh(4), labels.fresh(4)
    labels.unite(a, b[::-1])
    assert (labels.roots(a) == labels.roots(b[::-1])).all()
    labels.freeze(b[:1], "one")
    labels.freeze(a[3:], "two")
    assert labels.reason(int(labels.roots(a[3:])[0])) == "one"
    assert labels.reason(int(labels.roots(a[:1])[0])) is None
    labels.unite_all(a)
    assert labels.reason(int(labels.roots(b[:1])[0])) == "one"


def test_labels_that_change_along_two_axes_are_united_along_the_shorter() -> None:
    labels = Labels()
    grid = torch.from_numpy(labels.fresh(6)).view(1, 2, 3).expand(5, 2, 3)
    spread = labels.spread(grid)
    assert (spread.axis, len(set(spread.labels.tolist()))) == (2, 3)
    roots = labels.roots(np.arange(6))
    assert roots.tolist() == [0, 1, 2, 0, 1, 2]


def test_labels_may_not_change_along_an_axis_of_open_length() -> None:
    labels = Labels()
    spread = labels.spread(torch.from_numpy(labels.fresh(6)).view(6, 1).expand(6, 4), fixed=[0])
    assert spread.constant
    assert set(labels.roots(np.arange(6)).tolist()) == {0}
