import numpy as np
import pytest
import torch

from nestling.data import Augmentation, load
from nestling.errors import DataError

FILES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


@pytest.fixture
def rows(tmp_path):
    """The content of six small files: a label and 3,072 pixels in each of 20 rows."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    content = np.random.default_rng(0).integers(0, 256, (6, 20, 3073), dtype=np.uint8)
    content[:, :, 0] %= 10
    for file, part in zip(FILES, content, strict=True):
        (folder / file).write_bytes(part.tobytes())
    return content


def damaged(tmp_path):
    return tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"


def test_small_files_load(rows, tmp_path):
    dataset = load("cifar10", tmp_path, download=False)
    assert dataset.name == "cifar10"
    assert dataset.train_images.shape == (100, 3, 32, 32)
    assert dataset.test_images.shape == (20, 3, 32, 32)
    assert dataset.train_images.is_contiguous()
    assert dataset.test_images.is_contiguous()
    train, test = rows[:5].reshape(100, 3073), rows[5]
    for part, content in ((dataset.train, train), (dataset.test, test)):
        assert part.labels.tolist() == content[:, 0].tolist()
        # The format: 1,024 red, 1,024 green and 1,024 blue bytes, each row by row.
        assert part.images[7, 1, 2, 3] == content[7, 1 + 1024 + 2 * 32 + 3]
        assert part.images.flatten(1).tolist() == content[:, 1:].tolist()
    assert dataset.augment == Augmentation(pad=4, flip=True)
    assert len(dataset.classes) == 10
    assert next(iter(dataset.train_batches(10)))[0].dtype == torch.float32


def test_present_files_are_not_fetched(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("nestling.data.cifar.fetch_archive", None)
    assert len(load("cifar10", tmp_path).test_labels) == 20


@pytest.mark.parametrize("download", [False, True])
def test_a_missing_file_is_named_and_the_others_are_left_alone(rows, tmp_path, download):
    damaged(tmp_path).unlink()
    with pytest.raises(DataError, match=r"cifar10 \(data_batch_3.bin\) is not in .*-bin"):
        load("cifar10", tmp_path, download=download)
    assert len(list((tmp_path / "cifar-10-batches-bin").iterdir())) == 5


def test_a_missing_folder_is_an_error_with_ways_out(tmp_path):
    with pytest.raises(DataError) as caught:
        load("cifar10", tmp_path, download=False)
    for words in (
        "data_batch_1.bin",
        f"is not in {tmp_path / 'cifar-10-batches-bin'}",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz by hand",
        f"unpack it in {tmp_path}",
        "--data-dir",
        "NESTLING_DATA",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("size", [0, 3072, 2 * 3073 + 1])
def test_a_size_of_no_whole_rows_is_refused(rows, tmp_path, size):
    damaged(tmp_path).write_bytes(bytes(size))
    with pytest.raises(DataError, match=f"data_batch_3.bin .* {size} bytes, .* multiple of 3073"):
        load("cifar10", tmp_path)


def test_a_label_above_nine_is_refused(rows, tmp_path):
    rows[2, 11, 0] = 10
    damaged(tmp_path).write_bytes(rows[2].tobytes())
    with pytest.raises(DataError, match=r"data_batch_3.bin .* a label 10, expected 0 to 9"):
        load("cifar10", tmp_path)
