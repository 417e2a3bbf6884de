"""A network in the form of `torch.export`, for what is made from that: `.pt2` files, ONNX."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.export import Dim

from cprune.network.network import Network


def batches(network: Network, inputs: Sequence[Tensor]) -> list[bool]:
    """Tell for every input if its first size is a batch that is open.

    An input whose first size is another than the first input's is no batch: the two states of a recurrent layer.
    """
    inputs_of_graph = [node for node in network.nodes if node.op == "input"]
    batch = inputs[0].shape[:1] if inputs else None
    return [
        bool(node.args and node.args[0] and node.args[0][0] is None) and x.shape[:1] == batch
        for node, x in zip(inputs_of_graph, inputs, strict=True)
    ]


def exported(network: Network, inputs: tuple[Tensor, ...], free: Sequence[bool]) -> torch.export.ExportedProgram:
    """Return the exported program; the first size of the inputs that `free` says stays open.

    Raises whatever `torch.export` raises.
    """
    # A batch of one would be taken for a constant by export: it is shown two.
    shown = tuple(torch.cat([x, x]) if f and x.shape[0] == 1 else x for x, f in zip(inputs, free, strict=True))
    shapes = (tuple({0: Dim.DYNAMIC} if f else None for f in free),) if any(free) else None
    _shape_of_rounding()
    with quiet():
        return torch.export.export(network.eval(), shown, dynamic_shapes=shapes)


@cache
def _shape_of_rounding() -> torch.library.Library:
    """Tell PyTorch which shape `fake_quantize` returns; it does not know that itself where a size is open.

    What is returned must be kept: with it the knowledge goes.
    """
    library = torch.library.Library("aten", "IMPL", "Meta")  # type: ignore[no-untyped-call]

    def same(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)

    with contextlib.suppress(RuntimeError):  # a newer PyTorch may know it
        library.impl("fake_quantize_per_tensor_affine_cachemask", same)  # type: ignore[no-untyped-call]
    return library


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporters from printing pages about what their exceptions say."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
