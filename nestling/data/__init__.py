"""Data sets: `load` one by its name, then ask it for batches.

A data set is one file in this folder. Its name is the file's, with `-` for `_`, and all it needs is
`read(folder: Path, *, download: bool) -> Dataset`, where `folder` is where data sets are kept.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path

from nestling.data.batches import Augmentation, Batches
from nestling.data.dataset import Dataset, Part
from nestling.errors import DataError, did_you_mean

__all__ = ["Augmentation", "Batches", "Dataset", "Part", "load", "names"]


def names() -> tuple[str, ...]:
    """Return the names that `load` takes, in alphabetical order.

    They are found by looking for files of this folder with a function `read`, so a new data set
    needs no entry in a list.

    Example:
        >>> names()
        ('cifar10', 'digits', 'fashion-mnist')
    """
    files = [info.name for info in pkgutil.iter_modules(__path__)]
    found = [
        file for file in files if hasattr(importlib.import_module(f"{__name__}.{file}"), "read")
    ]
    return tuple(sorted(file.replace("_", "-") for file in found))


def load(name: str, data_dir: str | Path | None = None, *, download: bool = True) -> Dataset:
    """Read a data set into memory, fetching its files first if they are absent.

    Files are looked for in `data_dir`; if that is None, in the folder that the environment variable
    `NESTLING_DATA` names; if that is unset, in `~/.cache/nestling/data`. A download is checked
    against its MD5 sum and appears there whole or not at all.

    Args:
        name: one of `names()`.
        data_dir: the folder that holds `cifar-10-batches-bin/`, `FashionMNIST/raw/` and so on.
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
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    folder = data_dir or os.environ.get("NESTLING_DATA") or Path.home() / ".cache/nestling/data"
    dataset: Dataset = module.read(Path(folder).expanduser(), download=download)
    return dataset
