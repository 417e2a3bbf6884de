"""Zeros around a value that only convolutions read are padding of these, rounded or not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from test_halves import TARGET, multiplies_halves
from test_integers import compiled, multiplies_bytes
from torch import nn

from cprune.commands.check_integers import as_simulated
from cprune.compiling.lowering import lower
from cprune.compiling.tuned import tune
from cprune.network.capture import capture
from cprune.network.halving import halved
from cprune.network.network import Network
from cprune.network.quantizing import quantized
from cprune.progress import Progress
from cprune.targets.local import LocalSession
from cprune.tuner.programs.workload import Conv2d
from cprune.tuner.records.store import Store
from cprune.tuner.tune import Tuner


class Padded(nn.Module):
    """As TensorFlow pads before a stride: more on the far side, for an image, a 3x3 layer and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2)
        self.wide = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(24, 24, 5, stride=2, groups=24)
        self.last = nn.Conv2d(24, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = nn.functional.pad
        x = torch.relu(self.stem(pad(x, (0, 1, 0, 1))))
        x = torch.relu(self.wide(pad(x, (0, 2, 1, 0))))
        x = torch.relu(self.deep(nn.ConstantPad2d((1, 2, 1, 2), 0.0)(x)))
        return self.last(x).mean((2, 3))


class Kept(nn.Module):
    """Pads that must stay: one that a sum reads too, one of ones, one before a convolution in two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3)
        self.grouped = nn.Conv2d(16, 8, 3, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = nn.functional.pad
        x = pad(torch.relu(self.first(x)), (1, 1, 1, 1))
        x = self.second(x) + x[:, :, 1:-1, 1:-1]
        x = pad(self.second(pad(x, (1, 1, 1, 1), value=1.0)), (0, 1, 0, 1))
        return self.grouped(x).mean((2, 3))


def padded() -> tuple[Network, torch.Tensor]:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    return capture(Padded().eval(), (images[:1],)), images


def test_zeros_before_a_convolution_are_its_own() -> None:
    network, images = padded()
    convolutions = [call.workload for call in lower(network, (images[:1],), 16).calls]
    assert [w.pad for w in convolutions if isinstance(w, Conv2d)][:3] == [(0, 0, 1, 1), (2, 1, 1, 3), (1, 1, 2, 2)]
    assert all("elementwise" not in call for call in (type(w).__name__.lower() for w in convolutions))
    _, output = compiled(network, (images[:1],))
    with torch.no_grad():
        assert np.allclose(output, network(images[:1]).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "bits", [pytest.param("int8", marks=multiplies_bytes), pytest.param("bf16", marks=multiplies_halves)]
)
def test_what_is_inside_is_rounded_in_their_place(bits: str) -> None:
    network, images = padded()
    fewer = quantized(network, [(images,)]) if bits == "int8" else halved(network, (images[:1],))
    tuned, output = compiled(fewer.eval(), (images[:1],))
    kinds = Counter(type(call.workload).__name__ for call in tuned.lowered.calls)
    assert kinds["QuantizedConv2d" if bits == "int8" else "HalfConv2d"] == 4
    # the image is rounded, and what the last layer gives is taken out of its blocks or summed
    assert kinds["Elementwise"] <= 2
    with torch.no_grad():
        wanted, before = fewer(images[:1]).numpy(), network(images[:1]).numpy()
    assert np.abs(output - wanted).max() < max(0.01 * np.abs(before).max(), np.abs(wanted - before).max())


@multiplies_bytes
def test_what_lies_between_pads_is_compared_with_pytorch_too() -> None:
    network, images = padded()
    fewer = quantized(network, [(images,)]).eval()
    with Store("sqlite://") as store, LocalSession(TARGET) as session:
        tuned = tune(fewer, (images[:1],), Tuner(session, store, TARGET, 0), 1, Progress())
        compared = {one.value: one.steps for one in as_simulated(tuned, session)}
    inside = [name for name in compared if name.endswith(".inside")]
    assert len(inside) == 3  # the image, and what two layers write
    assert len(compared) == 4  # and what the last layer reads
    assert all(steps is not None and steps <= 1 for steps in compared.values())


def test_zeros_that_others_read_and_other_numbers_stay() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 12, 12)
    network = capture(Kept().eval(), (image,))
    convolutions = [call.workload for call in lower(network, (image,), 16).calls if isinstance(call.workload, Conv2d)]
    assert {w.pad for w in convolutions} == {(0, 0, 0, 0)}
    _, output = compiled(network, (image,))
    with torch.no_grad():
        assert np.allclose(output, network(image).numpy(), atol=1e-4)
