import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from nestling.data import Augmentation, fashion_mnist, load
from nestling.errors import DataError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def make_content(shape, magic, *, below=256):
    values = np.random.default_rng(0).integers(0, below, shape, dtype=np.uint8)
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + values.tobytes()


@pytest.fixture
def contents():
    """Two small parts of 20 and 12 pictures."""
    return {
        f"{part}-{name}": content
        for part, count in (("train", 20), ("t10k", 12))
        for name, content in (
            ("images-idx3-ubyte", make_content((count, 28, 28), 2051)),
            ("labels-idx1-ubyte", make_content((count,), 2049, below=10)),
        )
    }


@pytest.fixture
def raw(contents, tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def remote(contents, tmp_path, monkeypatch):
    """The small parts at a `file://` address, gzipped, with their sums."""
    folder = tmp_path / "remote"
    folder.mkdir()
    for name, content in contents.items():
        packed = gzip.compress(content, mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)
        monkeypatch.setitem(fashion_mnist.MD5, name, hashlib.md5(packed).hexdigest())
    monkeypatch.setattr(fashion_mnist, "ADDRESS", f"file://{folder}/")
    return folder


def check(dataset, contents):
    for part, name, count in ((dataset.train, "train", 20), (dataset.test, "t10k", 12)):
        assert part.images.shape == (count, 1, 28, 28)
        assert part.images.dtype == torch.uint8
        pixels = contents[f"{name}-images-idx3-ubyte"][16:]
        assert bytes(part.images.flatten().tolist()) == pixels
        assert bytes(part.labels.tolist()) == contents[f"{name}-labels-idx1-ubyte"][8:]


def test_plain_files_load(raw, contents, tmp_path):
    dataset = load("fashion-mnist", tmp_path, download=False)
    check(dataset, contents)
    assert dataset.name == "fashion-mnist"
    assert dataset.augment == Augmentation(pad=4, flip=True)
    assert len(dataset.classes) == 10


def test_gzipped_files_load(raw, contents, tmp_path):
    for name, content in contents.items():
        (raw / name).unlink()
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    check(load("fashion-mnist", tmp_path, download=False), contents)


def test_absent_files_are_fetched_once(remote, contents, tmp_path):
    check(load("fashion-mnist", tmp_path / "new"), contents)
    for path in remote.iterdir():
        path.unlink()
    check(load("fashion-mnist", tmp_path / "new"), contents)


def test_only_the_absent_files_are_fetched(raw, remote, contents, tmp_path):
    (raw / TRAIN_LABELS).unlink()
    check(load("fashion-mnist", tmp_path), contents)
    assert [path.name for path in raw.glob("*.gz")] == [f"{TRAIN_LABELS}.gz"]


@pytest.mark.parametrize("download", [False, True])
def test_a_missing_file_is_an_error_with_ways_out(raw, remote, tmp_path, download):
    (raw / TRAIN_LABELS).unlink()
    (remote / f"{TRAIN_LABELS}.gz").unlink()
    with pytest.raises(DataError) as caught:
        load("fashion-mnist", tmp_path, download=download)
    message = str(caught.value)
    assert ("could not be fetched" in message) == download
    for words in (
        f"fashion-mnist ({TRAIN_LABELS}) is not in {raw}",
        f"{remote}/{TRAIN_LABELS}.gz by hand",
        f"put it in {raw}",
        "--data-dir",
        "NESTLING_DATA",
    ):
        assert words in message


def images_of(*shape, magic=2051):
    return make_content(shape, magic)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TRAIN_IMAGES, images_of(20, 28, 28, magic=2049), "magic number 2049, expected 2051"),
        (TRAIN_LABELS, make_content((20,), 2051), "magic number 2051, expected 2049"),
        (TRAIN_IMAGES, b"\0" * 15, "has 15 bytes, expected 16 or more"),
        (TRAIN_IMAGES, images_of(20, 28, 28)[:-1], "has 15695 bytes, expected 15696"),
        (TRAIN_LABELS, make_content((20,), 2049) + b"\0", "has 29 bytes, expected 28"),
        (TRAIN_IMAGES, images_of(0, 28, 28), r"has 16 bytes, expected 17 .* \(0, 28, 28\)"),
        (TRAIN_IMAGES, images_of(20, 28, 27), r"of \(28, 27\) pixels, expected \(28, 28\)"),
        (TRAIN_LABELS, make_content((19,), 2049, below=10), "has 19 labels, expected 20"),
        (TRAIN_LABELS, struct.pack(">2I", 2049, 20) + b"\x0a" * 20, "a label 10, expected 0 to 9"),
    ],
)
def test_a_damaged_file_is_refused(raw, tmp_path, name, content, message):
    (raw / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load("fashion-mnist", tmp_path, download=False)
    assert str(raw / name) in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "other", "flipped"])
def test_a_damaged_gzip_file_is_refused(raw, contents, tmp_path, damage):
    packed = gzip.compress(contents[TRAIN_IMAGES])
    middle = len(packed) // 2
    content = {
        "cut": packed[:middle],
        "other": b"<html>not found</html>",
        "flipped": packed[:10] + bytes(byte ^ 0xFF for byte in packed[10:]),
    }[damage]
    (raw / TRAIN_IMAGES).unlink()
    path = raw / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="does not unpack") as caught:
        load("fashion-mnist", tmp_path, download=False)
    assert str(path) in str(caught.value)
