"""A data set whose pictures are in memory: of this machine, or of its GPU."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nestling.data.batches import Augmentation, Batches, check_pictures, seeded_generator
from nestling.data.dataset import Part, split_by_class
from nestling.data.epochs import check_normalisation
from nestling.errors import DataError


@dataclass(frozen=True, eq=False)
class MemoryDataset:
    """Pictures, labels and what is usual for training on them; see `Dataset`.

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
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of every picture."""
        return tuple(self.train_images.shape[1:])

    @property
    def train(self) -> Part:
        """All training pictures."""
        return Part(self.train_images, self.train_labels)

    @property
    def test(self) -> Part:
        """All test pictures."""
        return Part(self.test_images, self.test_labels)

    def to(self, device: torch.device | str) -> MemoryDataset:
        """Return the data set with its pictures on a device; its batches are made there.

        The batches hold the same pictures as on the CPU, whatever the device.

        Example:
            >>> from nestling.data import load
            >>> digits = load("digits").to("cuda")
            >>> images, labels = next(iter(digits.train_batches(64)))  # nothing moves but choices
        """
        moved = {
            name: getattr(self, name).to(device)
            for name in ("train_images", "train_labels", "test_images", "test_labels")
        }
        return replace(self, **moved)

    def in_memory(self, part: Part) -> Part:
        """Return a part as it is, for it is in memory."""
        return part

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
        images, labels = self._here(part or self.train)
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
        images, labels = self._here(part or self.test)
        return Batches(
            images,
            labels,
            batch_size=batch_size,
            mean=self.mean,
            std=self.std,
            memory_format=memory_format,
        )

    def _here(self, part: Part) -> Part:
        """Return a part where the data set is; it may have been split off before `to`."""
        device = self.train_images.device
        return Part(part.images.to(device), part.labels.to(device))
