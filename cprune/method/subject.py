"""What a run prunes: a network, an example of its inputs, and a trainer whose data fit it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cprune.method.settings import Settings
from cprune.models.opened import Opened
from cprune.models.source import Source
from cprune.network.network import Network
from cprune.targets.errors import UserError
from cprune.targets.target import Target, host_threads
from cprune.training.data import load_data
from cprune.training.trainer import DataTrainer, Trainer

_PYTHON = "Prune it from Python with functions of your own: cprune.prune(model, inputs, evaluate=…, train=…)"


@dataclass(frozen=True)
class Subject:
    """A model under its name, what one inference gets, and who trains it; the names are those of an ONNX file."""

    name: str
    network: Network
    example: tuple[Tensor, ...]
    trainer: Trainer
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()


def subject_of(source: Source, spec: str, target: Target, settings: Settings) -> Subject:
    """Return the model of `source` with the data of `spec`, which must fit each other.

    Training uses as many threads as the model has on `target`.  Raises UserError for what cannot be found, read,
    captured or fitted.
    """
    if source.own_classes:
        # The model is whole as it is, so the data must fit it; otherwise the model is made for the data.
        model = source.opened(settings.seed)
        if not model.trained:
            raise UserError(f"the model {model.name} comes without weights", "Give trained ones with --weights FILE.")
        shape = _image_of(model)
        data = load_data(spec, settings.seed, shape, model.outputs)
    else:
        data = load_data(spec, settings.seed)
        model = source.opened(settings.seed, data.classes, data.input_shape)
        _image_of(model)
        if model.outputs is not None and model.outputs < data.classes:
            raise UserError(
                f"the model {model.name} has {model.outputs} outputs, the data {data.name} have {data.classes} classes"
            )
    if model.outputs is None:
        raise UserError(f"{model.name} does not return one row of scores for an image", _PYTHON)
    _must_take_batches(model)
    trainer = DataTrainer(data, model.model, host_threads(target), settings.distil)
    return Subject(model.name, model.network, model.example_inputs, trainer, model.input_names, model.output_names)


def _image_of(model: Opened) -> tuple[int, int, int]:
    """Return (C, H, W) of the one image that a model takes."""
    shape = tuple(model.example_inputs[0].shape[1:])
    if len(model.example_inputs) != 1 or len(shape) != 3:
        raise UserError(f"{model.name} does not take one image; data as --data gives them are images", _PYTHON)
    return shape[0], shape[1], shape[2]


def _must_take_batches(model: Opened) -> None:
    (shape,) = (node.args[0] for node in model.network.nodes if node.op == "input")
    if shape is not None and shape and shape[0] is not None:
        raise UserError(
            f"{model.name} takes a batch of {shape[0]} only, and training needs others",
            "Export it with an open batch: dynamic_shapes={…: {0: Dim.AUTO}}, or dynamic_axes for ONNX.",
        )
