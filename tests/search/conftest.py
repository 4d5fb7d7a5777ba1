"""Small spaces, made-up accuracies, and one net that was trained."""

import random

import pytest
import torch

import nestling
from nestling import models
from nestling.data import load


@pytest.fixture(scope="session")
def tiny(small):
    """A supernet of 4 x 4 specs."""
    return small.supernet()


@pytest.fixture(scope="session")
def three(small):
    """A supernet of two axes with counts 1 to 8 and 1 to 8, and no norms."""
    model = small.seeded(small.Mlp, 6, 8, 3)
    return nestling.Supernet(model, torch.randn(2, 6), step=1)


@pytest.fixture(scope="session")
def deep():
    """A supernet with axes of channels and of depth, not trained."""
    return nestling.Supernet(models.digits_resnet(width=4), torch.randn(2, 1, 8, 8), step=2)


@pytest.fixture(scope="session")
def digits():
    """A net trained on the digits for some seconds; training and held-out batches."""
    dataset = load("digits")
    train, held_out = dataset.split(400)
    torch.manual_seed(0)
    net = nestling.Supernet(models.digits_resnet(width=8), torch.randn(2, 1, 8, 8), step=4)
    batches = dataset.train_batches(64, 0, part=train)
    nestling.fit(
        net,
        batches,
        epochs=4,
        precision="float32",
        progress=False,
        fractions=(1.0, 0.1),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    )
    return net, batches, dataset.test_batches(50, held_out)


def separable(space, seed=0, power=2):
    """Every axis costs some accuracy of its own, more with each unit."""
    draw = random.Random(seed)
    weights = {name: draw.uniform(0.02, 0.3) for name in space.axes}

    def score(spec):
        lost = (
            w * (1 - spec[name] / space.axes[name].size) ** power for name, w in weights.items()
        )
        return 0.9 - sum(lost) / len(weights)

    return score


def interacting(space, seed=0):
    """The narrowest axis is a bottleneck, and neighbours depend on each other."""
    weights = separable(space, seed)

    def score(spec):
        shares = [spec[name] / axis.size for name, axis in space.axes.items()]
        return weights(spec) * (0.5 + 0.5 * min(shares)) - 0.05 * abs(shares[0] - shares[-1])

    return score


def noisy(space, seed=0):
    """As separable, with the noise of a small held-out slice, the same whenever it is asked."""
    clean = separable(space, seed)
    return lambda spec: round(clean(spec) + random.Random(repr(spec)).gauss(0, 0.02), 3)


def plateaus(space, seed=0):
    """As separable, in steps of five points: most candidates are equal."""
    clean = separable(space, seed)
    return lambda spec: round(clean(spec) * 20) / 20


SCORES = {f.__name__: f for f in (separable, interacting, noisy, plateaus)}


@pytest.fixture(params=SCORES)
def made_up(request):
    """A function from a space and a seed to a made-up score."""
    return SCORES[request.param]


@pytest.fixture(scope="session")
def scores():
    """The made-up scores by name."""
    return SCORES
