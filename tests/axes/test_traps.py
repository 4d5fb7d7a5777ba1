"""Every trap of the zoo: what is elastic, and that each subnet is exactly the masked model."""

from __future__ import annotations

import copy
import functools
import importlib.util
import random
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from nestling import extent as extents
from nestling.axes.discovery import discover
from nestling.axes.proof import Prover, double
from nestling.axes.structure import tensors_in
from nestling.errors import UncalibratedWarning
from nestling.extent import Along, Fixed
from nestling.supernet import Supernet


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


traps = _load("traps")
for _name in ("sequence_traps", "weight_traps"):
    _load(_name)  # they enter their nets in the zoo of `traps`

NAMES = list(traps.TRAPS)
PLAIN = [name for name, trap in traps.TRAPS.items() if trap.plain]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        yield


@functools.cache
def made(name: str) -> tuple[nn.Module, Tensor, Supernet]:
    torch.manual_seed(0)
    trap = traps.TRAPS[name]
    model = trap.build().double()
    x = torch.randn(trap.shape, dtype=torch.float64)
    with torch.no_grad():  # statistics and zeros that are not all alike
        model.train()
        for _ in range(3):
            model(torch.randn_like(x), **trap.options.get("kwargs", {}))
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    net = Supernet(model, x, step=1, **trap.options)
    return model, x, net


def outputs(name: str, module: nn.Module, x: Tensor) -> list[Tensor]:
    options = traps.TRAPS[name].options
    found = module(x, **options.get("kwargs", {}))
    key = options.get("outputs")
    return tensors_in(found if key is None else found[key])


def random_counts(net: Supernet, draw: random.Random) -> dict[str, int]:
    return {name: draw.choice(axis.counts) for name, axis in net.space.axes.items()}


def specs_of(net: Supernet, joint: int = 5) -> list[dict[str, int]]:
    draw = random.Random(1)
    single = [{n: draw.choice(a.counts[:-1])} for n, a in net.space.axes.items()]
    return [*single, *(random_counts(net, draw) for _ in range(joint))]


def kept_masks(net: Supernet, counts: dict[str, int]) -> dict[str, Tensor]:
    """For every parameter, ones where a spec keeps it: written apart from the library's proof."""
    masks = {}
    for name, parameter in net.named_parameters():
        mask = torch.ones_like(parameter)
        for dim, extent in enumerate(net.space.layouts[name].extents):
            line = torch.zeros(parameter.shape[dim], dtype=parameter.dtype)
            line[kept_by_hand(extent, counts)] = 1
            mask *= line.view([-1 if i == dim else 1 for i in range(parameter.dim())])
        masks[name] = mask
    return masks


def kept_by_hand(extent, counts) -> list[int]:
    """Walk over all entries, one unit number per leaf of the extent."""

    def keeps(part, entry: int) -> bool:
        if isinstance(part, Fixed):
            return True
        if isinstance(part, Along):
            return entry < counts.get(part.axis, part.size)
        if isinstance(part, extents.Product):
            for factor in reversed(part.factors):
                if not keeps(factor, entry % factor.size):
                    return False
                entry //= factor.size
            return True
        for piece in part.parts:
            if entry < piece.size:
                return keeps(piece, entry)
            entry -= piece.size
        raise AssertionError

    return [entry for entry in range(extent.size) if keeps(extent, entry)]


@pytest.mark.parametrize("name", NAMES)
def test_finds_what_is_elastic(name):
    trap = traps.TRAPS[name]
    _, _, net = made(name)
    report = str(net.space)
    assert len(net.space.axes) >= trap.axes, report
    assert net.space.elastic_share() >= trap.share, report
    if trap.frozen:
        assert trap.frozen in report


@pytest.mark.parametrize("name", NAMES)
def test_full_spec_is_the_users_model_bit_for_bit(name):
    model, x, net = made(name)
    full = net.subnet(net.space.full)
    for one, other in zip(outputs(name, full, x), outputs(name, model, x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_every_subnet_runs_and_counts_its_work(name):
    _, x, net = made(name)
    for counts in specs_of(net, 3):
        subnet = net.subnet(net.space.spec(counts)).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            outputs(name, subnet, x)
        if traps.TRAPS[name].counted:
            assert counter.get_total_flops() / 2 / len(x) == net.space.macs(counts)
        assert sum(p.numel() for p in subnet.parameters()) == net.space.params(counts)


@pytest.mark.parametrize("name", NAMES)
def test_work_never_falls_when_a_count_grows(name):
    _, _, net = made(name)
    draw = random.Random(2)
    for axis in net.space.axes.values():
        counts = random_counts(net, draw)
        costs = [net.space.macs({**counts, axis.name: count}) for count in axis.counts]
        assert costs == sorted(costs)


@pytest.mark.parametrize("name", PLAIN)
def test_subnet_is_the_masked_model_forward_and_backward(name):
    _, x, net = made(name)
    for counts in specs_of(net):
        masks = kept_masks(net, counts)
        masked = {
            key: (p.detach() * masks[key]).requires_grad_(p.requires_grad)
            for key, p in net.named_parameters()
        }
        reference = copy.deepcopy(net.model).eval()
        expected = tensors_in(_masked_outputs(name, reference, masked, x))
        for parameter in net.parameters():
            parameter.grad = None
        subnet = net.subnet(net.space.spec(counts)).eval()
        found = outputs(name, subnet, x)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
        sum(t.square().sum() for t in found).backward()
        sum(t.square().sum() for t in expected).backward()
        for key, parameter in net.named_parameters():
            if parameter.grad is None:
                continue
            want = masked[key].grad
            want = torch.zeros_like(parameter) if want is None else want * masks[key]
            torch.testing.assert_close(parameter.grad, want, rtol=1e-8, atol=1e-10, msg=key)


def _masked_outputs(name, model, masked, x):
    options = traps.TRAPS[name].options
    found = functional_call(model, masked, (x,), options.get("kwargs", {}))
    key = options.get("outputs")
    return found if key is None else found[key]


@pytest.mark.parametrize("name", NAMES)
def test_reordering_changes_no_output(name):
    model, x, net = made(name)
    own = Supernet.restore(copy.deepcopy(model), net.space, net.orders, net.private, net.signature)
    draw = random.Random(3)
    own.reorder({n: draw.sample(range(a.size), a.size) for n, a in net.space.axes.items()})
    full = own.subnet(own.space.full)
    for one, other in zip(outputs(name, full, x), outputs(name, model, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["ResNeXt", "InstanceNorm", "WeightNorm", "SharedWeight"])
def test_users_model_is_not_touched(name):
    torch.manual_seed(0)
    model = traps.TRAPS[name].build().train()
    model.stem.register_forward_hook(lambda *_: None)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    Supernet(model, torch.randn(traps.TRAPS[name].shape))
    assert all(module.training for module in model.modules())
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in model.parameters())


# The kernel of weight_norm does not check its shapes: a wrong cut there ends the process.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "WeightNorm"])
def test_damaged_axis_is_rejected(name):
    """Negative control: an axis that misses one of its dimensions must never pass."""
    _, x, net = made(name)
    options = traps.TRAPS[name].options
    key = options.get("outputs")
    wide, (args, kwargs) = double(net.model, ((x,), options.get("kwargs", {})))
    pick = (lambda out: out) if key is None else (lambda out: out[key])
    prover = Prover(wide, args, kwargs, discover(wide, args, kwargs, outputs=pick), pick)
    space = prover.prove(prover.trials.discovery.space)
    draw = random.Random(4)
    for axis in list(space.axes.values())[:3]:
        places = space.touches(axis.name)
        if len(places) < 2:
            continue
        for tensor, dim in draw.sample(places, min(2, len(places))):
            layout = space.layouts[tensor]
            dims = list(layout.extents)
            dims[dim] = extents.substitute(
                dims[dim], lambda at, axis=axis: Fixed(at.size) if at.axis == axis.name else at
            )
            layouts = {**space.layouts, tensor: replace(layout, extents=tuple(dims))}
            damaged = replace(space, layouts=layouts)
            counts = {axis.name: draw.randrange(1, axis.size)}
            assert not prover.check(damaged, counts).holds, (axis.name, tensor, dim)
