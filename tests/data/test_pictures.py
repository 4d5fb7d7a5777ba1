import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nestling.data.pictures import Framing, check_pillow, draw_window, read_picture
from nestling.errors import DataError

WIDTH, HEIGHT = 250, 180


@pytest.fixture
def ramp(tmp_path):
    """A picture that shows its coordinates: red is the column and green the row."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    Image.fromarray(pixels).save(tmp_path / "ramp.png")
    return tmp_path / "ramp.png"


def expected(start, length, size):
    """The coordinates of the middles of `size` pixels, laid evenly over a stretch of a picture."""
    return start + (np.arange(size) + 0.5) * length / size - 0.5


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_evaluation_takes_the_middle_of_the_scaled_picture(ramp):
    pixels = read_picture(ramp, Framing(size=112, resize=128), None).astype(float)
    assert pixels.shape == (3, 112, 112)
    # 180 rows become 128, and 250 columns 177 of them; 112 of each are taken, from 8 and 32 on.
    rows, columns = expected(0, HEIGHT, 128)[8:120], expected(0, WIDTH, 177)[32:144]
    assert np.abs(pixels[0] - columns).max() < 1
    assert np.abs(pixels[1] - rows[:, None]).max() < 1


def test_training_takes_the_drawn_window_and_mirrors_half_of_them(ramp):
    mirrored = 0
    for seed in range(40):
        pixels = read_picture(ramp, Framing(size=32, resize=32), seeded(seed)).astype(float)
        generator = seeded(seed)
        torch.rand((), generator=generator)  # whether to mirror
        left, top, width, height = draw_window(WIDTH, HEIGHT, 0.08, generator)
        columns, rows = expected(left, width, 32), expected(top, height, 32)
        flipped = pixels[0, 0, 0] > pixels[0, 0, -1]
        mirrored += flipped
        inner = slice(2, -2)  # at its edge a window's scaling has fewer pixels to take
        found = pixels[..., ::-1] if flipped else pixels
        assert np.abs(found[0] - columns)[inner, inner].max() <= 1
        assert np.abs(found[1] - rows[:, None])[inner, inner].max() <= 1
    assert 8 < mirrored < 32  # 3.8 standard deviations each way


def test_windows_are_drawn_evenly():
    generator, side, count = seeded(0), 400, 4000
    drawn = np.array([draw_window(side, side, 0.08, generator) for _ in range(count)], float)
    left, top, width, height = drawn.T
    share, slant = width * height / side**2, np.log(width / height)
    assert (drawn >= 0).all()
    assert (left + width <= side).all()
    assert (top + height <= side).all()
    assert share.min() > 0.079
    assert share.max() <= 1
    assert np.abs(slant).max() < math.log(4 / 3) + 0.02
    small = share < 0.7  # where every ratio fits
    counts, _ = np.histogram(share[small], bins=5, range=(0.08, 0.7))
    assert np.abs(counts / counts.mean() - 1).max() < 0.2
    counts, _ = np.histogram(slant[small], bins=5, range=(-math.log(4 / 3), math.log(4 / 3)))
    assert np.abs(counts / counts.mean() - 1).max() < 0.2
    for start, length in ((left, width), (top, height)):
        places = start[small] / (side - length[small])
        assert abs(places.mean() - 0.5) < 0.025


@pytest.mark.parametrize(
    ("width", "height", "window"),
    [
        (1000, 10, (493, 0, 13, 10)),  # 4 to 3
        (10, 1000, (0, 493, 10, 13)),  # 3 to 4
        (1, 1, (0, 0, 1, 1)),
    ],
)
def test_a_picture_that_no_window_fits_gives_its_middle(width, height, window):
    assert {draw_window(width, height, 0.5, seeded(seed)) for seed in range(20)} == {window}


@pytest.mark.parametrize(("mode", "ending"), [("L", "png"), ("CMYK", "jpeg"), ("P", "png")])
def test_pictures_of_other_modes_come_in_colour(tmp_path, mode, ending):
    path = tmp_path / f"picture.{ending}"
    grey = Image.new("RGB", (20, 10), (120, 120, 120))
    (grey.quantize() if mode == "P" else grey.convert(mode)).save(path)
    pixels = read_picture(path, Framing(size=8, resize=8), None)
    assert pixels.shape == (3, 8, 8)
    assert np.abs(pixels.astype(int) - 120).max() <= 3


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def html(path):
    path.write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize("ending", ["png", "jpeg", "webp", "bmp"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, "cannot be decoded|no picture"),
        (html, "no picture"),
        (Path.unlink, "FileNotFoundError"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, ending, damage, reason):
    path = tmp_path / f"picture.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    damage(path)
    with pytest.raises(DataError, match=reason) as caught:
        read_picture(path, Framing(size=8, resize=8), None)
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)


def test_no_flipped_byte_ends_in_another_error(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (20, 10), (120, 120, 120)).save(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_picture(path, Framing(size=8, resize=8), None)
        except DataError:
            refused += 1
    assert refused > len(whole) // 2


@pytest.mark.parametrize(
    ("size", "resize", "least", "message"),
    [
        (0, 8, 0.1, "a square of 0 pixels out of 8"),
        (9, 8, 0.1, "a square of 9 pixels out of 8"),
        (8, 8, 0.0, "above 0 and at most 1, not 0.0"),
        (8, 8, 1.1, "above 0 and at most 1, not 1.1"),
    ],
)
def test_wrong_framings_are_refused(size, resize, least, message):
    with pytest.raises(DataError, match=message):
        Framing(size, resize, least)


def test_pillow_is_asked_for_by_name(monkeypatch):
    check_pillow("imagenet")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"imagenet needs Pillow.*'nestling\[images\]'"):
        check_pillow("imagenet")
