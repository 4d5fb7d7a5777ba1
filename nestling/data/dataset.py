"""What a data set is: pictures and labels, a held-out part, and batches."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nestling.data.epochs import Epochs
from nestling.errors import DataError


class Part(NamedTuple):
    """Some pictures of a data set and their labels.

    Args:
        images: uint8, (N, C, H, W); for pictures that stay in files int64, (N,), their numbers.
        labels: int64, (N,).

    Example:
        >>> from nestling.data import load
        >>> load("digits").test.labels.shape
        torch.Size([360])
    """

    images: Tensor
    labels: Tensor


class Dataset(Protocol):
    """What every data set offers, whether its pictures are in memory or in files.

    Example:
        >>> from nestling.data import load
        >>> digits = load("digits")
        >>> digits.shape, len(digits.train.labels), len(digits.test.labels)
        ((1, 8, 8), 1437, 360)
    """

    @property
    def name(self) -> str:
        """The name, as in `nestling.data.names()`."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean per channel, of pixels in [0, 1]."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation per channel, of pixels in [0, 1]."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of the pictures in batches."""
        ...

    @property
    def train(self) -> Part:
        """All training pictures."""
        ...

    @property
    def test(self) -> Part:
        """All test pictures."""
        ...

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set with its batches on a device."""
        ...

    def in_memory(self, part: Part) -> Part:
        """Return a part for `test_batches` whose pictures need no more reading."""
        ...

    def split(self, held_out: int, seed: int = 0) -> tuple[Part, Part]:
        """Split the training pictures in a part to train on and one that is held out."""
        ...

    def train_batches(
        self,
        batch_size: int,
        seed: int = 0,
        *,
        augment: bool = True,
        part: Part | None = None,
        drop_last: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Epochs:
        """Return shuffled batches of the training pictures, or of a part of them."""
        ...

    def test_batches(
        self,
        batch_size: int,
        part: Part | None = None,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Epochs:
        """Return batches for evaluation: in order and unvaried, each picture once."""
        ...


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
    by_class = order[part.labels.cpu()[order].argsort(stable=True)]
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[by_class[(torch.arange(held_out) * count + count // 2) // held_out]] = True
    first, second = (
        where.nonzero().flatten().to(part.labels.device) for where in (~chosen, chosen)
    )
    return (
        Part(part.images[first], part.labels[first]),
        Part(part.images[second], part.labels[second]),
    )
