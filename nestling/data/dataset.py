"""A data set in memory, its held-out part, and its batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from nestling.data.batches import (
    Augmentation,
    Batches,
    check_normalisation,
    check_pictures,
    seeded_generator,
)
from nestling.errors import DataError


class Part(NamedTuple):
    """Some pictures of a data set and their labels.

    Args:
        images: uint8, (N, C, H, W).
        labels: int64, (N,).

    Example:
        >>> from nestling.data import load
        >>> load("digits").test.labels.shape
        torch.Size([360])
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures, labels and what is usual for training on them.

    Args:
        name: as in `nestling.data.names()`.
        train_images: uint8, (N, C, H, W).
        train_labels: int64, (N,), each below `len(classes)`.
        test_images: uint8, (M, C, H, W).
        test_labels: int64, (M,).
        mean: per channel, of pixels in [0, 1]; to normalise otherwise, use `dataclasses.replace`.
        std: per channel, of pixels in [0, 1].
        classes: the name of each label.
        augment: the crops and flips that are the field's usual; None if there are none.

    Raises:
        DataError: tensors of another type or shape, or a label without a class.

    Example:
        >>> from nestling.data import load
        >>> digits = load("digits")
        >>> digits.augment
        Augmentation(pad=1, flip=False)
        >>> images, labels = next(iter(digits.test_batches(100)))
        >>> images.shape, images.dtype
        (torch.Size([100, 1, 8, 8]), torch.float32)
    """

    name: str
    train_images: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        for images, labels in (self.train, self.test):
            check_pictures(images, labels)
            low, high = (int(value) for value in torch.aminmax(labels))
            if low < 0 or high >= len(self.classes):
                raise DataError(
                    f"labels of {self.name!r} must be 0 to {len(self.classes) - 1}, "
                    f"one for each class, not {low} to {high}"
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DataError(
                f"training and test pictures of {self.name!r} must have one shape, "
                f"not {tuple(self.train_images.shape[1:])} and {tuple(self.test_images.shape[1:])}"
            )
        check_normalisation(self.mean, self.std, channels=self.train_images.shape[1])

    @property
    def train(self) -> Part:
        """All training pictures."""
        return Part(self.train_images, self.train_labels)

    @property
    def test(self) -> Part:
        """All test pictures."""
        return Part(self.test_images, self.test_labels)

    def split(self, held_out: int, seed: int = 0) -> tuple[Part, Part]:
        """Split the training pictures in two, for choosing without a look at the test pictures.

        Each class keeps its share of both parts, to within one picture. Both parts are copies, in
        the order of the data set.

        Args:
            held_out: pictures in the second part.
            seed: which ones.

        Returns:
            The part to train on and the part that is held out.

        Raises:
            DataError: a part would be empty.

        Example:
            >>> from nestling.data import load
            >>> digits = load("digits")
            >>> train, held_out = digits.split(200)
            >>> len(train.labels), len(held_out.labels)
            (1237, 200)
            >>> len(digits.train_batches(64, part=train)), len(digits.test_batches(64, held_out))
            (20, 4)
        """
        generator = seeded_generator(seed, "split")
        order = torch.randperm(len(self.train_labels), generator=generator)
        return split_by_class(self.train, held_out, order)

    def train_batches(
        self,
        batch_size: int,
        seed: int = 0,
        *,
        augment: bool = True,
        part: Part | None = None,
        drop_last: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Batches:
        """Return shuffled batches of the training pictures, or of a part of them.

        Args:
            batch_size: pictures a batch.
            seed: of order, crops and flips; see `Batches`.
            augment: whether to vary the pictures in the data set's usual way.
            part: what `split` returned first; all training pictures if None.
            drop_last: whether to leave out a last batch that is not full.
            memory_format: layout of the batches.

        Raises:
            DataError: the batch size makes no batch.
        """
        images, labels = part or self.train
        return Batches(
            images,
            labels,
            batch_size=batch_size,
            mean=self.mean,
            std=self.std,
            shuffle=True,
            augment=self.augment if augment else None,
            seed=seed,
            drop_last=drop_last,
            memory_format=memory_format,
        )

    def test_batches(
        self,
        batch_size: int,
        part: Part | None = None,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Batches:
        """Return batches for evaluation: in order and unvaried, each picture once.

        Args:
            batch_size: pictures a batch.
            part: what to evaluate on, such as what `split` held out; the test pictures if None.
            memory_format: layout of the batches.

        Raises:
            DataError: the batch size makes no batch.
        """
        images, labels = part or self.test
        return Batches(
            images,
            labels,
            batch_size=batch_size,
            mean=self.mean,
            std=self.std,
            memory_format=memory_format,
        )


def split_by_class(part: Part, held_out: int, order: Tensor) -> tuple[Part, Part]:
    """Hold out pictures at even distances in a list sorted by class, so that each keeps its share.

    Args:
        part: what to split.
        held_out: pictures in the second part.
        order: int64 (N,), a permutation: who stands before whom within a class.

    Raises:
        DataError: a part would be empty.

    Source: systematic sampling, Cochran 1977, "Sampling Techniques", chapter 8.
    """
    count = len(part.labels)
    if not 0 < held_out < count:
        raise DataError(
            f"cannot hold out {held_out} of {count} pictures: give 1 to {count - 1}, "
            "so that neither part is empty"
        )
    by_class = order[part.labels[order].argsort(stable=True)]
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[by_class[(torch.arange(held_out) * count + count // 2) // held_out]] = True
    kept = ~chosen
    return (
        Part(part.images[kept], part.labels[kept]),
        Part(part.images[chosen], part.labels[chosen]),
    )
