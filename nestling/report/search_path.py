"""The way of a search as a picture: what it evaluated, where it went, and what it took away."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nestling.report.picture import (
    BLUE,
    GREY,
    INK,
    MUTED,
    RULE,
    VERMILION,
    legible,
    lettering,
    new_figure,
    save,
    tidy,
    write_heading,
)
from nestling.report.searchlog import SearchLog, Seen, read_search
from nestling.report.skyline import root_of
from nestling.spec import Space

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _LEFT, _RIGHT = 8.0, 1.75, 0.3  # inches
_TOP, _UPPER, _BETWEEN, _FOOT = 1.18, 2.9, 0.75, 0.88
_ROW, _TALLEST = 0.175, 6.0  # inches of the heat map: an axis, all axes
_DOTTED = 60  # with at most this many steps, a dot says which axis a step lowered


def search_path(
    log: str | os.PathLike[str] | SearchLog,
    space: Space,
    path: str | os.PathLike[str],
    *,
    title: str,
) -> Path:
    """Draw the path of a search as a PNG and return its path.

    Above: every evaluation as a faint dot, and the net after each step, joined in order; filled
    where nothing cheaper on the way is as accurate. An arrow is a fine-tuning. Below: how much of
    each axis is left after each step, with a dot where a step has lowered it. A search that goes no
    steps shows what it has found, largest first.

    Args:
        log: the `.jsonl` file of the search, finished or not; or what `read_search` returned.
        space: of the net that was searched.
        path: the PNG file to write.
        title: the head line.

    Raises:
        FileError: the log cannot be read, is damaged or of another net, or the place cannot be
            written.

    Example:
        >>> search_path("runs/first/progressive.jsonl", net.space, "path.png", title="ResNet-20")
    """
    told = log if isinstance(log, SearchLog) else read_search(log, space)
    lower = min(_TALLEST, max(0.7, _ROW * len(space.axes)))
    height = _TOP + _UPPER + _BETWEEN + lower + _FOOT
    figure = new_figure(_WIDTH, height)
    write_heading(figure, title, _summary(told), left=_LEFT)
    span = (_WIDTH - _LEFT - _RIGHT) / _WIDTH
    base = (_FOOT + lower + _BETWEEN) / height
    upper = figure.add_axes((_LEFT / _WIDTH, base, span, _UPPER / height))
    _draw_way(upper, told, space)
    below = figure.add_axes((_LEFT / _WIDTH, _FOOT / height, span, lower / height))
    _draw_widths(below, told, space, lower)
    _draw_scale(figure, told, space, height)
    return save(figure, path)


def _summary(told: SearchLog) -> str:
    parts = [f"{len(told.seen)} evaluations"]
    if told.steps:
        parts.append(f"{len(told.chain) - 1} steps")
    if told.tuned:
        parts.append(f"{len(told.tuned)} fine-tunings")
    if not told.found:
        parts.append("not finished")
    lowest = _lowest(told)
    if hidden := sum(100 * each.accuracy < lowest for each in told.seen):
        parts.append(f"{hidden} below the picture")
    name = told.search[:1].upper() + told.search[1:]
    return f"{name} search: {', '.join(parts)}"


def _draw_way(axes: Axes, told: SearchLog, space: Space) -> None:
    """Draw accuracy against cost: all evaluations, the chain, its front, the fine-tunings."""
    from matplotlib.ticker import MaxNLocator

    tidy(axes)
    axes.grid(color=RULE, linewidth=0.8)
    whole = space.macs(space.full) / 100
    x, y = [each.macs / whole for each in told.seen], [100 * each.accuracy for each in told.seen]
    faint: dict[str, Any] = {"markersize": 3, "color": GREY, "alpha": 0.4, "mew": 0}
    axes.plot(x, y, "o", label="evaluated", zorder=2, **faint)
    way, reached = (
        [each.macs / whole for each in told.chain],
        [100 * each.accuracy for each in told.chain],
    )
    words = "after each step, right to left" if told.steps else "found"
    size = 4.2 if len(told.chain) <= _DOTTED else 3.0
    axes.plot(
        way, reached, "-o", color=BLUE, linewidth=1.1, markersize=size, markerfacecolor="white",
        mew=1.0, zorder=3, label=words,
    )  # fmt: skip
    best = front_of(told.chain)
    axes.plot(
        [each.macs / whole for each in best],
        [100 * each.accuracy for each in best],
        "o", color=BLUE, markersize=1.25 * size, mew=0, zorder=4, label="Pareto front of these",
    )  # fmt: skip
    for each in told.tuned:
        ends = (each.macs / whole, 100 * each.after), (each.macs / whole, 100 * each.before)
        arrow = {"arrowstyle": "->", "color": VERMILION, "linewidth": 1.2, "shrinkA": 0}
        axes.annotate("", *ends, arrowprops={**arrow, "shrinkB": 2}, zorder=5)
    if told.tuned:
        axes.plot([], [], "-", marker="^", markersize=4, color=VERMILION, label="fine-tuned")
    axes.set_xlim(0, 1.03 * max(x + way))
    axes.set_ylim(_lowest(told), min(max([*reached, *y]) + _air(told), 101.0))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("MACs, % of the full net", labelpad=5, **lettering(9.5))
    axes.set_ylabel("accuracy, %", labelpad=8, **lettering(9.5))
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(-0.012, 1.0), ncols=4, frameon=False, handlelength=1.6,
        columnspacing=1.6, handletextpad=0.5, borderpad=0.2,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set(**{k: v for k, v in lettering(8.5, INK).items() if k != "parse_math"})


def _lowest(told: SearchLog) -> float:
    """Return where the picture ends below: what is far less accurate than all of the path led
    nowhere, and would press the path flat.
    """
    return max(100 * min(each.accuracy for each in told.chain) - 2 * _air(told), -1.0)


def _air(told: SearchLog) -> float:
    shares = [100 * each.accuracy for each in told.chain]
    return max(0.06 * (max(shares) - min(shares)), 0.5)


def front_of(chain: Sequence[Seen]) -> list[Seen]:
    """Return the nets that none on the way, as cheap or cheaper, is as accurate as; cheapest first.

    Example:
        >>> front_of([Seen(full, 0.9, 10), Seen(half, 0.8, 5), Seen(less, 0.85, 3)])  # 0.85, 0.9
    """
    best: list[Seen] = []
    for each in sorted(chain, key=lambda one: (one.macs, -one.accuracy)):
        if not best or each.accuracy > best[-1].accuracy:
            best.append(each)
    return best


def shares_left(told: SearchLog, space: Space) -> npt.NDArray[np.float64]:
    """Return the share of each axis that is left after each step, shape (axes, steps + 1)."""
    return np.array(
        [[each.spec[name] / axis.size for each in told.chain] for name, axis in space.axes.items()]
    )


def _draw_widths(axes: Axes, told: SearchLog, space: Space, inches: float) -> None:
    """Draw what is left of each axis after each step."""
    from matplotlib.ticker import MaxNLocator

    shares = shares_left(told, space)
    count, steps = shares.shape
    axes.imshow(
        shares, aspect="auto", cmap=_shades(), vmin=0, vmax=1, interpolation="nearest",
        extent=(-0.5, steps - 0.5, count - 0.5, -0.5),
    )  # fmt: skip
    for side in axes.spines.values():
        side.set_visible(False)
    if told.steps and steps <= _DOTTED:
        rows, columns = np.nonzero(np.diff(shares, axis=1) < 0)
        axes.plot(columns + 1, rows, "o", color="white", markersize=3.4, mec=INK, mew=0.5)
    for each in told.tuned:
        axes.plot(
            [each.step], [-0.5], marker=7, color=VERMILION, markersize=6, mew=0, clip_on=False
        )
    root = root_of(list(space.axes))
    every = -(-count * 12 // int(inches * 72))
    places = range(0, count, max(every, 1))
    names = [legible(name.removeprefix(root), 22) for name in space.axes]
    axes.set_yticks(list(places), [names[place] for place in places], **lettering(8, INK))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.tick_params(length=0, pad=4)
    axes.tick_params(axis="x", labelsize=8.5, labelcolor=MUTED, labelfontfamily="DejaVu Sans")
    words = "step" if told.steps else "subnet, largest first"
    axes.set_xlabel(words, labelpad=4, **lettering(9.5))


def _draw_scale(figure: Figure, told: SearchLog, space: Space, height: float) -> None:
    """Say what the heat map's colours and marks are, below it."""
    y, x = 0.2 / height, _LEFT / _WIDTH
    strip = figure.add_axes((x, y - 0.02 / height, 0.1, 0.13 / height))
    strip.imshow(np.linspace(0, 1, 64)[None], aspect="auto", cmap=_shades(), vmin=0, vmax=1)
    strip.set(xticks=[], yticks=[])
    for side in strip.spines.values():
        side.set_visible(False)
    root = root_of(list(space.axes))
    words = "units kept, from none to all of an axis"
    if told.steps and len(told.chain) <= _DOTTED:
        words += "; dot: lowered by this step"
    if told.tuned:
        words += "; wedge: then fine-tuned"
    if root:
        words += f"; axes without “{root}”"
    figure.text(x + 0.11, y, legible(words, 100), va="bottom", **lettering(8, MUTED))


def _shades() -> Any:
    """Return the colours of shares: pale for none, the blue of the pictures for all."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("kept", ["#eef3f8", "#a5cbe6", BLUE])
