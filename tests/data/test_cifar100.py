import numpy as np
import pytest
import torch

from nestling.data import Augmentation, load
from nestling.errors import DataError


@pytest.fixture
def rows(tmp_path):
    """The content of two small files: two labels and 3,072 pixels in each of 40 and 10 rows."""
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    content = np.random.default_rng(0).integers(0, 256, (50, 3074), dtype=np.uint8)
    content[:, 0] %= 20
    content[:, 1] %= 100
    (folder / "train.bin").write_bytes(content[:40].tobytes())
    (folder / "test.bin").write_bytes(content[40:].tobytes())
    return content


def test_small_files_load(rows, tmp_path):
    dataset = load("cifar100", tmp_path, download=False)
    assert dataset.name == "cifar100"
    for part, content in ((dataset.train, rows[:40]), (dataset.test, rows[40:])):
        assert part.images.shape == (len(content), 3, 32, 32)
        assert part.images.is_contiguous()
        # The format: the superclass, the class, then 1,024 bytes of each colour, row by row.
        assert part.labels.tolist() == content[:, 1].tolist()
        assert part.images[7, 2, 3, 4] == content[7, 2 + 2 * 1024 + 3 * 32 + 4]
        assert torch.equal(part.images.flatten(1), torch.from_numpy(content[:, 2:]))
    assert dataset.augment == Augmentation(pad=4, flip=True)


def test_there_are_a_hundred_classes_in_the_order_of_their_labels(rows, tmp_path):
    classes = load("cifar100", tmp_path).classes
    assert len(set(classes)) == 100
    assert list(classes) == sorted(classes)  # as the authors have numbered them
    assert (classes[1], classes[58], classes[99]) == ("aquarium_fish", "pickup_truck", "worm")


def test_missing_files_are_named(rows, tmp_path):
    (tmp_path / "cifar-100-binary" / "test.bin").unlink()
    with pytest.raises(DataError, match=r"cifar100 \(test.bin\) is not in .*-binary; fetch https"):
        load("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(3073), "train.bin .* 3073 bytes, .* multiple of 3074"),
        (b"\x00\x64" + bytes(3072), "train.bin .* a label 100, expected 0 to 99"),
    ],
)
def test_a_damaged_file_is_refused(rows, tmp_path, content, message):
    (tmp_path / "cifar-100-binary" / "train.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load("cifar100", tmp_path)
