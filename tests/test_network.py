"""A captured network computes, trains, saves and exports like the model it came from."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_nets import NETS, Chain, Gated, Heads, Net, Padded, Residual, Tied, captured, conv, randomised
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.network.node import Node, Ref
from cprune.network.saving import from_json, load, save, to_json
from cprune.targets.errors import UserError


def equal(a: object, b: object, tolerance: float = 1e-6) -> None:
    left, right = tree_leaves(a), tree_leaves(b)
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


# -- capture


@pytest.mark.parametrize("name", NETS)
def test_a_network_computes_what_the_model_does_for_any_batch(name: str) -> None:
    model, network = randomised(NETS[name]()), captured(name).network
    for batch in (1, 2, 5):
        x = model.example(batch)
        equal(network(*x), model(*x))


@pytest.mark.parametrize("name", NETS)
def test_state_dict_keys_are_the_models(name: str) -> None:
    model, network = randomised(NETS[name]()), captured(name).network
    wanted = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    assert set(network.state_dict()) == set(wanted)
    network = copy.deepcopy(network)
    network.load_state_dict(wanted)
    assert network.state_dict().keys() == wanted.keys()


def test_the_model_is_left_as_it_was() -> None:
    model = randomised(Chain()).train()
    before = copy.deepcopy(model.state_dict())
    network = capture(model, model.example(1))
    assert model.training
    network.conv1.weight.data.zero_()
    equal(model.state_dict(), before, 0)


def test_a_constant_of_the_model_is_kept_outside_the_state_dict() -> None:
    network = captured("Gated").network
    assert network.constants() == ("shift",)
    assert "shift" in network.tensors()


def test_in_place_operators_become_functional_ones() -> None:
    network = captured("Residual").network
    assert {"aten.relu.default", "aten.add.Tensor"} <= {node.op for node in network.nodes}
    assert not [node.op for node in network.nodes if "_." in node.op]


def test_a_value_changed_in_place_is_seen_changed_under_its_old_name() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x * 2
            z = y
            z += 1
            torch.relu_(y)
            return y, z

    x = torch.randn(2, 3)
    equal(capture(InPlace(), (x,))(x), (F.relu(2 * x + 1), F.relu(2 * x + 1)))


def test_outputs_keep_their_structure() -> None:
    out = captured("Heads").network(*Heads().example())
    assert set(out) == {"a", "rest"}
    assert isinstance(out["rest"], tuple)
    assert isinstance(out["rest"][1], tuple)


def test_tied_weights_stay_one_tensor() -> None:
    network = captured("Tied").network
    assert network.a.weight is network.b.weight
    assert copy.deepcopy(network).a.weight is not network.a.weight
    twin = copy.deepcopy(network)
    assert twin.a.weight is twin.b.weight


def test_nodes_know_the_line_of_the_code_that_made_them() -> None:
    sources = {node.op: node.source for node in captured("Chain").network.nodes}
    lines = (Path(__file__).parent / "small_nets.py").read_text().splitlines()
    file, line = sources["aten.max_pool2d.default"].split(":")
    assert file == "small_nets.py"
    assert "F.max_pool2d" in lines[int(line) - 1]


def test_a_batch_that_the_model_fixes_stays_fixed() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.reshape(1, 12))

    model, x = Fixed(), torch.randn(1, 3, 4)
    equal(capture(model, (x,))(x), model(x))


def test_a_loop_over_the_batch_fixes_it() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[i : i + 1] * 2 for i in range(x.shape[0])])

    x = torch.randn(3, 5)
    network = capture(Loop(), (x,))
    equal(network(x), 2 * x)
    with pytest.raises(UserError, match="an input has shape 4 x 5; the model takes 3 x 5"):
        network(torch.randn(4, 5))


def test_an_input_of_another_shape_is_refused() -> None:
    with pytest.raises(UserError, match="an input has shape 2 x 3 x 9 x 8; the model takes N x 3 x 8 x 8"):
        captured("Chain").network(torch.randn(2, 3, 9, 8))


def test_two_inputs() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + 2 * b.flip(1)

    a, b = torch.randn(1, 4), torch.randn(1, 4)
    network = capture(Two(), (a, b))
    equal(network(a, b), a + 2 * b.flip(1))
    with pytest.raises(UserError, match=r"takes 2 input\(s\), 1"):
        network(a)


# -- capture, when it cannot


def test_a_branch_on_data_is_named_by_its_line() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(UserError, match=r"cannot be exported at test_network.py:\d+ \(if x.sum\(\) > 0:\)"):
        capture(Branch(), (torch.randn(1, 3),))


def test_a_model_that_fails_on_its_example_says_where() -> None:
    with pytest.raises(UserError, match=r"fails on its example input 2x5x8x8 at small_nets.py:\d+"):
        capture(Chain(), (torch.randn(2, 5, 8, 8),))


def test_a_buffer_that_changes_at_run_time_is_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    with pytest.raises(UserError, match=r"changes its buffer 'calls' while it runs \(test_network.py:\d+\)"):
        capture(Counter(), (torch.randn(1, 3),))


def test_control_flow_is_refused_by_its_name() -> None:
    class Cond(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))

    with pytest.raises(UserError, match=r"the model uses the operator cond \(test_network.py:\d+\)"):
        capture(Cond(), (torch.randn(2, 3),))


def test_writing_into_a_slice_is_put_back_into_the_whole() -> None:
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y[:, :1] += 1
            return y

    x = torch.randn(2, 3)
    assert torch.equal(capture(Part(), (x,))(x), Part()(x))


def test_writing_into_a_view_of_another_kind_is_refused() -> None:
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y.transpose(0, 1).add_(1)
            return y

    with pytest.raises(UserError, match="does not compute what the model does"):
        capture(Part(), (torch.randn(2, 3),))


# -- training


def step(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    torch.manual_seed(3)
    model.train()
    out = model(*inputs)
    loss = sum(leaf.square().mean() for leaf in tree_leaves(out))
    model.zero_grad()
    loss.backward()
    model.eval()
    return loss.detach()


@pytest.mark.parametrize("net", [Chain, Residual, Padded, Gated, Tied])
def test_a_training_step_gives_equal_loss_gradients_and_statistics(net: type[Net]) -> None:
    model = randomised(net())
    network = capture(model, model.example())
    x = model.example(4)
    equal(step(network, x), step(model, x))
    wanted = {name: p.grad for name, p in model.named_parameters()}
    found = {name: p.grad for name, p in network.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    statistics = {k: v for k, v in model.state_dict().items() if "running" in k}
    for name, value in statistics.items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_training_mode_alone_changes_batch_norm_and_dropout() -> None:
    network = copy.deepcopy(captured("Chain").network)
    x = Chain().example(8)
    before = network.bn1.running_mean.clone()
    network(*x)
    equal(network.bn1.running_mean, before, 0)
    network.train()
    assert not torch.equal(network(*x), network(*x))
    assert not torch.equal(network.bn1.running_mean, before)


def test_batch_norm_without_momentum_still_learns_and_dropout_left_on_stays_on() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(5, momentum=None)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.bn(x), 0.5, training=True)

    x = torch.randn(64, 5) + 3
    network = capture(Odd(), (x,))
    assert not torch.equal(network(x), network(x))
    network.train()(x)
    torch.testing.assert_close(network.bn.running_mean, 0.1 * x.mean(0))


def test_values_are_evaluation_values_whatever_the_mode() -> None:
    network = copy.deepcopy(captured("Chain").network).train()
    x = Chain().example()
    values = network.values(*x)
    assert network.training
    assert values["conv2d_1"].shape == (2, 5, 8, 8)
    equal(values[network.nodes[-1].args[0].name], network.eval()(*x), 0)


# -- copies, export, disk


def test_a_copy_is_independent() -> None:
    network = captured("Chain").network
    x = Chain().example()
    before = network(*x)
    twin = copy.deepcopy(network)
    twin.conv1.weight.data.zero_()
    equal(network(*x), before, 0)
    assert not torch.allclose(twin(*x), before)


@pytest.mark.parametrize("name", ["Padded", "Shuffled", "Gated"])
def test_a_network_can_be_exported_and_captured_again(name: str) -> None:
    network, x = captured(name).network, captured(name).example
    program = torch.export.export(network, x)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert all(str(t).startswith("aten.") or t.__name__ == "getitem" for t in targets)
    equal(program.module()(*x), network(*x))
    again = capture(network, x)
    assert again.state_dict().keys() == network.state_dict().keys()
    equal(again(*x), network(*x))


@pytest.mark.parametrize("name", NETS)
def test_saved_and_loaded_networks_are_equal(name: str, tmp_path: Path) -> None:
    network, x = captured(name).network, captured(name).example
    save(network, tmp_path / "new")
    again = load(tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["model.json", "model.safetensors"]
    assert again.nodes == network.nodes
    assert again.constants() == network.constants()
    assert not again.training
    equal(again.state_dict(), network.state_dict(), 0)
    equal(again(*x), network(*x), 0)


def test_what_is_trained_and_what_is_tied_is_saved(tmp_path: Path) -> None:
    network = copy.deepcopy(captured("Tied").network)
    network.first.weight.requires_grad_(False)
    save(network, tmp_path)
    again = load(tmp_path)
    assert not again.first.weight.requires_grad
    assert again.last.weight.requires_grad
    assert again.a.weight is again.b.weight


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.999])
def test_truncated_weights_are_a_user_error(share: float, tmp_path: Path) -> None:
    save(captured("Chain").network, tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="not as they were saved"):
        load(tmp_path)


def test_any_changed_byte_is_a_user_error(tmp_path: Path) -> None:
    save(captured("Chain").network, tmp_path)
    for name in ("model.safetensors", "model.json"):
        data = (tmp_path / name).read_bytes()
        for at in range(0, len(data), len(data) // 20):
            changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            (tmp_path / name).write_bytes(changed)
            if name == "model.json" and _json(changed) == _json(data):
                continue  # white space
            with pytest.raises(UserError):
                load(tmp_path)
        (tmp_path / name).write_bytes(data)
    load(tmp_path)


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_a_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read a saved model in .*nowhere"):
        load(tmp_path / "nowhere")


def test_a_crash_between_the_two_files_loses_nothing(tmp_path: Path) -> None:
    network = copy.deepcopy(captured("Chain").network)
    save(network, tmp_path)
    old = (tmp_path / "model.json").read_bytes()
    network.fc2.bias.data += 1
    save(network, tmp_path)
    (tmp_path / "model.json").rename(tmp_path / "model.json.new")
    (tmp_path / "model.json").write_bytes(old)
    equal(load(tmp_path).fc2.bias, network.fc2.bias, 0)


HARMFUL = (
    *("os.system", "aten.add_.Tensor", "aten.from_file.default", "prims.abs.default"),
    *("aten.__class__.default", "operator.attrgetter", "aten.relu", ""),
)


@pytest.mark.parametrize("op", HARMFUL)
def test_a_graph_from_a_file_runs_nothing_but_harmless_aten_operators(op: str) -> None:
    nodes = [Node("x", "input"), Node("y", op, (Ref("x"),)), Node("output", "output", (Ref("y"),))]
    graph = to_json(Network([*nodes[:1], Node("y", "aten.relu.default", (Ref("x"),)), nodes[2]], {}))
    graph["nodes"][1]["op"] = op
    with pytest.raises(UserError, match="the graph uses"):
        from_json(graph, {})


def test_weights_that_do_not_fit_the_graph_are_named() -> None:
    network = captured("Chain").network
    tensors = network.tensors()
    with pytest.raises(UserError, match=r"lack the tensor 'conv2.bias'"):
        from_json(to_json(network), {k: v for k, v in tensors.items() if k != "conv2.bias"})
    with pytest.raises(UserError, match=r"'conv2.bias' of the weights is float32 \[4\], .* needs float32 \[5\]"):
        from_json(to_json(network), {**tensors, "conv2.bias": torch.zeros(4)})


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([Node("x", "input"), Node("output", "output", (Ref("z"),))], "reads 'z', which is not there"),
        (
            [Node("x", "input"), Node("x", "input"), Node("output", "output", (Ref("x"),))],
            "two nodes of one name",
        ),
        ([Node("x", "input")], "one output node"),
        ([Node("w", "param", ("w",)), Node("output", "output", (Ref("w"),))], "uses the tensor 'w'"),
    ],
)
def test_nodes_that_are_no_graph_are_a_user_error(nodes: list[Node], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Network(nodes, {})


def test_a_layer_may_be_called_like_a_method_of_the_network() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values, self.nodes = conv(3, 4), conv(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.nodes(self.values(x))

    model, x = Clash().eval(), torch.randn(1, 3, 6, 6)
    network = capture(model, (x,))
    equal(network(x), model(x))
    assert network.values(x)["conv2d"].shape == (1, 4, 6, 6)
    assert set(network.state_dict()) == set(model.state_dict())


class Blocks(nn.Module):
    """A block without autocast, one without gradients, and one in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        with torch.autocast("cpu", enabled=False):
            first, second = y.float().chunk(2, 1)
            with torch.no_grad():
                scale = second.mean((2, 3), keepdim=True)
            y = torch.cat([second * scale, first], 1)
        return self.b(y)  # type: ignore[no-any-return]


def test_blocks_without_autocast_or_gradients_are_part_of_the_graph() -> None:
    model, x = randomised(Blocks()), torch.randn(2, 3, 8, 8)
    network = capture(model, (x,))
    equal(network(x), model(x))
    assert {"chunk", "mean", "cat"} <= {node.op.split(".")[1] for node in network.nodes if "." in node.op}


class Half(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.b(self.a(x))  # type: ignore[no-any-return]


def test_a_block_in_another_precision_is_refused() -> None:
    with pytest.raises(UserError, match=r"computes in torch\.bfloat16 under torch\.autocast"):
        capture(randomised(Half()), (torch.randn(2, 3, 8, 8),))
