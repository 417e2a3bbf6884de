"""The models that cprune brings, and the way to a user's own in Python: a name, or MODULE:FUNCTION.

Only `resnet-fashion` comes with weights.  The ResNets for CIFAR load the widely published checkpoints by
`--weights`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cprune import user_code
from cprune.models.opened import Opened
from cprune.models.zoo import weights as weight_files
from cprune.models.zoo.mobilenet import mobilenetv2_cifar
from cprune.models.zoo.resnet import cifar_resnet, resnet18_cifar, resnet_fashion
from cprune.models.zoo.vgg import vgg16_bn_cifar
from cprune.network.facts import class_count
from cprune.targets.errors import UserError

ASSETS = Path(__file__).parents[2] / "assets"
_CIFAR = (3, 32, 32)


@dataclass(frozen=True)
class ModelInfo:
    """One model of the zoo: `input_shape` is (C, H, W), `weights` tells if the package holds trained ones."""

    name: str
    description: str
    input_shape: tuple[int, int, int]
    classes: int
    weights: bool


@dataclass(frozen=True)
class _Entry:
    info: ModelInfo
    build: Callable[[int], nn.Module]
    built_in: str = ""


_ENTRIES = (
    _Entry(
        ModelInfo("resnet-fashion", "built-in: 6 residual blocks, widths 32/64/128", (1, 28, 28), 10, True),
        resnet_fashion,
        "resnet_fashion.safetensors",
    ),
    *(
        _Entry(
            ModelInfo(f"resnet{depth}", "CIFAR ResNet, padded (option A) shortcuts", _CIFAR, 10, False),
            partial(cifar_resnet, depth),
        )
        for depth in (20, 32, 44, 56)
    ),
    _Entry(ModelInfo("resnet18", "ResNet-18 in CIFAR shape, 1x1 shortcuts", _CIFAR, 10, False), resnet18_cifar),
    _Entry(ModelInfo("vgg16_bn", "VGG-16 with BatchNorm in CIFAR shape", _CIFAR, 10, False), vgg16_bn_cifar),
    _Entry(ModelInfo("mobilenetv2", "MobileNetV2 in CIFAR shape", _CIFAR, 10, False), mobilenetv2_cifar),
)


def models() -> tuple[ModelInfo, ...]:
    """Return the models that `load_model` knows by name, the built-in one first."""
    return tuple(entry.info for entry in _ENTRIES)


def load_model(
    spec: str,
    weights: Path | None = None,
    classes: int | None = None,
    seed: int = 0,
    input_shape: tuple[int, int, int] | None = None,
    shape: Sequence[int] | None = None,
) -> Opened:
    """Return the model that `spec` names: one of `models()` (spelled with or without - and _), or MODULE:FUNCTION.

    The user's function takes no argument, or `classes`, and returns the module, or the module and its example
    input (a tensor or a tuple of tensors); without one, `input_shape` (C, H, W) of the data gives it.  `shape` is that
    of the example with its batch, where it is to be another.
    `weights` is a file (see `cprune.models.zoo.weights.read`).  `classes` is the number of the data's classes;
    without it the zoo's models have ten outputs.  `seed` draws random weights (the zoo's own models only) and
    the example image.

    UserError for an unknown name (with the nearest), code of the user that fails, a model that takes no such
    image, weights that do not fit.
    """
    whole = shape or (input_shape and (1, *input_shape))
    if ":" in spec:
        return _own(spec, weights, classes, seed, whole)
    names = {entry.info.name: entry for entry in _ENTRIES}
    entry = names[user_code.pick("model", spec, names)]
    info = entry.info
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = entry.build(info.classes if classes is None else classes).eval()
        example = torch.randn(*(whole or (1, *info.input_shape)))
    path = weights
    if path is None and entry.built_in:
        if classes not in (None, info.classes):
            raise UserError(
                f"the weights of {info.name} are for {info.classes} classes, the data have {classes}",
                "Give weights for these data with --weights.",
            )
        path = ASSETS / entry.built_in
    if path is not None:
        tensors = weight_files.read(path)
        weight_files.put(model, tensors, path, info.name, lambda: _fitting(tensors))
    return Opened(model, (example,), info.name, path is not None, class_count(model, (example,), info.name))


def _fitting(tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the zoo's models that have tensors of these names and shapes."""
    with torch.device("meta"):
        return tuple(
            entry.info.name for entry in _ENTRIES if weight_files.shapes_fit(entry.build(entry.info.classes), tensors)
        )


def _own(spec: str, weights: Path | None, classes: int | None, seed: int, input_shape: Sequence[int] | None) -> Opened:
    function = user_code.function(spec)
    arguments: dict[str, Any] = {}
    try:
        if classes is not None and "classes" in inspect.signature(function).parameters:
            arguments["classes"] = classes
    except (TypeError, ValueError):
        pass  # a builtin without a signature: called without arguments
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        returned = user_code.call(spec, function, **arguments)
    model, example = returned if isinstance(returned, (tuple, list)) and len(returned) == 2 else (returned, None)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{spec} returned a {type(model).__name__}",
            "Return an nn.Module, or a tuple of the module and its example input.",
        )
    if example is None:
        if input_shape is None:
            raise UserError(
                f"{spec} returned no example input, and there are no data to take one from",
                "Return (model, example_input), or type its shape: --input 1,3,32,32",
            )
        example = torch.randn(*input_shape, generator=torch.Generator().manual_seed(seed))
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    if not inputs or not all(isinstance(value, Tensor) for value in inputs):
        raise UserError(f"the example input of {spec} is no tensor", "Return (model, torch.zeros(1, 3, 32, 32)).")
    model.eval()
    if weights is not None:
        weight_files.put(model, weight_files.read(weights), weights, spec)
    return Opened(model, inputs, spec, True, class_count(model, inputs, spec))
