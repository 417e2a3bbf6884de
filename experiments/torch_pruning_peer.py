"""Torch-Pruning as a method of cprune's: it says what goes, and everything else is as for every other method.

    pip install torch-pruning
    python experiments/torch_pruning_peer.py run resnet56 --weights FILE -d npz:FILE --method torch-pruning-norm

This is the command `cprune` with two methods more: `torch-pruning-norm` (the magnitude of whole groups, global;
DepGraph, arXiv 2301.12900) and `torch-pruning-isomorphic` (the same, ranked among groups of one shape; arXiv
2407.04616).  The pruning ratio is found by bisection over eighths, as the share of `cprune.method.uniform`, in the same
seconds of training.  What it returns is trained by cprune's trainer, tuned with as many trials and timed in turns.

Widths are rounded to what half a vector holds, so that none is paid for and not used.  Where the result does not run,
as the code of a model may fix how its shortcuts are padded, the widths of its residual streams stay.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch_pruning
from torch import Tensor, nn

from cprune.cli.main import main
from cprune.method import settings, whole_run
from cprune.method.latency import EIGHTHS
from cprune.method.state import RunState
from cprune.method.uniform import Uniform
from cprune.network.capture import capture
from cprune.network.network import Network
from cprune.training.trainer import DataTrainer

MOST_OF_A_LAYER = 0.9


class TorchPruning(Uniform):
    """The steps of one run: `begin()` first, then `steps()`, to its end or not."""

    def __init__(self, run: RunState, isomorphic: bool) -> None:
        super().__init__(run)
        self.isomorphic = isomorphic

    def _shares(self) -> tuple[float, ...]:
        """Return the pruning ratios that may be tried."""
        return tuple(part / EIGHTHS for part in range(1, EIGHTHS))

    def _network(self, share: float) -> Network:
        """Return what Torch-Pruning leaves of the unpruned model."""
        run, trainer, graph = self.run, self.run.trainer, self.before.graph
        assert isinstance(trainer, DataTrainer)
        several = [group.layers for group in graph.groups if sum(map(self._mixes, group.layers)) > 1]
        streams = [name for layers in several for name in layers]
        with run.cost.spent("evaluate"):
            module = smaller(trainer.teacher, run.example, share, self.isomorphic, run.bench.vector // 2, streams)
            network = capture(module, run.example)
            trainer.recalibrate(network, run.settings.seed)
        return network

    def _mixes(self, layer: str) -> bool:
        return self.before.graph.layers[layer].in_axis is not None


def smaller(
    model: nn.Module, example: tuple[Tensor, ...], ratio: float, isomorphic: bool, grain: int, streams: Sequence[str]
) -> nn.Module:
    """Return a copy of a model without that ratio of its channels; `streams` stay if it does not run otherwise."""
    for kept in ((), streams):
        copy = deepcopy(model).eval().requires_grad_(True)
        try:
            _prune(copy, example, ratio, isomorphic, grain, kept)
            with torch.no_grad():
                copy(*example)
        except (RuntimeError, ValueError, IndexError) as error:
            print(f"ratio {ratio:g}, {len(kept)} layers kept: {error}", file=sys.stderr)
            continue
        return copy
    raise RuntimeError("Torch-Pruning cannot prune this model")


def _prune(
    model: nn.Module, example: tuple[Tensor, ...], ratio: float, isomorphic: bool, grain: int, kept: Sequence[str]
) -> None:
    with torch.no_grad():
        classes = model(*example).shape[-1]
    last = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == classes]
    torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        isomorphic=isomorphic,
        pruning_ratio=ratio,
        max_pruning_ratio=MOST_OF_A_LAYER,
        round_to=grain,
        ignored_layers=[*last, *(model.get_submodule(name) for name in kept)],
    ).step()


NAMES = {"torch-pruning-norm": False, "torch-pruning-isomorphic": True}


def add_methods() -> None:
    """Let `--method` name them."""
    settings.METHODS = (*settings.METHODS, *NAMES)  # type: ignore[assignment]
    for name, isomorphic in NAMES.items():
        whole_run.METHODS[name] = partial(TorchPruning, isomorphic=isomorphic)


if __name__ == "__main__":
    add_methods()
    sys.exit(main())
