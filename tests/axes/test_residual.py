"""Depth: which blocks can be passed by, and that subnets compute what the net without them does.

The reference is the net's own forward, which leaves blocks out when it is told to.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import nestling
from nestling.axes.discovery import discover
from nestling.axes.lineage import Step
from nestling.axes.proof import Prover, double
from nestling.errors import UncalibratedWarning
from nestling.passage import Given, Several

_path = Path(__file__).with_name("residual_nets.py")
_spec = importlib.util.spec_from_file_location("residual_nets", _path)
nets = importlib.util.module_from_spec(_spec)
sys.modules["residual_nets"] = nets
_spec.loader.exec_module(nets)

CASES, NONE, PARTLY, TOKENS = nets.CASES, nets.NONE, nets.PARTLY, nets.TOKENS


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        yield


def depths(space):
    return {axis.name: axis for axis in space.axes.values() if axis.kind == "depth"}


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def example(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def supernet(build, shape=TOKENS, **options):
    return nestling.Supernet(seeded(build), example(shape), **{"step": 4, **options})


def skipped(case, spec):
    """The blocks that a spec leaves out, as the case says, not as the space does."""
    return {block for name, count in spec.items() for block in case.depths[name][count - 1 :]}


@pytest.mark.parametrize("name", CASES)
def test_a_subnet_of_less_depth_is_the_net_with_blocks_left_out(name):
    case = CASES[name]
    net = supernet(case.build, case.shape)
    found = depths(net.space)
    assert {n: a.size for n, a in found.items()} == {n: len(b) + 1 for n, b in case.depths.items()}
    whole = copy.deepcopy(net.model).eval().double()
    x = example(case.shape, 7).double()
    wide = copy.deepcopy(net).to(torch.float64)
    for counts in itertools.product(*(axis.counts for axis in found.values())):
        spec = dict(zip(found, counts, strict=True))
        skip = skipped(case, spec)
        whole.zero_grad()
        wide.zero_grad()
        expected = whole(x.clone(), skip=skip)
        subnet = wide.subnet(spec).eval()
        out = subnet(x.clone())
        tolerance = 1e-4 if "Hand" in name else 1e-12  # a norm in float32
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
        assert {n for n, _ in subnet.named_parameters()} == {
            n for n, _ in whole.named_parameters() if not within(n, skip)
        }
        expected.square().sum().backward()
        out.square().sum().backward()
        for (n, shared), own in zip(wide.named_parameters(), whole.parameters(), strict=True):
            if within(n, skip):
                assert shared.grad is None
            elif own.grad is not None:
                torch.testing.assert_close(shared.grad, own.grad, rtol=1e-3, atol=tolerance)


def within(name, blocks):
    return any(name.startswith(f"{block}.") for block in blocks)


@pytest.mark.parametrize("name", ["ResNet", "PreNormNet", "PositionBiasNet", "PostNormNet"])
def test_depth_and_width_together(name):
    """Cut in depth, then in width: what the net without the blocks gives when its width is cut."""
    case = CASES[name]
    net = supernet(case.build, case.shape)
    least = {n: a.counts[0] for n, a in net.space.axes.items()}
    small = nestling.pack(net.subnet(least)).eval()
    widths = {n: c for n, c in least.items() if n not in case.depths}
    narrow = nestling.pack(net.subnet(widths)).eval()
    x = example(case.shape, 3)
    skip = skipped(case, {n: 1 for n in case.depths})
    torch.testing.assert_close(small(x), narrow(x, skip=skip))


@pytest.mark.parametrize("name", NONE)
def test_no_depth_axis_where_blocks_cannot_be_passed_by(name):
    space = supernet(NONE[name]).space
    assert not depths(space)
    assert not space.blocks
    if name in ("ScaledNet", "GeluAfterNet", "AuxiliaryNet", "OverwritingNet"):
        assert any("blocks.depth is frozen: " in note for note in space.notes)
    if name == "AuxiliaryNet":
        assert "in training, blocks.1 returns something else" in str(space.notes)


@pytest.mark.parametrize("name", PARTLY)
def test_blocks_that_are_needed_from_outside_stay(name):
    """The second block is read from outside, so that only the third can go."""
    net = supernet(PARTLY[name])
    assert depths(net.space)["blocks.depth"].counts == (2, 3)
    assert any("at least 2 blocks are kept" in note for note in net.space.notes)
    x = example(TOKENS, 5)
    whole = copy.deepcopy(net.model).eval()
    out = net.subnet({"blocks.depth": 2}).eval()(x)
    torch.testing.assert_close(out, whole(x, skip={"blocks.2"}))


@pytest.mark.parametrize("name", ["PostNormNet", "PostRmsNet", "PostHandRmsNet"])
def test_the_norm_after_the_sum_goes_with_the_block_and_a_note_says_so(name):
    space = supernet(CASES[name].build).space
    assert "blocks.depth: the norms after the sums are passed by with the blocks" in space.notes
    other = supernet(CASES["PreNormNet"].build).space
    assert not any("norms" in note for note in other.notes)


def test_a_branch_in_training_keeps_its_gradients_to_itself():
    """Zeros stand for a branch that the code around adds; in place it must not write to them."""
    net = supernet(CASES["ParentInPlaceNet"].build)
    subnet = net.subnet({"blocks.depth": 1}).train()
    x = example(TOKENS)
    first = subnet(x)
    first.sum().backward()
    torch.testing.assert_close(subnet(x), first)


# -- the proof catches what is wrong ---------------------------------------------------------------


class TwoInputs(nn.Module):
    """Adds to the first of two inputs of one shape."""

    def __init__(self):
        super().__init__()
        self.inner = nets.PreNorm()

    def forward(self, x, other):
        return self.inner(x), other


class TwoInputsNet(nets.Net):
    def make(self, number):
        return TwoInputs()

    def forward(self, x, skip=()):
        x = other = self.embed(x)
        other = other.cos()
        for block in self.blocks:
            x, other = block(x, other)
        return self.head(self.norm(x + 2 * other))


def proven(build, change, shape=TOKENS):
    """Prove a discovery whose blocks were changed behind its back."""
    wide, (args, kwargs) = double(seeded(build).eval(), ((example(shape),), {}))
    found = discover(wide, args, kwargs, step=4)
    assert found.space.blocks
    blocks = [change(block) for block in found.space.blocks]
    space = replace(found.space, blocks=tuple(blocks))
    return Prover(wide, args, kwargs, found, lambda out: out).prove(space)


WRONG = {
    "the other argument": lambda block: replace(block, passage=Several((Given((1,)), Given((1,))))),
    "turned": lambda block: replace(block, passage=Several((Given((1,)), Given((0,))))),
    "zeros": lambda block: replace(block, passage=Several((Given((0,), zero=True), Given((1,))))),
    "nothing": lambda block: replace(block, passage=None),
    "one too few": lambda block: replace(block, passage=Several((Given((0,)),))),
    "no such argument": lambda block: replace(block, passage=Several((Given((5,)), Given((1,))))),
    "no such keyword": lambda block: replace(block, passage=Several((Given(("y",)), Given((1,))))),
}


def test_the_right_passage_is_proven():
    space = proven(TwoInputsNet, lambda block: block)
    assert depths(space)["blocks.depth"].counts == (1, 2, 3)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_passage_is_caught(name):
    space = proven(TwoInputsNet, WRONG[name])
    assert not depths(space)
    assert any("blocks.depth is frozen" in note for note in space.notes)


@pytest.mark.parametrize("name", ["ResNet", "PreNormNet", "ParentSumNet", "MobileNet"])
def test_a_wrong_module_marked_as_a_block_is_caught(name):
    """Parts of a block are passed by in its place: an error, or another function."""
    case = CASES[name]

    def inner(block):
        model = seeded(case.build)
        part = next(n for n, _ in model.get_submodule(block.module).named_children())
        return replace(block, module=f"{block.module}.{part}", passage=Given((0,)))

    wide, (args, kwargs) = double(seeded(case.build).eval(), ((example(case.shape),), {}))
    found = discover(wide, args, kwargs, step=4)
    found.steps = {
        **found.steps,
        **{inner(block).module: found.steps[block.module] for block in found.space.blocks},
    }
    space = replace(found.space, blocks=tuple(map(inner, found.space.blocks)))
    space = Prover(wide, args, kwargs, found, lambda out: out).prove(space)
    assert not depths(space)


def test_steps_that_take_too_little_away_are_caught():
    """The masked model must drop every summand of a block: here one of two is left in."""
    model = seeded(CASES["PreNormNet"].build).eval()
    wide, (args, kwargs) = double(model, ((example(TOKENS),), {}))
    found = discover(wide, args, kwargs, step=4)
    found.steps = {path: steps[:1] for path, steps in found.steps.items()}
    space = Prover(wide, args, kwargs, found, lambda out: out).prove(found.space)
    assert not depths(space)
    assert all(isinstance(s, Step) for steps in found.steps.values() for s in steps)


# -- wishes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["layer2.depth", "*.depth"])
def test_freezing_depth(pattern):
    space = supernet(CASES["ResNet"].build, CASES["ResNet"].shape, freeze=pattern).space
    left = {"layer1.depth"} if pattern == "layer2.depth" else set()
    assert set(depths(space)) == left
    assert {block.axis for block in space.blocks} == left


def test_tied_depths_go_together():
    case = CASES["ResNet"]
    net = supernet(case.build, case.shape, tie=[("layer1.depth", "layer2.depth")])
    assert set(depths(net.space)) == {"layer1.depth"}
    assert {block.axis for block in net.space.blocks} == {"layer1.depth"}
    x = example(case.shape, 3)
    skip = {"layer1.1", "layer1.2", "layer2.1", "layer2.2"}
    expected = copy.deepcopy(net.model).eval()(x, skip=skip)
    torch.testing.assert_close(net.subnet({"layer1.depth": 1}).eval()(x), expected)


def test_steps_of_depth_are_named_a_step_for_all_is_of_widths():
    case = CASES["ResNet"]
    found = depths(supernet(case.build, case.shape, step={"layer2.depth": 2}).space)
    assert found["layer1.depth"].counts == (1, 2, 3)
    assert found["layer2.depth"].counts == (2, 3)
    found = depths(supernet(case.build, case.shape, step=8).space)
    assert found["layer2.depth"].counts == (1, 2, 3)
