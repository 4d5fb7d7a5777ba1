"""Tiny-ImageNet: 100,000 training and 10,000 test pictures of 64 x 64 pixels, 200 classes.

Read from JPEG files, as its archive unpacks. The test pictures are those for validation, since
the labels of the others are secret.

Source: Y. Le and X. Yang 2015, "Tiny ImageNet Visual Recognition Challenge",
http://cs231n.stanford.edu/tiny-imagenet-200.zip
"""

from __future__ import annotations

from pathlib import Path

from nestling.data.folder import FolderDataset
from nestling.data.listing import find_folder, read_folder
from nestling.data.pictures import Framing


def read(folder: Path, *, download: bool) -> FolderDataset:
    """List Tiny-ImageNet's pictures, in `folder/tiny-imagenet-200` or in `folder` itself.

    Args:
        folder: holds `train/CLASS/images/*.JPEG`, `val/images/*.JPEG` and
            `val/val_annotations.txt`; or `val/CLASS/*.JPEG`, see `read_folder`.
        download: without effect: 120,000 small files are not unpacked behind anyone's back.

    Raises:
        DataError: the folder is absent, or its pictures are not sorted so.
    """
    del download
    where = find_folder(
        folder,
        "tiny-imagenet-200",
        name="tiny-imagenet",
        source="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    )
    return read_folder("tiny-imagenet", where, Framing(size=64, resize=64))
