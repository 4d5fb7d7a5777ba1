"""Traps in nets over sequences: attention in many forms, experts, scans; see `traps.py`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traps import trap

SEQUENCE = (2, 5, 6)  # examples, positions, features
PICTURE = (2, 4, 4, 6)  # examples, rows, columns, features


class Block(nn.Module):
    """Embedding, residual mixing and residual gated neurons, head."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, width), nn.Linear(width, 4)
        self.norm = nn.RMSNorm(width)
        self.gate, self.up, self.down = (nn.Linear(*s) for s in [(width, 16)] * 2 + [(16, width)])

    def mix(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.mix(self.norm(x))
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


@trap(shape=SEQUENCE, axes=3, plain=False)
class WidthOfHeads(Block):
    """Fused projections, cut where the width of the input says; a scale from the head size."""

    def __init__(self):
        super().__init__()
        self.fused, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.heads, self.width = 3, 12

    def mix(self, x):
        b, n, c = x.size()
        q, k, v = self.fused(x).split(self.width, dim=2)
        q, k, v = (t.view(b, n, self.heads, c // self.heads).transpose(1, 2) for t in (q, k, v))
        weights = q @ k.transpose(-2, -1) * (1.0 / math.sqrt(k.size(-1)))
        weights = weights.masked_fill(torch.tril(torch.ones(n, n)) == 0, float("-inf"))
        return self.out((weights.softmax(-1) @ v).transpose(1, 2).contiguous().view(b, n, c))


@trap(shape=SEQUENCE, axes=4, plain=False)
class ScaleOfAttribute(Block):
    """Separate projections; the size of a head is an attribute, the scale is made of it."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.heads = 2
        self.size = 6

    def mix(self, x):
        q, k, v = (
            f(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        weights = (q @ k.mT) / math.sqrt(self.size)
        return self.out((weights.softmax(-1) @ v).transpose(1, 2).flatten(2))


@trap(shape=SEQUENCE, axes=4, plain=False)
class StoredScale(Block):
    """The scale is a number that was stored when the net was made: subnets keep it."""

    def __init__(self):
        super().__init__()
        self.fused, self.out = nn.Linear(12, 36, bias=False), nn.Linear(12, 12)
        self.heads, self.scale = 2, 6**-0.5

    def mix(self, x):
        b, n, _ = x.shape
        q, k, v = self.fused(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * self.scale) @ k.transpose(-2, -1)
        return self.out((weights.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=-1)
    turned = torch.cat([-two, one], -1)
    return x * torch.cat([angles.cos()] * 2, -1) + turned * torch.cat([angles.sin()] * 2, -1)


@trap(shape=SEQUENCE, axes=4, plain=False, counted=False)
class RotaryGroups(Block):
    """Rotary positions, and two heads of queries for each of keys and values."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(12, 8), nn.Linear(12, 8)
        self.out = nn.Linear(16, 12)
        self.register_buffer("frequencies", 0.1 ** torch.arange(2.0))
        self.size = 4

    def mix(self, x):
        angles = torch.arange(5.0)[:, None] * self.frequencies
        q, k, v = (
            f(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        q, k = rotate(q, angles), rotate(k, angles)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


@trap(shape=PICTURE, axes=3, plain=False)
class ShiftedWindows(Block):
    """Attention in shifted windows, with a bias for each head and distance."""

    def __init__(self):
        super().__init__()
        self.fused, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.heads = self.shift = 2
        self.table = nn.Parameter(torch.randn(9, 2))
        where = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij"))
        apart = where.flatten(1)[:, :, None] - where.flatten(1)[:, None] + 1
        self.register_buffer("index", apart[0] * 3 + apart[1])

    def mix(self, x):
        b, h, w, c = x.shape
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        q, k, v = (
            self.fused(x).reshape(-1, 4, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        )
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        weights = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias
        x = self.out((weights.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c))
        x = x.view(b, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(b, h, w, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2))


@trap(shape=SEQUENCE, axes=3, plain=False, counted=False)
class EinsumHeads(Block):
    """Projections as bare parameters with a dimension for the heads."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(2, 12, 4) / 4) for _ in range(3))
        self.out = nn.Parameter(torch.randn(2, 4, 12) / 4)

    def mix(self, x):
        q, k, v = (torch.einsum("bnc,hcd->bhnd", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bhnd,bhmd->bhnm", q, k).softmax(-1)
        return torch.einsum("bhnm,bhmd,hdc->bnc", weights, v, self.out)


@trap(shape=SEQUENCE, axes=4, plain=False, counted=False)
class Experts(Block):
    """Tokens are given to the best of three experts, all of which see some."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(12, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 12)) for _ in range(3)
        )

    def mix(self, x):
        flat = x.reshape(-1, x.shape[-1])
        share, best = self.router(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(best == number)
            out.index_add_(0, token, expert(flat[token]) * share[token, place, None])
        return out.view_as(x)


@trap(shape=SEQUENCE, axes=3)
class Scan(nn.Module):
    """A selective scan over time, step by step, with a short convolution before it."""

    def __init__(self):
        super().__init__()
        self.wide, self.conv = nn.Linear(6, 24), nn.Conv1d(12, 12, 3, groups=12, padding=2)
        self.select, self.step = nn.Linear(12, 2 + 4 + 4, bias=False), nn.Linear(2, 12)
        self.decay, self.skip = nn.Parameter(torch.rand(12, 4)), nn.Parameter(torch.ones(12))
        self.head, self.ranks = nn.Linear(12, 3), (2, 4, 4)

    def forward(self, x):
        x, gate = self.wide(x).chunk(2, dim=-1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        low, inward, outward = self.select(x).split(self.ranks, dim=-1)
        step = F.softplus(self.step(low))
        state, seen = x.new_zeros(len(x), x.shape[2], self.decay.shape[1]), []
        for t in range(x.shape[1]):
            keep = torch.exp(-step[:, t, :, None] * self.decay.exp())
            state = keep * state + (step[:, t] * x[:, t])[..., None] * inward[:, t, None]
            seen.append((state * outward[:, t, None]).sum(-1))
        y = torch.stack(seen, 1) + self.skip * x
        return self.head(y * F.silu(gate))


@trap(shape=SEQUENCE, axes=2, plain=False)
class Waves(nn.Module):
    """A state space as a convolution, by Fourier transforms over time (S4D)."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 3)
        self.decay, self.turn = nn.Parameter(torch.rand(12, 4)), nn.Parameter(torch.rand(12, 4))
        self.weight = nn.Parameter(torch.randn(12, 4))

    def forward(self, x):
        x = self.embed(x).transpose(1, 2)
        time = torch.arange(x.shape[-1], dtype=x.dtype)
        powers = torch.exp(-self.decay[..., None] * time) * torch.cos(self.turn[..., None] * time)
        kernel = (self.weight[..., None] * powers).sum(1)
        size = 2 * x.shape[-1]
        y = torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(kernel, size), size)
        return self.head(F.gelu(self.mix(y[..., : x.shape[-1]].transpose(1, 2))))


@trap(shape=SEQUENCE, axes=2, plain=False)
class TiedWords(nn.Module):
    """Words are looked up and told apart by one matrix."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(7, 12), nn.Parameter(torch.randn(5, 12))
        self.bag = nn.EmbeddingBag(7, 12, mode="sum")
        self.inner = nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 12))
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        words = (x.sum(-1).abs() * 3).long().clamp(max=6)
        x = self.words(words) * math.sqrt(self.words.weight.shape[-1]) + self.places
        x = x + self.bag(words)[:, None]
        return F.linear(self.norm(x + self.inner(x)), self.words.weight)


@trap(shape=SEQUENCE, axes=2, plain=False)
class ByHand(Block):
    """Norms that are written out, with a sum divided by the width."""

    def __init__(self):
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.ones(12)), nn.Linear(12, 12)

    def mix(self, x):
        mean = x.sum(-1, keepdim=True) / x.shape[-1]
        spread = (x - mean).pow(2).sum(-1, keepdim=True) / x.shape[-1]
        return self.inner((x - mean) * torch.rsqrt(spread + 1e-5) * self.scale)


@trap(shape=SEQUENCE, axes=2, plain=False)
class ByShape(Block):
    """The path through the code depends on shapes and on numbers, not on units."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.rounds = 2

    def mix(self, x):
        for number, layer in enumerate(self.layers):
            if x.shape[1] > 3 and number < self.rounds:
                x = torch.tanh(layer(x))
            elif number == 2:
                x = layer(x) if x.dim() == 3 else x
        return x
