"""What all batches have in common: an epoch can be run from any of its batches on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nestling.errors import DataError


class Epochs(ABC):
    """An iterable over batches whose contents depend on the seed and the epoch alone.

    `iter(batches)` runs the current `epoch`; running it to its end moves on to the next.

    Args:
        count: pictures in an epoch.
        batch_size: pictures a batch; the last batch of an epoch may hold fewer.
        drop_last: whether to leave out a last batch that is not full.

    Raises:
        DataError: the batch size makes no batch.

    Example:
        >>> from nestling.data import load
        >>> isinstance(load("digits").train_batches(64), Epochs)
        True
    """

    def __init__(self, count: int, batch_size: int, drop_last: bool) -> None:
        most = count if drop_last else None
        if batch_size < 1 or (most is not None and batch_size > most):
            allowed = f"1 to {most}, as drop_last is set" if drop_last else "1 or more"
            raise DataError(f"a batch cannot hold {batch_size} pictures: give {allowed}")
        self.epoch = 0
        self._count, self._batch_size, self._drop_last = count, batch_size, drop_last

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(self._count, self._batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the current epoch; see `at`."""
        return self.at(self.epoch)

    def at(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Make `epoch` the current one and run it from its batch number `start`.

        The batches before `start` are not made. When the iterator is exhausted, `epoch + 1` becomes
        the current epoch; an iterator that is dropped half-way leaves it as it is.

        Args:
            epoch: counted from 0.
            start: counted from 0; `len(self)` gives an empty rest.

        Raises:
            DataError: `epoch` or `start` is out of range.
        """
        if epoch < 0:
            raise DataError(f"there is no epoch {epoch}: they count from 0")
        if not 0 <= start <= len(self):
            raise DataError(f"there is no batch {start} in an epoch: give 0 to {len(self)}")
        self.epoch = epoch
        return self._run(epoch, start)

    def _run(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._batches(epoch, start)
        self.epoch = epoch + 1

    def _places(self, batch: int) -> slice:
        """Return the places of the epoch whose pictures a batch holds."""
        return slice(batch * self._batch_size, (batch + 1) * self._batch_size)

    @abstractmethod
    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Make the batches of an epoch from number `start` on."""


class Normalisation:
    """From pixels to what a network takes: `(pixel / 255 - mean) / std`, per channel.

    Args:
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        device: where the pictures are.
        memory_format: layout of the batches.

    Example:
        >>> black = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
        >>> Normalisation((0.5,), (0.25,), torch.device("cpu"), torch.contiguous_format)(black)
        tensor([[[[-2.]]]])
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        memory_format: torch.memory_format,
    ) -> None:
        # (pixel / 255 - mean) / std == pixel * scale + shift, worked out in float64.
        wide_mean, wide_std = (torch.tensor(v, dtype=torch.float64) for v in (mean, std))
        self._scale = (1 / (255 * wide_std)).float().view(1, -1, 1, 1).to(device)
        self._shift = (-wide_mean / wide_std).float().view(1, -1, 1, 1).to(device)
        self._memory_format = memory_format

    def __call__(self, images: Tensor) -> Tensor:
        """Return uint8 pictures (B, C, H, W) as float32, on their device."""
        floats = images.to(torch.float32, memory_format=self._memory_format)
        return torch.addcmul(self._shift, floats, self._scale)


def check_normalisation(mean: Sequence[float], std: Sequence[float], *, channels: int) -> None:
    """Check that there is a mean and a positive std for each channel.

    Raises:
        DataError: there is not.
    """
    if len(mean) != channels or len(std) != channels:
        raise DataError(
            f"pictures with {channels} channels need {channels} means and stds, "
            f"not {len(mean)} and {len(std)}"
        )
    if not all(value > 0 for value in std):
        raise DataError(f"each std must be above 0, not {tuple(std)}")
