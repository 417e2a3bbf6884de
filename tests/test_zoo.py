"""The zoo: names, shapes and costs worked out by hand; weights, and a message for all that can be wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cprune.models import zoo
from cprune.models.opened import Opened
from cprune.models.zoo import weights as weight_files
from cprune.targets.errors import UserError
from cprune.training.data import load_data
from cprune.training.train import evaluate

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "weights"
NAMES = [info.name for info in zoo.models()]


def multiply_adds(loaded: Opened) -> int:
    """Count the multiply-adds of convolutions and linear layers for one image."""
    total = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        plane = output.shape[2] * output.shape[3] if output.ndim == 4 else 1
        total += weight.numel() * plane

    hooks = [
        module.register_forward_hook(count)
        for module in loaded.model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        loaded.model(*loaded.example_inputs)
    for hook in hooks:
        hook.remove()
    return total


def parameters(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def message(*arguments: Any, **named: Any) -> str:
    with pytest.raises(UserError) as caught:
        zoo.load_model(*arguments, **named)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------
# The models


def test_the_zoo_has_these_models() -> None:
    assert NAMES == [
        "resnet-fashion",
        "resnet20",
        "resnet32",
        "resnet44",
        "resnet56",
        "resnet18",
        "vgg16_bn",
        "mobilenetv2",
    ]


@pytest.mark.parametrize("info", zoo.models(), ids=NAMES)
def test_every_model_runs_on_the_shape_and_has_the_weights_it_says(info: zoo.ModelInfo) -> None:
    loaded = zoo.load_model(info.name)
    assert tuple(loaded.example_inputs[0].shape) == (1, *info.input_shape)
    assert loaded.outputs == info.classes
    assert loaded.trained == info.weights
    assert not loaded.model.training


@pytest.mark.parametrize("spelled", ["resnet-20", "ResNet20", "RESNET_20"])
def test_names_may_be_spelled_as_one_likes(spelled: str) -> None:
    assert zoo.load_model(spelled).name == "resnet20"


def test_an_unknown_name_gets_the_nearest() -> None:
    assert "Did you mean 'resnet20'?" in message("resnet200")
    assert "Did you mean 'mobilenetv2'?" in message("mobilnetv2")


def test_the_built_in_model_costs_22_million_multiply_adds() -> None:
    # Stem 14x14; per stage: first convolution, the other three, the 1x1 shortcut.
    stem = 1 * 32 * 9 * 14 * 14  # 56,448
    first = 4 * 32 * 32 * 9 * 14 * 14  # 7,225,344
    second = (32 * 64 * 9 + 3 * 64 * 64 * 9 + 32 * 64) * 7 * 7  # 6,422,528
    third = (64 * 128 * 9 + 3 * 128 * 128 * 9 + 64 * 128) * 4 * 4  # 8,388,608
    assert stem + first + second + third + 128 * 10 == 22_094_208
    assert multiply_adds(zoo.load_model("resnet-fashion")) == 22_094_208


@pytest.mark.parametrize(
    ("depth", "expected"),
    # Stem 3*16*9*32*32 = 442,368; a convolution of any stage 16*16*9*32*32 = 2,359,296, the first of stages
    # two and three half of it; linear 640.  With n = (depth - 2) / 6 blocks a stage: 6n - 1 whole ones.
    [(20, 40_551_040), (32, 68_862_592), (44, 97_174_144), (56, 125_485_696)],
)
def test_the_cifar_resnets_cost_what_six_n_minus_one_convolutions_do(depth: int, expected: int) -> None:
    assert 442_368 + (depth - 3) * 2_359_296 + 640 == expected
    assert multiply_adds(zoo.load_model(f"resnet{depth}")) == expected


def test_resnet18_costs_555_million_multiply_adds() -> None:
    # Stem 1,769,472; stage one 4 * 37,748,736; a later stage 3.5 * 37,748,736 + shortcut 2,097,152; linear.
    expected = 1_769_472 + 4 * 37_748_736 + 3 * (3 * 37_748_736 + 18_874_368 + 2_097_152) + 5_120
    assert multiply_adds(zoo.load_model("resnet18")) == expected == 555_422_720


def test_vgg16_costs_313_million_multiply_adds() -> None:
    # 3->64, six full ones of 37,748,736, three half ones, three of 512->512 at 2x2, linear.
    expected = 1_769_472 + 6 * 37_748_736 + 3 * 18_874_368 + 3 * 9_437_184 + 5_120
    assert multiply_adds(zoo.load_model("vgg16_bn")) == expected == 313_201_664


def test_mobilenetv2_costs_what_its_table_says() -> None:
    total, inputs, side = 3 * 32 * 9 * 32 * 32, 32, 32
    for expansion, outputs, count, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(count):
            hidden = inputs * expansion
            if expansion > 1:
                total += inputs * hidden * side * side
            side //= stride if block == 0 else 1
            total += (9 * hidden + hidden * outputs) * side * side
            inputs = outputs
    total += 320 * 1280 * 4 * 4 + 1280 * 10
    assert side == 4
    assert multiply_adds(zoo.load_model("mobilenetv2")) == total


def test_resnet20_has_the_parameters_and_names_of_the_published_checkpoints() -> None:
    model = zoo.load_model("resnet20").model
    # Table 6 of the paper: 0.27 M.  Convolutions 267,696 + BatchNorm 1,376 + linear 650.
    assert parameters(model) == 269_722
    names = list(model.state_dict())
    assert names[:2] == ["conv1.weight", "bn1.weight"]
    assert {"layer1.0.conv1.weight", "layer3.2.bn2.running_var", "linear.weight", "linear.bias"} <= set(names)
    assert not [name for name in names if "shortcut" in name]


def test_the_padded_shortcut_takes_every_other_pixel_and_pads_both_sides() -> None:
    x = torch.arange(1 * 2 * 4 * 4, dtype=torch.float32).reshape(1, 2, 4, 4)
    y = zoo.resnet.PaddedShortcut(4)(x)
    assert y.shape == (1, 6, 2, 2)
    assert y[0, :2].abs().sum() == 0
    assert y[0, 4:].abs().sum() == 0
    assert y[0, 2].tolist() == [[0, 2], [8, 10]]
    assert y[0, 3].tolist() == [[16, 18], [24, 26]]


def test_random_weights_depend_on_the_seed_alone() -> None:
    def first(seed: int) -> Tensor:
        return next(zoo.load_model("resnet20", seed=seed).model.parameters())

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_zoo_builds_as_many_outputs_as_the_data_have_classes() -> None:
    assert zoo.load_model("resnet20", classes=100).outputs == 100


def test_the_zoo_takes_larger_images_where_the_model_can() -> None:
    assert zoo.load_model("resnet20", input_shape=(3, 64, 64)).example_inputs[0].shape == (1, 3, 64, 64)
    assert "cannot run on an input of 1x1x28x28" in message("resnet20", input_shape=(1, 28, 28))


def test_the_built_in_weights_are_for_ten_classes() -> None:
    assert "are for 10 classes, the data have 5" in message("resnet-fashion", classes=5)


def test_the_built_in_model_reaches_93_percent_on_images_it_never_saw() -> None:
    assert evaluate(zoo.load_model("resnet-fashion").model, load_data("fashion-mnist", 0).report) > 0.93


# ----------------------------------------------------------------------------------------------------
# Weights


def state(**changed: Tensor | None) -> dict[str, Tensor]:
    """Return the random state of resnet20 with some tensors changed (dots written as __) or taken out."""
    tensors = dict(zoo.load_model("resnet20", seed=7).model.state_dict())
    for name, value in changed.items():
        key = name.replace("__", ".")
        tensors.pop(key, None)
        if value is not None:
            tensors[key] = value
    return tensors


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("ending", [".safetensors", ".th", ".pt", ".pth"])
def test_weights_are_read_from_every_kind_of_file(tmp_path: Path, ending: str) -> None:
    tensors = state()
    loaded = zoo.load_model("resnet20", written(tmp_path / f"w{ending}", tensors))
    assert loaded.trained
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, tensors[name])


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_of_parallel_training_is_unwrapped(tmp_path: Path, key: str) -> None:
    tensors = {f"module.{name}": value for name, value in state().items() if "num_batches" not in name}
    torch.save({key: tensors, "epoch": 3, "best_prec1": 91.7}, tmp_path / "w.th")
    loaded = zoo.load_model("resnet20", tmp_path / "w.th")
    assert torch.equal(loaded.model.state_dict()["conv1.weight"], state()["conv1.weight"])


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published checkpoints are not here")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet20", "resnet20-12fca82f.th"),
        ("resnet56", "resnet56-4bfd9763.th"),
        ("resnet20", "resnet20_cifar10jpeg.safetensors"),
        ("resnet56", "resnet56_cifar10jpeg.safetensors"),
    ],
)
def test_the_published_checkpoints_load(name: str, file: str) -> None:
    assert zoo.load_model(name, PUBLISHED / file).trained


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "there is no file of weights" in message("resnet20", tmp_path / "none.th")
    assert "there is no file of weights" in message("resnet20", tmp_path)


def test_an_unknown_ending_is_told_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(b"x")
    assert "Weights are read from .safetensors, .th" in message("resnet20", tmp_path / "w.h5")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_truncated_weights_are_refused(tmp_path: Path, ending: str, share: float) -> None:
    path = written(tmp_path / f"w{ending}", state())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    text = message("resnet20", path)
    assert f"w{ending} is no" in text or "is damaged" in text


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(b"hello world" * 10)
        assert name in message("resnet20", tmp_path / name)


def test_a_whole_pickled_model_is_never_unpickled(tmp_path: Path) -> None:
    torch.save(zoo.load_model("resnet20").model, tmp_path / "w.pt")
    assert "cprune runs no code from a file" in message("resnet20", tmp_path / "w.pt")


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    assert "holds no state dict" in message("resnet20", tmp_path / "w.pt")


def test_the_first_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = state(layer2__0__conv1__weight=torch.zeros(24, 16, 3, 3), linear__bias=torch.zeros(3))
    text = message("resnet20", written(tmp_path / "w.safetensors", tensors))
    assert (
        "the first tensor that differs is layer2.0.conv1.weight, "
        "[24, 16, 3, 3] in the file and [32, 16, 3, 3] in the model" in text
    )
    assert "linear.bias" not in text


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    tensors = state(linear__bias=None, head__bias=torch.zeros(10))
    text = message("resnet20", written(tmp_path / "w.safetensors", tensors))
    assert "linear.bias is missing; head.bias is not in the model" in text


def test_weights_of_another_model_say_which_they_fit(tmp_path: Path) -> None:
    tensors = dict(zoo.load_model("resnet32").model.state_dict())
    text = message("resnet20", written(tmp_path / "w.safetensors", tensors))
    assert (
        "layer1.3.bn1.bias, layer1.3.bn1.running_mean, layer1.3.bn1.running_var and 57 more are not"
        in text  # six more blocks of ten tensors
    )
    assert "These weights fit resnet32" in text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_a_number_is_named(tmp_path: Path, bad: float) -> None:
    tensors = state(layer1__1__bn2__bias=torch.full((16,), bad))
    text = message("resnet20", written(tmp_path / "w.pt", tensors))
    assert "the tensor layer1.1.bn2.bias holds NaN or infinity" in text


def test_a_model_keeps_its_weights_if_the_new_ones_do_not_fit(tmp_path: Path) -> None:
    model = zoo.load_model("resnet20", seed=1).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError):
        weight_files.put(model, state(linear__bias=torch.full((10,), float("nan"))), tmp_path, "resnet20")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    tensors = {name: value.half() for name, value in state().items() if value.is_floating_point()}
    loaded = zoo.load_model("resnet20", written(tmp_path / "w.safetensors", tensors))
    assert loaded.model.state_dict()["conv1.weight"].dtype == torch.float32


# ----------------------------------------------------------------------------------------------------
# A function of the user

_CODE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.fc = nn.Linear(12, classes)
    def forward(self, x):
        return self.fc(x.flatten(1))
def alone(): return Net().train()
def with_example(): return Net(), torch.zeros(1, 3, 2, 2)
def with_tuple(): return Net(), (torch.zeros(1, 3, 2, 2),)
def by_classes(classes=10): return Net(classes)
def text(): return "model"
def odd_example(): return Net(), "example"
def fails(): raise RuntimeError("no such luck")
def planes(): return nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 2, 2)
"""


@pytest.fixture(autouse=True)
def _mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_model.py").write_text(_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_model", raising=False)


@pytest.mark.parametrize("name", ["alone", "with_example", "with_tuple"])
def test_a_function_returns_a_model_or_a_model_and_its_example(name: str) -> None:
    loaded = zoo.load_model(f"my_model:{name}", input_shape=(3, 2, 2))
    assert loaded.example_inputs[0].shape == (1, 3, 2, 2)
    assert (loaded.outputs, loaded.trained, loaded.model.training) == (10, True, False)


def test_a_function_that_takes_classes_is_given_them() -> None:
    assert zoo.load_model("my_model:by_classes", classes=7, input_shape=(3, 2, 2)).outputs == 7


def test_a_model_without_example_and_data_is_told_what_to_return() -> None:
    assert "Return (model, example_input)" in message("my_model:alone")


def test_an_example_the_model_cannot_take_is_found_at_once() -> None:
    assert "my_model:alone cannot run on an input of 1x3x5x5" in message("my_model:alone", input_shape=(3, 5, 5))


def test_what_is_no_model_is_refused() -> None:
    assert "my_model:text returned a str" in message("my_model:text")
    assert "the example input of my_model:odd_example is no tensor" in message("my_model:odd_example")


def test_a_function_that_fails_is_named_with_its_line() -> None:
    assert "my_model:fails failed: my_model.py:16: RuntimeError: no such luck" in message("my_model:fails")


def test_a_missing_function_or_module_gets_the_nearest() -> None:
    assert "Did you mean 'alone'?" in message("my_model:alon")
    assert "Did you mean 'my_model'?" in message("my_modle:alone")


def test_a_model_of_planes_has_no_number_of_outputs() -> None:
    assert zoo.load_model("my_model:planes").outputs is None


def test_weights_go_into_the_users_model_too(tmp_path: Path) -> None:
    path = written(tmp_path / "w.safetensors", {"fc.weight": torch.ones(10, 12), "fc.bias": torch.zeros(10)})
    loaded = zoo.load_model("my_model:with_example", path)
    assert loaded.model(torch.ones(1, 3, 2, 2)).tolist() == [[12.0] * 10]
