import multiprocessing
import os
import signal
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from nestling.data import Framing, Part, load
from nestling.data.files import PictureFiles, _end_processes, usable_workers
from nestling.data.folder import FolderDataset
from nestling.errors import DataError

TRAIN, TEST = list(range(6, 150, 6)), list(range(150, 222, 6))  # reds, eight and four a class

# Of two processes: torch warns where there is one core, Python 3.12 of forks beside threads.
processes = pytest.mark.filterwarnings(
    "ignore:This DataLoader will", "ignore:.*fork:DeprecationWarning"
)


def label_of(red):
    return (red // 6 - 1) // 8 if red < 150 else (red // 6 - 25) // 4


@pytest.fixture
def dataset(imagenet):
    return plain(load("imagenet", imagenet))


def plain(dataset, workers=0):
    """Small pictures whose batches hold the pixels themselves."""
    files = replace(dataset.files, framing=Framing(size=16, resize=16), workers=workers)
    return replace(dataset, files=files, mean=(0.0,) * 3, std=(1 / 255,) * 3)


def reds_of(batches):
    return [int(red) for images, _ in batches for red in images[:, 0, 8, 8].round()]


def pixels_of(batches):
    return torch.cat([images for images, _ in batches])


def test_test_batches_hold_each_picture_once_in_order_with_its_label(dataset):
    assert dataset.shape == (3, 16, 16)
    assert reds_of(dataset.test_batches(5)) == TEST
    labels = torch.cat([labels for _, labels in dataset.test_batches(5)])
    assert labels.tolist() == [label_of(red) for red in TEST]
    assert [len(labels) for _, labels in dataset.test_batches(5)] == [5, 5, 2]
    images, labels = next(iter(dataset.test_batches(5)))
    assert images.shape == (5, 3, 16, 16)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_train_batches_hold_each_picture_once_in_another_order_each_epoch(dataset):
    batches = dataset.train_batches(5)
    first, second = reds_of(batches), reds_of(batches)
    assert batches.epoch == 2
    assert sorted(first) == sorted(second) == TRAIN
    assert first != second != TRAIN
    for images, labels in batches:
        assert labels.tolist() == [label_of(int(red)) for red in images[:, 0, 8, 8].round()]


@pytest.mark.parametrize("augment", [False, True])
def test_only_training_varies_the_pictures(dataset, augment):
    batches = dataset.train_batches(24, augment=augment)
    in_order = [
        images[images[:, 0, 8, 8].argsort()] for images in map(pixels_of, (batches, batches))
    ]
    assert torch.equal(*in_order) != augment
    assert torch.equal(in_order[0], pixels_of(dataset.test_batches(9, dataset.train))) != augment
    assert len({tuple(picture.flatten().tolist()) for picture in in_order[0]}) == 24


def test_normalisation_is_that_of_the_data_set(dataset):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    changed = pixels_of(replace(dataset, mean=mean, std=std).test_batches(5))
    pixels = pixels_of(dataset.test_batches(5)).double() / 255
    expected = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(changed.double(), expected, rtol=1e-5, atol=1e-5)


@processes
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_epoch_alone(dataset, imagenet, workers):
    torch.manual_seed(0)
    whole = list(dataset.train_batches(5, seed=3).at(7))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches = plain(load("imagenet", imagenet), workers).train_batches(5, seed=3)
    for start in (0, 2, 4, 5):
        rest = list(batches.at(7, start=start))
        assert len(rest) == 5 - start
        for (images, labels), (wanted, classes) in zip(rest, whole[start:], strict=True):
            assert torch.equal(images, wanted)
            assert torch.equal(labels, classes)
    assert torch.equal(torch.get_rng_state(), before)
    assert batches.epoch == 8
    others = [(3, 8), (4, 7), (7, 3)]
    drawn = {tuple(reds_of(dataset.train_batches(5, seed).at(epoch))) for seed, epoch in others}
    assert len(drawn | {tuple(reds_of(whole))}) == 4


def test_a_later_start_does_not_read_the_earlier_pictures(dataset, monkeypatch):
    read, numbers = PictureFiles.read, []

    def noting(files, number, generator):
        numbers.append(number)
        return read(files, number, generator)

    monkeypatch.setattr(PictureFiles, "read", noting)
    list(dataset.test_batches(5).at(0, start=2))
    assert numbers == [34, 35]
    numbers.clear()
    list(islice(dataset.test_batches(5), 1))
    assert numbers == [24, 25, 26, 27, 28]


def test_split_keeps_classes_and_its_parts_are_of_the_training_pictures(dataset):
    train, held_out = dataset.split(6, seed=1)
    assert held_out.labels.tolist() == [0, 0, 1, 1, 2, 2]
    kept, chosen = (
        reds_of(dataset.train_batches(4, part=train)),
        reds_of(dataset.test_batches(4, held_out)),
    )
    assert len(chosen) == 6
    assert [label_of(red) for red in chosen] == held_out.labels.tolist()
    assert sorted(kept + chosen) == TRAIN
    assert torch.equal(dataset.split(6, seed=1)[1].images, held_out.images)
    assert not torch.equal(dataset.split(6, seed=2)[1].images, held_out.images)
    with pytest.raises(DataError, match="cannot hold out 24 of 24 pictures"):
        dataset.split(24)


def test_full_batches_of_a_part(dataset):
    train, _ = dataset.split(6)
    batches = dataset.train_batches(5, part=train, drop_last=True)
    assert [len(labels) for _, labels in batches] == [5, 5, 5]
    with pytest.raises(DataError, match="cannot hold 19 pictures: give 1 to 18"):
        dataset.train_batches(19, part=train, drop_last=True)


@processes
@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_in_memory_are_those_of_evaluation(dataset, monkeypatch, workers):
    monkeypatch.setattr("nestling.data.files.CHUNK", 4)
    dataset = plain(dataset, workers)
    _, held_out = dataset.split(6)
    ready = dataset.in_memory(held_out)
    assert ready.images.dtype == torch.uint8
    expected = list(dataset.test_batches(4, held_out))
    monkeypatch.setattr(PictureFiles, "read", None)
    assert dataset.in_memory(ready) is ready
    for (images, labels), (wanted, classes) in zip(
        dataset.test_batches(4, ready), expected, strict=True
    ):
        assert torch.equal(images, wanted)
        assert torch.equal(labels, classes)
    with pytest.raises(DataError, match="part= holds pixels that are framed already"):
        dataset.train_batches(4, part=ready)


def test_layout_reaches_the_batches(dataset):
    layout = torch.channels_last
    for batches in (
        dataset.train_batches(4, memory_format=layout),
        dataset.test_batches(4, memory_format=layout),
        dataset.test_batches(4, dataset.in_memory(dataset.test), memory_format=layout),
    ):
        assert next(iter(batches))[0].is_contiguous(memory_format=layout)


def test_batches_come_on_the_device_of_the_data_set(dataset):
    """The meta device stands for a GPU: what it computes is nothing, but it is not the CPU."""
    moved = dataset.to("meta")
    ready = moved.in_memory(moved.split(6)[1])
    for batches in (
        moved.train_batches(4),
        moved.test_batches(4),
        moved.test_batches(4, ready),
    ):
        for images, labels in batches:
            assert images.device.type == labels.device.type == "meta"
            assert len(images) == len(labels)
    assert reds_of(moved.to("cpu").test_batches(5)) == TEST


@processes
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_named_and_the_batches_before_it_come(dataset, imagenet, workers):
    (imagenet / "val" / "n03" / "n03_1.JPEG").write_bytes(b"noise")
    running = iter(plain(dataset, workers).test_batches(3))
    seen = []
    with pytest.raises(DataError, match=r"val/n03/n03_1.JPEG is damaged: it is no picture; put"):
        seen.extend(reds_of([batch])[0] for batch in running)
    assert seen == TEST[:9:3]


@processes
def test_a_process_that_is_ended_is_one_clear_error(dataset, monkeypatch):
    main, read = os.getpid(), PictureFiles.read

    def ending(files, number, generator):
        if number == 33 and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(files, number, generator)

    monkeypatch.setattr(PictureFiles, "read", ending)
    with pytest.raises(DataError, match="read by 2 processes, but one of them has ended"):
        list(plain(dataset, 2).test_batches(3))


@processes
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_to_all_processes_leaves_the_batches_coming(dataset, monkeypatch, times):
    main, read = os.getpid(), PictureFiles.read

    def interrupted(files, number, generator):
        if os.getpid() != main and number in (24, 27):  # the first that each process reads
            for stop in [signal.SIGINT, signal.SIGTERM] * times:
                os.kill(os.getpid(), stop)
                time.sleep(0.01)
        return read(files, number, generator)

    monkeypatch.setattr(PictureFiles, "read", interrupted)
    batches = plain(dataset, 2).test_batches(3)
    if times == 1:
        assert reds_of(batches) == TEST
    else:
        with pytest.raises(DataError, match="one of them has ended"):
            list(batches)


@processes
def test_an_epoch_left_half_way_leaves_no_process_at_the_end(dataset):
    running = iter(plain(dataset, 2).test_batches(3))
    next(running)
    assert len(multiprocessing.active_children()) == 2
    _end_processes()
    assert multiprocessing.active_children() == []


def test_as_many_processes_as_cores_read(monkeypatch, imagenet):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert load("imagenet", imagenet).files.workers == usable_workers() == 6
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(600)), raising=False)
    assert usable_workers() == 16


def part(images, labels=(0, 0)):
    return Part(torch.tensor(images), torch.tensor(labels))


@pytest.mark.parametrize(
    "wrong",
    [
        part([0, 36]),
        part([-1, 0]),
        part([0, 1, 2]),
        part([[0], [1]]),
        part([0.0, 1.0]),
        Part(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64)),
        Part(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 0])),
    ],
    ids=str,
)
def test_a_part_of_something_else_is_refused(dataset, wrong):
    for use in (
        lambda: dataset.train_batches(2, part=wrong),
        lambda: dataset.test_batches(2, wrong),
        lambda: dataset.in_memory(wrong),
    ):
        with pytest.raises(DataError, match="holds the numbers of pictures, int64 from 0 to 35"):
            use()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.zeros(35, dtype=torch.int64)}, r"int64 of shape \(36,\), .* \(35,\)"),
        ({"labels": torch.zeros(36)}, "not torch.float32"),
        ({"trained": 0}, "on, not 0 and 36"),
        ({"trained": 36}, "on, not 36 and 0"),
        ({"mean": (0.5,)}, "3 channels need 3 means"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(dataset, changes, message):
    with pytest.raises(DataError, match=message):
        replace(dataset, **changes)


def test_representation_is_short(dataset):
    assert len(repr(dataset)) < 400
    assert isinstance(dataset, FolderDataset)
    assert dataset.files.names.dtype.kind == "S"
    assert np.array_equal(dataset.labels, [label_of(red) for red in TRAIN + TEST])
