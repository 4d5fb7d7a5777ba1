"""Data sets: `load` one by its name, then ask it for batches.

A data set is one file in this folder. Its name is the file's, with `-` for `_`, and all it needs is
`read(folder: Path, *, download: bool) -> Dataset`, where `folder` is where data sets are kept.
"""

from __future__ import annotations

import os
from pathlib import Path

from nestling.catalogue import Catalogue
from nestling.data.batches import Augmentation, Batches
from nestling.data.dataset import Dataset, Part
from nestling.data.epochs import Epochs
from nestling.data.files import FileBatches
from nestling.data.folder import FolderDataset
from nestling.data.memory import MemoryDataset
from nestling.data.pictures import Framing
from nestling.errors import DataError, did_you_mean

__all__ = [
    "Augmentation",
    "Batches",
    "Dataset",
    "Epochs",
    "FileBatches",
    "FolderDataset",
    "Framing",
    "MemoryDataset",
    "Part",
    "load",
    "names",
]

_ALL = Catalogue(__name__, "data set", function="read")


def names() -> tuple[str, ...]:
    """Return the names that `load` takes, in alphabetical order.

    They are found by looking for files of this folder with a function `read`, so a new data set
    needs no entry in a list.

    Example:
        >>> names()
        ('cifar10', 'cifar100', 'digits', 'fashion-mnist', 'imagenet', 'svhn', 'tiny-imagenet')
    """
    return tuple(_ALL.names())


def load(name: str, data_dir: str | Path | None = None, *, download: bool = True) -> Dataset:
    """Read a data set, fetching its files first if they are absent and free to fetch.

    Files are looked for in `data_dir`; if that is None, in the folder that the environment variable
    `NESTLING_DATA` names; if that is unset, in `~/.cache/nestling/data`. A download is checked
    against its MD5 sum and appears there whole or not at all.

    Args:
        name: one of `names()`.
        data_dir: the folder that holds `cifar-10-batches-bin/`, `FashionMNIST/raw/`, `imagenet/`
            and so on; or, for pictures in folders, `train/` and `val/` themselves.
        download: whether absent files may be fetched.

    Raises:
        DataError: the name is unknown, or files are absent and cannot be fetched, or are damaged.

    Example:
        >>> digits = load("digits")
        >>> digits.train_images.shape
        torch.Size([1437, 1, 8, 8])
    """
    known = names()
    if name not in known:
        raise DataError(
            f"unknown data set {name!r}{did_you_mean(name, known)}; choose one of {known}"
        )
    folder = data_dir or os.environ.get("NESTLING_DATA") or Path.home() / ".cache/nestling/data"
    dataset: Dataset = _ALL.find(name)(Path(folder).expanduser(), download=download)
    return dataset
