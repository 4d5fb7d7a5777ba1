"""CIFAR-10: 50,000 training and 10,000 test pictures of 32 x 32 pixels in colour, ten classes.

Read from the binary version: rows of one label byte and 3,072 pixel bytes, red, green, blue.

Source: A. Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images",
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nestling.data.batches import Augmentation
from nestling.data.dataset import Dataset, Part
from nestling.data.download import Remote, fetch_archive, missing_error
from nestling.errors import DataError

ARCHIVE = Remote(
    address="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
)
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
ROW_BYTES = 1 + 3 * 32 * 32


def read(folder: Path, *, download: bool) -> Dataset:
    """Read CIFAR-10 from `folder/cifar-10-batches-bin`, fetching that folder if it is absent.

    Shorter files than the canonical ones are fine as long as they are whole rows.

    Raises:
        DataError: files are absent and cannot be fetched, or are damaged.
    """
    where = folder / FOLDER
    files = (*TRAIN_FILES, TEST_FILE)
    hint = f"unpack it in {folder}"
    if download and not where.exists():
        try:
            fetch_archive(ARCHIVE, where, members=files)
        except OSError as error:
            raise missing_error("cifar10", where, ARCHIVE, hint=hint, reason=str(error)) from error
    absent = [file for file in files if not (where / file).is_file()]
    if absent:
        what = f"cifar10 ({', '.join(absent)})"
        raise missing_error(what, where, ARCHIVE, hint=hint)
    parts = [read_rows(where / file) for file in TRAIN_FILES]
    test = read_rows(where / TEST_FILE)
    return Dataset(
        name="cifar10",
        train_images=torch.cat([part.images for part in parts]),
        train_labels=torch.cat([part.labels for part in parts]),
        test_images=test.images.contiguous(),
        test_labels=test.labels,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        classes=CLASSES,
        augment=Augmentation(pad=4, flip=True),
    )


def read_rows(path: Path) -> Part:
    """Read one file: images uint8 (N, 3, 32, 32), not contiguous, labels int64 (N,).

    Raises:
        DataError: the file is not a positive number of whole rows, or a label is above 9.
    """
    content = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
    if len(content) == 0 or len(content) % ROW_BYTES:
        raise DataError(
            f"{path} is damaged: it has {len(content)} bytes, expected a positive multiple of "
            f"{ROW_BYTES} (canonical: {10_000 * ROW_BYTES}); delete {path.parent} to fetch it again"
        )
    rows = content.view(-1, ROW_BYTES)
    labels = rows[:, 0].to(torch.int64)
    if labels.max() >= len(CLASSES):
        raise DataError(
            f"{path} is damaged: it has a label {int(labels.max())}, expected 0 to 9; "
            f"delete {path.parent} to fetch it again"
        )
    return Part(rows[:, 1:].reshape(-1, 3, 32, 32), labels)
