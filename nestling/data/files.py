"""Batches of pictures that stay in files: read by worker processes, a batch each."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapStyle

from nestling.data.batches import seeded_generator
from nestling.data.dataset import Part
from nestling.data.epochs import Epochs, Normalisation
from nestling.data.pictures import Framing, Pixels, read_picture
from nestling.errors import DataError

MOST_WORKERS = 16
GRACE = 10  # seconds that a process outlives what stops the run
CHUNK = 64  # pictures that a process reads at a time where there are no batches
_RUNNING: WeakSet[Generator[Pixels, None, None]] = WeakSet()


@dataclass(frozen=True, eq=False)
class PictureFiles:
    """Files that hold pictures, and how they are framed.

    Attributes:
        folder: that all are in.
        names: bytes, (N,): where each is in the folder. One array, since processes that share a
            list of strings copy it bit by bit.
        framing: how a picture becomes a square.
        workers: processes that read; 0 reads in this one.
    """

    folder: Path
    names: npt.NDArray[np.bytes_] = field(repr=False)
    framing: Framing
    workers: int

    def read(self, number: int, generator: torch.Generator | None) -> Pixels:
        """Return a picture, (3, H, W): framed at random, or for evaluation where None is given.

        Raises:
            DataError: its file is damaged.
        """
        path = self.folder / os.fsdecode(bytes(self.names[number]))
        return read_picture(path, self.framing, generator)


@dataclass(frozen=True)
class Variation:
    """How an epoch of training differs from one of evaluation.

    Attributes:
        seed: of all random choices.
        augment: whether pictures are framed at random.
    """

    seed: int
    augment: bool


class FileBatches(Epochs):
    """An iterable over normalised batches of pictures that are read when their batch is made.

    As with `Batches`, the contents depend on the seed and the epoch alone: a picture's window and
    mirroring are drawn for its place in the epoch, whichever process reads it, and
    `at(epoch, start=k)` continues an interrupted epoch bit for bit.

    Args:
        files: all pictures of the data set.
        part: the numbers of those that are meant, and their labels.
        normalise: on the device that batches are wanted on.
        device: that one.
        batch_size: pictures a batch; the last batch of an epoch may hold fewer.
        variation: of training; None for evaluation, in order and unvaried.
        drop_last: whether to leave out a last batch that is not full.

    Yields:
        Pictures as float32 (B, 3, H, W), and int64 labels (B,).

    Raises:
        DataError: the batch size makes no batch. While running: a picture is damaged.
    """

    def __init__(
        self,
        files: PictureFiles,
        part: Part,
        *,
        normalise: Normalisation,
        device: torch.device,
        batch_size: int,
        variation: Variation | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(len(part.labels), batch_size, drop_last)
        self._files, self._part = files, part
        self._normalise, self._device = normalise, device
        self._variation = variation

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(epoch)
        labels = self._part.labels[order]
        for batch, pixels in enumerate(self._read(epoch, start, order), start):
            images = torch.from_numpy(pixels).to(self._device)
            yield self._normalise(images), labels[self._places(batch)].to(self._device)

    def _order(self, epoch: int) -> Tensor:
        """Return which picture stands at each place of an epoch."""
        count = len(self._part.labels)
        if self._variation is None:
            return torch.arange(count)
        return torch.randperm(count, generator=seeded_generator(self._variation.seed, epoch))

    def _read(self, epoch: int, start: int, order: Tensor) -> Iterator[Pixels]:
        """Return the pixels of an epoch's batches from number `start` on, in their order."""
        vary = self._variation is not None and self._variation.augment
        key = (self._variation.seed, epoch) if self._variation is not None and vary else None
        places = [self._places(batch) for batch in range(start, len(self))]
        work = _Work(self._files, self._part.images[order].numpy(), key, places)
        return read_in_order(work, self._files.workers)


class _Work(MapStyle[Pixels | str]):
    """The batches of one epoch, as worker processes make them: one item is a whole batch.

    A damaged picture gives the text of its error in place of pixels, since an error that crosses
    processes comes out as a traceback.
    """

    def __init__(
        self,
        files: PictureFiles,
        numbers: npt.NDArray[np.int64],
        key: tuple[int, int] | None,
        places: list[slice],
    ) -> None:
        self.files, self.numbers, self.key, self.places = files, numbers, key, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Pixels | str:
        where = self.places[index]
        numbers = self.numbers[where]
        read = []
        try:
            for place, number in enumerate(numbers.tolist(), where.start):
                generator = None if self.key is None else seeded_generator(*self.key, place)
                read.append(self.files.read(number, generator))
        except DataError as error:
            return str(error)
        return np.stack(read)


def read_in_order(work: _Work, workers: int) -> Generator[Pixels, None, None]:
    """Make all batches of an epoch, in processes that work ahead; a single one in this process.

    Pixels cross as NumPy arrays, by a pipe: torch's own way is shared memory, of which a container
    has little.

    Raises:
        DataError: a picture is damaged, or a process was ended from outside.
    """
    running = _read_in_order(work, workers)
    _RUNNING.add(running)
    return running


def _read_in_order(work: _Work, workers: int) -> Generator[Pixels, None, None]:
    loader: DataLoader[Pixels | str] = DataLoader(
        work,
        batch_size=None,
        num_workers=min(workers, len(work)) if len(work) > 1 else 0,
        collate_fn=_as_is,  # not a list, since an item is a batch
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # else it would draw from the global one
    )
    made = iter(loader)
    while True:
        try:
            batch = next(made, None)
        except RuntimeError as error:
            raise DataError(
                f"pictures are read by {loader.num_workers} processes, but one of them has ended "
                "before its work, as happens when memory runs out; use a smaller batch, or "
                "dataclasses.replace(dataset, workers=...) with fewer of them"
            ) from error
        if batch is None:
            return
        if isinstance(batch, str):
            raise DataError(batch)
        yield batch


def read_pixels(files: PictureFiles, part: Part) -> Tensor:
    """Read the pictures of a part, framed for evaluation: uint8 (N, 3, H, W).

    Raises:
        DataError: a picture is damaged.
    """
    numbers = part.images.numpy()
    places = [slice(first, first + CHUNK) for first in range(0, len(numbers), CHUNK)]
    size = files.framing.size
    pixels = np.empty((len(numbers), 3, size, size), np.uint8)
    read = read_in_order(_Work(files, numbers, None, places), files.workers)
    for where, chunk in zip(places, read, strict=True):
        pixels[where] = chunk
    return torch.from_numpy(pixels)


def usable_workers() -> int:
    """Return how many processes are worth having for reading: one a core, up to 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MOST_WORKERS, usable or 1)


@atexit.register
def _end_processes() -> None:
    """End the processes of epochs that were left half-way; else Python would wait for them."""
    for running in list(_RUNNING):
        running.close()


def _as_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_main_process(_: int) -> None:
    """Outlive what stops a run: it reaches all processes, and the main one stops between batches.

    That one asks them to end by other means, and by a second signal where these fail.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_soon)


def _end_soon(*_: object) -> None:
    """End at the next SIGTERM; without one as well, since two at a time may count as one."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(GRACE)
