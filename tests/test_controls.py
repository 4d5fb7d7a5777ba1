"""Negative controls: a space that is damaged on purpose must never pass the proof."""

from __future__ import annotations

import copy
import importlib.util
import random
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nestling import extent as extents
from nestling.axes.discovery import discover
from nestling.axes.proof import Prover, double
from nestling.extent import Along, Concat, Extent, Fixed, Product
from nestling.spec import Axis, Space


def _load(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"controls_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TRAPS = _load(Path(__file__).parent / "axes" / "traps.py").TRAPS


class Square(nn.Module):
    """Three hidden axes of one size, two of them concatenated; the last layer starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 8)
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 3)
        nn.init.zeros_(self.out.weight)
        nn.init.ones_(self.three.weight)

    def forward(self, x):
        both = torch.cat([self.one(x).relu(), self.two(x).sigmoid()], 1)
        return x[:, :3] + self.out(self.norm(self.three(both)))


class Heads(nn.Module):
    """Attention with a fused projection: (3 heads size)."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.out = nn.Linear(12, 48), nn.Linear(16, 12)
        self.heads, self.size = 4, 4

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.fused(x).view(n, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "square": (Square, (4, 6)),
    "heads": (Heads, (2, 5, 12)),
    **{
        name: (TRAPS[name].build, TRAPS[name].shape)
        for name in ("SqueezeExcitation", "ResNeXt", "UNet", "ZeroGamma", "Dense", "AttributeSize")
    },
}


def proven(name: str, seed: int) -> tuple[Prover, Space, torch.Tensor]:
    torch.manual_seed(seed)
    build, shape = NETS[name]
    x = torch.randn(shape)
    wide, (args, kwargs) = double(build(), ((x,), {}))
    found = discover(wide, args, kwargs, step=1)
    prover = Prover(wide, args, kwargs, found, lambda out: out, seed)
    space = prover.prove(found.space)
    assert space.axes
    return prover, space, x


def some_counts(space: Space, axis: Axis, draw: random.Random) -> dict[str, int]:
    """Counts that cut one axis; every other one keeps another share, so that nothing agrees."""
    return {axis.name: draw.choice([c for c in axis.counts if 1 < c < axis.size] or [1])}


def with_layout(space: Space, tensor: str, dim: int, extent: Extent) -> Space:
    layout = space.layouts[tensor]
    dims = tuple(extent if at == dim else e for at, e in enumerate(layout.extents))
    return replace(space, layouts={**space.layouts, tensor: replace(layout, extents=dims)})


def dropped(space: Space, axis: Axis) -> Iterator[Space]:
    """One dimension of one tensor does not follow the axis any more."""
    for tensor, dim in space.touches(axis.name):
        extent = extents.substitute(
            space.layouts[tensor].extents[dim],
            lambda at: Fixed(at.size) if at.axis == axis.name else at,
        )
        yield with_layout(space, tensor, dim, extent)


def swapped(space: Space, axis: Axis) -> Iterator[Space]:
    """One dimension of one tensor follows another axis of the same size."""
    for other in space.axes.values():
        if other.size == axis.size and other.name != axis.name:
            for tensor, dim in space.touches(axis.name):
                extent = extents.substitute(
                    space.layouts[tensor].extents[dim],
                    lambda at, to=other: Along(to.name, at.size) if at.axis == axis.name else at,
                )
                yield with_layout(space, tensor, dim, extent)


def turned(space: Space, axis: Axis) -> Iterator[Space]:
    """The parts of a concatenation, or the factors of a product, stand the other way around."""
    for tensor, dim in space.touches(axis.name):
        extent = space.layouts[tensor].extents[dim]
        if isinstance(extent, Concat) and extent.parts != extent.parts[::-1]:
            yield with_layout(space, tensor, dim, Concat(extent.parts[::-1]))
        if isinstance(extent, Product) and extent.factors != extent.factors[::-1]:
            yield with_layout(space, tensor, dim, Product(extent.factors[::-1]))


READ = ("groups", "num_groups", "normalized_shape", "num_features", "heads", "size", "shape")


def misattributed(space: Space, axis: Axis) -> Iterator[Space]:
    """A size that the code reads stays as it is, or follows by one unit less."""
    for number, attribute in enumerate(space.attributes):
        follows = axis.name in set(extents.axes_of(attribute.extent))
        if follows and attribute.name in READ and not _is_norm(space, attribute.module):
            rest = (*space.attributes[:number], *space.attributes[number + 1 :])
            yield replace(space, attributes=rest)


def _is_norm(space: Space, module: str) -> bool:
    """Batch norm does not read its own `num_features`; other layers' sizes are read."""
    return f"{module}.running_mean" in space.layouts


DAMAGES = {"dropped": dropped, "swapped": swapped, "turned": turned, "attribute": misattributed}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", NETS)
def test_every_damage_is_caught(name, seed):
    prover, space, _ = proven(name, seed)
    draw = random.Random(seed)
    tried = 0
    for axis in space.axes.values():
        counts = some_counts(space, axis, draw)
        assert prover.check(space, counts).holds
        for kind, damage in DAMAGES.items():
            for damaged in damage(space, axis):
                tried += 1
                assert not prover.check(damaged, counts).holds, (kind, axis.name, counts)
    assert tried >= 5


@pytest.mark.parametrize("name", ["square", "ResNeXt", "UNet"])
def test_proving_a_damaged_space_lets_nothing_wrong_pass(name):
    """The whole proof, with its repairs: the axis goes, or what is left is right."""
    for seed in (0, 1):
        _, space, _ = proven(name, seed)
        draw = random.Random(seed)
        for axis in draw.sample(list(space.axes.values()), 2):
            damaged = draw.choice(list(dropped(space, axis)))
            prover, _, _ = proven(name, seed)
            left = prover.prove(damaged)
            sound, _, _ = proven(name, seed)
            assert axis.name not in left.axes
            for other in left.axes.values():
                assert sound.check(left, {other.name: other.counts[0]}).holds


@pytest.mark.parametrize("name", ["square", "SqueezeExcitation", "ResNeXt"])
def test_wrong_works_are_caught_by_counting(name):
    """The proof says nothing about costs; counting the ops of a subnet does."""
    prover, space, x = proven(name, 0)
    counts = {axis.name: axis.counts[0] for axis in space.axes.values()}

    def counted(space: Space) -> bool:
        subnet = copy.deepcopy(prover.trials.subnet(space, counts))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            subnet(x.double())
        return counter.get_total_flops() == 2 * len(x) * space.macs(counts)

    assert counted(space)
    for number, work in enumerate(space.works):
        rest = (*space.works[:number], *space.works[number + 1 :])
        assert not counted(replace(space, works=rest))
        for at, extent in enumerate(work.extents):
            if any(extents.axes_of(extent)):
                whole = (*work.extents[:at], Fixed(extent.size), *work.extents[at + 1 :])
                works = (
                    *space.works[:number],
                    replace(work, extents=whole),
                    *space.works[number + 1 :],
                )
                assert not counted(replace(space, works=works))
