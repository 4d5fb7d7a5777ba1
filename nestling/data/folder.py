"""A data set whose pictures stay in files, since they do not fit in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nestling.data.batches import Batches, seeded_generator
from nestling.data.dataset import Part, split_by_class
from nestling.data.epochs import Epochs, Normalisation, check_normalisation
from nestling.data.files import FileBatches, PictureFiles, Variation, read_pixels
from nestling.errors import DataError

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@dataclass(frozen=True, eq=False)
class FolderDataset:
    """Picture files, their labels and what is usual for training on them; see `Dataset`.

    Pictures have a number: those for training come first, then those for testing. A `Part` holds
    numbers in place of pixels.

    Args:
        name: as in `nestling.data.names()`.
        files: all of them; `replace(dataset.files, workers=0)` reads without further processes.
        labels: int64, (N,), one for each file.
        trained: how many files are for training.
        classes: the name of each label.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        device: where batches are wanted.

    Raises:
        DataError: no files for training or for testing, or labels that do not fit.

    Example:
        >>> from nestling.data import load
        >>> imagenet = load("imagenet", "/data/imagenet")
        >>> imagenet.shape, len(imagenet.train.labels), len(imagenet.test.labels)
        ((3, 224, 224), 1281167, 50000)
    """

    name: str
    files: PictureFiles
    labels: Tensor = field(repr=False)
    trained: int
    classes: tuple[str, ...] = field(repr=False)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    device: torch.device = CPU

    def __post_init__(self) -> None:
        count = len(self.files.names)
        if self.labels.shape != (count,) or self.labels.dtype != torch.int64:
            raise DataError(
                f"labels of {count} pictures must be int64 of shape ({count},), not "
                f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if not 0 < self.trained < count:
            raise DataError(
                f"{self.name!r} needs pictures to train on and others to test on, not "
                f"{self.trained} and {count - self.trained}"
            )
        check_normalisation(self.mean, self.std, channels=3)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of the pictures in batches."""
        return (3, self.files.framing.size, self.files.framing.size)

    @property
    def train(self) -> Part:
        """The numbers and labels of all training pictures."""
        return Part(torch.arange(self.trained), self.labels[: self.trained])

    @property
    def test(self) -> Part:
        """The numbers and labels of all test pictures."""
        return Part(torch.arange(self.trained, len(self.labels)), self.labels[self.trained :])

    def to(self, device: torch.device | str) -> FolderDataset:
        """Return the data set with its batches on a device; pixels move there as bytes."""
        return replace(self, device=torch.device(device))

    def in_memory(self, part: Part) -> Part:
        """Return a part with its pictures read and framed for evaluation: uint8 (N, 3, H, W).

        For what is evaluated often, such as held-out pictures in a search. 5,000 pictures of 224
        pixels take 750 MB.

        Raises:
            DataError: a picture is damaged.
        """
        return part if self._are_pixels(part) else Part(read_pixels(self.files, part), part.labels)

    def split(self, held_out: int, seed: int = 0) -> tuple[Part, Part]:
        """Split the training pictures in two, for choosing without a look at the test pictures.

        Each class keeps its share of both parts, to within one picture. Both parts are in the order
        of the data set.

        Args:
            held_out: pictures in the second part.
            seed: which ones.

        Returns:
            The part to train on and the part that is held out.

        Raises:
            DataError: a part would be empty.
        """
        order = torch.randperm(self.trained, generator=seeded_generator(seed, "split"))
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
    ) -> FileBatches:
        """Return shuffled batches of the training pictures, or of a part of them.

        Args:
            batch_size: pictures a batch.
            seed: of order, windows and mirroring; see `FileBatches`.
            augment: whether to frame the pictures at random; else as for evaluation.
            part: what `split` returned first; all training pictures if None.
            drop_last: whether to leave out a last batch that is not full.
            memory_format: layout of the batches.

        Raises:
            DataError: the batch size makes no batch, or the part holds pixels in place of numbers.
        """
        if part is not None and self._are_pixels(part):
            raise DataError(
                f"training on {self.name!r} frames pictures anew each epoch, but part= holds "
                "pixels that are framed already; give what `split` returned"
            )
        return FileBatches(
            self.files,
            part or self.train,
            normalise=self._normalisation(memory_format),
            device=self.device,
            batch_size=batch_size,
            variation=Variation(seed, augment),
            drop_last=drop_last,
        )

    def test_batches(
        self,
        batch_size: int,
        part: Part | None = None,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Epochs:
        """Return batches for evaluation: in order and unvaried, each picture once.

        Args:
            batch_size: pictures a batch.
            part: what to evaluate on, such as what `split` held out, also after `in_memory`; the
                test pictures if None.
            memory_format: layout of the batches.

        Raises:
            DataError: the batch size makes no batch.
        """
        if part is not None and self._are_pixels(part):
            return Batches(
                part.images.to(self.device),
                part.labels.to(self.device),
                batch_size=batch_size,
                mean=self.mean,
                std=self.std,
                memory_format=memory_format,
            )
        return FileBatches(
            self.files,
            part or self.test,
            normalise=self._normalisation(memory_format),
            device=self.device,
            batch_size=batch_size,
        )

    def _normalisation(self, memory_format: torch.memory_format) -> Normalisation:
        return Normalisation(self.mean, self.std, self.device, memory_format)

    def _are_pixels(self, part: Part) -> bool:
        """Return whether a part holds pixels; or else numbers, which are checked.

        Raises:
            DataError: neither.
        """
        numbers = part.images
        if numbers.dtype == torch.uint8 and numbers.shape[1:] == self.shape:
            return True
        count = len(self.labels)
        if (
            numbers.dtype != torch.int64
            or numbers.shape != part.labels.shape
            or numbers.shape != (len(numbers),)
            or not len(numbers)
            or not 0 <= int(numbers.min()) <= int(numbers.max()) < count
        ):
            raise DataError(
                f"a part of {self.name!r} holds the numbers of pictures, int64 from 0 to "
                f"{count - 1}, and as many labels; use what `split` returned"
            )
        return False
