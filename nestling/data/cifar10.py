"""CIFAR-10: 50,000 training and 10,000 test pictures of 32 x 32 pixels in colour, ten classes.

Read from the binary version: rows of one label byte and 3,072 pixel bytes, red, green, blue.

Source: A. Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images",
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from pathlib import Path

from nestling.data.cifar import Version, read_version
from nestling.data.download import Remote
from nestling.data.memory import MemoryDataset

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
VERSION = Version(
    name="cifar10",
    archive=Remote(
        address="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
    ),
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test_file="test_batch.bin",
    label_bytes=1,
    classes=tuple(CLASSES.split()),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)


def read(folder: Path, *, download: bool) -> MemoryDataset:
    """Read CIFAR-10 from `folder/cifar-10-batches-bin`, fetching that folder if it is absent.

    Shorter files than the canonical ones are fine as long as they are whole rows.

    Raises:
        DataError: files are absent and cannot be fetched, or are damaged.
    """
    return read_version(VERSION, folder, download=download)
