"""Fashion-MNIST: 60,000 training and 10,000 test pictures of 28 x 28 pixels in grey, ten classes.

Read from IDX files, plain or gzipped: a big-endian header (magic number, sizes), then bytes.

Source: H. Xiao, K. Rasul and R. Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms", https://github.com/zalandoresearch/fashion-mnist
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from nestling.data.batches import Augmentation
from nestling.data.dataset import Part
from nestling.data.download import Remote, found_or_fetched
from nestling.data.memory import MemoryDataset
from nestling.errors import DataError

ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)
IMAGES_MAGIC, LABELS_MAGIC = 0x0803, 0x0801  # bytes; three dimensions, one dimension


def read(folder: Path, *, download: bool) -> MemoryDataset:
    """Read Fashion-MNIST from `folder/FashionMNIST/raw`, fetching the files that are absent.

    Shorter files than the canonical ones are fine as long as they are whole.

    Raises:
        DataError: files are absent and cannot be fetched, or are damaged.
    """
    raw = folder / "FashionMNIST" / "raw"
    paths = {name: find_file(raw, name, download=download) for name in MD5}
    train = read_part(paths["train-images-idx3-ubyte"], paths["train-labels-idx1-ubyte"])
    test = read_part(paths["t10k-images-idx3-ubyte"], paths["t10k-labels-idx1-ubyte"])
    return MemoryDataset(
        name="fashion-mnist",
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        mean=(0.2860,),
        std=(0.3530,),
        classes=CLASSES,
        augment=Augmentation(pad=4, flip=True),
    )


def find_file(raw: Path, name: str, *, download: bool) -> Path:
    """Return the path of a file, plain or else gzipped, fetching it if neither is there.

    Raises:
        DataError: it is absent and cannot be fetched.
    """
    plain, packed = raw / name, raw / f"{name}.gz"
    remote = Remote(address=ADDRESS + packed.name, md5=MD5[name])
    return found_or_fetched("fashion-mnist", [plain, packed], remote, download=download)


def read_part(images_path: Path, labels_path: Path) -> Part:
    """Read pictures, uint8 (N, 1, 28, 28), and their labels, int64 (N,).

    Raises:
        DataError: a file is damaged, the two do not fit, or a label is above 9.
    """
    images = read_idx(images_path, magic=IMAGES_MAGIC)
    labels = read_idx(labels_path, magic=LABELS_MAGIC).to(torch.int64)
    if images.shape[1:] != (28, 28):
        raise DataError(
            f"{images_path} is damaged: its pictures are of {tuple(images.shape[1:])} pixels, "
            "expected (28, 28)"
        )
    if len(labels) != len(images):
        raise DataError(
            f"{labels_path} has {len(labels)} labels, expected {len(images)}, as many as there are "
            f"pictures in {images_path}; one of the two is damaged"
        )
    if labels.max() >= len(CLASSES):
        raise DataError(
            f"{labels_path} is damaged: it has a label {int(labels.max())}, expected 0 to 9"
        )
    return Part(images.unsqueeze(1), labels)


def read_idx(path: Path, *, magic: int) -> Tensor:
    """Read an IDX file of bytes into a uint8 tensor of the shape that its header states.

    Args:
        path: the file; it is unpacked on the way if its name ends in `.gz`.
        magic: the number it must start with; the last byte is the number of dimensions.

    Raises:
        DataError: another magic number, no pictures, another length than stated, or bad gzip data.

    Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST Database", file formats.
    """
    try:
        packed = path.read_bytes()
        content = bytearray(gzip.decompress(packed) if path.suffix == ".gz" else packed)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: it does not unpack ({error}); delete it") from error
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    if len(content) < header:
        raise DataError(
            f"{path} is damaged: it has {len(content)} bytes, expected {header} or more"
        )
    found, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
    if found != magic:
        raise DataError(f"{path} starts with the magic number {found}, expected {magic}")
    expected = header + math.prod(shape)
    if len(content) != expected or expected == header:
        raise DataError(
            f"{path} is damaged: it has {len(content)} bytes, expected {max(expected, header + 1)} "
            f"for its stated shape {tuple(shape)}"
        )
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(shape)
