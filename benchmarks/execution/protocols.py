"""Protocols: which nets are trained on what, for how long; and the jobs that this makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

import nestling
from nestling.data import Dataset, Part
from nestling.data.dataset import split_by_class
from nestling.errors import ModelError, did_you_mean
from nestling.spec import Spec
from nestling.units import loose_axes

EXECUTED = ("executed", "random")  # the ways that execute a part
WAYS = ("dense", "executed", "random", "alone", "slimming")
# In the place of a way: the speed and the memory of a net's steps, whatever the epochs.
COST = "cost"
LEAST = 32  # pixels a side that all nets here take; smaller pictures are padded with black
SPLIT = 0  # seed of the held-out part: the same for every net, way and seed


@dataclass(frozen=True)
class Net:
    """A net and what is executed of it.

    Attributes:
        builder: its name in `nestling.models`.
        keep: share of the units of every axis that is executed.
        arguments: of the builder.
        step: what the counts of its axes go in; None for hardware-friendly steps.
        slimming: strength of Network Slimming's penalty, the paper's for this kind of net.
        measured: arguments with which speed and memory are measured, where they differ.
    """

    builder: str
    keep: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    slimming: float = 1e-4
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """What all ways of training share.

    Attributes:
        name: "short", "full" or "tiny".
        data: name of the data set.
        nets: by the name under which they are kept.
        epochs: of every training, tuning included.
        lr: peak of the warmed-up cosine.
        decay: weight decay of what decays.
        batch: pictures in a step.
        seeds: of weights, order of pictures and random draws.
        pictures: training pictures that are used; None for all that are not held out.
        held_out: pictures of the training set that are scored; 0 scores the test set.
        device: where it runs.
        precision: as `nestling.fit` has it.
        options: of channel execution, besides `keep`.
        course: further ones of whole trainings, which say how they begin, not what a step costs.
        steps: that are timed of each way.
    """

    name: str
    data: str
    nets: Mapping[str, Net]
    epochs: int
    lr: float = 0.1
    decay: float = 5e-4
    batch: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    pictures: int | None = None
    held_out: int = 0
    device: str = "cpu"
    precision: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    course: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 20

    def settings(self, job: Job) -> dict[str, Any]:
        """Return what results of a job's kind must share to be compared, as JSON has it."""
        of = self.nets[job.net]
        course = self.course if job.way in EXECUTED else {}
        found = {
            "data": self.data,
            "keep": of.keep,
            "arguments": dict(of.arguments),
            "step": of.step,
            "lr": self.lr,
            "decay": self.decay,
            "batch": self.batch,
            "pictures": self.pictures,
            "held_out": self.held_out,
            "options": {**self.options, **course},
        }
        return found if job.way == COST else {**found, "epochs": self.epochs}


THIRD = 0.34  # about a ninth of the parameters is left
FULL = {
    "vgg16-half": Net("vgg16_bn", 0.5),
    "vgg19-third": Net("vgg19_bn", THIRD),
    "resnet20-half": Net("resnet20", 0.5, slimming=1e-5, step=2),
    "resnet56-half": Net("resnet56", 0.5, slimming=1e-5, step=2),
    "densenet40-half": Net("densenet40", 0.5, slimming=1e-5, step=1),
}
SHORT = {
    "vgg16-half": Net("vgg16_bn", 0.5, {"width": 16}, step=2, measured={"width": 64}),
    "vgg19-third": Net("vgg19_bn", THIRD, {"width": 16}, step=1, measured={"width": 64}),
    "resnet20-half": Net("resnet20", 0.5, step=2, slimming=1e-5),
    "resnet56-half": Net("resnet56", 0.5, {"width": 8}, step=2, slimming=1e-5,
                         measured={"width": 16}),
    "densenet40-half": Net("densenet40", 0.5, {"growth": 6}, step=1, slimming=1e-5,
                           measured={"growth": 12}),
}  # fmt: skip
TINY = {"small": Net("resnet20", 0.5, {"width": 4}, step=1)}
PROTOCOLS = {
    each.name: each
    for each in (
        Protocol("short", "fashion-mnist", SHORT, 32, pictures=8_000, held_out=4_000,
                 course={"start": 1.0}),
        Protocol("full", "cifar10", FULL, 160, device="cuda"),
        Protocol("tiny", "digits", TINY, 2, batch=50, seeds=(0,), pictures=200, held_out=100,
                 steps=4),
    )
}  # fmt: skip


def protocol(name: str, **changes: Any) -> Protocol:
    """Return a protocol by name, with changes; those that are None change nothing.

    Raises:
        ModelError: there is none of that name.
    """
    if name not in PROTOCOLS:
        raise ModelError(
            f"unknown protocol {name!r}{did_you_mean(name, PROTOCOLS)}; there are "
            f"{', '.join(PROTOCOLS)}"
        )
    return replace(PROTOCOLS[name], **{k: v for k, v in changes.items() if v is not None})


@dataclass(frozen=True)
class Job:
    """One training, or the measuring of one net's speed and memory.

    Attributes:
        net: name of the net in the protocol.
        way: one of `WAYS`, or `COST`.
        seed: of the training; 0 for `COST`.
    """

    net: str
    way: str
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of its result."""
        return f"{self.net}-{self.way}" + ("" if self.way == COST else f"-{self.seed}")


def jobs(of: Protocol) -> list[Job]:
    """Return all jobs of a protocol: measuring first, then seed by seed."""
    cost = [Job(net, COST) for net in of.nets]
    return [*cost, *(Job(net, way, seed) for seed in of.seeds for net in of.nets for way in WAYS)]


class Material:
    """The pictures of a protocol, read once.

    Args:
        of: the protocol.
        folder: of the data sets.
    """

    def __init__(self, of: Protocol, folder: str | None) -> None:
        self.of = of
        self.data: Dataset = nestling.data.load(of.data, folder)
        whole = self.data.train
        if of.held_out:
            order = torch.randperm(
                len(whole.labels), generator=torch.Generator().manual_seed(SPLIT)
            )
            whole, scored = split_by_class(whole, of.held_out, order)
        else:
            scored = self.data.test
        if of.pictures is not None:
            whole = Part(whole.images[: of.pictures], whole.labels[: of.pictures])
        self.part, self.scored = (_padded(part) for part in (whole, scored))
        self.shape = tuple(self.part.images.shape[1:])
        self.data = self.data.to(of.device)

    def train(self, seed: int) -> Any:
        """Return the training batches, varied and in an order of their own for each seed."""
        return self.data.train_batches(self.of.batch, seed, part=self.part, drop_last=True)

    def test(self) -> Any:
        """Return the batches that are scored."""
        return self.data.test_batches(500, part=self.scored)


def _padded(part: Part) -> Part:
    lack = max(0, LEAST - part.images.shape[-1])
    sides = (lack // 2, lack - lack // 2) * 2
    return Part(F.pad(part.images, sides), part.labels)


def supernet(of: Protocol, net: Net, shape: Sequence[int], classes: int) -> nestling.Supernet:
    """Return a freshly drawn net as a supernet, on the protocol's device."""
    build = getattr(nestling.models, net.builder)
    model = build(num_classes=classes, in_channels=shape[0], **net.arguments)
    made = nestling.Supernet(model, torch.randn(1, *shape), step=net.step)
    return made.to(of.device)


def compact(net: nestling.Supernet, keep: float) -> Spec:
    """Return the spec that keeps a share of the units of every axis, and all blocks."""
    counts = {axis.name: axis.nearest(keep * axis.size) for axis in loose_axes(net.space)}
    return Spec(net.space, counts)


def optimizer(of: Protocol) -> Any:
    """Return the function that makes the optimiser of all trainings."""
    return partial(torch.optim.SGD, lr=of.lr, momentum=0.9, nesterov=True, weight_decay=of.decay)
