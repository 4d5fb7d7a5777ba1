"""Nets of residual blocks whose own forward can leave blocks out: `net(x, skip={"blocks.2"})`.

What they compute so is the independent reference for subnets of less depth.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

IMAGE = (2, 3, 8, 8)
TOKENS = (2, 6, 16)


@dataclasses.dataclass(frozen=True)
class Case:
    """A net, and which depth axes it has.

    Attributes:
        build: makes the net.
        shape: of the example input.
        depths: axis name to the blocks that can go, the last one first; the stage has one more.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    depths: dict[str, list[str]]


CASES: dict[str, Case] = {}


def case(shape: tuple[int, ...] = TOKENS, **depths: Any) -> Callable[[type], type]:
    """Enter a net; numbers mean the blocks `stage.number`, an underscore stands for a dot."""

    def enter(net: type) -> type:
        named = {key.replace("_", "."): value for key, value in depths.items()}
        blocks = {
            f"{stage}.depth": [f"{stage}.{number}" for number in numbers]
            for stage, numbers in named.items()
        }
        CASES[net.__name__] = Case(net, shape, blocks)
        return net

    return enter


# -- pictures -------------------------------------------------------------------------------------


def norm_conv(inputs, outputs, kernel=3, **options):
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class PostActivation(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.one, self.two = norm_conv(inputs, outputs, stride=stride), norm_conv(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.short = nn.Identity() if same else norm_conv(inputs, outputs, 1, stride=stride)

    def forward(self, x):
        return F.relu(self.two(F.relu(self.one(x))) + self.short(x))


class Bottleneck(nn.Module):
    """In-place sum and in-place activations, as torchvision writes them."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.one, self.two = norm_conv(inputs, 8, 1), norm_conv(8, 8, stride=stride)
        self.three, self.relu = norm_conv(8, outputs, 1), nn.ReLU(inplace=True)
        self.downsample = None
        if inputs != outputs or stride > 1:
            self.downsample = norm_conv(inputs, outputs, 1, stride=stride)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.three(self.relu(self.two(self.relu(self.one(x)))))
        out += identity
        return self.relu(out)


class PreActivation(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.short = None
        if inputs != outputs or stride > 1:
            self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        y = F.relu(self.norm(x))
        short = x if self.short is None else self.short(y)
        return short + self.conv2(F.relu(self.norm2(self.conv(y))))


class Stages(nn.Module):
    """Two stages of three blocks; the second one starts with a projection."""

    block: Any = PostActivation

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(norm_conv(3, 16), nn.ReLU())
        self.layer1 = self.stage(16, 16, 1)
        self.layer2 = self.stage(16, 24, 2)
        self.norm, self.head = nn.BatchNorm2d(24), nn.Linear(24, 5)

    def stage(self, inputs, outputs, stride):
        rest = [self.block(outputs, outputs) for _ in range(2)]
        return nn.Sequential(self.block(inputs, outputs, stride), *rest)

    def forward(self, x, skip=()):
        x = self.stem(x)
        for name in ("layer1", "layer2"):
            for number, block in enumerate(getattr(self, name)):
                if f"{name}.{number}" not in skip:
                    x = block(x)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


@case(IMAGE, layer1=[1, 2], layer2=[1, 2])
class ResNet(Stages):
    pass


@case(IMAGE, layer1=[1, 2], layer2=[1, 2])
class BottleneckResNet(Stages):
    block = Bottleneck


@case(IMAGE, layer1=[1, 2], layer2=[1, 2])
class PreActivationResNet(Stages):
    block = PreActivation


class InvertedResidual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        wide = 2 * inputs
        self.body = nn.Sequential(
            *(norm_conv(inputs, wide, 1), nn.ReLU6(inplace=True)),
            *(norm_conv(wide, wide, stride=stride, groups=wide), nn.ReLU6(inplace=True)),
            norm_conv(wide, outputs, 1),
        )
        self.add = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.body(x) if self.add else self.body(x)


class MobileNet(nn.Module):
    """All blocks in one Sequential: 1 and 4 change the width and stay."""

    def __init__(self):
        super().__init__()
        widths = [(16, 24, 2), (24, 24, 1), (24, 24, 1), (24, 32, 2), (32, 32, 1)]
        stem = nn.Sequential(norm_conv(3, 16), nn.ReLU6())
        self.features = nn.Sequential(stem, *(InvertedResidual(*w) for w in widths))
        self.head = nn.Linear(32, 5)

    def forward(self, x, skip=()):
        for number, block in enumerate(self.features):
            if f"features.{number}" not in skip:
                x = block(x)
        return self.head(x.mean((2, 3)))


CASES["MobileNet"] = Case(
    MobileNet,
    IMAGE,
    {"features.1.depth": ["features.2", "features.3"], "features.4.depth": ["features.5"]},
)


class ConvNeXtBlock(nn.Module):
    """Residual over permuted views, with layer scale and stochastic depth."""

    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.one = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.two, self.gamma = nn.Linear(2 * width, width), nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x):
        shortcut = x
        x = self.depthwise(x).permute(0, 2, 3, 1)
        x = self.gamma * self.two(F.gelu(self.one(self.norm(x))))
        return shortcut + stochastic_depth(x.permute(0, 3, 1, 2), self.training)


def stochastic_depth(x, training):
    if not training:
        return x
    keep = torch.rand(len(x), *[1] * (x.dim() - 1)) < 0.9
    return x * keep / 0.9


@case(IMAGE, stages_0_blocks=[1], stages_1_blocks=[1, 2])
class ConvNeXt(nn.Module):
    """Blocks in groups of their own class: the groups are no blocks, what is in them is."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.stages = nn.ModuleList()
        for width, number in ((16, 2), (24, 3)):
            stage = nn.Module()
            stage.blocks = nn.ModuleList(ConvNeXtBlock(width) for _ in range(number))
            self.stages.append(stage)
        self.down, self.head = nn.Conv2d(16, 24, 2, 2), nn.Linear(24, 5)

    def forward(self, x, skip=()):
        x = self.stem(x)
        for name, stage in enumerate(self.stages):
            x = self.down(x) if name else x
            for number, block in enumerate(stage.blocks):
                if f"stages.{name}.blocks.{number}" not in skip:
                    x = block(x)
        return self.head(x.mean((2, 3)))


@case(IMAGE, down=[1, 2], up=[1])
class UNet(nn.Module):
    """Concatenates what came before; the blocks on both sides are residual."""

    def __init__(self):
        super().__init__()
        self.stem = norm_conv(3, 16)
        self.down = nn.ModuleList(PreActivation(16, 16) for _ in range(3))
        self.pool, self.middle = nn.MaxPool2d(2), PreActivation(16, 16)
        self.join = nn.Conv2d(32, 16, 1)
        self.up = nn.ModuleList(PreActivation(16, 16) for _ in range(2))
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x, skip=()):
        x = self.stem(x)
        for number, block in enumerate(self.down):
            x = x if f"down.{number}" in skip else block(x)
        inner = F.interpolate(self.middle(self.pool(x)), scale_factor=2)
        x = self.join(torch.cat([x, inner], 1))
        for number, block in enumerate(self.up):
            x = x if f"up.{number}" in skip else block(x)
        return self.head(x)


# -- tokens ---------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x, bias=None):
        q, k, v = (
            f(x).unflatten(-1, (self.heads, self.size)).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(y.transpose(1, 2).flatten(2))


def mlp(width=16):
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class PreNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(16), Attention()
        self.norm2, self.mlp = nn.LayerNorm(16), mlp()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class Net(nn.Module):
    """Embeds, runs blocks, reads out; a case says how a block is made and called."""

    count = 3

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.blocks = nn.ModuleList(self.make(number) for number in range(self.count))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def make(self, number):
        return PreNorm()

    def step(self, block, x):
        return block(x)

    def forward(self, x, skip=()):
        x = self.embed(x)
        for number, block in enumerate(self.blocks):
            if f"blocks.{number}" not in skip:
                x = self.step(block, x)
        return self.head(self.norm(x))


@case(blocks=[1, 2])
class PreNormNet(Net):
    pass


class PostNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.norm1, self.mlp, self.norm2 = (
            *(Attention(), nn.LayerNorm(16)),
            *(mlp(), nn.LayerNorm(16)),
        )

    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


@case(blocks=[1, 2])
class PostNormNet(Net):
    def make(self, number):
        return PostNorm()


class HandRms(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x):
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class PostRms(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.mlp, self.norm = mlp(), norm()

    def forward(self, x):
        return self.norm(torch.add(x, self.mlp(x)))


@case(blocks=[1, 2])
class PostRmsNet(Net):
    def make(self, number):
        return PostRms(lambda: nn.RMSNorm(16))


@case(blocks=[1, 2])
class PostHandRmsNet(Net):
    def make(self, number):
        return PostRms(HandRms)


class LayerScaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp, self.gamma = mlp(), nn.Parameter(1e-5 * torch.ones(16))

    def forward(self, x):
        return x + stochastic_depth(self.gamma * self.mlp(x), self.training)


@case(blocks=[1, 2])
class LayerScaleNet(Net):
    def make(self, number):
        return LayerScaled()


class WriteToInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = mlp()

    def forward(self, x):
        x += self.mlp(x.clone())  # the clone is what the backward run needs
        return x


@case(blocks=[1, 2])
class WriteToInputNet(Net):
    def make(self, number):
        return WriteToInput()


class WriteToBranch(WriteToInput):
    def forward(self, x):
        y = self.mlp(x)
        y += x
        return y


@case(blocks=[1, 2])
class WriteToBranchNet(Net):
    def make(self, number):
        return WriteToBranch()


class CastSum(nn.Module):
    """Adds with torch.add after casts, as code for mixed precision does."""

    def __init__(self):
        super().__init__()
        self.norm, self.mlp, self.drop = nn.LayerNorm(16), mlp(), nn.Dropout(0.1)

    def forward(self, hidden):
        residual = hidden.to(torch.float64)
        hidden = self.drop(self.mlp(self.norm(hidden)))
        return torch.add(residual, hidden.to(residual.dtype)).to(hidden.dtype)


@case(blocks=[1, 2])
class CastSumNet(Net):
    def make(self, number):
        return CastSum()


class Returning(nn.Module):
    """A block that returns its tensor in something."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how = PreNorm(), how

    def forward(self, x):
        return self.how(self.inner(x))


@case(blocks=[1, 2])
class TupleNet(Net):
    def make(self, number):
        return Returning(as_tuple)

    def step(self, block, x):
        return block(x)[0]


def as_tuple(x):
    return (x, None)


@case(blocks=[1, 2])
class ListNet(TupleNet):
    def make(self, number):
        return Returning(as_list)


def as_list(x):
    return [x, (x, None)]


@case(blocks=[1, 2])
class DictNet(Net):
    def make(self, number):
        return Returning(as_dict)

    def step(self, block, x):
        return block(x)["hidden states"]


def as_dict(x):
    return {"hidden states": x, "nothing": None}


class Output(collections.OrderedDict):
    """As the model outputs of transformers: a dict with attributes, indexed by number too."""

    def __getattr__(self, name):
        return self[name]

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else list(self.values())[key]


@case(blocks=[1, 2])
class OutputNet(Net):
    def make(self, number):
        return Returning(as_output)

    def step(self, block, x):
        out = block(x)
        assert out[0] is out["hidden"]
        return out.hidden


def as_output(x):
    return Output(hidden=x, attention=None)


class Pair(NamedTuple):
    hidden: Any
    other: Any


@case(blocks=[1, 2])
class NamedTupleNet(Net):
    def make(self, number):
        return Returning(as_pair)

    def step(self, block, x):
        out = block(x)
        hidden, _ = out
        assert hidden is out[0]
        return out.hidden


def as_pair(x):
    return Pair(x, None)


@dataclasses.dataclass
class Record:
    hidden: Any
    other: Any = None


@case(blocks=[1, 2])
class DataclassNet(Net):
    def make(self, number):
        return Returning(Record)

    def step(self, block, x):
        return block(x).hidden


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = PreNorm()

    def forward(self, *, hidden, mask=None, scale):
        return self.inner(hidden) if mask is None else self.inner(hidden * mask)


@case(blocks=[1, 2])
class KeywordNet(Net):
    def make(self, number):
        return Keyword()

    def step(self, block, x):
        return block(scale=1.0, hidden=x)


class Biased(nn.Module):
    """Takes the hidden state and a position bias and hands both on, as T5 does."""

    def __init__(self, first):
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(16), Attention(), mlp()
        self.bias = nn.Embedding(11, 4) if first else None

    def forward(self, x, bias=None):
        if bias is None:
            at = torch.arange(x.shape[1], device=x.device)
            bias = self.bias(at[None] - at[:, None] + 5).permute(2, 0, 1)[None]
        x = x + self.attn(self.norm(x), bias)
        return x + self.mlp(x), bias


@case(blocks=[1, 2, 3])
class PositionBiasNet(Net):
    count = 4

    def make(self, number):
        return Biased(number == 0)

    def forward(self, x, skip=()):
        x, bias = self.embed(x), None
        for number, block in enumerate(self.blocks):
            if f"blocks.{number}" not in skip:
                x, bias = block(x, bias)
        return self.head(self.norm(x))


@case(blocks=[1, 2])
class ParentSumNet(Net):
    """The code around the branches adds them."""

    def make(self, number):
        return nn.Sequential(nn.LayerNorm(16), mlp())

    def step(self, block, x):
        return x + 0.5 * block(x)


@case(blocks=[1, 2])
class ParentInPlaceNet(ParentSumNet):
    def step(self, block, x):
        y = block(x)
        y += x
        return y


class Group(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(PreNorm(), PreNorm())

    def forward(self, x):
        return self.layers(x)


@case(groups_0_layers=[1], groups_1_layers=[1])
class GroupedNet(nn.Module):
    """Groups of blocks are residual too; the blocks in them are the axes."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.groups = nn.ModuleList([Group(), Group()])
        self.head = nn.Linear(16, 5)

    def forward(self, x, skip=()):
        x = self.embed(x)
        for name, group in enumerate(self.groups):
            for number, block in enumerate(group.layers):
                if f"groups.{name}.layers.{number}" not in skip:
                    x = block(x)
        return self.head(x)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = PreNorm()

    def forward(self, x):
        if self.training:
            return checkpoint(self.inner, x, use_reentrant=False)
        return self.inner(x)


@case(blocks=[1, 2])
class CheckpointNet(Net):
    def make(self, number):
        return Checkpointed()


@case(blocks=[1, 2])
class LayerDropNet(Net):
    """Drops layers at random in training, and adds up a loss there."""

    def forward(self, x, skip=()):
        x = self.embed(x)
        loss = 0.0
        for number, block in enumerate(self.blocks):
            if f"blocks.{number}" in skip:
                continue
            if self.training:
                if torch.rand(()) < 0.2:
                    continue
                loss = loss + x.square().mean()
            x = block(x)
        out = self.head(self.norm(x))
        return out + 1e-3 * loss if self.training else out


class Remembering(nn.Module):
    """Keeps what it saw last, as blocks do for pictures of their attention."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = PreNorm(), None

    def forward(self, x):
        self.seen = x.detach()
        return self.inner(x)


@case(blocks=[1, 2])
class RememberingNet(Net):
    def make(self, number):
        return Remembering()


class ListedNet(nn.Module):
    """Blocks under names of their own, called from a Python list."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(16, 16), nn.Linear(16, 5)
        for number in range(3):
            self.add_module(f"block{number}", PreNorm())

    def forward(self, x, skip=()):
        x = self.embed(x)
        for name in ("block0", "block1", "block2"):
            if name not in skip:
                x = getattr(self, name)(x)
        return self.head(x)


CASES["ListedNet"] = Case(ListedNet, TOKENS, {"block0.depth": ["block1", "block2"]})


# -- nets without depth axes ----------------------------------------------------------------------

NONE: dict[str, Callable[[], nn.Module]] = {}


def none(net: type) -> type:
    """Enter a net that has residual sums, but no block that can be passed by."""
    NONE[net.__name__] = net
    return net


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = mlp()

    def forward(self, x):
        return 0.5 * x + self.mlp(x)


@none
class ScaledNet(Net):
    """The input itself is halved."""

    def make(self, number):
        return Scaled()


class GeluAfter(Scaled):
    def forward(self, x):
        return F.gelu(x + self.mlp(x))


@none
class GeluAfterNet(Net):
    """Without the branch, the activation would remain."""

    def make(self, number):
        return GeluAfter()


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = mlp(), mlp()

    def forward(self, x):
        return self.left(x) + self.right(x)


@none
class ParallelNet(Net):
    def make(self, number):
        return Parallel()


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp, self.gate = mlp(), nn.Linear(16, 16)

    def forward(self, x):
        gate = torch.sigmoid(self.gate(x))
        return gate * x + (1 - gate) * self.mlp(x)


@none
class GatedNet(Net):
    def make(self, number):
        return Gated()


@none
class SharedBlockNet(Net):
    """One block, called three times, as in ALBERT."""

    count = 1

    def step(self, block, x):
        return block(block(block(x)))


@none
class TiedNet(Net):
    """The last block's weight is also the embedding's."""

    def __init__(self):
        super().__init__()
        self.blocks[2].attn.out.weight = self.blocks[0].attn.out.weight
        self.blocks[1].mlp[0].weight = self.blocks[2].mlp[0].weight


class LookingInNet(Net):
    """Reads a weight of its second block from outside."""

    def forward(self, x, skip=()):
        return super().forward(x, skip) * self.blocks[1].norm1.weight[0]


PARTLY = {"LookingInNet": LookingInNet}


class SeenNet(Net):
    """Reads what a block noted of the run."""

    def make(self, number):
        return Remembering()

    def forward(self, x, skip=()):
        out = super().forward(x, skip)
        return out + self.blocks[1].seen.mean(-1, keepdim=True)


PARTLY["SeenNet"] = SeenNet


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = PreNorm()

    def forward(self, x):
        y = self.inner(x)
        return (y, y.square().mean()) if self.training else y


@none
class AuxiliaryNet(Net):
    """Blocks return a loss too in training: two rows of a batch would be taken for the two."""

    def make(self, number):
        return Auxiliary()

    def step(self, block, x):
        if self.training:
            x, _ = block(x)
            return x
        return block(x)


class Weighted(nn.Module):
    """Returns something that is used and does not come from its input."""

    def __init__(self):
        super().__init__()
        self.inner, self.score = PreNorm(), nn.Linear(16, 1)

    def forward(self, x):
        return self.inner(x), self.score(x)


@none
class WeightedNet(Net):
    def make(self, number):
        return Weighted()

    def step(self, block, x):
        x, score = block(x)
        return x * score


@none
class OverwritingNet(Net):
    """Writes to what a block returned, and reads again what it was given."""

    def step(self, block, x):
        y = block(x)
        y.mul_(2)
        return x + y


class NormFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(16), mlp()

    def forward(self, x):
        x = self.norm(x)
        return x + self.mlp(x)


@none
class NormFirstNet(Net):
    """The norm is on the way of the input itself, before the sum."""

    def make(self, number):
        return NormFirst()


@none
class OneBlockNet(Net):
    count = 1
