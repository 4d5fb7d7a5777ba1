"""Size attributes: found where a module or its config holds them, and never beyond its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.axes.comparison import Verdict
from nestling.axes.discovery import discover
from nestling.axes.proof import Prover, double
from nestling.axes.repair import repaired
from nestling.axes.trials import Trials
from nestling.extent import Counts, Product
from nestling.header import space_from_json, space_to_json
from nestling.setting import holder_of, is_config
from nestling.spec import Space
from nestling.supernet import Supernet

X = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))


class Config:
    """What modules share: a plain object."""

    def __init__(self) -> None:
        self.heads, self.size = 3, 5


class Attention(nn.Module):
    """Divides its projection by numbers of the config and of its own, two in one op."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.values, self.gates = 15, 6
        self.project, self.back = nn.Linear(12, 21), nn.Linear(15, 12)
        self.gate = nn.Linear(6, 15)

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.project(x).split([self.values, self.gates], -1)
        values = values.view(len(x), self.config.heads, self.config.size).sigmoid()
        return self.back(values.flatten(1) * self.gate(gates))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.one, self.two = Attention(self.config), Attention(self.config)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()).relu())


@pytest.fixture(scope="module")
def net() -> Supernet:
    torch.manual_seed(0)
    return Supernet(Net(), X)


def test_config_of_all_modules_ties_their_axes(net):
    held = {(a.module, a.name) for a in net.space.attributes}
    assert {name for _, name in held} >= {"values", "gates", "config.size", "config.heads"}
    tied = [n for n, axis in net.space.axes.items() if axis.size in (3, 5)]
    assert len(tied) == 2, net.space
    subnet = net.subnet({n: net.space.axes[n].counts[0] for n in tied})
    assert subnet.one.config is subnet.two.config is subnet.config
    assert subnet.config is not net.model.config
    assert (net.model.config.heads, net.model.config.size) == (3, 5)
    assert subnet.config.heads * subnet.config.size == subnet.one.back.weight.shape[1] < 15


def test_attributes_of_a_config_survive_the_header(net):
    again = space_from_json(space_to_json(net.space))
    assert list(again.attributes) == list(net.space.attributes)


@pytest.mark.parametrize("name", ["config.__class__", "_config.size", "a.b.c", "config.", ".size"])
def test_header_refuses_names_that_reach_into_internals(net, name):
    value = copy.deepcopy(space_to_json(net.space))
    value["attributes"][0][1] = name
    with pytest.raises(ValueError, match="not the name of a size"):
        space_from_json(value)


def test_only_plain_objects_of_a_module_are_configs():
    module = Net()
    assert holder_of(module, "training") == (module, "training")
    assert holder_of(module, "config.size") == (module.config, "size")
    assert is_config(SimpleNamespace(size=3))
    for value in (Config, nn.Linear(2, 2), X, torch, len, is_config, 3, None, "text"):
        assert not is_config(value)
    module.kind = Config  # a class is there for the whole program: no subnet may write to it
    for name in ("kind.size", "one.values", "missing.size"):
        with pytest.raises(AttributeError, match="holds no config"):
            holder_of(module, name)


class Block(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)
        self.register_buffer("gain", torch.tensor(gain))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :6], x[:, 6:] + self.gain * self.down(self.up(x).relu())[:, 6:]], 1)


def stack(*gains: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*map(Block, gains), nn.Linear(12, 3))


def proven(model: nn.Module, change: Callable[[Space], Space]) -> Space:
    wide, (args, kwargs) = double(model, ((X,), {}))
    found = discover(wide, args, kwargs)
    return Prover(wide, args, kwargs, found, lambda out: out).prove(change(found.space))


def neurons(space: Space) -> list[str]:
    return [name for name, axis in space.axes.items() if axis.size == 16]


def test_axes_of_one_role_are_proven_together(monkeypatch):
    alone: set[str] = set()
    check = Prover.check

    def noting(self: Prover, space: Space, counts: Counts) -> Verdict:
        alone.update(counts if len(counts) == 1 else ())
        return check(self, space, counts)

    monkeypatch.setattr(Prover, "check", noting)
    found = neurons(proven(stack(1, 1, 1, 1), lambda space: space))
    assert len(found) == 4
    assert alone.intersection(found) == set(found[:1])


def test_wrong_axis_among_like_ones_is_found():
    """Two layers read each other's axis: only these must be cut together, as all have one role."""

    def swapped(space: Space) -> Space:
        layouts = dict(space.layouts)
        one, other = "1.down.weight", "3.down.weight"
        layouts[one], layouts[other] = layouts[other], layouts[one]
        return replace(space, layouts=layouts)

    assert len(neurons(proven(stack(1, 1, 1, 1, 1), lambda space: space))) == 5
    space = proven(stack(1, 1, 1, 1, 1), swapped)
    assert {"0", "2", "4"} <= {name.split(".")[0] for name in neurons(space)}
    one, other = (space.layouts[f"{at}.up.weight"].extents[0] for at in (1, 3))
    assert one == other, "cut on its own, each would be a wrong number"


def test_axis_without_influence_is_not_proven_by_its_like():
    space = proven(stack(1, 1, 0, 1), lambda space: space)
    assert sorted(name.split(".")[0] for name in neurons(space)) == ["0", "1", "3"]
    reasons = {row.reason for row in space.frozen if row.parameter.startswith("2.")}
    assert "cutting it does not change the output, so nothing can be proven" in reasons


class Halves(nn.Module):
    """Two numbers of the module follow one axis, and one op takes both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = 16, 17
        self.both, self.last, self.back = nn.Linear(12, 33), nn.Linear(12, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).split([self.left, self.right], -1)
        return self.back(left * right[:, 1:]) + self.last(x)


def test_attributes_that_one_op_takes_are_found_together():
    space = proven(Halves(), lambda space: space)
    assert neurons(space), space
    assert {a.name for a in space.attributes} >= {"left", "right"}


class Attend(nn.Module):
    """The head size of values could be another one than that of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 2 * n) for n in (4, 4, 4))
        self.back = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(2, 2, 6)
        parts = (layer(x).view(2, 2, 2, -1) for layer in (self.query, self.key, self.value))
        q, k, v = (part.transpose(1, 2) for part in parts)
        return self.back(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_head_sizes_of_queries_and_values_are_cut_apart():
    space = proven(Attend(), lambda space: space)
    sizes = [axis.size for axis in space.axes.values() if axis.kind == "head_size"]
    assert sizes == [4, 4], space


class Wide(nn.Module):
    """The width of all heads together is as large as the embedding, and the code keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = 4, 16, 64
        self.qkv, self.proj = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        x = x.reshape(batch * tokens, x.shape[-1])
        parts = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, self.attn_dim))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(64), Wide()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm(x))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 64)
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.view(2, 2, 6).repeat(1, 3, 1).cumsum(1))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def test_equal_sizes_of_other_axes_are_told_apart():
    """One head of eight looks like an embedding of eight, where both are cut."""
    torch.manual_seed(0)
    wide, (args, kwargs) = double(Tokens(), ((X,), {}))
    found = discover(wide, args, kwargs)
    trials = Trials(wide, args, kwargs, found, lambda out: out)
    kept = {"embedding": 8, "heads": 1, "head_size": 8}
    counts = {n: kept.get(axis.kind, axis.size) for n, axis in found.space.axes.items()}
    space = repaired(trials, found.space, counts)
    assert space is not None
    widths = {a.module: a.extent for a in space.attributes if a.name == "attn_dim"}
    assert len(widths) == 3
    assert all(isinstance(extent, Product) for extent in widths.values()), widths
    other = {n: 2 if axis.kind == "heads" else axis.size for n, axis in found.space.axes.items()}
    assert trials.check(space, other).holds


class Bias(nn.Module):
    """Is never called: the attention asks it for its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.table = nn.Linear(2, 4)

    def get(self, tokens: int) -> Tensor:
        places = torch.linspace(0, 1, 2 * tokens * tokens, dtype=self.table.weight.dtype)
        return self.table(places.view(-1, 2)).view(tokens, tokens, self.heads).permute(2, 0, 1)


class Biased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.back, self.bias = nn.Linear(12, 60), nn.Linear(20, 3), Bias()

    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat(3, 1).cumsum(0)
        q, k, v = self.qkv(x).view(1, 6, self.heads, -1).transpose(1, 2).chunk(3, -1)
        scores = (q @ k.transpose(-2, -1) + self.bias.get(6)).softmax(-1)
        return self.back((scores @ v).transpose(1, 2).flatten(2))


def test_attributes_of_parts_that_are_never_called_are_found():
    space = proven(Biased(), lambda space: space)
    assert any(axis.size == 4 for axis in space.axes.values()), space
    held = {(a.module, a.name) for a in space.attributes}
    assert {("", "heads"), ("bias", "heads")} <= held
    assert not space.rewrites
