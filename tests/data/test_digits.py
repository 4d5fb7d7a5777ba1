import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nestling.data import Augmentation, load


@pytest.fixture(scope="module")
def digits():
    return load("digits", "/no/such/folder", download=False)


def test_shapes_and_types(digits):
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.dtype == digits.test_images.dtype == torch.uint8
    assert digits.classes == tuple("0123456789")
    assert digits.augment == Augmentation(pad=1, flip=False)


def test_the_parts_are_the_pictures_of_scikit_learn(digits):
    source = load_digits()
    pixels = np.rint(source.images * 15.9375).astype(np.uint8)
    expected = sorted((p.tobytes(), int(label)) for p, label in zip(pixels, source.target))
    found = sorted(
        (image.numpy().tobytes(), int(label))
        for part in (digits.train, digits.test)
        for image, label in zip(part.images, part.labels)
    )
    assert found == expected


def test_each_class_keeps_its_share(digits):
    counts = [part.labels.bincount() for part in (digits.train, digits.test)]
    share = (counts[0] + counts[1]) * 360 / 1797
    assert (counts[1] - share).abs().max() < 1


def test_normalisation_is_that_of_the_training_pictures(digits):
    pixels = digits.train_images.double() / 255
    assert digits.mean == (round(float(pixels.mean()), 4),)
    assert digits.std == (round(float(pixels.std()), 4),)


def test_the_split_stays_as_it_is(digits):
    assert digits.test_images[:5].sum((1, 2, 3)).tolist() == [4080, 5546, 5258, 5370, 6026]
    assert digits.test_labels[:12].tolist() == [2, 4, 7, 0, 6, 8, 9, 5, 1, 0, 2, 3]
