"""Pictures of a channel execution."""

import io

import numpy as np
import pytest
import torch

from nestling import ModelError
from nestling.execution.bandit import PERIODS, Bandit
from nestling.report.arms import Trained, accuracy_over_time, arms, training_cost
from nestling.spec import Axis


def pixels(path):
    from matplotlib.image import imread

    return imread(io.BytesIO(path.read_bytes()), format="png")


def blue(image):
    """How many pixels are of the bars' blue."""
    wanted = np.array([0x00, 0x72, 0xB2]) / 255
    return int(np.all(np.abs(image[..., :3] - wanted) < 0.01, axis=-1).sum())


def played(counts, axes=3):
    names = [Axis(f"layer{n}.conv$1", 16, "channels", (4, 8, 16)) for n in range(axes)]
    bandit = Bandit(names)
    bandit.means.copy_(torch.rand(16 * axes, generator=torch.Generator().manual_seed(0)))
    for step in range(2 * PERIODS):
        bandit.watch(bandit.best([counts] * axes), [counts] * axes, step // 2)
    return bandit


def test_the_share_of_blue_is_the_share_executed(tmp_path):
    quarter = blue(pixels(arms(played(4), tmp_path / "a.png")))
    whole = blue(pixels(arms(played(16), tmp_path / "b.png")))
    assert whole > 100_000
    assert quarter / whole == pytest.approx(0.25, abs=0.03)


def test_many_axes_fit(tmp_path):
    image = pixels(arms(played(8, axes=60), tmp_path / "a.png", title="Sixty axes"))
    assert image.shape[0] < 2000
    with pytest.raises(ModelError, match="has played none"):
        arms(Bandit([Axis("one", 4, "channels", (2, 4))]), tmp_path / "b.png")


RUNS = [
    Trained("dense", 100.0, 2e9, [0.93, 0.94]),
    Trained("executed: half of the channels", 310.0, 1.2e9, [0.935, 0.931]),
    Trained("alone", 390.0, 1.1e9, [0.92]),
]


def test_bars_beside_the_dense_run(tmp_path):
    image = pixels(training_cost(RUNS, tmp_path / "a.png", title="VGG-16 on CIFAR-10"))
    assert image.shape[1] == 1440
    slower = [RUNS[0], RUNS[1]._replace(speed=50.0), RUNS[2]._replace(speed=50.0)]
    other = pixels(training_cost(slower, tmp_path / "b.png", title="VGG-16 on CIFAR-10"))
    assert blue(other) < blue(image)
    for wrong in ([], [RUNS[0]._replace(speed=0.0)]):
        with pytest.raises(ModelError, match="relative to the first run"):
            training_cost(wrong, tmp_path / "c.png", title="x")


def test_accuracy_over_time(tmp_path):
    curves = {"dense": [(60, 0.4), (120, 0.6)], "executed": [(20, 0.4), (40, 0.65)]}
    path = accuracy_over_time(curves, tmp_path / "a.png", title="ResNet-56")
    assert blue(pixels(path)) > 100
    with pytest.raises(ModelError, match="a point or more"):
        accuracy_over_time({"dense": []}, path, title="x")
