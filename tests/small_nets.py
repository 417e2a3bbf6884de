"""Small networks, one for every way in which channels are tied, and weights that let nothing pass unseen."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.network.capture import capture
from cprune.network.network import Network


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a value that shows: none is zero, one or equal to its neighbour."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            drawn = torch.randn(tensor.shape, generator=noise)
            if name.endswith("running_var"):
                tensor.copy_(drawn.abs() + 0.5)
            elif tensor.dim() > 1:
                fan_in = tensor[0].numel()
                tensor.copy_(drawn * (1.5 / fan_in**0.5))
            else:
                tensor.copy_(0.3 * drawn + (1.0 if name.endswith("weight") else 0.0))
    return model.eval()


def conv(a: int, b: int, size: int = 3, **more: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, size, padding=size // 2, **more)


class Net(nn.Module):
    """Base: the example input of every small network."""

    shape: tuple[int, ...] = (3, 8, 8)

    def example(self, batch: int = 2) -> tuple[Tensor, ...]:
        return (torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(1)),)


class Chain(Net):
    """conv, BatchNorm, ReLU, pooling, then a linear layer over a flattened plane of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 6), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = conv(6, 5), nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.3)
        self.fc1 = nn.Linear(5 * 16, 7)
        self.fc2 = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu_(self.bn2(self.conv2(x))), 2)
        x = torch.flatten(x, 1)
        return self.fc2(self.drop(F.relu(self.fc1(x))))


class Residual(Net):
    """Two identity blocks on one stream, and one with a convolution on the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = conv(3, 6), nn.BatchNorm2d(6)
        self.a1, self.a2 = conv(6, 4), conv(4, 6)
        self.b1, self.b2 = conv(6, 5), conv(5, 6)
        self.c1, self.c2, self.short = conv(6, 4, stride=2), conv(4, 8), conv(6, 8, 1, stride=2)
        self.bna, self.bnb, self.bnc = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.bna(self.a2(F.relu(self.a1(x)))))
        out = self.bnb(self.b2(F.relu(self.b1(x))))
        out += x
        x = F.relu(out)
        x = F.relu(self.bnc(self.c2(F.relu(self.c1(x)))) + self.short(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Padded(Net):
    """Shortcuts that skip every second pixel and pad the channels with zeros on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = conv(3, 4), nn.BatchNorm2d(4)
        self.a1, self.a2, self.bna = conv(4, 4), conv(4, 4), nn.BatchNorm2d(4)
        self.b1, self.b2, self.bnb = conv(4, 8, stride=2), conv(8, 8), nn.BatchNorm2d(8)
        self.c1, self.c2, self.bnc = conv(8, 16, stride=2), conv(16, 16), nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.bna(self.a2(F.relu(self.a1(x)))) + x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
        x = F.relu(self.bnb(self.b2(F.relu(self.b1(x)))) + short)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)
        x = F.relu(self.bnc(self.c2(F.relu(self.c1(x)))) + short)
        return self.linear(x.mean((2, 3)))


class Depthwise(Net):
    """Inverted residual blocks: expand, depthwise, project; and two filters a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.expand, self.bn1 = conv(4, 8, 1), nn.BatchNorm2d(8)
        self.depth, self.bn2 = conv(8, 8, groups=8), nn.BatchNorm2d(8)
        self.project, self.bn3 = conv(8, 4, 1), nn.BatchNorm2d(4)
        self.twice = conv(4, 8, groups=4)
        self.last = conv(8, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        y = F.relu6(self.bn1(self.expand(x)))
        y = self.bn3(self.project(F.relu6(self.bn2(self.depth(y)))))
        x = F.hardswish(self.twice(x + y))
        return self.fc(F.silu(self.last(x)).mean([2, 3]))


class Grouped(Net):
    """A convolution in three groups between plain ones, as in ResNeXt, on a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.reduce, self.groups, self.restore = conv(6, 12, 1), conv(12, 6, groups=3), conv(6, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.restore(F.relu(self.groups(F.relu(self.reduce(x)))))
        return self.fc(x.mean((2, 3)))


class Dense(Net):
    """Concatenations: of a concatenation, of a value with itself, and BatchNorm over the joint channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 4), conv(4, 3), conv(7, 5)
        self.bn = nn.BatchNorm2d(7)
        self.d = conv(12, 4)
        self.e = conv(8, 3)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        ab = torch.cat([a, self.b(a)], 1)
        abc = torch.cat([ab, F.relu(self.c(F.relu(self.bn(ab))))], 1)
        d = torch.tanh(self.d(abc))
        return self.fc(self.e(torch.cat([d, d], 1)).amax((2, 3)))


class UsedTwice(Net):
    """One convolution and one BatchNorm run twice, so that input and output are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.bn = conv(3, 6), conv(6, 6), nn.BatchNorm2d(6)
        self.last = conv(6, 5)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.bn(self.again(x)))
        x = F.relu(self.bn(self.again(x)))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Shuffled(Net):
    """A channel shuffle between two grouped convolutions, as in ShuffleNet, and a split with two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.g1, self.g2 = conv(8, 8, 1, groups=2), conv(8, 8, 1, groups=2)
        self.left, self.right = conv(4, 4), conv(4, 6)
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.g1(F.relu(self.stem(x))))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        x = F.relu(self.g2(x))
        left, right = x.chunk(2, 1)
        x = torch.cat([self.left(left), self.right(right)], 1)
        return self.fc(F.relu(x).mean((2, 3)))


class Gated(Net):
    """Squeeze-excitation by sigmoid, a gate over the plane, a scale and a constant of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = conv(3, 6), nn.BatchNorm2d(6)
        self.down, self.up = conv(6, 3, 1), conv(3, 6, 1)
        self.plane = conv(6, 1)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.shift = torch.linspace(-1, 1, 6)
        self.prelu = nn.PReLU(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn(self.stem(x)))
        x = x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        x = x * torch.sigmoid(self.plane(x))
        x = x * self.scale + self.shift.view(1, -1, 1, 1)
        return self.fc(x.mean((2, 3)))


class Heads(Net):
    """Several outputs in a dict and a tuple; one of them shows hidden channels to the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shown, self.hidden = conv(3, 6), conv(6, 5), conv(6, 4)
        self.fc1, self.fc2 = nn.Linear(5, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, object]:
        x = F.relu(self.stem(x))
        shown, hidden = self.shown(x), F.relu(self.hidden(x))
        return {"a": self.fc1(shown.mean((2, 3))), "rest": (self.fc2(hidden.mean((2, 3))), [shown])}


class Sliced(Net):
    """Slices, narrows, splits and squeezes along the channels, each read by a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 9)
        self.a, self.b, self.c, self.d = conv(5, 4), conv(4, 4), conv(3, 2), conv(6, 3)
        self.fc = nn.Linear(12, 4)
        self.one = nn.Linear(9, 5)
        self.two = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        a, b = x[:, 2:-2], x.narrow(1, 4, 4)
        c, d = x.split([3, 6], 1)
        y = torch.cat([self.a(a), self.b(b), F.interpolate(self.c(c), size=(8, 8)), self.d(d)[:, 1:]], 1)
        mean = F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2)
        pooled = F.adaptive_avg_pool2d(x, 1).squeeze()
        return self.fc(y.mean((2, 3))) + self.two(F.relu(self.one(mean + pooled)))


class Upward(Net):
    """Transposed convolution and a skip by concatenation, as in a U-net, and pixels from channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = conv(3, 5, stride=2), conv(5, 6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.skip, self.join = conv(3, 3), conv(7, 8)
        self.last, self.fc = conv(2, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(F.relu(self.inner(F.relu(self.down(x)))))
        x = F.relu(self.join(torch.cat([up, self.skip(x)], 1)))
        x = self.last(F.pixel_shuffle(x, 2))
        return self.fc(F.pad(x, (1, 1, 1, 1), "reflect").mean((2, 3)))


class Sequence(Net):
    """One-dimensional convolutions, BatchNorm1d and a linear layer applied to the last axis."""

    shape = (3, 12)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv1d(3, 6, 3, padding="same"), nn.BatchNorm1d(6)
        self.conv2 = nn.Conv1d(6, 5, 3)
        self.per_step, self.fc = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.bn(self.conv1(x))))
        x = F.gelu(self.per_step(x.permute(0, 2, 1)))
        return self.fc(x.mean(1))


class NewZeros(Net):
    """The padded shortcut written as a concatenation with zeros made on the spot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 4), conv(4, 6), conv(6, 5)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        zeros = x.new_zeros(x.shape[0], 2, 8, 8)
        y = torch.cat([x, zeros], 1) + self.a(x)
        y = self.b(F.relu(y))
        return self.fc((y + torch.zeros(x.shape[0], 5, 8, 8)).mean((2, 3)))


class Tied(Net):
    """Two linear layers that share one weight, and a third whose weight is the model's own."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.b(F.relu(self.a(F.relu(self.first(x)))))))


class Unknown(Net):
    """Operators that mix channels: each with each, softmax over them, every second one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.free = conv(3, 8), conv(8, 6)
        self.mixed, self.chances, self.every = conv(6, 6), conv(6, 5), conv(6, 8)
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.free(F.softmax(self.stem(x), 1)))
        mixed = self.mixed(x).flatten(2)
        scores = torch.softmax(mixed @ mixed.transpose(1, 2), -1)
        mean = F.softmax(self.chances(x), 1).mean(1, keepdim=True)
        every = self.every(x)[:, ::2].mean((2, 3))
        return self.fc(torch.cat([scores.sum(1), every * mean.mean((2, 3))], 1))


NETS: dict[str, type[Net]] = {
    net.__name__: net
    for net in (
        Chain, Residual, Padded, Depthwise, Grouped, Dense, UsedTwice, Shuffled, Gated, Heads, Sliced, Upward,
        Sequence, NewZeros, Tied, Unknown,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Captured:
    """A small network in every form, made once for all tests; nobody may change it."""

    network: Network
    example: tuple[Tensor, ...]
    graph: Graph


def captured(name: str) -> Captured:
    return captured_net(NETS[name])


@functools.cache
def captured_net(net: type[Net]) -> Captured:
    model = randomised(net())
    network = capture(model, model.example())
    return Captured(network, model.example(), analyse(network, model.example(), raise_bugs=True))


def tiny() -> tuple[nn.Module, torch.Tensor]:
    """A model and its example input, for commands that take MODULE:FUNCTION."""
    layers = (conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return randomised(nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 5))), torch.randn(1, 3, 12, 12)
