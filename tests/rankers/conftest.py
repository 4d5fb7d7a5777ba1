"""Nets with every kind of axis, small, with batches of labelled data for each."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling


class Residual(nn.Module):
    """Coupled by a residual sum, and a block whose shortcut is projected."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.shortcut = nn.Conv2d(8, 12, 1, stride=2)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.two(F.relu(self.norm(self.one(x)))))
        x = F.relu(self.wide(x) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution, a depthwise one and a transposed one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.point = nn.Conv2d(16, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.grouped(F.relu(self.stem(x))))
        x = F.relu(self.up(self.depthwise(F.relu(self.point(x)))))
        return self.head(x.mean((2, 3)))


class Joined(nn.Module):
    """A concatenation that a gated unit reads: one weight makes both the values and the gates."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(5, 8)
        self.right = nn.Linear(5, 4)
        self.gated = nn.Linear(12, 16)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.head(F.glu(self.gated(x)))


class Attention(nn.Module):
    """Tokens, attention with one weight for queries, keys and values; the head is the embedding."""

    def __init__(self, heads=4, size=3, width=8):
        super().__init__()
        self.heads, self.size = heads, size
        self.embedding = nn.Embedding(7, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * size)
        self.out = nn.Linear(heads * size, width)
        self.up = nn.Linear(width, 8)
        self.down = nn.Linear(8, width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, -1, self.size))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


def pictures(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    return torch.randn(count, 1, 8, 8, generator=generator) + labels[:, None, None, None], labels


def vectors(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    return torch.randn(count, 5, generator=generator) + labels[:, None], labels


def tokens(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(7, (count, 5), generator=generator)
    return text, text[:, 0]


NETS = {
    "residual": (Residual, pictures),
    "grouped": (Grouped, pictures),
    "joined": (Joined, vectors),
    "attention": (Attention, tokens),
}


def make(name):
    """Return a supernet and its batches."""
    kind, data = NETS[name]
    torch.manual_seed(3)
    inputs, labels = data()
    net = nestling.Supernet(kind(), inputs[:2], step=1)
    return net, list(zip(inputs.split(8), labels.split(8), strict=True))


@pytest.fixture(params=list(NETS))
def ranked(request):
    """A supernet of one of the nets, and its batches."""
    return make(request.param)


@pytest.fixture
def nets():
    return make
