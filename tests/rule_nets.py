"""Small networks of the kinds that transformers and modern CNNs are made of, one for every rule beyond plain layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from small_nets import Net, conv
from torch import Tensor, nn


class Tokens(Net):
    """Base: tokens of six features."""

    shape: tuple[int, ...] = (5, 6)


class LayerNorms(Tokens):
    """LayerNorm over the hidden channels, RMSNorm over them, and a LayerNorm without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6)
        self.rms, self.c = nn.RMSNorm(6), nn.Linear(6, 7)
        self.bare, self.fc = nn.LayerNorm(7, elementwise_affine=False), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rms(self.b(F.gelu(self.norm(self.a(x)))))
        return self.fc(self.bare(F.silu(self.c(x))).mean(1))


class GroupNorms(Net):
    """GroupNorm with two groups, with one, and with as many as channels; InstanceNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.two = conv(3, 8), nn.GroupNorm(2, 8)
        self.b, self.one = conv(8, 6), nn.GroupNorm(1, 6)
        self.c, self.each = conv(6, 5), nn.GroupNorm(5, 5)
        self.d, self.instance = conv(5, 4), nn.InstanceNorm2d(4, affine=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(self.b(F.relu(self.two(self.a(x))))))
        return self.fc(F.relu(self.instance(self.d(F.relu(self.each(self.c(x)))))).mean((2, 3)))


class Vit(Net):
    """A vision transformer of one block: class token, position embeddings, layer scale, attention, MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.cls, self.place = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
        self.norm1, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.q_norm, self.gamma = nn.LayerNorm(4), nn.Parameter(torch.zeros(8))
        self.norm2, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 10), nn.Linear(10, 8)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.place
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.q_norm(q), k, v)
        x = x + self.gamma * self.proj(y.transpose(1, 2).reshape(b, n, c))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.fc(self.norm(x)[:, 0])


class Attention(Tokens):
    """Attention written out: q, k and v of their own widths, a scale, a softmax; a bias per head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 10)
        self.bias = nn.Parameter(torch.zeros(2, 5, 5))
        self.proj, self.fc = nn.Linear(10, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k = (t.view(b, n, 2, 3).transpose(1, 2) for t in (self.q(x), self.k(x)))
        v = self.v(x).view(b, n, 2, 5).transpose(1, 2)
        scores = ((q * 3**-0.5) @ k.transpose(-2, -1) + self.bias).softmax(-1)
        return self.fc(F.relu(self.proj((scores @ v).transpose(1, 2).reshape(b, n, 10))).mean(1))


class TorchAttention(Tokens):
    """nn.MultiheadAttention and nn.TransformerEncoderLayer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp, self.fc = nn.Linear(8, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.fc(F.relu(self.mlp(x)).mean(1))


class Products(Tokens):
    """Products by einsum, bmm and baddbmm over channels and over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 7)
        self.d, self.e, self.fc = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        near = torch.einsum("bnc, bmc -> bnm", self.a(x), self.b(x)).sigmoid()
        far = torch.bmm(self.d(x), self.e(x).mT).tanh()
        y = torch.einsum("bnm,bmc->bnc", near, self.c(x))
        return self.fc((y + far @ y).mean(1))


class ConvNext(Net):
    """A ConvNeXt block: depthwise, LayerNorm over the last axis, MLP with response normalisation, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth, self.norm = conv(3, 6), conv(6, 6, groups=6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)
        self.beta, self.gamma = nn.Parameter(torch.zeros(9)), nn.Parameter(torch.zeros(6))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1))))
        size = y.norm(p=2, dim=(1, 2), keepdim=True)
        y = y + y * (size / (size.mean(-1, keepdim=True) + 1e-6)) + self.beta
        x = x + (self.down(y) * self.gamma).permute(0, 3, 1, 2)
        return self.fc(x.mean((2, 3)))


class Ratios(Net):
    """Grouped convolutions: more out than in, fewer out than in, one out to a group; transposed ones in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.more = conv(3, 6), conv(6, 12, groups=3)
        self.fewer, self.between = conv(12, 6, groups=2), conv(6, 6)
        self.single = conv(6, 3, groups=3)
        self.wide, self.up = conv(3, 8), nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.each, self.fc = nn.ConvTranspose2d(6, 12, 2, groups=6), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fewer(F.relu(self.more(F.relu(self.stem(x))))))
        x = F.relu(self.up(F.relu(self.wide(self.single(F.relu(self.between(x)))))))
        return self.fc(F.relu(self.each(x)).mean((2, 3)))


class Mixer(Tokens):
    """Layers along the positions, which mix no channels, between layers along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.across, self.back = nn.Linear(5, 4), nn.Linear(4, 5)
        self.up, self.down, self.fc = nn.Linear(8, 9), nn.Linear(9, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.back(F.gelu(self.across(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(x)))
        return self.fc(x.mean(1))


class Windows(Net):
    """Shifted windows: a roll over the plane, padding, windows cut out and put back, a table of biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 6), nn.LayerNorm(6)
        self.qkv, self.proj = nn.Linear(6, 24), nn.Linear(8, 6)
        self.table = nn.Parameter(torch.zeros(9, 2))
        self.register_buffer("places", torch.arange(16) % 9)
        self.merge, self.fc = nn.Linear(24, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2))
        y = y.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.places].view(4, 4, 2).permute(2, 0, 1)
        y = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT + bias.unsqueeze(0)
        y = self.proj((y.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 8))
        y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, (1, 1), (1, 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.fc(F.relu(self.merge(x)).mean((1, 2)))


class Standardised(Net):
    """Weights computed from parameters: standardised by hand and by torch's weight_norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gain = conv(3, 6), nn.Parameter(torch.ones(5, 1, 1, 1))
        self.second, self.fc = conv(6, 5), nn.Linear(5, 4)
        self.third = torch.nn.utils.parametrizations.weight_norm(conv(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.second.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True) * self.gain
        x = F.relu(F.conv2d(F.relu(self.stem(x)), weight, self.second.bias, padding=1))
        return self.fc(F.relu(self.third(x)).mean((2, 3)))


class Gates(Net):
    """A gate expanded over the channels, GLU, a native shuffle, windows of pixels folded and unfolded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.plane = conv(3, 8), conv(8, 1)
        self.two, self.groups = conv(8, 12), conv(6, 8, groups=2)
        self.patches, self.fc = conv(32, 3, 1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x * self.plane(x).sigmoid().expand_as(x) + self.plane(x).expand(-1, 8, -1, -1)
        x = F.channel_shuffle(F.relu(self.groups(F.glu(self.two(x), 1))), 2)
        x = F.unfold(x, 2, stride=2)
        x = F.unfold(F.fold(x, 8, 2, stride=2), 2, stride=2).unflatten(2, (4, 4))
        return self.fc(F.relu(self.patches(x)).mean((2, 3)))


class Pooled(Net):
    """BatchNorm on the input and behind a concatenation; view(b, -1) behind a pooling and of a whole plane."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.BatchNorm2d(3), conv(3, 4), conv(3, 3)
        self.bn, self.c = nn.BatchNorm2d(7), conv(7, 5, 3, stride=2)
        self.pooled, self.plane = nn.Linear(5, 4), nn.Linear(80, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = F.relu(self.c(self.bn(torch.cat([self.a(x), self.b(x)], 1))))
        return self.pooled(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)) + self.plane(x.view(x.size(0), -1))


RULE_NETS: dict[str, type[Net]] = {
    net.__name__: net
    for net in (
        LayerNorms, GroupNorms, Vit, Attention, TorchAttention, Products, ConvNext, Ratios, Mixer, Windows,
        Standardised, Gates, Pooled,
    )
}  # fmt: skip
