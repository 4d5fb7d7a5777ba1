"""The common look of the pictures: palette, type sizes, text that cannot break, saving.

Matplotlib is used through its objects alone (`Figure` and the Agg canvas), never through pyplot,
and is imported when a picture is drawn: a report in a program leaves its settings alone.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling import container
from nestling.report.units import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160

# Blue and vermilion of Okabe and Ito (2008), told apart with every common colour blindness.
BLUE, VERMILION = "#0072B2", "#D55E00"
INK, MUTED, GREY, RULE, PALE = "#1b1f24", "#59616b", "#8b939d", "#e6e9ed", "#dfe5ec"

_FONT = "DejaVu Sans"  # ships with matplotlib, so a picture looks the same everywhere


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
    container.write_atomically(path, buffer.getvalue())
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
