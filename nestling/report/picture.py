"""The common look of the pictures: palette, type sizes, text that cannot break, saving.

Matplotlib is used through its objects alone (`Figure` and the Agg canvas), never through pyplot,
and is imported when a picture is drawn: a report in a program leaves its settings alone.
"""

from __future__ import annotations

import io
import os
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nestling.files import write_atomically
from nestling.report.units import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160

# Blue and vermilion of Okabe and Ito (2008), told apart with every common colour blindness.
BLUE, VERMILION = "#0072B2", "#D55E00"
INK, MUTED, GREY, RULE, PALE = "#1b1f24", "#59616b", "#8b939d", "#e6e9ed", "#dfe5ec"

# The colours of Okabe and Ito (2008) without yellow, which is too pale for a line, and black, which
# is the text's; a mark for each, so that they can be told apart without colour too.
COLORS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
MARKS = ("o", "s", "^", "D", "v", "p", "h", "<", ">")

_READABLE = 4.5  # contrast of text on white that WCAG 2 asks for
_FONT = "DejaVu Sans"  # ships with matplotlib, so a picture looks the same everywhere


def color_of(place: int) -> str:
    """Return the colour of the curve that comes at this place; they begin again after the last."""
    return COLORS[place % len(COLORS)]


def deep(color: str) -> str:
    """Return a colour darkened for text: one that is easy to see as a line is hard to read.

    Example:
        >>> deep("#56B4E9")
        '#3878a8'
    """
    from matplotlib.colors import to_hex, to_rgb

    rgb = np.array(to_rgb(color))
    while _contrast(rgb) < _READABLE:
        rgb = rgb * 0.97
    return to_hex(tuple(rgb))


def _contrast(rgb: npt.NDArray[np.float64]) -> float:
    """Return the contrast of a colour on white, 1 to 21, as the W3C's WCAG 2 defines it."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(1.05 / (linear @ np.array([0.2126, 0.7152, 0.0722]) + 0.05))


def new_figure(width: float, height: float) -> Figure:
    """Return a white figure of that size in inches, on its own Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure as a PNG, whole or not at all.

    Raises:
        FileError: the place cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)  # print_png has no type annotations
    canvas.print_png(buffer, metadata={"Software": "nestling"})
    write_atomically(path, buffer.getvalue())
    return Path(path)


def lettering(size: float, color: str = INK, **more: Any) -> dict[str, Any]:
    """Return keyword arguments for text in points; a `$` in a user's name is not mathematics."""
    return {"fontfamily": _FONT, "fontsize": size, "color": color, "parse_math": False, **more}


def legible(text: str, limit: int) -> str:
    """Return the text cut to `limit` characters, with `?` where the font has no letter."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=_FONT)))
    known = (c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in text)
    return shorten("".join(known), limit)


def text_width(text: str, size: float, weight: str = "bold") -> float:
    """Return how wide a text is in inches, at a size in points."""
    from matplotlib.text import Text

    figure = new_figure(1, 1)
    words = Text(0, 0, text, figure=figure, **lettering(size, weight=weight))
    canvas: Any = figure.canvas  # get_renderer has no type annotations
    return float(words.get_window_extent(canvas.get_renderer()).width) / DPI


def along_lines(axes: Axes) -> npt.NDArray[np.float64]:
    """Return points every few pixels along all lines that are drawn, shape (n, 2)."""
    found = [np.empty((0, 2))]
    for line in axes.get_lines():
        path = axes.transData.transform(np.asarray(line.get_xydata(), dtype=float))
        found.append(path)
        for start, end in pairwise(path):
            if line.get_linestyle() != "None":
                steps = np.linspace(0, 1, 2 + int(np.hypot(*(end - start)) / 6))[:, None]
                found.append(start + steps * (end - start))
    return np.concatenate(found)


def in_lines(text: str, width: int, lines: int = 2) -> str:
    """Return the text broken into lines of at most that many characters; what is more is cut.

    Example:
        >>> in_lines("progressive search, threshold=0.85", 20).split(chr(10))
        ['progressive search,', 'threshold=0.85']
    """
    broken = textwrap.wrap(legible(text, 4 * lines * width), width) or [""]
    if len(broken) > lines:
        broken = [*broken[: lines - 1], " ".join(broken[lines - 1 :])]
    return "\n".join(shorten(line, width) for line in broken)


def write_heading(figure: Figure, title: str, subtitle: str, *, left: float) -> None:
    """Write title and subtitle at the top, `left` inches from the edge."""
    width, height = figure.get_size_inches()
    room = width - left - 0.2
    x = left / width
    title = legible(title, int(room / 0.125))
    figure.text(x, 1 - 0.22 / height, title, va="top", **lettering(13, weight="bold"))
    subtitle = legible(subtitle, int(room / 0.072))
    figure.text(x, 1 - 0.52 / height, subtitle, va="top", **lettering(9, MUTED))


def tidy(axes: Axes) -> None:
    """Take the box off and quieten the ticks."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(length=0, pad=6, labelsize=9, labelcolor=MUTED, labelfontfamily=_FONT)
    axes.set_axisbelow(True)
