import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nestling.data.batches import Augmentation, Batches, crop, seeded_generator
from nestling.errors import DataError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_images(count=37, channels=3, height=6, width=5):
    generator = torch.Generator().manual_seed(5)
    shape = (count, channels, height, width)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)


def make_batches(count=37, **changes):
    arguments = {"batch_size": 8, "mean": MEAN, "std": STD, "shuffle": True, "seed": 3}
    arguments["augment"] = Augmentation(pad=2, flip=True)
    return Batches(make_images(count), torch.arange(count), **arguments | changes)


def assert_same(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for (left_images, left_labels), (right_images, right_labels) in zip(left, right, strict=True):
        assert torch.equal(left_images, right_images)
        assert torch.equal(left_labels, right_labels)


def normalise(images):
    """The plain reference: one step after the other, in float64."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    return ((images.double() / 255 - mean) / std).float()


def windows_of(image, pad):
    """All crops and flipped crops of one picture, by copying pixel rows into a black canvas."""
    channels, height, width = image.shape
    canvas = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=torch.uint8)
    canvas[:, pad : pad + height, pad : pad + width] = image
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            window = canvas[:, top : top + height, left : left + width]
            yield (top, left, False), window
            yield (top, left, True), torch.stack([window[..., -1 - x] for x in range(width)], -1)


def test_a_batch_is_float32_with_int64_labels():
    images, labels = next(iter(make_batches()))
    assert images.shape == (8, 3, 6, 5)
    assert images.dtype == torch.float32
    assert labels.shape == (8,)
    assert labels.dtype == torch.int64


def test_plain_batches_are_the_normalised_pictures_in_order():
    batches = make_batches(shuffle=False, augment=None)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(labels, torch.arange(37))
    torch.testing.assert_close(images, normalise(make_images()), rtol=1e-6, atol=1e-6)


def test_shuffled_pictures_keep_their_labels():
    for images, labels in make_batches(augment=None):
        expected = normalise(make_images()[labels])
        torch.testing.assert_close(images, expected, rtol=1e-6, atol=1e-6)


def test_an_epoch_holds_each_picture_once_in_another_order_than_the_next():
    batches = make_batches()
    first = torch.cat([labels for _, labels in batches])
    second = torch.cat([labels for _, labels in batches])
    assert not torch.equal(first, second)
    for labels in (first, second):
        assert torch.equal(labels.sort().values, torch.arange(37))


def test_augmented_pictures_are_true_crops_of_their_own_picture():
    source, seen = make_images(), set()
    for epoch in range(4):
        for images, labels in make_batches().at(epoch):
            for image, label in zip(images, labels, strict=True):
                choices = {
                    key
                    for key, window in windows_of(source[label], pad=2)
                    if torch.allclose(normalise(window), image, rtol=1e-6, atol=1e-6)
                }
                assert len(choices) == 1, f"picture {label} is {len(choices)} of the crops"
                seen |= choices
    assert {flip for _, _, flip in seen} == {False, True}
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))


def test_crops_and_flips_are_drawn_evenly():
    batches = make_batches(count=9000)
    plan = batches._draw(0)
    counts = torch.stack([corner.bincount(minlength=5) for corner in plan.corners])
    assert counts.sub(1800).abs().max() < 200  # 5 standard deviations are 190
    assert abs(int(plan.flips.sum()) - 4500) < 240  # 5 standard deviations are 237


@pytest.mark.parametrize("augment", [Augmentation(pad=1), Augmentation(flip=True), Augmentation()])
def test_crops_and_flips_come_one_without_the_other(augment):
    plan = make_batches(augment=augment)._draw(0)
    assert (plan.corners is not None) == (augment.pad > 0)
    assert (plan.flips is not None) == augment.flip


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    epoch=st.integers(0, 1000),
    seed=st.integers(-(2**40), 2**70),
    start=st.integers(0, 40),
    drop_last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_later_start_equals_skipping(count, batch_size, epoch, seed, start, drop_last):
    drop_last = drop_last and batch_size <= count
    batches = make_batches(count, batch_size=batch_size, seed=seed, drop_last=drop_last)
    start = min(start, len(batches))
    whole = list(batches.at(epoch))
    assert len(whole) == len(batches)
    assert_same(batches.at(epoch, start=start), whole[start:])


def test_a_later_start_does_not_make_the_earlier_batches(monkeypatch):
    batches, made = make_batches(), []
    make = batches._make
    monkeypatch.setattr(
        batches, "_make", lambda plan, places: made.append(places) or make(plan, places)
    )
    list(batches.at(2, start=4))
    assert made == [slice(32, 40)]


def test_batches_depend_on_seed_and_epoch_alone():
    torch.manual_seed(0)
    first = list(make_batches().at(5))
    torch.manual_seed(1)
    other = make_batches()
    list(other.at(9))
    assert_same(other.at(5), first)
    keys = [(3, 5), (3, 6), (4, 5), (5, 3), (-3, 5)]
    orders = {tuple(next(make_batches(seed=seed).at(epoch))[1].tolist()) for seed, epoch in keys}
    assert len(orders) == len(keys)


def test_a_picture_place_decides_its_crop_whatever_the_batch_size():
    small, large = (
        torch.cat([images for images, _ in make_batches(batch_size=size).at(1)]) for size in (4, 37)
    )
    assert torch.equal(small, large)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    list(make_batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_pictures_are_left_alone():
    images, labels = make_images(), torch.arange(37)
    before = copy.deepcopy((images, labels))
    for augment in (None, Augmentation(pad=2, flip=True)):
        batches = Batches(images, labels, batch_size=8, mean=MEAN, std=STD, augment=augment)
        for batch_images, batch_labels in batches:
            batch_images.zero_()
            batch_labels.zero_()
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_the_epoch_moves_on_when_it_has_been_run_to_its_end():
    batches = make_batches()
    assert batches.epoch == 0
    first = list(batches)
    assert batches.epoch == 1
    for _ in batches:
        break
    assert batches.epoch == 1
    rest = batches.at(4, start=2)
    assert batches.epoch == 4
    list(rest)
    assert batches.epoch == 5
    batches.epoch = 0
    assert_same(batches, first)


def test_length_counts_the_batches():
    assert len(make_batches()) == 5
    assert len(make_batches(drop_last=True)) == 4
    assert len(make_batches(count=40)) == len(make_batches(count=40, drop_last=True)) == 5
    assert [len(labels) for _, labels in make_batches()] == [8, 8, 8, 8, 5]
    assert [len(labels) for _, labels in make_batches(drop_last=True)] == [8, 8, 8, 8]


@pytest.mark.parametrize("augment", [None, Augmentation(pad=2, flip=True)])
def test_memory_format_changes_the_layout_and_not_the_values(augment):
    plain = make_batches(augment=augment)
    channels_last = make_batches(augment=augment, memory_format=torch.channels_last)
    assert_same(plain.at(0), channels_last.at(0))
    for images, _ in plain:
        assert images.is_contiguous()
    for images, _ in channels_last:
        assert images.is_contiguous(memory_format=torch.channels_last)


class Devices(TorchDispatchMode):
    """Notes the devices of all that operations take and give."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        found = tree_leaves((args, kwargs, made))
        self.seen |= {leaf.device.type for leaf in found if isinstance(leaf, torch.Tensor)}
        return made


def test_batches_are_made_where_the_pictures_are():
    """The meta device stands for a GPU: what it computes is nothing, but it is not the CPU."""
    plain = make_batches(drop_last=True)
    pictures, labels = make_images().to("meta"), torch.arange(37, device="meta")
    batches = Batches(
        *(pictures, labels),
        **{"batch_size": 8, "mean": MEAN, "std": STD, "shuffle": True, "drop_last": True},
        augment=Augmentation(pad=2, flip=True),
        memory_format=torch.channels_last,
    )
    running = batches.at(0)
    next(running)  # the choices of the epoch move with the first batch
    devices = Devices()
    devices.seen = set()
    with devices:
        rest = list(running)
    assert devices.seen == {"meta"}
    for (images, targets), (expected, _) in zip(rest, list(plain)[1:], strict=True):
        assert images.device.type == targets.device.type == "meta"
        assert images.shape == expected.shape
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_crop_takes_the_window_of_each_corner():
    images = make_images(count=25)
    tops, lefts = torch.arange(25) // 5, torch.arange(25) % 5
    for number, cropped in enumerate(crop(images, torch.stack([tops, lefts]), pad=2)):
        windows = dict(windows_of(images[number], pad=2))
        assert torch.equal(cropped, windows[int(tops[number]), int(lefts[number]), False])


def test_crop_in_the_middle_is_the_picture_itself():
    images = make_images()
    assert torch.equal(crop(images, torch.full((2, 37), 3), pad=3), images)


def test_generators_of_near_keys_differ():
    keys = [(0, 1), (1, 0), (2**32, 1), (1,), (0, "1"), (-1, 0)]
    draws = {tuple(torch.rand(4, generator=seeded_generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "a batch cannot hold 0 pictures: give 1 or more"),
        ({"batch_size": 38, "drop_last": True}, "cannot hold 38 pictures: give 1 to 37"),
        ({"mean": (0.5,)}, "3 channels need 3 means and stds, not 1 and 3"),
        ({"std": (0.5, 0.5)}, "3 channels need 3 means and stds, not 3 and 2"),
        ({"std": (0.5, 0.0, 0.5)}, r"each std must be above 0, not \(0.5, 0.0, 0.5\)"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        make_batches(**changes)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(4, 3, 2, 2), torch.arange(4), "must be uint8 .* not float32"),
        (torch.zeros(4, 3, 2, dtype=torch.uint8), torch.arange(4), r"shape \(4, 3, 2\)"),
        (make_images(4), torch.arange(4).int(), "labels of 4 pictures must be int64 .* not int32"),
        (make_images(4), torch.arange(5), r"must be int64 of shape \(4,\), .* shape \(5,\)"),
        (make_images(0), torch.arange(0), "at least one picture"),
        (make_images(4), torch.arange(4, device="meta"), "one device, not on cpu and meta"),
    ],
)
def test_wrong_tensors_are_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        Batches(images, labels, batch_size=1, mean=MEAN, std=STD)


@pytest.mark.parametrize(
    ("epoch", "start", "message"),
    [
        (-1, 0, "no epoch -1"),
        (0, -1, "no batch -1 in an epoch: give 0 to 5"),
        (0, 6, "no batch 6"),
    ],
)
def test_a_place_out_of_range_is_refused_at_once(epoch, start, message):
    with pytest.raises(DataError, match=message):
        make_batches().at(epoch, start=start)


def test_negative_padding_is_refused():
    with pytest.raises(DataError, match="cannot pad by -1 pixels"):
        Augmentation(pad=-1)
