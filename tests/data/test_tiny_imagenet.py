import pytest
import torch

from nestling.data import load
from nestling.errors import DataError


def test_its_own_layout_is_that_of_folders(tiny, tmp_path):
    dataset = load("tiny-imagenet", tiny)
    assert dataset.name == "tiny-imagenet"
    assert dataset.shape == (3, 64, 64)
    assert dataset.classes == ("n01", "n02", "n03")
    assert dataset.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    shown = torch.cat([images for images, _ in dataset.test_batches(5)])[:, 0, 0, 0]
    reds = (shown * 0.229 + 0.485) * 255
    # val_0 to val_11 by their names: 0, 1, 10, 11, 2 ...; each class has four after the other.
    numbers = sorted(range(12), key=str)
    assert reds.round().tolist() == [150 + 6 * number for number in numbers]
    assert dataset.test.labels.tolist() == [number // 4 for number in numbers]


def test_test_pictures_may_be_sorted_into_folders(tiny):
    (tiny / "val" / "val_annotations.txt").unlink()
    files = sorted((tiny / "val" / "images").iterdir(), key=lambda path: int(path.stem[4:]))
    for number, file in enumerate(files):
        name = f"n0{number // 4 + 1}"
        inner = tiny / "val" / name / ("images" if number < 4 else "")
        inner.mkdir(parents=True, exist_ok=True)
        file.rename(inner / file.name)
    (tiny / "val" / "images").rmdir()
    dataset = load("tiny-imagenet", tiny)
    assert dataset.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_it_may_be_one_of_many_in_a_folder(tiny):
    (tiny / "tiny-imagenet-200").mkdir()
    for part in ("train", "val"):
        (tiny / part).rename(tiny / "tiny-imagenet-200" / part)
    assert len(load("tiny-imagenet", tiny).labels) == 36


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["val_0.JPEG\tn04\t0"], r"line 1 of .*val_annotations.txt must name .* not 'val_0.JPEG"),
        (["val_0.JPEG\tn01\t0", "val_99.JPEG\tn01"], r"line 2 of .*, not 'val_99.JPEG\\tn01'"),
        (["val_0.JPEG n01"], "line 1 of"),
        ([""], "line 1 of"),
        (
            ["val_0.JPEG\tn01\t0"],
            "a line for every picture, but 11 have none, such as 'val_1.JPEG'",
        ),
    ],
)
def test_damaged_annotations_are_refused(tiny, lines, message):
    (tiny / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message):
        load("tiny-imagenet", tiny)


def test_no_test_pictures_are_refused(tiny):
    for path in (tiny / "val" / "images").iterdir():
        path.unlink()
    (tiny / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(DataError, match="val/images holds no pictures"):
        load("tiny-imagenet", tiny)
