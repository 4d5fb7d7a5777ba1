from dataclasses import replace

import pytest
import torch

from nestling.data.batches import Augmentation
from nestling.data.memory import MemoryDataset
from nestling.errors import DataError


def make_dataset(**changes):
    labels = torch.arange(60) % 3
    labels[:15] = 0  # classes of different sizes
    arguments = {
        "name": "made",
        "train_images": torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1).repeat(1, 1, 4, 4),
        "train_labels": labels,
        "test_images": torch.full((9, 1, 4, 4), 255, dtype=torch.uint8),
        "test_labels": torch.arange(9) % 3,
        "mean": (0.0,),
        "std": (1 / 255,),  # so that a batch holds the pixels themselves
        "classes": ("a", "b", "c"),
        "augment": Augmentation(flip=True),
    }
    return MemoryDataset(**arguments | changes)


def pictures_of(batches):
    images = torch.cat([images for images, _ in batches])
    return images[:, 0, 0, 0].round().int().tolist()


def test_split_parts_are_disjoint_and_complete_with_their_labels():
    dataset = make_dataset()
    train, held_out = dataset.split(20)
    kept, chosen = (part.images[:, 0, 0, 0].tolist() for part in (train, held_out))
    assert len(chosen) == 20
    assert kept == sorted(kept)
    assert chosen == sorted(chosen)
    assert sorted(kept + chosen) == list(range(60))
    for part in (train, held_out):
        numbers = part.images[:, 0, 0, 0].long()
        assert torch.equal(part.labels, dataset.train_labels[numbers])


@pytest.mark.parametrize("held_out", [1, 7, 20, 31, 59])
def test_split_keeps_the_share_of_each_class(held_out):
    dataset = make_dataset()
    _, part = dataset.split(held_out, seed=1)
    share = dataset.train_labels.bincount() * held_out / 60
    assert len(part.labels) == held_out
    assert (part.labels.bincount(minlength=3) - share).abs().max() < 1


def test_split_depends_on_its_seed_alone():
    dataset = make_dataset()
    first = dataset.split(20, seed=0)[1].images
    torch.manual_seed(77)
    assert torch.equal(dataset.split(20, seed=0)[1].images, first)
    assert not torch.equal(dataset.split(20, seed=1)[1].images, first)


@pytest.mark.parametrize("held_out", [-1, 0, 60, 61])
def test_split_with_an_empty_part_is_refused(held_out):
    with pytest.raises(DataError, match=f"cannot hold out {held_out} of 60 pictures: give 1 to 59"):
        make_dataset().split(held_out)


def test_train_batches_are_shuffled_and_test_batches_are_not():
    numbers = torch.arange(9, dtype=torch.uint8).view(9, 1, 1, 1).repeat(1, 1, 4, 4)
    dataset = make_dataset(test_images=numbers)
    shuffled = pictures_of(dataset.train_batches(7))
    assert shuffled != sorted(shuffled)
    assert sorted(shuffled) == list(range(60))
    assert shuffled == pictures_of(dataset.train_batches(7, seed=0))
    assert shuffled != pictures_of(dataset.train_batches(7, seed=1))
    assert pictures_of(dataset.test_batches(4)) == list(range(9))


def test_batches_of_parts():
    dataset = make_dataset()
    train, held_out = dataset.split(20)
    trained = pictures_of(dataset.train_batches(7, part=train))
    assert sorted(trained) == train.images[:, 0, 0, 0].tolist()
    assert pictures_of(dataset.test_batches(7, held_out)) == held_out.images[:, 0, 0, 0].tolist()


def test_train_batches_vary_the_pictures_only_where_asked():
    columns = torch.arange(4, dtype=torch.uint8).expand(60, 1, 4, 4).contiguous()
    dataset = make_dataset(train_images=columns)
    firsts = {augment: pictures_of(dataset.train_batches(7, augment=augment)) for augment in (0, 1)}
    assert set(firsts[0]) == {0}
    assert set(firsts[1]) == {0, 3}
    assert set(pictures_of(replace(dataset, augment=None).train_batches(7))) == {0}


def test_layout_and_drop_last_reach_the_batches():
    dataset = make_dataset(
        train_images=torch.zeros(60, 3, 4, 4, dtype=torch.uint8),
        test_images=torch.zeros(9, 3, 4, 4, dtype=torch.uint8),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    layout = torch.channels_last
    assert len(dataset.train_batches(7, drop_last=True)) == 8
    for batches in (
        dataset.train_batches(7, memory_format=layout),
        dataset.test_batches(7, memory_format=layout),
    ):
        assert next(iter(batches))[0].is_contiguous(memory_format=layout)


def test_full_batches_of_a_part():
    dataset = make_dataset()
    train, _ = dataset.split(20)
    batches = dataset.train_batches(7, part=train, drop_last=True)
    for epoch in range(2):
        drawn = [labels for _, labels in batches.at(epoch)]
        assert [len(labels) for labels in drawn] == [7] * 5
        shown = pictures_of(batches.at(epoch))
        assert len(set(shown)) == 35
        assert set(shown) <= set(train.images[:, 0, 0, 0].tolist())
        assert pictures_of(batches.at(epoch, start=3)) == shown[21:]


def test_on_a_device_there_are_the_same_pictures():
    dataset = make_dataset()
    moved = dataset.to("cpu")
    assert moved.shape == dataset.shape == (1, 4, 4)
    train, held_out = dataset.split(20, seed=3)
    for here, there in zip((train, held_out), moved.split(20, seed=3), strict=True):
        assert torch.equal(here.images, there.images)
        assert torch.equal(here.labels, there.labels)
        assert moved.in_memory(here) is here
    for here, there in (
        (dataset.train_batches(7, 1, part=train), moved.train_batches(7, 1, part=train)),
        (dataset.test_batches(7), moved.test_batches(7)),
    ):
        assert pictures_of(here) == pictures_of(there)


def test_pictures_move_with_the_data_set(monkeypatch):
    """Torch is asked to move what it must, as no other device is at hand that could show it."""
    asked, move = [], torch.Tensor.to

    def moving(tensor, *args, **kwargs):
        if args == ("elsewhere",):
            asked.append(tensor)
            return tensor.clone()
        return move(tensor, *args, **kwargs)

    dataset = make_dataset()
    monkeypatch.setattr(torch.Tensor, "to", moving)
    moved = dataset.to("elsewhere")
    held = [*dataset.train, *dataset.test]
    assert len(asked) == 4
    assert all(tensor is mine for tensor, mine in zip(asked, held, strict=True))
    assert all(new is not mine for new, mine in zip([*moved.train, *moved.test], held, strict=True))


def test_representation_is_short_and_comparison_is_by_identity():
    dataset = make_dataset()
    assert "tensor" not in repr(dataset)
    assert dataset == dataset
    assert dataset != make_dataset()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": torch.full((60,), 3)}, "labels of 'made' must be 0 to 2, .* not 3 to 3"),
        ({"test_labels": torch.full((9,), -1)}, "not -1 to -1"),
        ({"test_images": torch.zeros(9, 1, 4, 5, dtype=torch.uint8)}, "must have one shape"),
        ({"train_images": torch.zeros(60, 1, 4, 4)}, "must be uint8"),
        ({"mean": (0.5, 0.5)}, "1 channels need 1 means and stds"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        make_dataset(**changes)
