"""The binary version of CIFAR-10 and CIFAR-100, which differ in their labels alone.

A file is rows of some label bytes, the class last, and of 3,072 pixel bytes: red, green, blue.

Source: A. Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images",
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nestling.data.batches import Augmentation
from nestling.data.dataset import Part
from nestling.data.download import Remote, fetch_archive, missing_error
from nestling.data.memory import MemoryDataset
from nestling.errors import DataError

PIXEL_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class Version:
    """Where one of the two is, and what it holds.

    Attributes:
        name: of the data set.
        archive: what to fetch; it holds the folder.
        folder: that has the files.
        train_files: of the training pictures.
        test_file: of the test pictures.
        label_bytes: before the pixels of each row.
        classes: the name of each label.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
    """

    name: str
    archive: Remote
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    label_bytes: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_version(version: Version, folder: Path, *, download: bool) -> MemoryDataset:
    """Read CIFAR from its own folder in `folder`, fetching that folder if it is absent.

    Shorter files than the canonical ones are fine as long as they are whole rows.

    Raises:
        DataError: files are absent and cannot be fetched, or are damaged.
    """
    name, archive, where = version.name, version.archive, folder / version.folder
    files = (*version.train_files, version.test_file)
    hint = f"unpack it in {folder}"
    if download and not where.exists():
        try:
            fetch_archive(archive, where, members=files)
        except OSError as error:
            raise missing_error(name, where, archive, hint=hint, reason=str(error)) from error
    absent = [file for file in files if not (where / file).is_file()]
    if absent:
        raise missing_error(f"{name} ({', '.join(absent)})", where, archive, hint=hint)
    parts = [read_rows(where / file, version) for file in version.train_files]
    test = read_rows(where / version.test_file, version)
    return MemoryDataset(
        name=name,
        train_images=torch.cat([part.images for part in parts]),
        train_labels=torch.cat([part.labels for part in parts]),
        test_images=test.images.contiguous(),
        test_labels=test.labels,
        mean=version.mean,
        std=version.std,
        classes=version.classes,
        augment=Augmentation(pad=4, flip=True),
    )


def read_rows(path: Path, version: Version) -> Part:
    """Read one file: images uint8 (N, 3, 32, 32), not contiguous, labels int64 (N,).

    Raises:
        DataError: the file is not a positive number of whole rows, or a label has no class.
    """
    content = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
    row_bytes = version.label_bytes + PIXEL_BYTES
    if len(content) == 0 or len(content) % row_bytes:
        raise DataError(
            f"{path} is damaged: it has {len(content)} bytes, expected a positive multiple of "
            f"{row_bytes}; delete {path.parent} to fetch it again"
        )
    rows = content.view(-1, row_bytes)
    labels = rows[:, version.label_bytes - 1].to(torch.int64)
    if labels.max() >= len(version.classes):
        raise DataError(
            f"{path} is damaged: it has a label {int(labels.max())}, expected 0 to "
            f"{len(version.classes) - 1}; delete {path.parent} to fetch it again"
        )
    return Part(rows[:, version.label_bytes :].reshape(-1, 3, 32, 32), labels)
