import hashlib

import numpy as np
import pytest
import torch
from scipy.io import savemat

from nestling.data import load, svhn
from nestling.errors import DataError

FILES = {"train_32x32.mat": 30, "test_32x32.mat": 20}


def make_content(count):
    generator = np.random.default_rng(count)
    digits = np.arange(1, count + 1, dtype=np.uint8)[:, None] % 10 + 1
    return {
        "X": generator.integers(0, 256, (32, 32, 3, count), dtype=np.uint8),
        "y": digits.astype(np.float64),  # as the authors' files have them
    }


@pytest.fixture
def contents(tmp_path):
    (tmp_path / "SVHN").mkdir()
    made = {name: make_content(count) for name, count in FILES.items()}
    for name, content in made.items():
        savemat(tmp_path / "SVHN" / name, content, do_compression=True)
    return made


def test_small_files_load(contents, tmp_path):
    dataset = load("svhn", tmp_path, download=False)
    assert dataset.name == "svhn"
    assert dataset.augment is None
    for part, content in zip((dataset.train, dataset.test), contents.values(), strict=True):
        count = len(content["y"])
        assert part.images.shape == (count, 3, 32, 32)
        assert part.images.is_contiguous()
        for picture, channel, row, column in ((0, 0, 0, 0), (7, 2, 3, 31), (count - 1, 1, 30, 4)):
            pixel = content["X"][row, column, channel, picture]
            assert part.images[picture, channel, row, column] == pixel
        shown = [dataset.classes[label] for label in part.labels]
        assert shown == [str(int(digit)).replace("10", "0") for digit in content["y"][:, 0]]
    assert torch.equal(dataset.train.labels.bincount(), torch.full((10,), 3))


def test_absent_files_are_fetched_once(contents, tmp_path, monkeypatch):
    for name in FILES:
        packed = (tmp_path / "SVHN" / name).read_bytes()
        monkeypatch.setitem(svhn.MD5, name, hashlib.md5(packed).hexdigest())
    monkeypatch.setattr(svhn, "ADDRESS", f"file://{tmp_path}/SVHN/")
    assert len(load("svhn", tmp_path / "new").train.labels) == 30
    monkeypatch.setattr(svhn, "ADDRESS", "file:///nowhere/")
    assert len(load("svhn", tmp_path / "new").test.labels) == 20


@pytest.mark.parametrize("download", [False, True])
def test_a_missing_file_is_an_error_with_ways_out(contents, tmp_path, monkeypatch, download):
    monkeypatch.setattr(svhn, "ADDRESS", "file:///nowhere/")
    (tmp_path / "SVHN" / "test_32x32.mat").unlink()
    with pytest.raises(DataError) as caught:
        load("svhn", tmp_path, download=download)
    assert ("could not be fetched" in str(caught.value)) == download
    for words in (
        f"svhn (test_32x32.mat) is not in {tmp_path / 'SVHN'}",
        "fetch file:///nowhere/test_32x32.mat by hand and put it in",
        "--data-dir",
    ):
        assert words in str(caught.value)


def other(**changes):
    return make_content(4) | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (other(X=np.zeros((32, 32, 3, 4))), r"its X is float64 of shape \(32, 32, 3, 4\)"),
        (other(X=np.zeros((32, 3, 32, 4), np.uint8)), r"of shape \(32, 3, 32, 4\), expected uint8"),
        (other(y=np.ones((3, 1))), r"its y is float64 of shape \(3, 1\), .* shape \(4, 1\)"),
        (other(y=np.zeros((4, 1))), r"numbers from 1 to 10, not \[0.0\]"),
        (other(y=np.full((4, 1), 1.5)), r"numbers from 1 to 10, not \[1.5\]"),
        (other(y=np.full((4, 1), np.nan)), r"numbers from 1 to 10, not \[nan\]"),
        ({"y": np.ones((4, 1))}, "its X is object of shape"),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8)}, "its y is object of shape"),
    ],
)
def test_a_file_of_something_else_is_refused(contents, tmp_path, content, message):
    savemat(tmp_path / "SVHN" / "train_32x32.mat", content)
    with pytest.raises(DataError, match=message) as caught:
        load("svhn", tmp_path)
    assert str(tmp_path / "SVHN" / "train_32x32.mat") in str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 100, 128, 200, 5000])
def test_a_file_cut_short_is_refused(contents, tmp_path, kept):
    path = tmp_path / "SVHN" / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"train_32x32.mat is damaged: "):
        load("svhn", tmp_path)


def test_no_flipped_byte_ends_in_a_traceback(contents, tmp_path):
    path = tmp_path / "SVHN" / "train_32x32.mat"
    whole, refused = path.read_bytes(), 0
    for place in [*range(0, 300, 7), *range(300, len(whole), len(whole) // 20)]:
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load("svhn", tmp_path)
        except DataError:
            refused += 1
    assert refused > 20
