"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn: no files, no network.

Source: E. Alpaydin and C. Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49 (its test set).
"""

from __future__ import annotations

from pathlib import Path

import torch

from nestling.data.batches import Augmentation
from nestling.data.dataset import Part, split_by_class
from nestling.data.memory import MemoryDataset

TEST_PICTURES = 360


def read(folder: Path, *, download: bool) -> MemoryDataset:
    """Return the digits: 1,437 for training and 360 for testing, always the same.

    Args:
        folder: not looked at, since scikit-learn ships the pictures.
        download: not needed, likewise.

    Example:
        >>> read(Path(), download=False).test_images.shape
        torch.Size([360, 1, 8, 8])
    """
    del folder, download
    from sklearn.datasets import load_digits  # here, as it takes a second to import

    pixels, labels = load_digits(return_X_y=True)  # 0 to 16, (1797, 64)
    images = (torch.from_numpy(pixels) * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)
    whole = Part(images, torch.from_numpy(labels).to(torch.int64))
    # The order of the file, not a random one: the split must outlive any random generator.
    train, test = split_by_class(whole, TEST_PICTURES, torch.arange(len(images)))
    return MemoryDataset(
        name="digits",
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        mean=(0.3049,),
        std=(0.3754,),
        classes=tuple("0123456789"),
        augment=Augmentation(pad=1),
    )
