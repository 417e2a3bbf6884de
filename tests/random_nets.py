"""Networks that nobody wrote: a few dozen operators drawn one after the other, each on values that are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

SIDE = 4
"""Every plane is SIDE x SIDE: operators that would change it come in pairs."""


@dataclass(frozen=True)
class Step:
    """One operator: what it is, the values it reads (by number; 0 is the input), its numbers, the layer it uses."""

    kind: str
    reads: tuple[int, ...]
    numbers: tuple[int, ...] = ()
    layer: int = -1


@dataclass(frozen=True)
class Plan:
    """A network as data: steps, the channels of every value, and the layers with their sizes."""

    steps: tuple[Step, ...]
    widths: tuple[int, ...]
    layers: tuple[tuple[str, tuple[int, ...]], ...]
    head: str

    def __str__(self) -> str:
        lines = [f"{i + 1}: {s.kind}{s.reads} {s.numbers} -> {self.widths[i + 1]}" for i, s in enumerate(self.steps)]
        return "\n".join([*lines, f"head {self.head}"])


class Drawn(nn.Module):
    """Runs a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleList(_layer(kind, sizes) for kind, sizes in plan.layers)
        width = plan.widths[-1] * (SIDE * SIDE if plan.head == "flat" else 1)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step in self.plan.steps:
            layer = self.layers[step.layer] if step.layer >= 0 else None
            values.append(_run(step, [values[i] for i in step.reads], layer))
        y = values[-1]
        if self.plan.head == "mean":
            return self.fc(y.mean((2, 3)))
        if self.plan.head == "flat":
            return self.fc(y.view(y.size(0), -1))
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


def _layer(kind: str, sizes: tuple[int, ...]) -> nn.Module:
    if kind == "conv":
        inputs, outputs, kernel, groups = sizes
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
    if kind == "transposed":
        return nn.ConvTranspose2d(sizes[0], sizes[1], 3, padding=1)
    if kind == "gate":
        return nn.Sequential(nn.Conv2d(sizes[0], 2, 1), nn.ReLU(), nn.Conv2d(2, sizes[0], 1), nn.Sigmoid())
    if kind == "groupnorm":
        return nn.GroupNorm(sizes[1], sizes[0])
    if kind == "attention":
        return Attention(*sizes)
    return {"norm": nn.BatchNorm2d, "prelu": nn.PReLU, "instance": _instance, "layernorm": nn.LayerNorm}[kind](sizes[0])


class Attention(nn.Module):
    """Self-attention over the pixels, with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, side, _ = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        split = self.qkv(tokens).reshape(batch, side * side, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, side * side, -1)
        return x + self.out(mixed).transpose(1, 2).reshape(batch, -1, side, side)


def _instance(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


def _run(step: Step, given: list[Tensor], layer: Any) -> Tensor:
    x = given[0]
    if step.kind == "gate":
        return x * layer(x.mean((2, 3), keepdim=True))
    if step.kind == "layernorm":
        return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()  # type: ignore[no-any-return]
    if layer is not None:
        return layer(x)  # type: ignore[no-any-return]
    simple = {
        "relu": lambda: F.relu(x),
        "silu": lambda: F.silu(x),
        "pool": lambda: F.max_pool2d(x, 3, stride=1, padding=1),
        "down": lambda: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="nearest"),
        "add": lambda: given[0] + given[1],
        "mul": lambda: given[0] * torch.sigmoid(given[1]),
        "cat": lambda: torch.cat(given, 1),
        "stacked": lambda: torch.stack(given, 1).flatten(1, 2),
        "max": lambda: torch.maximum(given[0], given[1]),
        "scaled": lambda: 0.5 * x,
    }
    if step.kind in simple:
        return simple[step.kind]()
    n = step.numbers[0]
    batch, channels, height, width = x.shape
    return {
        "shuffle": lambda: x.view(batch, n, channels // n, height, width).transpose(1, 2).reshape(x.shape),
        "part": lambda: x.chunk(n, 1)[step.numbers[-1]],
        "swapped": lambda: torch.cat(x.split([n, channels - n], 1)[::-1], 1),
        "slice": lambda: x[:, n:],
        "padded": lambda: F.pad(x, (0, 0, 0, 0, n, n)),
        "depth": lambda: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    }[step.kind]()


@st.composite
def plans(draw: st.DrawFn, most: int = 12) -> Plan:
    """Draw a plan: every value has 2 to 16 channels, and the last ones are read."""
    widths, steps, layers = [3], list[Step](), list[tuple[str, tuple[int, ...]]]()

    def some(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    def recent() -> int:
        return max(0, len(widths) - 1 - min(some(0, 3), some(0, 3)))

    def add(kind: str, reads: tuple[int, ...], width: int, numbers: tuple[int, ...] = (), layer: Any = None) -> None:
        number = -1
        if layer is not None:
            number = layers.index(layer) if layer in layers and some(0, 1) else len(layers)  # a layer used twice
            if number == len(layers):
                layers.append(layer)
        steps.append(Step(kind, reads, numbers, number))
        widths.append(width)

    add("conv", (0,), first := some(2, 8), (), ("conv", (3, first, 3, 1)))
    for _ in range(some(2, most)):
        i = max(1, recent())
        width = widths[i]
        alike = [j for j in range(1, len(widths)) if widths[j] == width]
        divisors = [d for d in range(2, width) if width % d == 0]
        kinds = ["conv", "conv", "depthwise", "norm", "relu", "silu", "pool", "down", "cat", "gate", "prelu", "scaled",
                 "padded", "transposed", "instance", "add", "mul", "max", "stacked", "layernorm"]  # fmt: skip
        kinds += ["shuffle", "grouped", "part", "swapped", "slice", "groupnorm", "attention"] if divisors else []
        kinds += ["depth"] if width % 4 == 0 else []
        kind = draw(st.sampled_from(kinds))
        other = draw(st.sampled_from(alike))
        if kind == "conv":
            outputs = some(2, 10)
            add("conv", (i,), outputs, (), ("conv", (width, outputs, draw(st.sampled_from([1, 3])), 1)))
        elif kind == "transposed":
            add(kind, (i,), outputs := some(2, 8), (), (kind, (width, outputs)))
        elif kind == "depthwise":
            times = some(1, 2)
            add("conv", (i,), width * times, (), ("conv", (width, width * times, 3, width)))
        elif kind == "grouped":
            groups = draw(st.sampled_from(divisors))
            add("conv", (i,), outputs := groups * some(1, 3), (), ("conv", (width, outputs, 3, groups)))
        elif kind in ("groupnorm", "attention"):
            add(kind, (i,), width, (), (kind, (width, draw(st.sampled_from(divisors)))))
        elif kind in ("norm", "prelu", "instance", "gate", "layernorm"):
            add(kind, (i,), width, (), (kind, (width,)))
        elif kind in ("add", "mul", "max"):
            add(kind, (i, other), width)
        elif kind in ("cat", "stacked"):
            j = other if kind == "stacked" else max(1, recent())
            add(kind, (i, j), width + widths[j])
        elif kind == "shuffle":
            add(kind, (i,), width, (draw(st.sampled_from(divisors)),))
        elif kind == "part":
            parts = draw(st.sampled_from(divisors))
            add(kind, (i,), width // parts, (parts, some(0, parts - 1)))
        elif kind in ("swapped", "slice"):
            at = some(1, width - 1)
            add(kind, (i,), width if kind == "swapped" else width - at, (at,))
        elif kind == "padded":
            add(kind, (i,), width + 2, (1,))
        elif kind == "depth":
            add(kind, (i,), width, (2,))
        else:
            add(kind, (i,), width)
        if widths[-1] > 16:
            add("conv", (len(widths) - 1,), narrow := some(2, 8), (), ("conv", (widths[-1], narrow, 1, 1)))
    return Plan(tuple(steps), tuple(widths), tuple(layers), draw(st.sampled_from(["mean", "flat", "pool"])))
