from pathlib import Path

import pytest
import torch

from nestling import data
from nestling.errors import DataError


@pytest.fixture
def asked(monkeypatch):
    """The folders that a stand-in for cifar10's reader is asked to look in."""
    folders = []

    def read(folder, *, download):
        folders.append((folder, download))
        return "a data set"

    monkeypatch.setattr("nestling.data.cifar10.read", read)
    monkeypatch.delenv("NESTLING_DATA", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    return folders


def test_names_are_the_files_that_read_a_data_set():
    assert data.names() == (
        *("cifar10", "cifar100", "digits", "fashion-mnist"),
        *("imagenet", "svhn", "tiny-imagenet"),
    )


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("cifar-10", "cifar10"), ("fashion_mnist", "fashion-mnist"), ("download", None)],
)
def test_an_unknown_name_is_refused(name, suggestion):
    with pytest.raises(DataError, match=f"unknown data set '{name}'.*choose one of") as caught:
        data.load(name)
    assert (f"did you mean {suggestion!r}?" in str(caught.value)) == (suggestion is not None)


def test_the_folder_is_the_argument_else_the_variable_else_the_cache(asked, monkeypatch):
    data.load("cifar10", download=False)
    monkeypatch.setenv("NESTLING_DATA", "~/sets")
    data.load("cifar10")
    data.load("cifar10", "/given")
    data.load("cifar10", Path("/given/too"), download=False)
    assert asked == [
        (Path("/home/someone/.cache/nestling/data"), False),
        (Path("/home/someone/sets"), True),
        (Path("/given"), True),
        (Path("/given/too"), False),
    ]


def test_a_data_set_loads_the_same_each_time():
    digits = data.load("digits")
    assert digits.name == "digits"
    assert torch.equal(digits.train_images, data.load("digits").train_images)
