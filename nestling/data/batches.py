"""Batches that are a pure function of (seed, epoch), so that training can resume bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from nestling.data.epochs import Epochs, Normalisation, check_normalisation
from nestling.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied: a random crop, then a random flip.

    A crop is a window of the picture's own size in the picture padded with black. Every window is
    equally likely, so the picture shifts by up to `pad` pixels each way. A flip mirrors left and
    right, with probability one half.

    Args:
        pad: pixels of padding on each of the four sides; 0 for no crops.
        flip: whether to flip.

    Raises:
        DataError: `pad` is negative.

    Example:
        >>> Augmentation(pad=4, flip=True)
        Augmentation(pad=4, flip=True)

    Source: He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2 (pad 4).
    """

    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise DataError(f"an augmentation cannot pad by {self.pad} pixels: give 0 or more")


class Plan(NamedTuple):
    """Every random choice of one epoch, by place in the epoch; None where there is none to make."""

    order: Tensor | None  # int64 (N,): which picture stands at each place
    corners: Tensor | None  # int64 (2, N): top and left of the crop in the padded picture
    flips: Tensor | None  # bool (N,)

    def to(self, device: torch.device) -> Plan:
        """Return the same choices on a device."""
        return Plan(*(None if choices is None else choices.to(device) for choices in self))


class Batches(Epochs):
    """An iterable over normalised batches whose contents depend on the seed and the epoch alone.

    Order, crops and flips of an epoch are drawn together from a generator seeded with
    (seed, epoch), never from the global random state. They belong to a picture's place in the
    epoch, so a batch can be made without making those before it: `at(epoch, start=k)` continues an
    interrupted epoch bit for bit.

    They are drawn on the CPU, so that an epoch shows the same pictures on every device. Batches
    are made where the pictures are: for pictures on a GPU the choices move there once an epoch, and
    nothing else does.

    `iter(batches)` runs the current `epoch`; running it to its end moves on to the next.

    Args:
        images: uint8 pixels, (N, C, H, W); not copied.
        labels: int64 classes, (N,), on the same device.
        batch_size: pictures a batch; the last batch of an epoch may hold fewer.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        shuffle: whether each epoch has its own random order.
        augment: how to vary the pictures; None leaves them as they are.
        seed: the seed of order, crops and flips.
        drop_last: whether to leave out a last batch that is not full.
        memory_format: layout of the batches, such as `torch.channels_last`.

    Yields:
        Pictures as float32 (B, C, H, W), `(pixel / 255 - mean) / std`, and int64 labels (B,).

    Raises:
        DataError: tensors of another type, shape or device, or a batch size that makes no batch.

    Example:
        >>> images = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
        >>> usual = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        >>> batches = Batches(images, torch.arange(10), batch_size=4, shuffle=True, **usual)
        >>> [len(labels) for _, labels in batches], batches.epoch
        ([4, 4, 2], 1)
        >>> whole = [labels.tolist() for _, labels in batches.at(7)]
        >>> whole[2:] == [labels.tolist() for _, labels in batches.at(7, start=2)]
        True
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        shuffle: bool = False,
        augment: Augmentation | None = None,
        seed: int = 0,
        drop_last: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        check_pictures(images, labels)
        check_normalisation(mean, std, channels=images.shape[1])
        super().__init__(len(images), batch_size, drop_last)
        self._images, self._labels = images, labels
        self._shuffle, self._augment, self._seed = shuffle, augment, seed
        self._normalise = Normalisation(mean, std, images.device, memory_format)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        plan = self._draw(epoch).to(self._images.device)
        for batch in range(start, len(self)):
            yield self._make(plan, self._places(batch))

    def _draw(self, epoch: int) -> Plan:
        """Make every random choice of an epoch; about 1 ms for 50,000 pictures."""
        generator = seeded_generator(self._seed, epoch)
        count = len(self._images)
        order = corners = flips = None
        if self._shuffle:
            order = torch.randperm(count, generator=generator)
        if self._augment is not None and self._augment.pad > 0:
            corners = torch.randint(2 * self._augment.pad + 1, (2, count), generator=generator)
        if self._augment is not None and self._augment.flip:
            flips = torch.randint(2, (count,), generator=generator).bool()
        return Plan(order, corners, flips)

    def _make(self, plan: Plan, places: slice) -> tuple[Tensor, Tensor]:
        """Make the batch of the pictures at some places of the epoch."""
        which = places if plan.order is None else plan.order[places]
        images, labels = self._images[which], self._labels[which]
        if self._augment is not None and plan.corners is not None:
            images = crop(images, plan.corners[:, places], pad=self._augment.pad)
        if plan.flips is not None:
            images = torch.where(plan.flips[places, None, None, None], images.flip(-1), images)
        # Without a shuffle, labels are a view of the data set, which is not the caller's to change.
        return self._normalise(images), labels.clone()


def crop(images: Tensor, corners: Tensor, *, pad: int) -> Tensor:
    """Cut one window of the picture's own size out of each padded picture.

    Args:
        images: (B, C, H, W).
        corners: int64 (2, B): top and left of each window, 0 to `2 * pad`; `pad` is the middle.
        pad: pixels of zeros on each side.

    Example:
        >>> crop(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([[0], [1]]), pad=1)
        tensor([[[[0, 0],
                  [1, 2]]]])
    """
    height, width = images.shape[-2:]
    padded = functional.pad(images, (pad, pad, pad, pad))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, tops, lefts, H, W)
    return windows[torch.arange(len(images), device=images.device), :, corners[0], corners[1]]


def seeded_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator that depends on the whole key.

    Torch's generator uses only the low 32 bits of its seed, so sums or shifts of the parts would
    let (seed 0, epoch 1) and (seed 1, epoch 0) collide; a hash does not.

    Example:
        >>> [int(torch.randint(9, (), generator=seeded_generator(3, "a"))) for _ in range(3)]
        [8, 8, 8]
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def check_pictures(images: Tensor, labels: Tensor) -> None:
    """Check that pictures are uint8 (N, C, H, W), N at least 1, with int64 labels (N,) beside them.

    Raises:
        DataError: they are not.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(
            "pictures must be uint8 of shape (N, C, H, W), "
            f"not {_dtype_name(images)} of shape {tuple(images.shape)}"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"labels of {len(images)} pictures must be int64 of shape ({len(images)},), "
            f"not {_dtype_name(labels)} of shape {tuple(labels.shape)}"
        )
    if len(images) == 0:
        raise DataError("there must be at least one picture, not 0")
    if labels.device != images.device:
        raise DataError(
            f"pictures and labels must be on one device, not on {images.device} and {labels.device}"
        )


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
