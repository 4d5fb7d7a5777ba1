import shutil

import pytest

from nestling.data import Framing, load
from nestling.errors import DataError

CLASSES = ("n01", "n02", "n03")


def files_of(dataset):
    return [bytes(name).decode() for name in dataset.files.names]


def test_imagenet_is_listed(imagenet):
    dataset = load("imagenet", imagenet)
    assert dataset.name == "imagenet"
    assert dataset.classes == CLASSES
    assert dataset.shape == (3, 224, 224)
    assert dataset.files.framing == Framing(size=224, resize=256)
    files = files_of(dataset)
    assert len(files) == 36
    assert files[:2] == ["train/n01/n01_0.JPEG", "train/n01/n01_1.JPEG"]
    assert files[24] == "val/n01/n01_0.JPEG"
    for file, label in zip(files, dataset.labels.tolist(), strict=True):
        assert file.split("/")[1] == CLASSES[label]
    images, _ = next(iter(dataset.test_batches(2)))
    assert images.shape == (2, 3, 224, 224)


def test_it_may_be_one_of_many_in_a_folder(imagenet, monkeypatch):
    (imagenet / "imagenet").mkdir()
    for part in ("train", "val"):
        (imagenet / part).rename(imagenet / "imagenet" / part)
    monkeypatch.setenv("NESTLING_DATA", str(imagenet))
    assert len(load("imagenet").labels) == 36


@pytest.mark.parametrize("name", ["imagenet", "tiny-imagenet"])
@pytest.mark.parametrize("absent", ["train", "val"])
def test_a_missing_folder_is_an_error_with_ways_out(imagenet, name, absent):
    shutil.rmtree(imagenet / absent)
    with pytest.raises(DataError) as caught:
        load(name, imagenet)
    for words in (
        f"data set {name} is not in {imagenet}",
        "train/CLASS/*.JPEG",
        "not fetched for you; get it from http",
        "--data-dir",
        "NESTLING_DATA",
    ):
        assert words in str(caught.value)


def empty_class(folder):
    for file in (folder / "train" / "n02").iterdir():
        file.unlink()
    return r"train/n02 must hold pictures \(.jpeg, .jpg, .*\), but it has none"


def no_train_classes(folder):
    for name in CLASSES:
        shutil.rmtree(folder / "train" / name)
    return "train must hold a folder for each class, but it has none"


def no_val_classes(folder):
    for name in CLASSES:
        shutil.rmtree(folder / "val" / name)
    return "val must hold a folder for each class, but it has none; sort its pictures"


def other_class(folder):
    (folder / "val" / "n02").rename(folder / "val" / "n022")
    return "val/n022 is of no class; did you mean 'n02'.*the classes are the 3 folders of"


@pytest.mark.parametrize("damage", [empty_class, no_train_classes, no_val_classes, other_class])
def test_pictures_that_are_not_sorted_are_refused(imagenet, damage):
    message = damage(imagenet)
    with pytest.raises(DataError, match=message):
        load("imagenet", imagenet)


def test_a_class_may_have_no_test_picture(imagenet):
    shutil.rmtree(imagenet / "val" / "n02")
    assert load("imagenet", imagenet).test.labels.tolist() == [0] * 4 + [2] * 4


def test_without_pillow_it_says_what_to_install(imagenet, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"imagenet needs Pillow.*pip install 'nestling\[images\]'"):
        load("imagenet", imagenet)
