"""A network without a residual branch computes what the whole one does with that branch's value at zero."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule_nets import RULE_NETS
from small_nets import NETS, Captured, Net, captured_net, conv, randomised
from test_surgery import choices
from torch import Tensor, nn

from cprune.channels.branches import Branch, branches, without, zeroed
from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.channels.surgery import Removed, prune
from cprune.models import zoo
from cprune.models.formats.write import save as write
from cprune.models.source import Source
from cprune.network.capture import capture
from cprune.network.difference import PRUNED_TOLERANCE, difference
from cprune.network.network import Network
from cprune.network.node import operator_name
from cprune.network.saving import load, save
from cprune.targets.errors import UserError


class Nested(Net):
    """A branch of conv, inner residual, conv; and a sum of three: the input and two ways from it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.a, self.b, self.c = conv(6, 5), conv(5, 5), conv(5, 6)
        self.d, self.e = conv(6, 6), conv(6, 6)
        self.f, self.g = conv(6, 6), conv(6, 6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.a(x)
        y = y + F.relu(self.b(F.relu(y)))
        x = torch.add(self.c(y), x)
        x = x + self.e(F.relu(self.d(x))) + self.f(x)
        x = x + (x + self.g(x))
        return self.fc(x.mean((2, 3)))


class Bottleneck(Net):
    """Inverted residuals without an activation behind them, two in a row, then a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = conv(3, 4), nn.BatchNorm2d(4)
        self.a1, self.a2, self.bna = conv(4, 8, 1), conv(8, 4, 1), nn.BatchNorm2d(4)
        self.b1, self.b2, self.bnb = conv(4, 8, 1), conv(8, 4, 1), nn.BatchNorm2d(4)
        self.c1, self.c2, self.short, self.bnc = conv(4, 8), conv(8, 6), conv(4, 6, 1), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x))
        x += self.bna(self.a2(F.relu6(self.a1(x))))
        x += self.bnb(self.b2(F.relu6(self.b1(x))))
        x = F.relu6(self.c2(F.relu6(self.c1(x))) + self.bnc(self.short(x)))
        return self.fc(x.mean((2, 3)))


OWN = {net.__name__: net for net in (Nested, Bottleneck)}
RESIDUAL = {
    **OWN,
    **{name: NETS[name] for name in ("Residual", "Padded", "Depthwise", "Grouped", "NewZeros")},
    **{name: RULE_NETS[name] for name in ("Vit", "TorchAttention", "ConvNext", "Mixer", "Windows", "Gates")},
}
EXAMPLES = settings(
    max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


@functools.cache
def found(name: str) -> tuple[Captured, tuple[Branch, ...]]:
    whole = captured_net(RESIDUAL[name])
    return whole, branches(whole.network, whole.example)


def law(network: Network, chosen: Sequence[Branch], *inputs: Tensor) -> Network:
    """Assert the law and return the shorter network."""
    with torch.no_grad():
        shorter = without(network, chosen)
        assert difference(shorter(*inputs), zeroed(network, chosen, *inputs)) <= PRUNED_TOLERANCE
    return shorter


def layers_left(network: Network) -> set[str]:
    return {name.removesuffix(".weight") for name, tensor in network.named_parameters() if tensor.dim() > 1}


def of(*expressions: str, batch: int = 2, **layers: nn.Module) -> list[tuple[str, str]]:
    """The branches of a network of these lines, that computes x from x, as (id, shortcut's operator)."""

    class Lines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc = conv(3, 4), nn.Linear(4, 2)
            for name, layer in layers.items():
                self.add_module(name, layer)

        def forward(self, x: Tensor) -> Tensor:
            names = {"torch": torch, "F": F, "stem": self.stem, **dict(self.named_children())}
            names["x"] = self.stem(x).tanh()
            for line in expressions:
                names["x"] = eval(line, names)
            return self.fc(names["x"].mean((2, 3)))

    x = torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    network = capture(randomised(Lines()), (x,))
    by_name = {node.name: node for node in network.nodes}
    all_of_them = branches(network, (x,))
    for branch in all_of_them:
        law(network, [branch], x)
    sums = [(b.id, by_name[by_name[b.add].args[1 - b.operand].name]) for b in all_of_them]
    return [(name, operator_name(shortcut)) for name, shortcut in sums]


# -- which they are


@functools.cache
def of_zoo(name: str) -> tuple[Network, tuple[Tensor, ...], tuple[Branch, ...]]:
    loaded = zoo.load_model(name)
    network = capture(loaded.model, loaded.example_inputs)
    return network, loaded.example_inputs, branches(network, loaded.example_inputs)


def test_resnet20_has_nine_the_two_with_a_padded_shortcut_among_them() -> None:
    _, _, nine = of_zoo("resnet20")
    assert [b.id for b in nine] == [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1, 2)]
    assert nine[3].layers == ("layer2.0.conv1", "layer2.0.conv2")


def test_resnet18_keeps_the_projections_of_its_shortcuts() -> None:
    network, _, eight = of_zoo("resnet18")
    assert len(eight) == 8
    assert not [layer for branch in eight for layer in branch.layers if "shortcut" in layer]
    left = layers_left(without(network, eight))
    assert left == {"conv1", "linear", *(f"layer{s}.0.shortcut.0" for s in (2, 3, 4))}


def test_mobilenetv2_has_ten_where_the_shape_stays() -> None:
    _, _, ten = of_zoo("mobilenetv2")
    assert [b.id for b in ten] == [f"blocks.{i}.layers.0" for i in (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)]
    assert {len(b.layers) for b in ten} == {3}


@pytest.mark.parametrize("name", ["Chain", "Dense", "UsedTwice", "Shuffled", "Gated", "Upward"])
def test_plain_and_dense_networks_have_none(name: str) -> None:
    whole = captured_net(NETS[name])
    assert branches(whole.network, whole.example) == ()


def test_vgg_has_none() -> None:
    assert of_zoo("vgg16_bn")[2] == ()


def test_a_transformer_has_attention_and_mlp_and_no_position_embedding() -> None:
    assert [b.layers for b in found("Vit")[1]] == [("qkv", "proj"), ("up", "down")]


def test_a_branch_names_its_addition_and_its_operand_however_it_was_written() -> None:
    by_id = {b.id: (b.add, b.operand) for b in found("Residual")[1]}
    assert by_id == {"a1": ("add", 1), "b1": ("add_", 0), "c1": ("add_1", 0)}


def test_an_inner_branch_comes_before_the_one_around_it_and_of_three_summands_both_ways_can_go() -> None:
    assert [(b.id, b.layers) for b in found("Nested")[1]] == [
        ("b", ("b",)),
        ("a", ("a", "b", "c")),
        ("d", ("d", "e")),
        ("f", ("f",)),
        ("g", ("g",)),
        ("g+2", ("g",)),  # x + (x + g(x)): without the outer one the inner identity goes too
    ]


def test_of_two_ways_with_layers_the_longer_goes_and_of_two_alike_none() -> None:
    one, two, three = conv(4, 4), conv(4, 4), conv(4, 4)
    assert of("one(x) + two(three(x).relu())", one=one, two=two, three=three) == [("three", "conv2d")]
    assert of("one(x) + two(x)", one=one, two=two) == []
    # More layers, but the projection multiplies more: which is the branch nobody can say.
    assert of("one(x) + two(three(x))", one=conv(4, 4, 5), two=conv(2, 4, 1), three=conv(4, 2, 1)) == []


def test_the_long_way_around_a_short_one_is_a_branch_as_in_a_network_that_adds_its_skips() -> None:
    up = nn.ConvTranspose2d(4, 4, 2, stride=2)
    assert of("x + up(down(x).relu())", up=up, down=conv(4, 4, stride=2)) == [("down", "tanh")]


@pytest.mark.parametrize(
    "line",
    [
        "x + one(x).mean((2, 3), keepdim=True)",  # broadcast over the plane
        "x + one(x)[:1]",  # broadcast over the batch, which is one in the example
        "torch.add(x, one(x), alpha=2)",
        "(lambda y: (x + y) * y)(one(x))",  # its value is needed elsewhere
        "x + x",
        "x + 1",
        "x + F.batch_norm(x, None, None, training=True)",  # no layer
        "x * one(x)",
        # The way around is longer, and needed elsewhere: a lateral connection is no branch of it.
        "(lambda p: (one(x) + p) * p)(three(two(x).relu()))",
        # It also reads what the shortcut does not come from.
        "(lambda q: q.sigmoid() * (x.tanh() + two(q * x)))(one(x))",
    ],
)
def test_what_is_no_branch(line: str) -> None:
    assert of(line, one=conv(4, 4), two=conv(4, 4), three=conv(4, 4), batch=1) == []


def test_a_network_that_is_one_branch_keeps_it() -> None:
    class Denoise(Net):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 4), conv(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(F.relu(self.a(x)))

    whole = captured_net(Denoise)
    assert branches(whole.network, whole.example) == ()


def test_ignored_layers_keep_their_branch() -> None:
    whole = captured_net(NETS["Residual"])
    assert [b.id for b in branches(whole.network, whole.example, ["a2"])] == ["b1", "c1"]
    assert branches(whole.network, whole.example, ["Conv2d"]) == ()


# -- the law


@pytest.mark.parametrize("name", RESIDUAL)
def test_every_branch_alone_and_all_together(name: str) -> None:
    whole, all_of_them = found(name)
    assert all_of_them
    for chosen in [*([branch] for branch in all_of_them), all_of_them]:
        shorter = law(whole.network, chosen, *whole.example)
        assert difference(shorter(*whole.example), whole.network(*whole.example)) > 1e-3  # else nothing would be seen


@pytest.mark.parametrize("name", RESIDUAL)
@EXAMPLES
@given(data=st.data())
def test_one_after_the_other_in_any_order_is_all_at_once(name: str, data: st.DataObject) -> None:
    whole, all_of_them = found(name)
    chosen = data.draw(st.lists(st.sampled_from(all_of_them), unique=True))
    at_once = law(whole.network, chosen, *whole.example)
    one_by_one = whole.network
    for branch in data.draw(st.permutations(chosen)):
        one_by_one = without(one_by_one, [branch])
    assert one_by_one.nodes == at_once.nodes
    assert one_by_one.state_dict().keys() == at_once.state_dict().keys()


def same_layers(graph: Graph, removed: Removed, shorter: Graph) -> dict[str, list[int]]:
    """The channels of a shorter network that are among those removed from the whole one."""
    gone = {int(one) for group, channels in removed.items() for one in graph.classes[group][list(channels)]}
    mapped = {}
    for group in shorter.groups:
        layer = graph.layers[group.layers[0]]
        classes = graph.axes[layer.weight, layer.out_axis]
        places = shorter.positions(group.id, layer.name)
        mapped[group.id] = [i for i, place in enumerate(places) if int(classes[place[0]]) in gone]
    return mapped


@pytest.mark.parametrize("name", RESIDUAL)
@EXAMPLES
@given(data=st.data())
def test_channels_then_branches_is_branches_then_channels(name: str, data: st.DataObject) -> None:
    whole, all_of_them = found(name)
    removed = data.draw(choices(whole.graph))
    chosen = data.draw(st.lists(st.sampled_from(all_of_them), unique=True))
    narrower = prune(whole.network, whole.graph, removed)
    law(narrower, chosen, *whole.example)
    shorter = without(whole.network, chosen)
    graph = analyse(shorter, whole.example, raise_bugs=True)
    other = prune(shorter, graph, same_layers(whole.graph, removed, graph))
    with torch.no_grad():
        apart = difference(without(narrower, chosen)(*whole.example), other(*whole.example))
    assert apart <= PRUNED_TOLERANCE


class Drawn(Net):
    """A network as nested lists: the names of layers, and lists that are added to what they read."""

    def __init__(self, plan: list[object]) -> None:
        super().__init__()
        self.plan, self.layers, self.count = plan, nn.ModuleList(), 0
        self.stem, self.fc = conv(3, 4), nn.Linear(4, 3)
        self.made = self.parts(plan)

    def parts(self, plan: list[object]) -> list[object]:
        """The same lists with a number in place of every layer that has weights."""
        made: list[object] = []
        for part in plan:
            if part in ("conv", "norm"):
                self.layers.append(conv(4, 4) if part == "conv" else nn.BatchNorm2d(4))
            layer = len(self.layers) - 1 if part in ("conv", "norm") else part
            made.append(self.parts(part) if isinstance(part, list) else layer)
        return made

    def through(self, parts: list[object], x: Tensor) -> Tensor:
        for part in parts:
            if isinstance(part, list):
                x = x + self.through(part, x)
            else:
                x = self.layers[part](x) if isinstance(part, int) else getattr(F, str(part))(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.through(self.made, F.relu(self.stem(x))).mean((2, 3)))


ONE = st.sampled_from(["conv", "norm", "relu", "relu6"])
PLANS = st.lists(st.recursive(ONE, lambda p: st.lists(p, min_size=1, max_size=4), max_leaves=8), min_size=1, max_size=5)


def blocks_with_layers(plan: list[object]) -> int:
    inside = sum(blocks_with_layers(part) for part in plan if isinstance(part, list))
    return inside + sum("conv" in str(part) for part in plan if isinstance(part, list))


@settings(EXAMPLES, max_examples=15)
@given(plan=PLANS, data=st.data())
def test_drawn_residual_networks_lose_any_branches_and_channels(plan: list[object], data: st.DataObject) -> None:
    model = randomised(Drawn(plan))
    x = model.example()
    network = capture(model, x)
    all_of_them = branches(network, x)
    assert len(all_of_them) == blocks_with_layers(plan)
    if not all_of_them:
        return
    chosen = data.draw(st.lists(st.sampled_from(all_of_them), unique=True))
    shorter = law(network, chosen, *x)
    graph = analyse(network, x, raise_bugs=True)
    removed = data.draw(choices(graph))
    narrower = prune(network, graph, removed)
    law(narrower, chosen, *x)
    after = analyse(shorter, x, raise_bugs=True)
    other = prune(shorter, after, same_layers(graph, removed, after))
    with torch.no_grad():
        assert difference(without(narrower, chosen)(*x), other(*x)) <= PRUNED_TOLERANCE


# -- what goes and what stays


def test_a_block_without_its_branch_is_gone_with_its_activation() -> None:
    network, x, nine = of_zoo("resnet20")
    shorter = law(network, [nine[1]], *x)
    names = {node.name for node in shorter.nodes}
    went = [node for node in network.nodes if node.name not in names]
    operators = [operator_name(node) for node in went if node.op != "param"]
    assert operators == ["conv2d", "batch_norm", "relu", "conv2d", "batch_norm", "add", "relu"]
    gone = network.state_dict().keys() - shorter.state_dict().keys()
    assert {name.rpartition(".")[0] for name in gone} == {
        f"layer1.1.{part}" for part in ("conv1", "bn1", "conv2", "bn2")
    }


def test_the_activation_behind_a_projection_stays() -> None:
    whole, all_of_them = found("Bottleneck")
    *_, last = all_of_them
    assert last.layers == ("c1", "c2")
    left = [operator_name(node) for node in law(whole.network, [last], *whole.example).nodes]
    assert left[-6:] == ["conv2d", "batch_norm", "relu6", "mean", "linear", "output"]


def test_a_clamp_to_other_numbers_stays() -> None:
    assert of("x.clamp(0, 1)", "(x + one(x)).clamp(0, 0.2)", one=conv(4, 4)) == [("one", "clamp")]


def test_a_tensor_that_nothing_ever_read_stays() -> None:
    whole, all_of_them = found("Residual")
    network = Network(whole.network.nodes, {**whole.network.tensors(), "spare.weight": torch.ones(2)})
    assert "spare.weight" in without(network, all_of_them).state_dict()


def test_the_argument_is_left_as_it_was_and_nothing_is_shared() -> None:
    whole, all_of_them = found("Residual")
    network = copy.deepcopy(whole.network).train()
    network.stem.weight.requires_grad_(False)
    nodes, before = network.nodes, copy.deepcopy(network.state_dict())
    shorter = without(network, all_of_them)
    assert shorter.training
    assert not shorter.stem.weight.requires_grad
    assert shorter.fc.weight.requires_grad
    for parameter in shorter.parameters():
        parameter.data.fill_(7)
    assert network.nodes is nodes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_tensor_that_is_used_elsewhere_stays_tied() -> None:
    class Shared(Net):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.c = conv(3, 4), conv(4, 4), conv(4, 4), conv(4, 4)
            self.a.weight = self.b.weight
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.fc(self.b(x + self.c(self.a(x))).mean((2, 3)))

    whole = captured_net(Shared)
    (branch,) = branches(whole.network, whole.example)
    shorter = law(whole.network, [branch], *whole.example)
    assert shorter.a.weight is shorter.b.weight
    assert layers_left(shorter) == {"stem", "a", "fc"}  # one tensor, told under its first name
    assert "a.bias" not in shorter.state_dict()


def test_a_layer_that_runs_elsewhere_too_stays() -> None:
    whole, (branch,) = found("Gates")
    assert branch.layers == ("plane",)
    assert "plane" in layers_left(law(whole.network, [branch], *whole.example))


def test_a_branch_of_another_network_is_a_user_error() -> None:
    whole, all_of_them = found("Residual")
    wrong = Branch("a1", ("a1", "a2"), "add_7", 1)
    with pytest.raises(UserError, match="no addition 'add_7', where its branch 'a1' should end"):
        without(whole.network, [wrong])
    with pytest.raises(UserError, match="no addition 'add'"):
        zeroed(without(whole.network, all_of_them), all_of_them, *whole.example)


# -- what a branch leaves: its mean


def with_means(name: str, chosen: Sequence[Branch], means: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The output without these branches but with means, and what the whole network makes of the means instead."""
    whole, _ = found(name)
    nodes = {node.name: node for node in whole.network.nodes}
    at = {nodes[b.add].args[b.operand].name: means.get(b.add, torch.zeros(1)) for b in chosen}
    with torch.no_grad():
        wanted = whole.network.run_edited(
            whole.example, lambda n, value: at[n].view(-1, 1, 1).expand_as(value) if n in at else value
        )
        return without(whole.network, chosen, means)(*whole.example), wanted


def test_a_mean_joins_the_bias_of_the_batch_norm_that_is_the_shortcut() -> None:
    whole, (a, b, c) = found("Bottleneck")
    mean = {a.add: torch.tensor([1.0, -2, 3, 4]), b.add: torch.tensor([0.5, 6, 7, -8])}
    mean[c.add] = torch.arange(6.0)
    for chosen in ([a], [b], [c], [a, b], [a, c], [a, b, c]):
        ours, wanted = with_means("Bottleneck", chosen, {b.add: mean[b.add] for b in chosen})
        assert difference(ours, wanted) <= PRUNED_TOLERANCE
        assert difference(ours, without(whole.network, chosen)(*whole.example)) > 1e-2
    shorter = without(whole.network, [a], mean)
    torch.testing.assert_close(shorter.bn.bias, whole.network.bn.bias + mean[a.add])
    # Of the sum bn(x) + a(bn(x)) it is the block's own BatchNorm: the other one is read by the block too.
    shorter = without(whole.network, [b], mean)
    torch.testing.assert_close(shorter.bna.bias, whole.network.bna.bias + mean[b.add])
    assert torch.equal(shorter.bn.bias, whole.network.bn.bias)


def test_a_mean_behind_a_relu_or_for_some_of_the_readers_alone_is_left_out() -> None:
    whole, (a, *_) = found("Residual")
    kept = without(whole.network, [a], {a.add: torch.ones(6)})
    assert all(torch.equal(value, whole.network.state_dict()[key]) for key, value in kept.state_dict().items())
    expression = nn.ModuleDict({"stem": conv(3, 4), "one": conv(4, 4), "two": conv(4, 4), "fc": nn.Linear(4, 2)})

    class Twice(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layers = expression

        def forward(self, x: Tensor) -> Tensor:
            x = self.layers["stem"](x)
            return self.layers["fc"]((self.layers["two"](x + self.layers["one"](x).relu()) * x).mean((2, 3)))

    read_twice = captured_net(Twice)
    (branch,) = branches(read_twice.network, read_twice.example)
    kept = without(read_twice.network, [branch], {branch.add: torch.ones(4)})
    assert torch.equal(kept.layers.stem.bias, read_twice.network.layers.stem.bias)


def test_a_bias_that_another_layer_shares_takes_no_mean() -> None:
    whole, (a, *_) = found("Bottleneck")
    tied = {**whole.network.tensors(), "bnb.bias": whole.network.tensors()["bn.bias"]}
    network = Network(whole.network.nodes, tied)
    kept = without(network, [a], {a.add: torch.ones(4)})
    assert torch.equal(kept.bn.bias, network.bn.bias)


def test_a_mean_of_another_length_is_an_error() -> None:
    whole, (a, *_) = found("Bottleneck")
    with pytest.raises(ValueError, match=r"the mean at 'add_' has shape \(3,\), the bias \(4,\)"):
        without(whole.network, [a], {a.add: torch.ones(3)})


# -- where it goes on from there


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_shorter_network_trains_takes_any_batch_and_comes_back_from_disk(name: str, tmp_path: Path) -> None:
    whole, all_of_them = found(name)
    shorter = without(whole.network, all_of_them)
    save(shorter, tmp_path)
    for batch in (1, 3):
        x = RESIDUAL[name]().example(batch)
        law(whole.network, all_of_them, *x)
        assert torch.equal(load(tmp_path)(*x), shorter(*x))
    shorter.train()
    shorter(*whole.example).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in shorter.parameters())


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", ["Padded", "Vit"])
def test_a_shorter_and_narrower_network_goes_out_and_comes_back(name: str, suffix: str, tmp_path: Path) -> None:
    whole, all_of_them = found(name)
    narrower = prune(whole.network, whole.graph, {group.id: [0] for group in whole.graph.groups})
    shorter = without(narrower, all_of_them[:-1])
    file = tmp_path / f"shorter{suffix}"
    assert write(shorter, whole.example, file) <= 1e-4
    back = Source(str(file)).opened(seed=0)
    with torch.no_grad():
        assert difference(back.network(*whole.example), shorter(*whole.example)) <= 1e-4
    assert len(branches(back.network, back.example_inputs)) == 1
