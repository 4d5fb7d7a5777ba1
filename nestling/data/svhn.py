"""SVHN: 73,257 training and 26,032 test pictures of house numbers, 32 x 32 pixels, ten digits.

Read from the cropped digits in MATLAB's format 5: `X`, bytes of (height, width, channels, N), and
`y`, the digits 1 to 10, where 10 stands for 0. The "extra" pictures are not used.

Source: Y. Netzer et al. 2011, "Reading Digits in Natural Images with Unsupervised Feature
Learning", http://ufldl.stanford.edu/housenumbers/
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nestling.data.dataset import Part
from nestling.data.download import Remote, found_or_fetched
from nestling.data.memory import MemoryDataset
from nestling.errors import DataError, brief

ADDRESS = "http://ufldl.stanford.edu/housenumbers/"
MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
SIDE, DIGITS = 32, 10


def read(folder: Path, *, download: bool) -> MemoryDataset:
    """Read SVHN from `folder/SVHN`, fetching the files that are absent.

    Shorter files than the canonical ones are fine. No augmentation is usual: a digit's mirror image
    is no digit, and its neighbours are in the picture.

    Raises:
        DataError: files are absent and cannot be fetched, or are damaged.
    """
    where = folder / "SVHN"
    train, test = (read_part(find_file(where, name, download=download)) for name in MD5)
    return MemoryDataset(
        name="svhn",
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        classes=tuple("0123456789"),
    )


def find_file(where: Path, name: str, *, download: bool) -> Path:
    """Return the path of a file, fetching it if it is absent.

    Raises:
        DataError: it is absent and cannot be fetched.
    """
    remote = Remote(address=ADDRESS + name, md5=MD5[name])
    return found_or_fetched("svhn", [where / name], remote, download=download)


def read_part(path: Path) -> Part:
    """Read pictures, uint8 (N, 3, 32, 32), and their labels, int64 (N,), 0 to 9.

    Raises:
        DataError: the file is damaged, or holds something else.
    """
    content = read_matlab(path)
    pixels, digits = (np.asarray(content.get(name)) for name in ("X", "y"))
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (SIDE, SIDE, 3):
        raise DataError(
            f"{path} is damaged: its X is {pixels.dtype} of shape {pixels.shape}, expected uint8 "
            f"of shape ({SIDE}, {SIDE}, 3, N); delete it"
        )
    count = pixels.shape[3]
    if digits.shape != (count, 1) or digits.dtype.kind not in "uif":
        raise DataError(
            f"{path} is damaged: its y is {digits.dtype} of shape {digits.shape}, expected "
            f"numbers of shape ({count}, 1), one for each picture of X; delete it"
        )
    if count == 0 or not np.isin(digits, range(1, DIGITS + 1)).all():
        raise DataError(
            f"{path} is damaged: its digits must be one or more numbers from 1 to {DIGITS}, not "
            f"{np.unique(digits).tolist()[:20]}; delete it"
        )
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
    return Part(images, torch.from_numpy(digits.ravel().astype(np.int64)) % DIGITS)


def read_matlab(path: Path) -> dict[str, Any]:
    """Read the variables `X` and `y` of a file in MATLAB's format 5.

    Raises:
        DataError: it is none, or damaged.
    """
    from scipy.io import loadmat  # scikit-learn brings it; here, as only these files need it
    from scipy.io.matlab import MatReadError

    try:
        found: dict[str, Any] = loadmat(path, variable_names=("X", "y"))
    except (
        # What SciPy raises depends on the byte that is wrong.
        *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError),
        *(OSError, TypeError, ValueError, struct.error, zlib.error, MatReadError),
    ) as error:
        raise DataError(
            f"{path} is damaged: it is no MATLAB 5 file that can be read ({brief(error)}); "
            "delete it"
        ) from error
    return found
