"""Hand-written modules, each with code that breaks tools that guess."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.registry import Case, architecture

WIDTH, HEADS = 64, 4


class RmsNorm(nn.Module):
    """Root mean square norm, written out; its weight starts at zero and is used as one more."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x over its root mean square."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class FusedAttention(nn.Module):
    """One projection to queries, keys and values; the head size is computed from the input."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return attention over (batch, length, width)."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, -1))


class RotaryAttention(nn.Module):
    """Grouped queries with rotary positions; keys and values are repeated over their group."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS, groups: int = 2) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q = nn.Linear(width, heads * self.size, bias=False)
        self.k = nn.Linear(width, groups * self.size, bias=False)
        self.v = nn.Linear(width, groups * self.size, bias=False)
        self.o = nn.Linear(heads * self.size, width, bias=False)
        frequencies = 1.0 / 100 ** (torch.arange(0, self.size, 2) / self.size)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        """Return x, (batch, heads, length, size), with its halves turned by the position."""
        angles = torch.outer(torch.arange(x.shape[2], device=x.device), self.frequencies)
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        """Return causal attention over (batch, length, width)."""
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, self.size).transpose(1, 2)
        k = self.k(x).view(batch, length, self.groups, self.size).transpose(1, 2)
        v = self.v(x).view(batch, length, self.groups, self.size).transpose(1, 2)
        repeat = self.heads // self.groups
        k = self.turn(k).repeat_interleave(repeat, 1)
        v = v.repeat_interleave(repeat, 1)
        y = F.scaled_dot_product_attention(self.turn(q), k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(batch, length, self.heads * self.size))


class Gated(nn.Module):
    """A gated feed-forward layer whose two halves come out of one projection."""

    def __init__(self, width: int = WIDTH, hidden: int = 96) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., width)."""
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class Decoder(nn.Module):
    """A small language model of the parts above whose scores use the embedding's weights."""

    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": RmsNorm(WIDTH),
                    "attention": attention(),
                    "norm2": RmsNorm(WIDTH),
                    "gated": Gated(),
                }
            )
            for _ in range(2)
        )
        self.norm = RmsNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 64, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, numbers: Tensor) -> Tensor:
        """Return (batch, length, 64) scores."""
        x = self.embedding(numbers) * math.sqrt(self.embedding.embedding_dim)
        for block in self.blocks:
            x = x + block["attention"](block["norm1"](x))
            x = x + block["gated"](block["norm2"](x))
        return self.head(self.norm(x))


class RelativeAttention(nn.Module):
    """Attention in shifted windows with a table of relative biases, one column a head."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        apart = (grid[:, :, None] - grid[:, None]) + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, height, width, channels)."""
        b, h, w, c = x.shape
        n, s = self.window, self.shift
        x = torch.roll(x, (-s, -s), (1, 2)) if s else x
        x = x.view(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, c)
        qkv = self.qkv(x).reshape(x.shape[0], n * n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.table[self.index.view(-1)].view(n * n, n * n, -1).permute(2, 0, 1)
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
        x = (weights.softmax(-1) @ v).transpose(1, 2).reshape(-1, n * n, c)
        x = self.proj(x).view(b, h // n, w // n, n, n, c).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, h, w, c)
        return torch.roll(x, (s, s), (1, 2)) if s else x


class Windows(nn.Module):
    """Two windowed blocks; the shift, the window's half, equals the number of heads."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attentions = nn.ModuleList(RelativeAttention(width, 2, 4, s) for s in (0, 2))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 10) scores."""
        x = self.stem(x).permute(0, 2, 3, 1)
        for norm, attention in zip(self.norms, self.attentions, strict=False):
            x = x + attention(norm(x))
        return self.head(self.norms[-1](x).mean((1, 2)))


class Experts(nn.Module):
    """A mixture whose router visits one of eight experts a token: most are never run."""

    def __init__(self, width: int = 32, count: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(16, width)
        self.router = nn.Linear(width, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
            for _ in range(count)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 10) scores."""
        x = torch.tanh(self.stem(x))
        weights, chosen = self.router(x).softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                y = y.index_add(0, rows, weights[rows, None] * expert(x[rows]))
        return self.head(x + y)


class Branching(nn.Module):
    """Which layers run depends on the values of the input."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(16, width)
        self.one = nn.Linear(width, width)
        self.two = nn.Linear(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 10) scores."""
        positive = bool(x.mean() > 0)
        x = F.relu(self.stem(x))
        x = F.relu(self.one(x) if positive else self.two(x))
        return self.head(x)


class Written(nn.Module):
    """Sizes written into the code: the views know 4 heads of 16 and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 64)
        self.mix = nn.Linear(64, 64)
        self.hidden = nn.Linear(64, 48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 10) scores of (batch, length, 16) features."""
        x = self.stem(x)
        y = self.mix(x).view(x.shape[0], -1, 4, 16)
        weights = torch.einsum("bqhd,bkhd->bhqk", y, y).softmax(-1)
        y = torch.einsum("bhqk,bkhd->bqhd", weights, y).reshape(x.shape[0], -1, 64)
        return self.head(F.relu(self.hidden(x + y)).mean(1))


class Padded(nn.Module):
    """A shortcut that pads channels with zeros on both sides, and layers that start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.widen = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.last = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 10) scores."""
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        x = F.relu(self.norm(self.widen(x)) + shortcut)
        return self.head((x + self.last(x)).mean((2, 3)))


class Many(nn.Module):
    """Several outputs in a dictionary, a list among them; one of them keeps hidden features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(64, size) for size in (3, 5))

    def forward(self, x: Tensor) -> dict[str, object]:
        """Return scores and features."""
        features = self.body(x)
        return {"scores": [head(features) for head in self.heads], "features": features}


class Slots(nn.Module):
    """Learned queries, `einsum`, `F.layer_norm` and weights held in bare parameters."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.inputs = nn.Parameter(torch.randn(16, width) / 4)
        self.queries = nn.Parameter(torch.randn(6, width))
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.hidden = nn.Parameter(torch.randn(2, width, 48) / 6)
        self.back = nn.Parameter(torch.randn(48, width) / 6)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 6, 10) scores of (batch, length, 16) features."""
        x = torch.einsum("blf,fw->blw", x, self.inputs)
        x = F.layer_norm(x, self.scale.shape, self.scale, self.shift)
        weights = torch.einsum("qw,blw->bql", self.queries, x).div(x.shape[-1] ** 0.5).softmax(-1)
        y = self.queries + torch.einsum("bql,blw->bqw", weights, x)
        gate, value = torch.einsum("bqw,gwh->gbqh", y, self.hidden)
        return self.head(y + (gate.sigmoid() * value) @ self.back)


class Squeeze(nn.Module):
    """Grouped, depthwise and shuffled convolutions with squeeze and excitation and PReLU."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, width)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
        self.act = nn.PReLU(2 * width)
        self.squeeze = nn.Conv2d(2 * width, 16, 1)
        self.excite = nn.Conv2d(16, 2 * width, 1)
        self.head = nn.Linear(2 * width * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 10) scores."""
        x = F.relu(self.norm(self.stem(x)))
        x = x + F.channel_shuffle(self.grouped(x), 4)
        x = self.act(self.depthwise(x))
        x = x * self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Shared(nn.Module):
    """One layer used at two places, and one weight used transposed."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.encode = nn.Linear(24, width)
        self.twice = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(24))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 24)."""
        x = torch.tanh(self.encode(x))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return F.linear(x, self.encode.weight.t(), self.bias)


class Scan(nn.Module):
    """A selective state-space layer, its scan a Python loop over the steps."""

    def __init__(self, width: int = 32, inner: int = 48, state: int = 16) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.into = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.select = nn.Linear(inner, 8 + 2 * state, bias=False)
        self.step = nn.Linear(8, inner)
        self.log_a = nn.Parameter(torch.log(torch.arange(1.0, state + 1)).repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, width, bias=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 10) scores of (batch, length, 8) features."""
        x = self.stem(x)
        y, gate = self.into(x).chunk(2, -1)
        y = F.silu(self.conv(y.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        state = self.log_a.shape[1]
        step, b, c = self.select(y).split([self.step.in_features, state, state], -1)
        step = F.softplus(self.step(step))
        decay = torch.exp(step[..., None] * -self.log_a.exp())
        drive = step[..., None] * b[:, :, None] * y[..., None]
        hidden, rows = torch.zeros_like(drive[:, 0]), []
        for time in range(x.shape[1]):
            hidden = decay[:, time] * hidden + drive[:, time]
            rows.append((hidden * c[:, time, None]).sum(-1))
        y = (torch.stack(rows, 1) + y * self.skip) * F.silu(gate)
        return self.head((x + self.out(y)).mean(1))


@architecture("traps/fused-attention")
def fused_attention() -> Case:
    """`Decoder` with `FusedAttention`."""
    return Case(Decoder(FusedAttention), (torch.randint(64, (2, 6)),))


@architecture("traps/rotary-attention")
def rotary_attention() -> Case:
    """`Decoder` with `RotaryAttention`."""
    return Case(Decoder(RotaryAttention), (torch.randint(64, (2, 6)),))


@architecture("traps/shifted-windows")
def shifted_windows() -> Case:
    """See `Windows`."""
    return Case(Windows(), (torch.randn(1, 3, 16, 16),))


@architecture("traps/unvisited-experts")
def unvisited_experts() -> Case:
    """See `Experts`."""
    return Case(Experts(), (torch.randn(3, 16),))


@architecture("traps/dynamic-branch")
def dynamic_branch() -> Case:
    """See `Branching`."""
    return Case(Branching(), (torch.randn(2, 16),))


@architecture("traps/written-sizes")
def written_sizes() -> Case:
    """See `Written`."""
    return Case(Written(), (torch.randn(2, 5, 16),))


@architecture("traps/zero-padded-shortcut")
def zero_padded_shortcut() -> Case:
    """See `Padded`."""
    return Case(Padded(), (torch.randn(2, 3, 8, 8),))


@architecture("traps/many-outputs")
def many_outputs() -> Case:
    """See `Many`; the features need not keep their size."""
    return Case(Many(), (torch.randn(2, 16),), outputs="scores")


@architecture("traps/bare-parameters")
def bare_parameters() -> Case:
    """See `Slots`."""
    return Case(Slots(), (torch.randn(2, 5, 16),))


@architecture("traps/groups-and-shuffle")
def groups_and_shuffle() -> Case:
    """See `Squeeze`."""
    return Case(Squeeze(), (torch.randn(2, 3, 8, 8),))


@architecture("traps/shared-layers")
def shared_layers() -> Case:
    """See `Shared`."""
    return Case(Shared(), (torch.randn(2, 24),))


@architecture("traps/selective-scan")
def selective_scan() -> Case:
    """See `Scan`."""
    return Case(Scan(), (torch.randn(2, 5, 8),))
