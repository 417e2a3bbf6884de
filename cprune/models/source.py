"""The model that a user brings: what the command line says of it, and the network that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cprune.models.opened import Opened
from cprune.models.zoo import load_model
from cprune.network import open_batch, saving
from cprune.network.facts import class_count
from cprune.runs.folder import RunFolder, read_programs
from cprune.targets.errors import UserError


@dataclass(frozen=True)
class Source:
    """A name of the zoo, MODULE:FUNCTION, a `.pt2` or `.onnx` file, or a run folder (its pruned model).

    `shapes` are those of the inputs by name, "" for the only one; `fixed` gives inputs of an ONNX file a value for
    good, which the model takes no more.
    """

    spec: str
    weights: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_run(self) -> bool:
        """Tell whether the model is the pruned one of a run."""
        return bool(self.spec) and (Path(self.spec) / "run.json").exists()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `run.json`."""
        weights = str(self.weights.resolve()) if self.weights else None
        spec = str(Path(self.spec).resolve()) if is_file(self.spec) or self.is_run else self.spec
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"model_spec": spec, "weights": weights, "inputs": shapes, "fixed": dict(self.fixed)}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Source:
        """Return the source of a `to_dict`.  Raises KeyError where something is missing."""
        weights = Path(config["weights"]) if config["weights"] else None
        shapes = {name: tuple(shape) for name, shape in config.get("inputs", {}).items()}
        return cls(config["model_spec"], weights, shapes, config.get("fixed", {}))

    @property
    def own_classes(self) -> bool:
        """Tell whether the model is whole as it is, so that data must fit it: a file, or a name without weights."""
        return is_file(self.spec) or (self.weights is None and ":" not in self.spec)

    def opened(self, seed: int, classes: int | None = None, input_shape: tuple[int, int, int] | None = None) -> Opened:
        """Load the model and capture its graph.  `classes` and `input_shape` (C, H, W) are those of the data.

        Raises UserError for what cannot be found, read or captured.
        """
        if self.is_run:
            return of_run(Path(self.spec))
        if self.fixed and Path(self.spec).suffix != ".onnx":
            name = next(iter(self.fixed))
            raise UserError(f"--input {name}:=…: only an input of an ONNX file can have a value for good")
        if is_file(self.spec):
            return self._of_file(Path(self.spec))
        named = [name for name in self.shapes if name]
        if named:
            raise UserError(f"--input {named[0]}=…: only the inputs of a file have names", "Type --input 1,3,32,32")
        opened = load_model(self.spec, self.weights, classes, seed, input_shape, self.shapes.get(""))
        _ = opened.network  # here, so that a model that cannot be captured is found before anything else begins
        return opened

    def _of_file(self, path: Path) -> Opened:
        if self.weights is not None:
            raise UserError(f"{path} has its own weights", "Leave --weights out.")
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        if path.suffix == ".onnx":
            from cprune.models.formats import onnx as onnx_format

            opened = onnx_format.opened(path, self.shapes, self.fixed)
        else:
            from cprune.models.formats import pt2

            opened = pt2.read(path, self.shapes)
        outputs = class_count(opened.model, opened.example_inputs, str(path))
        network = open_batch.opened(opened.network, opened.example_inputs)
        return replace(opened, model=network, outputs=outputs)


def is_file(spec: str) -> bool:
    """Tell whether a model is named by a file that holds it, graph and weights."""
    return Path(spec).suffix in (".pt2", ".onnx")


def of_run(folder: Path) -> Opened:
    """Return the pruned model of a run, with an example of the shape that it was tuned for."""
    where = RunFolder.open(folder)
    config = where.config()
    if not where.model_json.exists():
        raise where.unfinished()
    network = saving.load(where.path).eval()
    noise = torch.Generator().manual_seed(0)
    if where.programs.exists():
        shapes = read_programs(where.programs)["inputs"]
    else:  # a run of an earlier version
        shapes = [[size or 1 for size in node.args[0]] for node in network.nodes if node.op == "input"]
    inputs = tuple(torch.randn(shape, generator=noise) for shape in shapes)
    input_names, output_names = map(tuple, config.get("names") or ((), ()))
    name = f"{config['model']} pruned in {folder}"
    return Opened(network, inputs, name, True, class_count(network, inputs, name), input_names, output_names)
