"""`skyline.png`: how wide each subnet is, axis by axis."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nestling.errors import NestlingError
from nestling.report import figures
from nestling.report.picture import (
    BLUE,
    GREY,
    INK,
    MUTED,
    PALE,
    color_of,
    in_lines,
    legible,
    lettering,
    new_figure,
    save,
    write_heading,
)
from nestling.report.rows import Page, Row
from nestling.report.units import human_ms, human_share
from nestling.spec import Space, Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEFT, _RIGHT, _TOP = 2.35, 0.55, 0.75  # inches around the strips
_SLOT = 0.19  # inches an axis needs for its name to stay legible
_WIDEST = 16.0
_UNEVEN = 8  # sizes further apart than this are drawn as shares
_NUMBERED = 24  # with at most this many axes, each bar carries its count


class _Strip(NamedTuple):
    name: str
    note: str  # a short line under the name
    counts: Sequence[int]  # kept units, in the order of the axes
    color: str
    ink: str  # of the name


def skyline(page: Page, path: str | os.PathLike[str]) -> Path:
    """Draw the widths of every subnet as a PNG and return its path.

    One strip a subnet, one bar an axis in network order; the full net stands behind as a pale
    outline. Bars show kept units, or shares of the axis where its sizes differ more than 8 times.

    Args:
        page: what to show.
        path: the PNG file to write.

    Raises:
        FileError: the place cannot be written.
    """
    strips = [
        _Strip(
            row.name,
            _figures(page, row),
            [row.counts.get(name, size) for name, size in page.sizes.items()],
            BLUE if row.offered else GREY,
            INK if row.offered else MUTED,
        )
        for row in page.rows
    ]
    return _draw(strips, page.sizes, path, title=page.title, subtitle="")


def skylines(
    specs: Mapping[str, Mapping[str, int]],
    space: Space,
    path: str | os.PathLike[str],
    *,
    title: str,
    subtitle: str = "",
    notes: Mapping[str, str] | None = None,
    places: Mapping[str, int] | None = None,
) -> Path:
    """Draw the widths of several methods' subnets as a PNG, to be compared, and return its path.

    As `skyline`, with a colour for each label: those of `comparison`, where the labels come in the
    same order.

    Args:
        specs: label -> spec or counts; axes that are not named are kept whole.
        space: that all of them belong to.
        path: the PNG file to write.
        title: the head line.
        subtitle: stands before what the bars are.
        notes: label -> a short line under it; by default its share of the full net's MACs.
        places: label -> its place among all labels of a comparison, which decides its colour; by
            default in the order of the specs.

    Raises:
        NestlingError: there is no spec, or one is not of this space.
        FileError: the place cannot be written.

    Example:
        >>> skylines({"uniform": even, "progressive": best}, net.space, "half.png", title="50 %")
    """
    if not specs:
        raise NestlingError("skylines= draws at least one spec, but there is none")
    full, strips = space.macs(space.full), []
    for place, (label, counts) in enumerate(specs.items()):
        spec = Spec(space, counts)
        note = (notes or {}).get(label, f"{human_share(space.macs(spec) / full)} MACs")
        color = color_of((places or {}).get(label, place))
        strips.append(_Strip(label, note, [spec[n] for n in space.axes], color, INK))
    sizes = {axis.name: axis.size for axis in space.axes.values()}
    return _draw(strips, sizes, path, title=title, subtitle=subtitle)


def _draw(
    strips: Sequence[_Strip],
    sizes: Mapping[str, int],
    path: str | os.PathLike[str],
    *,
    title: str,
    subtitle: str,
) -> Path:
    names = list(sizes)
    width = min(_WIDEST, max(7.5, _LEFT + _RIGHT + _SLOT * len(names)))
    strip = min(1.3, max(0.62, 8.0 / len(strips)))
    root = root_of(names)
    labels = [legible(name.removeprefix(root), 34) for name in names]
    upright = _fits(labels, (width - _LEFT - _RIGHT) / len(names))
    foot = 0.45 if upright else 0.25 + 0.064 * max(len(label) for label in labels)
    height = _TOP + strip * len(strips) + foot
    figure = new_figure(width, height)
    shares = max(sizes.values()) > _UNEVEN * min(sizes.values())
    what = "share of each axis kept" if shares else "units kept on each axis"
    below = f"; names of axes without “{root}”" if root else ""
    before = f"{subtitle}; bars" if subtitle else "Bars"
    write_heading(figure, title, f"{before}: {what}; pale: the full net{below}", left=0.3)
    span = (width - _LEFT - _RIGHT) / width
    for n, each in enumerate(strips):
        base = (height - _TOP - strip * (n + 1)) / height
        axes = figure.add_axes((_LEFT / width, base, span, 0.8 * strip / height))
        _draw_strip(axes, each, sizes, shares=shares)
        _describe(axes, each)
    _name_axes(figure.axes[-1], labels, upright=upright)
    return save(figure, path)


def _draw_strip(axes: Axes, strip: _Strip, full: Mapping[str, int], *, shares: bool) -> None:
    sizes, counts = list(full.values()), strip.counts
    outline = [1.0] * len(sizes) if shares else [float(size) for size in sizes]
    kept = [c / s for c, s in zip(counts, sizes, strict=True)] if shares else counts
    places = range(len(sizes))
    edges = [place - 0.5 for place in range(len(sizes) + 1)]
    axes.stairs(outline, edges, fill=True, color=PALE, zorder=1)
    axes.bar(places, kept, width=0.78, color=strip.color, zorder=2)
    top = max(outline)
    if len(sizes) <= _NUMBERED:
        for place, count, bar in zip(places, counts, kept, strict=True):
            y = bar + 0.04 * top
            axes.text(place, y, str(count), ha="center", va="bottom", **lettering(7, INK))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, top * (1.28 if len(sizes) <= _NUMBERED else 1.04))
    axes.set_facecolor("none")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=GREY, linewidth=0.7)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([0, top], ["0", "100 %" if shares else f"{top:.0f}"], **lettering(7, MUTED))
    axes.tick_params(axis="y", length=0, pad=3)
    _mark_groups(axes, list(full))


def _figures(page: Page, row: Row) -> str:
    """Return a subnet's figures as a short line."""
    facts = [f"{human_share(figures.share_of_macs(page, row))} MACs"]
    if row.latency is not None:
        facts.append(f"{human_ms(row.latency[0])} ms")
    if row.accuracy is not None:
        facts.append(f"{100 * row.accuracy:.1f} %")
    return " · ".join(facts if row.offered else [*facts[:1], "not offered"])


def _describe(axes: Axes, strip: _Strip) -> None:
    """Write the subnet's name and figures to the left of its strip."""
    name, line = in_lines(strip.name, 24), legible(strip.note, 34)
    bold = lettering(9, strip.ink, weight="bold", ha="right", va="bottom")
    axes.annotate(name, (0, 0.5), (-10, 1), "axes fraction", "offset points", **bold)
    quiet = lettering(7.5, MUTED, ha="right", va="top")
    axes.annotate(line, (0, 0.5), (-10, -2), "axes fraction", "offset points", **quiet)


def _name_axes(axes: Axes, labels: Sequence[str], *, upright: bool) -> None:
    """Write the axes' names under the last strip; every second (third ...) when too many."""
    inches = axes.get_window_extent().width / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    every = -(-int(0.13 * len(labels) * 100) // int(inches * 100)) or 1
    places = list(range(0, len(labels), every))
    style = lettering(8 if upright else 7.5, INK, rotation=0 if upright else 90)
    axes.set_xticks(places, [labels[place] for place in places], **style)
    axes.tick_params(axis="x", length=2, color=GREY, pad=3)


def _mark_groups(axes: Axes, names: Sequence[str]) -> None:
    """Part the stages (`layer1`, `layer2` ...) of dotted names by a thin line."""
    root = root_of(names)
    stages = [name.removeprefix(root).partition(".")[0] for name in names]
    borders = [n + 0.5 for n, (one, other) in enumerate(pairwise(stages)) if one != other]
    if len(borders) <= len(names) / 3:
        for border in borders:
            axes.axvline(border, color="white", linewidth=2.5, zorder=1.5)


def root_of(names: Sequence[str]) -> str:
    """Return the module path that all dotted names begin with, its last dot included."""
    shared: list[str] = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0] + ".")
    return "".join(shared) if len(names) > 1 else ""


def _fits(labels: Sequence[str], slot: float) -> bool:
    """Return whether names written upright fit into slots of that many inches."""
    return max(len(label) for label in labels) * 0.075 < slot
