"""Protocols: what all methods of a comparison share. Net, data, schedule, machine."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import nestling
from nestling.data import Dataset, Part
from nestling.data.dataset import split_by_class
from nestling.errors import FileError, ModelError, did_you_mean
from nestling.optimizers import default_optimizer
from nestling.training import Run

BUDGETS = (0.75, 0.5, 0.25, 0.15)  # shares of the full net's cost at which methods are compared
NINE = (1.0, 0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.25, 0.15)  # as many subnets as paper A's ResNet-20
SMALL = 64  # pixels a side up to which nets start with the stem for small pictures
EXAMPLES = 32  # pictures of noise from which clips of inputs begin; norms make them all alike
SPLIT = 0  # seed of the split: the same pictures for every method and every seed


@dataclass(frozen=True)
class Net:
    """A net of the comparison.

    Attributes:
        builder: its name in `nestling.models`.
        small: arguments for pictures of at most 64 pixels a side.
        step: what the counts of its axes go in; None for hardware-friendly steps.
        bits: which layers may be in few bits, and in how many; None for none.
    """

    builder: str
    small: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    bits: nestling.Bits | None = None


def _in_blocks(*counts: int) -> nestling.Bits:
    """Return bits of the 3x3 convolutions inside blocks, and of their inputs.

    The first and the last layer and the projections of shortcuts stay whole, as in Any-Precision.
    """
    ends = {"inputs": counts, "first": counts, "last": counts}
    return nestling.Bits(counts, layers="layer*.conv[12]", **ends)


NETS = {
    "resnet20": Net("resnet20", step=2),
    "resnet18": Net("resnet18", {"stem": "cifar"}),
    "vgg11-bn": Net("vgg11_bn"),
    "mobilenet-v1": Net("mobilenet_v1", {"stem_stride": 1}),
    "digits-resnet": Net("digits_resnet", step=2),
    "resnet56": Net("resnet56", step=2),
    "resnext29": Net("resnext29", {"width": 16, "path_width": 4}),
    "mlp": Net("mlp", {"hidden": [256, 256]}),
    "resnet20-bits": Net("resnet20", bits=_in_blocks(2, 3, 4, 8)),
    "preact-resnet20-bits": Net("preact_resnet20", {"width": 80}, bits=_in_blocks(1, 2, 3, 4, 8)),
}


@dataclass(frozen=True)
class Protocol:
    """What all methods share.

    Attributes:
        name: "short", "full" or "pretrained".
        data: name of the data set.
        net: one of `NETS`.
        epochs: of a training; equal for every method but those at equal compute.
        lr: peak of the warmed-up cosine.
        batch: pictures in a step.
        seeds: of weights, order of pictures and random draws; the split is the same for all.
        pictures: training pictures that are used; None for all that are not held out.
        held_out: training pictures that are kept aside, on which subnets are chosen.
        all_pictures: whether weights that are scored train on the held-out pictures too, once the
            subnets are chosen; they are chosen by cost then.
        shares: of the full net's MACs, for methods that train a list of subnets.
        device: where trainings run.
        precision: as `nestling.fit` has it.
        threads: of torch.
        compiled: whether training steps are compiled.
        latency_batch: pictures in a call whose latency is measured.
        arguments: further ones of the net's builder.
        weights: file of trained weights that every method begins with, and every net alone; its
            name is kept, so a folder of one's own is no difference.
        digest: SHA-256 of that file.
        normal: mean and deviation of the channels that these weights know; those of the data set by
            default.
    """

    name: str
    data: str
    net: str
    epochs: int
    lr: float
    batch: int
    seeds: tuple[int, ...]
    pictures: int | None
    held_out: int
    all_pictures: bool = False
    shares: tuple[float, ...] = (1.0, *BUDGETS)
    device: str = "cpu"
    precision: str = "auto"
    threads: int = 1
    compiled: bool = False
    latency_batch: int = 1
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    digest: str | None = None
    normal: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def folder(self) -> str:
        """Name of the folder that its results are kept in."""
        return f"{self.name}-{self.data}-{self.net}"

    def settings(self) -> dict[str, Any]:
        """Return what results must share to be compared, as JSON has it."""
        found = asdict(self)
        del found["seeds"]
        for name in ("weights", "digest", "normal"):  # not known to results that are older
            if found[name] is None:
                del found[name]
        if self.weights is not None:
            found["weights"] = Path(self.weights).name
        return {**found, "shares": list(self.shares), "arguments": dict(self.arguments)}

    @classmethod
    def of(cls, settings: Mapping[str, Any], seeds: Iterable[int] = ()) -> Protocol:
        """Return the protocol that gave these settings, for nets whose weights do not matter."""
        known = {each.name for each in fields(cls)} - {"weights", "digest"}
        given = {name: value for name, value in settings.items() if name in known}
        return cls(**{**given, "shares": tuple(given["shares"]), "seeds": tuple(seeds)})


SHORT = Protocol(
    *("short", "cifar10", "resnet20"),
    epochs=8,
    lr=0.1,
    batch=128,
    seeds=(0, 1),
    pictures=10_000,
    held_out=5_000,
)
FULL = Protocol(
    *("full", "cifar10", "resnet20"),
    epochs=200,
    lr=0.1,
    batch=128,
    seeds=(0, 1, 2),
    pictures=None,
    held_out=5_000,
    all_pictures=True,
    shares=NINE,
    device="cuda",
    compiled=True,
    latency_batch=128,
)
PRETRAINED = replace(  # He's net with the weights of a public repository; see `--weights`
    SHORT,
    name="pretrained",
    epochs=5,
    lr=0.02,
    arguments={"shortcut": "zero_pad"},
    weights="cifar10_resnet20.safetensors",
    digest="02926273efb1deadb6dc654c7087baea932ef2026d9f854680d6858146d85838",
    normal=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
)
PROTOCOLS = {each.name: each for each in (SHORT, FULL, PRETRAINED)}


def with_weights(of: Protocol, folder: Path | None) -> Protocol:
    """Return a protocol whose weights, if it begins with any, are found and checked.

    Args:
        of: the protocol.
        folder: of the weights; the current one by default.

    Raises:
        ModelError: they are of another net.
        FileError: there is no such file, or it is another one.
    """
    if of.weights is None:
        return of
    found = replace(of, weights=str((folder or Path()) / of.weights))
    check_weights(found)
    return found


def check_weights(of: Protocol) -> None:
    """Check that a protocol's weights are there, and are those that it names.

    Args:
        of: the protocol, with the path of its weights.

    Raises:
        ModelError: they are of another net.
        FileError: there is no such file, or it is another one.
    """
    if of.weights is None:
        return
    path = Path(of.weights)
    if NETS[of.net].builder != NETS[PRETRAINED.net].builder:
        raise ModelError(
            f"the weights of --protocol {of.name} are those of {PRETRAINED.net}, not of {of.net}; "
            "give another protocol, or another net"
        )
    if not path.is_file():
        raise FileError(f"there is no {path}; give the folder of {path.name} with --weights")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if of.digest is not None and found != of.digest:
        raise FileError(
            f"{path} is another file than the protocol's: its SHA-256 is {found[:12]}..., not "
            f"{of.digest[:12]}...; results of other weights are kept apart by another protocol"
        )


def protocol(name: str, net: str = "resnet20", **changes: Any) -> Protocol:
    """Return a protocol by name for a net, with changes; those that are None change nothing.

    Raises:
        ModelError: there is no such protocol or net.
    """
    for kind, known, wanted in (("protocol", PROTOCOLS, name), ("net", NETS, net)):
        if wanted not in known:
            near = did_you_mean(wanted, list(known))
            raise ModelError(f"unknown {kind} {wanted!r}{near}; choose one of {', '.join(known)}")
    found = replace(PROTOCOLS[name], net=net)
    if net != "resnet20":
        found = replace(found, shares=SHORT.shares)
    return replace(found, **{key: value for key, value in changes.items() if value is not None})


# -- the data ------------------------------------------------------------------------------------


class Material(NamedTuple):
    """The pictures of a protocol.

    Attributes:
        data: the data set, on the protocol's device.
        learn: what is trained on while subnets are chosen.
        held_out: what they are chosen on.
        final: what the weights that are scored are trained on.
    """

    data: Dataset
    learn: Part
    held_out: Part
    final: Part


def material(of: Protocol, data_dir: str | None = None) -> Material:
    """Return the pictures of a protocol; which ones does not depend on the seed of a case."""
    data = nestling.data.load(of.data, data_dir).to(of.device)
    if of.normal is not None:
        data = replace(data, mean=of.normal[0], std=of.normal[1])
    learn, held_out = data.split(of.held_out, seed=SPLIT)
    if of.pictures is not None and of.pictures < len(learn.labels):
        order = torch.randperm(len(learn.labels), generator=torch.Generator().manual_seed(SPLIT))
        _, learn = split_by_class(learn, of.pictures, order)
    final = data.train if of.all_pictures else learn
    return Material(data, learn, data.in_memory(held_out), final)


def batches(of: Protocol, given: Material, part: Part, seed: int) -> Any:
    """Return shuffled and varied training batches of one size, for steps that are compiled."""
    return given.data.train_batches(
        of.batch, seed, part=part, drop_last=True, memory_format=torch.channels_last
    )


def scored(given: Material, part: Part | None) -> Any:
    """Return the batches to score on: those of a part, or the test pictures."""
    return given.data.test_batches(500, part, memory_format=torch.channels_last)


# -- the net and its training --------------------------------------------------------------------


def supernet(
    of: Protocol,
    shape: Sequence[int],
    classes: int,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
) -> nestling.Supernet:
    """Return a supernet as trainings begin with it; equal seeds have equal weights.

    Args:
        of: the protocol.
        shape: channels, height and width of a picture.
        classes: how many there are.
        seed: of the weights.
        arguments: of the net's builder, beside the protocol's.
    """
    net = NETS[of.net]
    small = net.small if max(shape[1:]) <= SMALL else {}
    build = getattr(nestling.models, net.builder)
    sizes = {"in_channels": shape[0], "in_features": math.prod(shape)}
    known = inspect.signature(build).parameters
    sizes = {name: size for name, size in sizes.items() if name in known}
    torch.manual_seed(seed)
    model = build(**{"num_classes": classes, **sizes, **small, **of.arguments, **(arguments or {})})
    if of.weights is not None:
        nestling.models.load_weights(model, Path(of.weights))
    pictures = torch.randn(1 if net.bits is None else EXAMPLES, *shape)
    made = nestling.Supernet(model, pictures, step=net.step, bits=net.bits).to(of.device)
    if of.weights is not None:  # for all methods alike: the first units are the largest
        made.reorder(nestling.rank(made, "l2"))
    return made


def optimizer(of: Protocol) -> Any:
    """Return what makes the optimiser of every training: the default one, with the peak lr."""

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        made = default_optimizer(nn.ParameterList(parameters))
        made.defaults["lr"] = of.lr  # of groups that are added later
        for group in made.param_groups:
            group["lr"] = of.lr
        return made

    return make


def compiling(of: Protocol) -> dict[str, bool]:
    """Return the option of `Run` that compiles steps, where it is wanted and exists.

    Raises:
        ModelError: it is wanted and does not exist.
    """
    if not of.compiled:
        return {}
    if "compile" not in inspect.signature(Run).parameters:
        raise ModelError("this version of Nestling compiles no training steps; give --no-compile")
    return {"compile": True}
