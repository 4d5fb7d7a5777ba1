"""ImageNet: 1,281,167 training and 50,000 test pictures of any size in colour, 1,000 classes.

Read from JPEG files, one folder a class. The test pictures are those for validation, as is usual,
since the labels of the others are secret.

Source: Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge",
https://image-net.org
"""

from __future__ import annotations

from pathlib import Path

from nestling.data.folder import FolderDataset
from nestling.data.listing import find_folder, read_folder
from nestling.data.pictures import Framing


def read(folder: Path, *, download: bool) -> FolderDataset:
    """List ImageNet's pictures, in `folder/imagenet` or in `folder` itself; see `read_folder`.

    Any other pictures will do, sorted into folders in the same way.

    Args:
        folder: holds `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`.
        download: without effect: those who want the pictures must agree to terms of use.

    Raises:
        DataError: the folder is absent, or its pictures are not sorted so.
    """
    del download
    where = find_folder(
        folder, "imagenet", name="imagenet", source="https://image-net.org/download.php"
    )
    return read_folder("imagenet", where, Framing(size=224, resize=256))
