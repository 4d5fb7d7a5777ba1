"""Picture files of any size, decoded by Pillow and framed as a square."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from nestling.errors import DataError, brief

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]

ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp")  # of names, in lower case
RATIOS = (3 / 4, 4 / 3)  # width to height, of a random window
TRIES = 10


@dataclass(frozen=True)
class Framing:
    """How a picture of any size becomes a square one.

    For training a random window is scaled to the square and mirrored with probability one half.
    For evaluation the shorter side is scaled to `resize`, and the square is cut from the middle.

    Args:
        size: side of the square, in pixels.
        resize: the shorter side before the cut, in pixels; at least `size`.
        least: the smallest window's share of the picture's area.

    Raises:
        DataError: the square is larger than what it is cut from, or `least` is no share.

    Example:
        >>> Framing(size=224, resize=256)
        Framing(size=224, resize=256, least=0.08)

    Source: Szegedy et al. 2015, "Going Deeper with Convolutions", section 6 (the windows).
    """

    size: int
    resize: int
    least: float = 0.08

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise DataError(
                f"a framing cuts a square of {self.size} pixels out of {self.resize}: give sizes "
                "of at least 1, the second no smaller than the first"
            )
        if not 0 < self.least <= 1:
            raise DataError(
                f"a window's smallest share of the area must be above 0 and at most 1, "
                f"not {self.least}"
            )


def read_picture(path: Path, framing: Framing, generator: torch.Generator | None) -> Pixels:
    """Decode a file and frame it.

    Args:
        path: of the file.
        framing: how.
        generator: of the random window and the mirroring; None frames for evaluation.

    Returns:
        Red, green and blue, (3, size, size).

    Raises:
        DataError: the file cannot be read, or is damaged.
    """
    from PIL import Image, UnidentifiedImageError  # here, as only picture files need it

    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore")  # of odd metadata, which is not looked at
            whole = opened.convert("RGB")
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is damaged: it is no picture; {_CURE}") from error
    except (
        # What Pillow raises depends on the byte that is wrong.
        *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError),
        *(OSError, SyntaxError, TypeError, ValueError, struct.error, zlib.error),
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"{path} cannot be decoded ({brief(error)}); {_CURE}") from error
    framed = (
        frame_middle(whole, framing)
        if generator is None
        else frame_randomly(whole, framing, generator)
    )
    return np.ascontiguousarray(np.asarray(framed).transpose(2, 0, 1))


_CURE = "put a good copy in its place, or delete it"


def frame_middle(picture: Image, framing: Framing) -> Image:
    """Scale the shorter side to `framing.resize` and cut the square from the middle."""
    from PIL import Image as pillow

    width, height = picture.size
    shorter = min(width, height)
    wide, high = (framing.resize * side // shorter for side in (width, height))
    left, top = (round((side - framing.size) / 2) for side in (wide, high))
    scaled = picture.resize((wide, high), pillow.Resampling.BILINEAR)
    return scaled.crop((left, top, left + framing.size, top + framing.size))


def frame_randomly(picture: Image, framing: Framing, generator: torch.Generator) -> Image:
    """Scale a random window to the square, and mirror it with probability one half."""
    from PIL import Image as pillow

    mirrored = bool(torch.rand((), generator=generator) < 0.5)
    left, top, width, height = draw_window(*picture.size, framing.least, generator)
    window = picture.crop((left, top, left + width, top + height))
    scaled = window.resize((framing.size, framing.size), pillow.Resampling.BILINEAR)
    return scaled.transpose(pillow.Transpose.FLIP_LEFT_RIGHT) if mirrored else scaled


def draw_window(
    width: int, height: int, least: float, generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Draw a window of a picture: its left and top, its width and height, in pixels.

    Its share of the area is even between `least` and 1, its ratio of width to height even on a
    logarithmic scale between 3/4 and 4/3, its place even where it fits. If ten draws do not fit, it
    is the largest window in the middle that has such a ratio.

    Example:
        >>> draw_window(500, 375, 0.08, torch.Generator().manual_seed(0))
        (20, 17, 386, 327)

    Source: Szegedy et al. 2015, "Going Deeper with Convolutions", section 6.
    """
    low, high = (math.log(ratio) for ratio in RATIOS)
    draws = torch.rand(TRIES, 4, dtype=torch.float64, generator=generator).tolist()
    for share, slant, across, down in draws:
        area = width * height * (least + (1 - least) * share)
        ratio = math.exp(low + (high - low) * slant)
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            return int(across * (width - wide + 1)), int(down * (height - tall + 1)), wide, tall
    wide = min(width, max(1, round(height * RATIOS[1])))
    tall = min(height, max(1, round(width / RATIOS[0])))
    return (width - wide) // 2, (height - tall) // 2, wide, tall


def check_pillow(name: str) -> None:
    """Check that Pillow is installed.

    Args:
        name: of the data set that needs it.

    Raises:
        DataError: it is not.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"reading the pictures of {name} needs Pillow, which is not installed; run "
            "`pip install 'nestling[images]'`"
        ) from error
