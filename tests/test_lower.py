"""Lowered, compiled, run: the same numbers as PyTorch; and the table task <-> layer is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contracts import run_once
from small_nets import NETS, captured, randomised
from torch import nn

from cprune.channels.rules import RULES
from cprune.compiling import tvm_import
from cprune.compiling.lowered import Layout, Lowered
from cprune.compiling.lowering import lower
from cprune.compiling.operators import LOWERINGS
from cprune.compiling.operators.moves import evenly_spaced
from cprune.compiling.relax_module import relax_model
from cprune.models import zoo
from cprune.network.capture import capture
from cprune.network.difference import difference
from cprune.network.network import Network
from cprune.targets.errors import UserError
from cprune.targets.local import LocalSession
from cprune.targets.session import Array
from cprune.targets.target import Target
from cprune.tuner.programs import metaschedule, space
from cprune.tuner.programs.program import expected
from cprune.tuner.programs.workload import Conv2d, Dense, Elementwise, Mean, Tir, stored_shape


def compiled_error(network: Network, inputs: tuple[torch.Tensor, ...], block: int, session: LocalSession,
                   target: Target) -> float:  # fmt: skip
    """Return the largest difference from PyTorch, over the largest magnitude, of the model compiled anyhow."""
    lowered = lower(network, inputs, block)
    programs = {
        t.key: (
            metaschedule.candidates(t.workload, target, 0)
            if isinstance(t.workload, Tir)
            else space.of_target(t.workload, target)
        )[0]
        for t in lowered.tasks()
    }
    assert session.load("model", relax_model(lowered, programs)) is None
    output = session.run("model", [x.numpy() for x in inputs])
    session.drop("model")
    assert isinstance(output, tuple), output
    with torch.no_grad():
        wanted = network.eval()(*inputs)
    assert difference(by_reference(lowered, inputs), wanted) < 1e-4
    return difference(output, wanted)


def by_reference(lowered: Lowered, inputs: tuple[torch.Tensor, ...]) -> tuple[Array, ...]:
    """Return the outputs where every call gives what the tuner compares its programs with."""
    values = {name: x.numpy() for (name, _), x in zip(lowered.inputs, inputs, strict=True)} | dict(lowered.weights)
    for call in lowered.calls:
        *shapes, out = call.workload.arguments()
        names = (*call.inputs, *call.weights)
        given = [values[name].reshape(shape) for name, shape in zip(names, shapes, strict=True)]
        values[call.output] = expected(call.workload, given)
        assert values[call.output].shape == out
    return tuple(values[name].reshape(shape) for name, shape in lowered.outputs)


@pytest.mark.parametrize("name", ["resnet-fashion", "resnet20", "mobilenetv2"])
@pytest.mark.parametrize("block", [8, 16])
def test_a_zoo_model_computes_what_pytorch_computes(
    name: str, block: int, session: LocalSession, target: Target
) -> None:
    loaded = zoo.load_model(name)
    network = capture(randomised(loaded.model), loaded.example_inputs)
    assert compiled_error(network, loaded.example_inputs, block, session, target) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet56", "resnet18", "vgg16_bn"])
def test_a_large_zoo_model_computes_what_pytorch_computes(name: str, session: LocalSession, target: Target) -> None:
    loaded = zoo.load_model(name)
    network = capture(loaded.model, loaded.example_inputs)
    assert compiled_error(network, loaded.example_inputs, 16, session, target) < 1e-4


@pytest.mark.parametrize("name", sorted(set(NETS) - {"Dense", "Upward"}))
def test_a_small_network_computes_what_pytorch_computes(name: str, session: LocalSession, target: Target) -> None:
    net = captured(name)
    error = compiled_error(net.network, net.example, 8, session, target)
    assert error < 1e-4


def test_an_operator_that_tvm_s_importer_lacks_is_named_with_its_line() -> None:
    net = captured("Dense")  # its head takes the maximum along two axes
    with pytest.raises(UserError, match=r"cannot compile aten\.amax\.default \(small_nets\.py:\d+\)"):
        lower(net.network, net.example, 8)


def test_an_operator_that_reads_a_table_of_whole_numbers_is_named() -> None:
    net = captured("Upward")
    with pytest.raises(UserError, match=r"cannot compile aten\.\S+ \(small_nets\.py:\d+\): it reads a table of int64"):
        lower(net.network, net.example, 8)


class Mixed(nn.Module):
    """Operators of ours and foreign ones, widths that are no multiple of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding="same")
        self.b = nn.Conv2d(12, 20, 3, padding=1, groups=4)
        self.c = nn.Conv2d(20, 20, 1)
        self.norm = nn.GroupNorm(4, 20)
        self.head = nn.Linear(20, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.a(x))
        x = nn.functional.gelu(self.b(x))
        x = nn.functional.silu(self.norm(x)) * torch.sigmoid(self.c(x)) + 0.5
        first, second = x.chunk(2, 1)
        x = torch.cat([second, first], 1)
        x = nn.functional.avg_pool2d(nn.functional.max_pool2d(x, 3, 2, 1), 2)
        return torch.softmax(self.head(x.mean((2, 3))), 1)


def test_foreign_operators_come_through_tvm_s_importer(session: LocalSession, target: Target) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(1, 3, 16, 16),)
    network = capture(Mixed(), inputs)
    assert any(isinstance(t.workload, Tir) for t in lower(network, inputs, 8).tasks())
    assert compiled_error(network, inputs, 8, session, target) < 1e-4


class Normed(nn.Module):
    """Three layer norms and three grouped convolutions of one shape, each with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv1d(6, 6, 3, padding=1, groups=2) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(torch.softmax(norm(x), -1))
        return x


def test_an_operator_is_imported_once_and_every_layer_keeps_its_own_weights(
    session: LocalSession, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[int] = []
    original = tvm_import._imported
    monkeypatch.setattr(tvm_import, "_KNOWN", {})
    monkeypatch.setattr(tvm_import, "_imported", lambda *a: (imported.append(1), original(*a))[1])
    torch.manual_seed(0)
    inputs = (torch.randn(2, 6, 24),)
    network = capture(randomised(Normed()), inputs)
    assert compiled_error(network, inputs, 8, session, target) < 1e-4
    assert len(imported) == 3  # the norm, the softmax and the convolution
    assert compiled_error(capture(randomised(Normed(), 1), inputs), inputs, 8, session, target) < 1e-4
    assert len(imported) == 3


class Moved(nn.Module):
    """A picture that is rolled, and the first and the last of its rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.roll(torch.relu(x), (-2, 3), (2, -1))
        return x[:, :, 0] + x.select(2, -1)


def test_rolled_values_and_single_rows_are_part_of_one_chain(session: LocalSession, target: Target) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 5, 7),)
    network = capture(Moved(), inputs)
    assert [type(call.workload) for call in lower(network, inputs, 8).calls] == [Elementwise, Elementwise]
    assert compiled_error(network, inputs, 8, session, target) < 1e-4


class Mirrored(nn.Module):
    """A sound continued by its mirror image, as ONNX files do it: places that the file lists."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mirror", torch.tensor([3, 2, 1, 0, 1, 2, 3, 4, 5, 4, 3, 2]))
        self.register_buffer("corners", torch.tensor([[0, -1], [2, 2]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x).index_select(2, self.mirror)
        return x[:, self.corners] + torch.flip(x, (1,))[:, :1, None]


def test_the_places_that_a_model_lists_are_evenly_spaced_parts() -> None:
    assert evenly_spaced([3, 2, 1, 0, 1, 2, 3, 4, 5, 4, 3, 2]) == [(3, -1, 4), (1, 1, 5), (4, -1, 3)]
    assert evenly_spaced([2, 2]) == [(2, 0, 2)]
    assert evenly_spaced([7]) == [(7, 1, 1)]


def test_places_that_a_model_lists_are_read_without_a_table(session: LocalSession, target: Target) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 6),)
    network = capture(Mirrored(), inputs)
    assert {type(call.workload) for call in lower(network, inputs, 8).calls} == {Elementwise}
    assert compiled_error(network, inputs, 8, session, target) < 1e-4


def test_places_that_follow_from_the_input_are_refused() -> None:
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, x[0].argsort()]

    inputs = (torch.randn(2, 6),)
    with pytest.raises(UserError, match="int64, not on float32"):
        lower(capture(Sorted(), inputs), inputs, 8)


WAYS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "SiLU": ("silu", nn.SiLU()),
    "x · sigmoid(x)": ("silu", lambda x: x * torch.sigmoid(x)),
    "sigmoid(x) · x": ("silu", lambda x: torch.sigmoid(x) * x),
    "Hardswish": ("hardswish", nn.Hardswish()),
    "x · hardsigmoid(x)": ("hardswish", lambda x: x * nn.functional.hardsigmoid(x)),
    "x · relu6(x + 3) / 6": ("hardswish", lambda x: x * nn.functional.relu6(x + 3) / 6),
    "x · (clamp(x + 3, 0, 6) / 6)": ("hardswish", lambda x: x * ((x + 3).clamp(0, 6) / 6)),
    "GELU": ("gelu", nn.GELU()),
}


class Curving(nn.Module):
    def __init__(self, curve: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.Linear(12, 5)
        self.curve = curve

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.curve(self.head(self.curve(self.norm(self.conv(x))).mean((2, 3))))


@pytest.mark.parametrize("way", WAYS)
def test_a_smooth_activation_joins_its_layer_however_it_is_written(
    way: str, session: LocalSession, target: Target
) -> None:
    inputs = (torch.randn(2, 3, 7, 7),)
    activation, curve = WAYS[way]
    network = capture(randomised(Curving(curve)), inputs)
    conv, _, head = (call.workload for call in lower(network, inputs, 8).calls)
    assert isinstance(conv, Conv2d)
    assert isinstance(head, Dense)
    assert conv.activation == head.activation == activation
    assert compiled_error(network, inputs, 8, session, target) < 1e-4


NO_WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "the gate is of another value": lambda x: x * torch.sigmoid(2 * x),
    "the gate is read again": lambda x: (lambda gate: x * gate + gate)(torch.sigmoid(x)),
    "another bound": lambda x: x * (x + 3).clamp(0, 5) / 6,
    "another shift": lambda x: x * nn.functional.relu6(x + 2) / 6,
    "a fifth": lambda x: x * nn.functional.relu6(x + 3) / 5,
    "a sixth of a SiLU": lambda x: x * torch.sigmoid(x) / 6,
    "not divided": lambda x: x * nn.functional.relu6(x + 3),
}


@pytest.mark.parametrize("way", NO_WAYS)
def test_what_only_looks_like_a_swish_is_computed_as_it_is_written(
    way: str, session: LocalSession, target: Target
) -> None:
    inputs = (torch.randn(2, 3, 7, 7),)
    network = capture(randomised(Curving(NO_WAYS[way])), inputs)
    assert compiled_error(network, inputs, 8, session, target) < 1e-4


def test_smooth_functions_ride_in_one_chain(session: LocalSession, target: Target) -> None:
    class Curved(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.gelu(x) + nn.functional.gelu(3 * x, approximate="tanh")
            return torch.erf(torch.tanh(x))

    torch.manual_seed(0)
    inputs = (torch.randn(2, 6, 5, 4),)
    network = capture(Curved(), inputs)
    assert len(lower(network, inputs, 8).calls) == 1
    assert compiled_error(network, inputs, 8, session, target) < 1e-5


class Masking(nn.Module):
    """A mask of truths that is made of the input's shape alone, as Swin's windows have it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        below = torch.arange(4)[:, None] > torch.arange(4)
        return x + x.new_zeros(4, 4).masked_fill(below != 0, -1.0) + x.new_ones(4)


def test_what_depends_on_shapes_alone_is_computed_once_while_lowering(session: LocalSession, target: Target) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 4, 4),)
    network = capture(Masking(), inputs)
    assert len(lower(network, inputs, 8).calls) == 1
    assert compiled_error(network, inputs, 8, session, target) < 1e-4


class Sized(nn.Module):
    """A convolution to which the number of its inputs is added, as a whole number and as another one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + x.shape[0] + torch.relu(x[:, :, :1, :1]).sum(1, keepdim=True) * (x.shape[0] * 1.5)


def test_a_size_is_added_as_a_number_is(session: LocalSession, target: Target) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 7, 7),)
    assert compiled_error(capture(randomised(Sized()), inputs), inputs, 8, session, target) < 1e-4


class Attending(nn.Module):
    """Attention of one input with itself: bare, with a mask that is added, and with a scale of its own."""

    def __init__(self, **how: bool) -> None:
        super().__init__()
        self.how = how
        self.mask = nn.Parameter(torch.zeros(5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attend = nn.functional.scaled_dot_product_attention
        if self.how:
            return attend(x, x, x, **self.how)
        return attend(x, x, x) + attend(x, x, x, self.mask) + attend(x, x.flip(1), x, scale=0.1)


def test_attention_is_products_and_a_softmax(session: LocalSession, target: Target) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 5, 8),)
    network = capture(randomised(Attending()), inputs)
    names = [call.workload.name for call in lower(network, inputs, 8).calls if isinstance(call.workload, Tir)]
    assert not [name for name in names if "where" in name]
    assert compiled_error(network, inputs, 8, session, target) < 1e-4


def test_an_operator_whose_parts_hand_on_truths_is_named() -> None:
    inputs = (torch.randn(2, 3, 5, 8),)
    network = capture(Attending(is_causal=True), inputs)  # TVM's importer looks for rows that the mask empties
    wanted = r"cannot compile aten\.scaled_dot_product_attention\.default \(test_lower\.py:\d+\): one of its parts"
    with pytest.raises(UserError, match=wanted):
        lower(network, inputs, 8)


def test_an_operator_that_is_lowered_has_a_rule_for_its_channels_under_the_same_name() -> None:
    assert set(LOWERINGS) <= set(RULES)


class Rows(nn.Module):
    """A linear layer over the last of three axes, its activation, and one over the last of four."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(24, 20), nn.Linear(5, 9, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        return self.b(x.reshape(2, 7, 4, 5))


def test_a_linear_layer_over_more_than_two_axes_is_one_over_their_rows(session: LocalSession, target: Target) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 7, 24),)
    network = capture(randomised(Rows()), inputs)
    first, second = (call.workload for call in lower(network, inputs, 8).calls)
    assert first == Dense(14, 24, 20, "relu", 8)
    assert second == Dense(56, 5, 9, "none", 8)
    assert compiled_error(network, inputs, 8, session, target) < 1e-4


def test_a_vector_that_scales_the_last_axis_is_read_as_it_is(session: LocalSession, target: Target) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.gamma = nn.Linear(24, 20), nn.Parameter(torch.randn(20))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) * self.gamma + x[..., :20]

    inputs = (torch.randn(2, 7, 24),)
    network = capture(randomised(Scaled()), inputs)
    assert [type(call.workload) for call in lower(network, inputs, 8).calls] == [Dense, Elementwise]
    assert compiled_error(network, inputs, 8, session, target) < 1e-4


def test_points_of_metaschedule_compute_what_the_plain_program_computes(session: LocalSession, target: Target) -> None:
    inputs = (torch.randn(1, 3, 16, 16),)
    lowered = lower(capture(Mixed(), inputs), inputs, 8)
    grouped = next(t.workload for t in lowered.tasks() if isinstance(t.workload, Tir) and "conv" in t.workload.name)
    assert isinstance(grouped, Tir)
    from cprune.targets.session import Timed, arguments
    from cprune.tuner.programs import program as programs
    from cprune.tuner.programs import reference

    points = metaschedule.candidates(grouped, target, 0)
    assert len(points) > 8
    assert points == metaschedule.candidates(grouped, target, 0)
    for candidate in points[:5]:
        program = programs.program(grouped, candidate)
        given = arguments(program.forms, 1)
        timed = run_once(session, program, given)
        assert isinstance(timed, Timed), timed
        assert timed.output is not None
        assert reference.agrees(timed.output, metaschedule.expected(grouped, given)) == ""


def lowered_resnet20() -> Lowered:
    loaded = zoo.load_model("resnet20")
    return lower(capture(loaded.model, loaded.example_inputs), loaded.example_inputs, 16)


def test_resnet20_is_a_chain_of_22_calls_and_nothing_is_left_between_them() -> None:
    # 19 convolutions with everything fused, 2 padded shortcuts, the mean, the linear layer
    calls = lowered_resnet20().calls
    kinds = [type(c.workload) for c in calls]
    assert kinds.count(Conv2d) == 19
    assert kinds.count(Elementwise) == 2
    assert kinds.count(Mean) == 1
    assert len(calls) == 23


def test_every_layer_belongs_to_exactly_one_task() -> None:
    lowered = lowered_resnet20()
    layers = [name for call in lowered.calls for name in call.layers]
    assert len(layers) == len(set(layers)) == 19 * 2 + 1  # convolutions with their BatchNorm, and the linear layer
    by_task = [name for task in lowered.tasks() for name in task.layers]
    assert sorted(by_task) == sorted(layers)


def test_the_stages_of_resnet20_share_their_tasks_as_worked_out_by_hand() -> None:
    tasks = {t.layers[0]: t for t in lowered_resnet20().tasks() if t.layers}
    assert tasks["layer1.0.conv1"].uses == 3  # the first convolution of all three blocks
    assert tasks["layer1.0.conv2"].uses == 3  # the second ones add the shortcut
    assert tasks["layer2.0.conv1"].uses == 1  # halves the plane
    assert tasks["layer2.1.conv1"].uses == 2


def test_the_folded_weight_is_scaled_by_gamma_over_sigma() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.BatchNorm2d(8, eps=0.0)).eval()
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[1].weight.fill_(3.0)
        model[1].bias.fill_(1.0)
        model[1].running_mean.fill_(5.0)
        model[1].running_var.fill_(4.0)
    x = torch.ones(1, 1, 2, 2)
    lowered = lower(capture(model, (x,)), (x,), 8)
    weight, bias = lowered.weights.values()
    assert (weight == 3.0).all()  # 2 * 3 / 2
    assert (bias == -6.5).all()  # 1 - 5 * 3 / 2


def test_widths_that_fill_the_same_blocks_are_one_task() -> None:
    def key_of(width: int) -> str:
        x = torch.randn(1, 8, 6, 6)
        return lower(capture(nn.Conv2d(8, width, 3), (x,)), (x,), 8).calls[-2].workload.__repr__()

    assert key_of(14) == key_of(16) != key_of(17)


def test_a_width_takes_half_a_block_where_that_saves_padding() -> None:
    layout = Layout(16, narrow=(24,))
    assert [layout.of(c) for c in (1, 8, 9, 16, 17, 24, 25, 32)] == [8, 8, 16, 16, 16, 8, 16, 16]
    assert Layout(4).of(3) == 4  # never below four lanes


def test_half_blocks_are_a_question_only_where_they_save_padding() -> None:
    assert [c for c in (4, 8, 9, 16, 20, 24, 25, 32, 40) if Layout(16).open(c)] == [20, 24, 40]
    assert Layout(16).toggled(24).narrow == (24,)
    assert Layout(16, narrow=(24, 40)).toggled(24).narrow == (40,)


def test_a_value_in_memory_is_padded_to_whole_blocks() -> None:
    assert stored_shape((1, 20, 5, 5), 8) == (1, 3, 5, 5, 8)
    assert stored_shape((1, 20, 5, 5), 0) == (1, 20, 5, 5)


def test_an_operator_that_nobody_can_compile_is_named_with_its_line() -> None:
    class Indices(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argsort(1).float()

    x = torch.randn(1, 8)
    with pytest.raises(UserError, match=r"cannot compile aten\.argsort"):
        lower(capture(Indices(), (x,)), (x,), 8)
