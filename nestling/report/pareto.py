"""`pareto.png`: what each subnet costs and how good it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nestling.report import figures
from nestling.report.labels import Box, place_labels
from nestling.report.picture import (
    BLUE,
    GREY,
    INK,
    MUTED,
    RULE,
    VERMILION,
    along_lines,
    legible,
    lettering,
    new_figure,
    save,
    tidy,
    write_heading,
)
from nestling.report.rows import Page, Row
from nestling.report.units import human_count, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEFT = 0.85  # inches from the figure's edge to the axes
_LOG_FROM = 25.0  # a larger ratio of dearest to cheapest goes on a logarithmic axis
_MARKER = 9.0  # half a marker's side in pixels, with a little air
_AIR = 6.0  # pixels kept free on both sides of a label


class _Point(NamedTuple):
    row: Row
    x: float
    y: float  # percent
    ideal: float | None


def pareto(page: Page, path: str | os.PathLike[str]) -> Path:
    """Draw accuracy against measured latency as a PNG and return its path.

    Offered subnets are filled, the others hollow and grey; the Pareto front of the offered ones is
    joined. Bars are the 95 % intervals. The dashed line is where the subnets would lie if time fell
    in proportion to MACs from the full net: the distance to it is what the device does not give
    back. When the full net has no latency the picture shows MACs instead, without that line.

    Args:
        page: what to show.
        path: the PNG file to write.

    Raises:
        FileError: the place cannot be written.
    """
    points = _points(page)
    height = 5.6 if len(points) <= 12 else 6.8
    figure = new_figure(8.0, height)
    bottom = 1.62
    area = (_LEFT / 8, bottom / height, (8 - _LEFT - 0.3) / 8, (height - bottom - 0.9) / height)
    axes = figure.add_axes(area)
    tidy(axes)
    axes.grid(color=RULE, linewidth=0.8)
    _write_words(figure, axes, page)
    unlabelled: list[str] = []
    if points:
        _set_limits(axes, points)
        _draw_points(axes, page, points)
        _draw_legend(figure, page, points)
        unlabelled = _draw_labels(axes, points)
    else:
        axes.set(xticks=[], yticks=[])
        note = f"No subnet has both a cost and a measured {page.metric}."
        axes.text(
            0.5, 0.5, legible(note, 80), transform=axes.transAxes, ha="center", **lettering(11)
        )
    _write_notes(figure, page, points, unlabelled)
    return save(figure, path)


def _points(page: Page) -> list[_Point]:
    cost = figures.cost_of(page)
    return [
        _Point(row, x, 100 * row.accuracy, figures.ideal_latency(page, row))
        for row in page.rows
        if (x := cost(row)) is not None and row.accuracy is not None
    ]


def _write_words(figure: Figure, axes: Axes, page: Page) -> None:
    timed = figures.is_timed(page)
    metric = legible(page.metric, 40)
    x_name = "measured latency" if timed else "multiply-accumulates (MACs)"
    subtitle = f"{metric} against {x_name}, one point a subnet"
    write_heading(figure, page.title, subtitle[0].upper() + subtitle[1:], left=_LEFT)
    unit = "measured latency, ms (lower is better)" if timed else "MACs (lower is better)"
    axes.set_xlabel(unit, labelpad=7, **lettering(10))
    axes.set_ylabel(f"{metric}, %", labelpad=8, **lettering(10))


def _set_limits(axes: Axes, points: Sequence[_Point]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    timed = points[0].ideal is not None
    lows = [p.x if p.row.latency is None or not timed else p.row.latency[1] for p in points]
    highs = [p.x if p.row.latency is None or not timed else p.row.latency[2] for p in points]
    lows += [p.ideal for p in points if p.ideal is not None]
    number = FuncFormatter(lambda x, _: f"{x:g}" if timed else human_count(x).replace(".0 ", " "))
    if max(highs) / min(lows) > _LOG_FROM and max(highs) / min(p.x for p in points) > _LOG_FROM:
        axes.set_xscale("log")
        axes.set_xlim(min(lows) / 1.25, max(highs) * 1.5)
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    else:
        axes.set_xlim(0, max(highs) * 1.08)
    axes.xaxis.set_major_formatter(number)
    low, high = min(p.y for p in points), max(p.y for p in points)
    air = max(0.14 * (high - low), 0.4)
    axes.set_ylim(low - 1.4 * air, high + air)
    axes.yaxis.set_major_locator(MaxNLocator(7))
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
    axes.set_ylim(low - 1.4 * air, high + air)


def _draw_points(axes: Axes, page: Page, points: Sequence[_Point]) -> None:
    offered = [p for p in points if p.row.offered]
    front = _front(page, points)
    ideal = _ideal_front(points)
    axes.plot([p.x for p in front], [p.y for p in front], color=BLUE, linewidth=1.6, zorder=3)
    if ideal:
        xs, ys = [p.ideal or 0.0 for p in ideal], [p.y for p in ideal]
        axes.plot(xs, ys, color=VERMILION, linewidth=1.3, dashes=(5, 3), zorder=2)
        marks = [p for p in offered if p.ideal is not None]
        axes.plot(
            [p.ideal or 0.0 for p in marks],
            [p.y for p in marks],
            "D",
            color=VERMILION,
            markersize=3.4,
            zorder=2,
        )
    for p in points:
        color = BLUE if p.row.offered else GREY
        if figures.is_timed(page) and p.row.latency is not None:
            _, low, high = p.row.latency
            axes.plot([low, high], [p.y, p.y], color=color, linewidth=1.3, zorder=3)
            axes.plot([low, high], [p.y, p.y], "|", color=color, markersize=6, zorder=3)
        face = color if p.row.offered else "white"
        axes.plot(
            [p.x], [p.y], "o", markersize=7, color=color, markerfacecolor=face, zorder=4, mew=1.4
        )


def _front(page: Page, points: Sequence[_Point]) -> list[_Point]:
    rows = figures.front((p.row for p in points if p.row.offered), figures.cost_of(page))
    by_row = {id(p.row): p for p in points}
    return [by_row[id(row)] for row in rows]


def _ideal_front(points: Sequence[_Point]) -> list[_Point]:
    """Return the offered points, cheapest in MACs first, that no cheaper one equals."""
    best: list[_Point] = []
    known = [p for p in points if p.row.offered and p.ideal is not None]
    for point in sorted(known, key=lambda p: (p.row.macs, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def _draw_labels(axes: Axes, points: Sequence[_Point]) -> list[str]:
    """Label every point and return the names for which there was no room."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from matplotlib.transforms import IdentityTransform

    figure = axes.get_figure(root=True)
    assert figure is not None
    canvas: Any = FigureCanvasAgg(figure)  # get_renderer has no type annotations
    renderer = canvas.get_renderer()
    names = [legible(p.row.name, 28) for p in points]
    texts = [Text(0, 0, name, figure=figure, **lettering(9)) for name in names]
    extents = [text.get_window_extent(renderer) for text in texts]
    pixels = [tuple(axes.transData.transform((p.x, p.y))) for p in points]
    window = axes.get_window_extent(renderer)
    boxes = place_labels(
        pixels,
        [(extent.width + 2 * _AIR, extent.height) for extent in extents],
        keep_off=[Box(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in pixels],
        avoid=along_lines(axes),
        bounds=Box(window.x0 + 2, window.y0 + 4, window.x1 + 30, window.y1 + 10),
    )
    plain = IdentityTransform()
    for point, name, (x, y), box in zip(points, names, pixels, boxes, strict=True):
        if box is None:
            continue
        color = INK if point.row.offered else MUTED
        words = lettering(9, color, va="bottom", transform=plain, zorder=6)
        axes.text(box.left + _AIR, box.bottom, name, **words)
        end_x, end_y = box.nearest(x, y)
        if np.hypot(end_x - x, end_y - y) > 2.2 * _MARKER:
            line: dict[str, Any] = {
                "color": GREY,
                "linewidth": 0.6,
                "zorder": 1.5,
                "clip_on": False,
            }
            axes.plot([x, end_x], [y, end_y], transform=plain, scalex=False, scaley=False, **line)
    return [name for name, box in zip(names, boxes, strict=True) if box is None]


def _draw_legend(figure: Figure, page: Page, points: Sequence[_Point]) -> None:
    from matplotlib.lines import Line2D

    timed = figures.is_timed(page)
    interval = "; bars: 95 % intervals" if timed else ""
    dot: dict[str, Any] = {"marker": "o", "markersize": 7, "mew": 1.4}
    joined = Line2D([], [], color=BLUE, linewidth=1.6, **dot)
    entries = [(joined, f"offered; line: the Pareto front{interval}")]
    if any(not p.row.offered for p in points):
        hollow = Line2D([], [], color=GREY, linestyle="", markerfacecolor="white", **dot)
        entries.append((hollow, "not offered"))
    if timed:
        ideal = Line2D([], [], color=VERMILION, linewidth=1.3, dashes=(5, 3), marker="D")
        ideal.set_markersize(3.4)
        words = "if time fell with MACs: the full net's latency × the subnet's share of its MACs"
        entries.append((ideal, words))
    height = figure.get_size_inches()[1]
    for n, (handle, words) in enumerate(entries):
        x, y = _LEFT / 8, (0.98 - 0.2 * n) / height
        handle.set_data([x, x + 0.025, x + 0.05], [y, y, y])
        handle.set_transform(figure.transFigure)
        handle.set_markevery([1])
        figure.add_artist(handle)
        figure.text(x + 0.062, y, words, va="center_baseline", **lettering(9))


def _write_notes(
    figure: Figure, page: Page, points: Sequence[_Point], unlabelled: Sequence[str]
) -> None:
    """Write, at the foot, what is missing from the picture and where it was measured."""
    shown = {id(p.row) for p in points}
    absent = [row.name for row in page.rows if id(row) not in shown]
    lines = []
    if absent:
        lines.append(f"Not shown, not measured: {', '.join(absent)}")
    if unlabelled:
        lines.append(f"No room for {len(unlabelled)} names: {', '.join(unlabelled)}")
    machine = _machine(page)
    if machine and figures.is_timed(page):
        lines.append(f"Measured on: {machine}")
    height = figure.get_size_inches()[1]
    for n, line in enumerate(reversed(lines)):
        words = legible(line, 118)
        figure.text(_LEFT / 8, (0.1 + 0.15 * n) / height, words, **lettering(7.5, MUTED))


def _machine(page: Page) -> str:
    """Return what decides a latency, in a line that fits; the report lists all the rest."""
    setting = {key: page.facts[key] for key in ("batch", "threads") if key in page.facts}
    known = {**page.machine, **setting}
    names = [known[key] for key in ("processor", "gpu") if key in known]
    counts = [
        f"{key} {known[key]}" for key in ("cores", "threads", "torch", "batch") if key in known
    ]
    return ", ".join([*(shorten(name, 40) for name in names), *counts])
