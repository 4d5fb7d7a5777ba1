"""Small folders of pictures, as ImageNet and Tiny-ImageNet have theirs."""

import numpy as np
import pytest
from PIL import Image

CLASSES = ("n01", "n02", "n03")
TRAINED, TESTED = 8, 4  # pictures of each class


def save(path, red, side=24):
    """Save a picture whose red tells which it is, and whose green is noise that shows windows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((side, side + red % 9, 3), np.uint8)
    pixels[..., 0] = red
    pixels[..., 1] = np.random.default_rng(red).integers(0, 256, pixels.shape[:2])
    Image.fromarray(pixels).save(path, "PNG")  # whatever its name says, as one of ImageNet's is


def reds():
    """The red of each picture, by part, class and number: 6 to 144 to train, 150 to 216 to test."""
    keys = [("train", name, number) for name in CLASSES for number in range(TRAINED)]
    keys += [("val", name, number) for name in CLASSES for number in range(TESTED)]
    return {key: 6 * place for place, key in enumerate(keys, 1)}


@pytest.fixture
def imagenet(tmp_path):
    """Return a folder with `train/CLASS/` and `val/CLASS/`."""
    for (part, name, number), red in reds().items():
        save(tmp_path / part / name / f"{name}_{number}.JPEG", red)
    (tmp_path / "train" / "n01" / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.fixture
def tiny(tmp_path):
    """Return a folder with Tiny-ImageNet's layout: `images` in the classes, and annotations."""
    lines = []
    for (part, name, number), red in reds().items():
        if part == "train":
            save(tmp_path / part / name / "images" / f"{name}_{number}.JPEG", red)
            (tmp_path / part / name / f"{name}_boxes.txt").write_text("")
        else:
            file = f"val_{len(lines)}.JPEG"
            save(tmp_path / part / "images" / file, red)
            lines.append(f"{file}\t{name}\t0\t0\t62\t61\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    return tmp_path
