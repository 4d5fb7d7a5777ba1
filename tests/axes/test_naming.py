"""Names and kinds of axes: readable, unique, printable, and the same whatever stands elsewhere."""

import pytest
import torch
from torch import nn

from nestling.axes.discovery import discover


def axes_of(model, *shape):
    space = discover(model.eval(), (torch.randn(*shape),), {}).space
    return {axis.name: axis.kind for axis in space.axes.values() if axis.kind != "depth"}


class Attention(nn.Module):
    """Attention with queries that share keys where there are fewer heads of those."""

    def __init__(self, width=24, heads=4, keys=4, fused=False):
        super().__init__()
        self.sizes = [heads, keys, keys]
        self.size = 6
        if fused:
            self.qkv = nn.Linear(width, sum(self.sizes) * self.size)
        else:
            self.q, self.k, self.v = (nn.Linear(width, n * self.size) for n in self.sizes)
        self.proj = nn.Linear(heads * self.size, width)
        self.fused = fused

    def forward(self, x):
        if self.fused:
            parts = self.qkv(x).split([n * self.size for n in self.sizes], -1)
        else:
            parts = self.q(x), self.k(x), self.v(x)
        q, k, v = (p.unflatten(-1, (n, -1)).transpose(1, 2) for p, n in zip(parts, self.sizes))
        out = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attn = Attention(**options)
        self.mlp = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24))

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


class Transformer(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.patches = nn.Conv1d(5, 24, 2, 2)
        self.blocks = nn.Sequential(*(Block(**options) for _ in range(2)))
        self.head = nn.Linear(24, 7)

    def forward(self, x):
        return self.head(self.blocks(self.patches(x).transpose(1, 2)).mean(1))


def test_a_transformer():
    found = axes_of(Transformer(), 2, 5, 8)
    assert found == {
        "embedding": "embedding",  # a convolution makes it, but attention reads it
        "blocks.0.attn.heads": "heads",
        "blocks.0.attn.q.head_size": "head_size",
        "blocks.0.attn.v.head_size": "head_size",
        "blocks.0.mlp.0": "neurons",
        "blocks.1.attn.heads": "heads",
        "blocks.1.attn.q.head_size": "head_size",
        "blocks.1.attn.v.head_size": "head_size",
        "blocks.1.mlp.0": "neurons",
    }


def test_a_part_of_a_model_is_above_its_embedding():
    inside = axes_of(nn.Sequential(nn.Identity(), Transformer()), 2, 5, 8)
    assert set(inside) == {f"1.{name}" for name in axes_of(Transformer(), 2, 5, 8)}


def test_queries_that_share_keys():
    names = set(axes_of(Transformer(keys=2), 2, 5, 8))
    assert {"blocks.0.attn.kv_heads", "blocks.0.attn.heads_per_kv"} < names


def test_queries_keys_and_values_of_one_layer():
    names = set(axes_of(Transformer(fused=True), 2, 5, 8))
    assert {"blocks.0.attn.qk_head_size", "blocks.0.attn.v_head_size"} < names


class Residual(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.one, self.two = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x):
        return x + self.two(self.one(x).relu())


def stages(*widths):
    """A net without stages by name: only the numbers of its layers tell them apart."""
    layers = [nn.Sequential(nn.Conv2d(3, widths[0], 1), nn.BatchNorm2d(widths[0]))]
    for width, after in zip(widths, [*widths[1:], None], strict=True):
        layers += [Residual(width, 2 * width), Residual(width, 2 * width)]
        layers += [nn.Conv2d(width, after, 1)] if after else []
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 2)]
    return nn.Sequential(*layers)


def test_stages_that_only_numbers_tell_apart():
    assert axes_of(stages(8, 12), 2, 3, 4, 4) == dict.fromkeys(
        ["0.0", "1.one", "2.one", "3", "4.one", "5.one"], "channels"
    )
    model = nn.Sequential()
    model.features = stages(8, 12)
    found = axes_of(model, 2, 3, 4, 4)
    assert {"features.0", "features.1.one", "features.3", "features.4.one"} < set(found)


def test_a_layer_alone_in_a_module_gives_it_its_name():
    model = nn.Sequential()
    model.hidden = nn.Sequential(nn.Linear(3, 8), nn.ReLU())
    model.out = nn.Linear(8, 2)
    assert axes_of(model, 2, 3) == {"hidden": "neurons"}


def test_a_change_elsewhere_renames_nothing():
    class Longer(Transformer):
        def __init__(self):
            super().__init__()
            self.extra, self.last = nn.Linear(24, 9), nn.Linear(9, 7)

        def forward(self, x):
            x = self.blocks(self.patches(x).transpose(1, 2)).mean(1)
            return self.head(x) + self.last(self.extra(x).relu())

    assert axes_of(Longer(), 2, 5, 8) == axes_of(Transformer(), 2, 5, 8) | {"extra": "neurons"}


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.out = nn.Linear(3, 8 * 4), nn.Linear(8 * 4, 2)

    def forward(self, x):
        return self.out(self.wide(x).unflatten(-1, (8, 4)).softmax(-1).flatten(-2))


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.one, self.two = nn.Linear(3, 12), nn.Linear(4, 2), nn.Linear(8, 2)

    def forward(self, x):
        one, two = self.wide(x).split([4, 8], -1)
        return self.one(one.relu()) + self.two(two)


@pytest.mark.parametrize(
    ("model", "names"),
    [(Nested, {"wide.outer", "wide.inner"}), (Parts, {"wide.part1", "wide.part2"})],
)
def test_axes_of_one_layer_are_told_apart_by_their_place(model, names):
    assert set(axes_of(model(), 2, 3)) == names


def test_names_are_printable_and_unique_whatever_modules_are_called():
    model = nn.Sequential()
    for number, name in enumerate(("a\nb", "a\tb", "a_b", "part1")):
        model.add_module(name, nn.Linear(3 if not number else 8, 8))
    model.add_module("out", nn.Linear(8, 2))
    names = list(axes_of(model, 2, 3))
    assert len(set(names)) == len(names) == 4
    assert all(name.isprintable() for name in names)
