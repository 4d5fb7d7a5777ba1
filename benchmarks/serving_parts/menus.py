"""The menu that is served: trained here when it is missing, and scored on pictures of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nestling
from nestling.data import Dataset
from nestling.data.dataset import Part
from nestling.engine.figures import known_batches
from nestling.profile import beside
from nestling.runtime import LoadedModel

BATCHES = (1, 2, 4, 8, 16)
SECONDS = 1.0  # longest time to measure one subnet at one batch
TEST = 2000  # test pictures that subnets are scored with and that requests send


@dataclass(frozen=True)
class Recipe:
    """How the menu is trained.

    Attributes:
        net: a builder of `nestling.models`.
        data: a data set of `nestling.data`.
        step: between two counts of an axis; smaller than usual, for subnets of very few MACs.
        pictures: to train on.
        held_out: to measure the menu's accuracies with.
        epochs: passes over the pictures.
        batch: pictures a step.
        fractions: shares of the full net's MACs that are on the menu.
        seed: of all random choices.
    """

    net: str = "resnet20"
    data: str = "fashion-mnist"
    step: int = 2
    pictures: int = 4000
    held_out: int = 2000
    epochs: int = 4
    batch: int = 32
    fractions: tuple[float, ...] = (1.0, 0.5, 0.2, 0.08, 0.03, 0.01)
    seed: int = 0


@dataclass(frozen=True)
class Served:
    """What is served, and what it is sent.

    Attributes:
        model: loaded, packed, with latencies measured now on this machine.
        examples: test pictures.
        labels: of these.
        accuracy: name of a subnet -> share of the test pictures that it gets right.
        facts: how the menu was made.
    """

    model: LoadedModel
    examples: list[Tensor]
    labels: Tensor
    accuracy: dict[str, float]
    facts: dict[str, Any]


def train(of: Recipe, path: Path, data_dir: str | None = None) -> None:
    """Train a menu and write it to a file; a training that was stopped goes on."""
    data = nestling.data.load(of.data, data_dir)
    learn, held_out = data.split(of.held_out, seed=of.seed)
    part = Part(learn.images[: of.pictures], learn.labels[: of.pictures])
    torch.manual_seed(of.seed)
    builder = getattr(nestling.models, of.net)
    model = builder(num_classes=len(data.classes), in_channels=data.shape[0])
    net = nestling.Supernet(model, torch.randn(1, *data.shape), step=of.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    menu = nestling.fit(
        net,
        data.train_batches(of.batch, of.seed, part=part),
        data.test_batches(500, held_out),
        epochs=of.epochs,
        seed=of.seed,
        fractions=of.fractions,
        precision="float32",
        checkpoint=path.with_suffix(".checkpoint"),
        resume=True,
        progress=False,
    )
    facts = {"recipe": {**asdict(of), "fractions": list(of.fractions)}}
    replace(menu, facts={**menu.facts, **facts}).save(path)


def serve(path: Path, of: Recipe, data_dir: str | None = None, *, anew: bool = False) -> Served:
    """Load a menu, measure it and score it.

    What was measured is kept beside the file, so that all trials have one profile and with it one
    objective.

    Args:
        path: of the file.
        of: the recipe; of a file of another origin, its data set alone counts.
        data_dir: folder of the data sets.
        anew: measure again what is kept.
    """
    model = nestling.load(path, packed=True)
    for batch in BATCHES:
        if anew or batch not in known_batches(model):
            model = model.measured(batch, seconds=SECONDS)
            model.menu.profile.save(beside(path))
    data = nestling.data.load(of.data, data_dir)
    pictures, labels = _test(data)
    accuracy = {}
    for entry in model.menu:
        scores = torch.cat([model(rows, subnet=entry.name) for rows in pictures.split(500)])
        accuracy[entry.name] = float((scores.argmax(1) == labels).float().mean())
    facts = {"file": path.name, "data": of.data, **dict(model.menu.facts)}
    return Served(model, list(pictures.unbind()), labels, accuracy, facts)


def _test(data: Dataset) -> tuple[Tensor, Tensor]:
    rows = list(data.test_batches(500))
    pictures = torch.cat([inputs for inputs, _ in rows])[:TEST]
    return pictures.contiguous(), torch.cat([labels for _, labels in rows])[:TEST]
