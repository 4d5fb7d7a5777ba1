"""The picture of a comparison: accuracy against cost, mean and spread over the seeds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nestling.errors import NestlingError, did_you_mean
from nestling.report.labels import Box, place_labels
from nestling.report.picture import (
    DPI,
    MARKS,
    RULE,
    along_lines,
    color_of,
    deep,
    in_lines,
    legible,
    lettering,
    new_figure,
    save,
    text_width,
    tidy,
    write_heading,
)
from nestling.report.seeds import Point, Result, Summary, by_label, curve
from nestling.report.units import human_bytes, human_count, human_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = {  # name of a cost -> what the axis and the tables call it
    "macs": "MACs",
    "params": "parameters",
    "bytes": "bytes",
    "latency": "latency",
}
_WITH_UNIT = {**COSTS, "bytes": "bytes of the weights", "latency": "measured latency, ms"}
_WIDTH, _HEIGHT = 8.0, 4.9  # inches
_LEFT, _BOTTOM, _TOP = 0.8, 0.72, 0.95  # inches around the axes
_CHARACTERS = 22  # of a line of a curve's name; there are two
_SIZE = 9.5  # points of a curve's name
_GAP = 17.0  # pixels from a curve's end to its name in the margin
_LOG_FROM = 25.0  # a larger ratio of dearest to cheapest goes on a logarithmic axis
_NEAR = 7.0  # pixels: bars of points that are nearer to one another would hide one another
_DODGE = 2.2  # points by which these stand apart
_FAR = 20.0  # pixels from a point, from which on a line leads to its name
_FROM_ZERO = 0.5  # with a smaller ratio of cheapest to dearest, the axis begins at nothing
_AT_END = 0.6  # a curve that ends to the right of this share of the axes is named in the margin


class _Curve(NamedTuple):
    label: str
    place: int  # in order of appearance: decides colour and mark
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]  # percent
    std: npt.NDArray[np.float64]  # percentage points; 0 where there is one seed


def comparison(
    results: Sequence[tuple[str, int, float, float]] | Sequence[Point],
    path: str | os.PathLike[str],
    *,
    title: str,
    subtitle: str = "",
    cost: str = "macs",
    metric: str = "accuracy",
    whole: float | None = None,
    budgets: Sequence[float] | None = None,
) -> Path:
    """Draw accuracy against cost for several methods as a PNG and return its path.

    One line a label, with its name beside it, in the order and colours of first appearance. Points
    are means over the seeds of the most accurate entry at or below each budget (nothing is
    interpolated), bars reach one standard deviation up and down. Bars of different labels stand a
    little apart, so that none hides another; points stand where they belong. A label with a single
    point is that point, with its name.

    Args:
        results: of all labels and seeds: `Result`s, or (label, seed, cost, accuracy). Or all
            `Point`s, which are drawn as they are: for entries that other figures have chosen, such
            as accuracies on held-out data.
        path: the PNG file to write.
        title: the head line.
        subtitle: the line below; by default what points and bars are.
        cost: what `Result.cost` is: macs, params, bytes or latency (in ms).
        metric: what `Result.accuracy` is, in the user's words.
        whole: cost of the full net, of which the axis then shows shares.
        budgets: look only at these costs; by default where each label's own entries lie. Not for
            points.

    Raises:
        NestlingError: no results, a cost that is not positive, an accuracy that is no share, an
            unknown cost, points among results, or budgets for points.
        FileError: the place cannot be written.

    Example:
        >>> rows = [Result("uniform", seed, macs, accuracy) for seed, macs, accuracy in measured]
        >>> comparison(rows, "methods.png", title="ResNet-20 on CIFAR-10", whole=40_813_184)
    """
    check_cost(cost)
    if whole is not None and not 0 < whole < float("inf"):
        raise NestlingError(f"whole= is the positive cost of the full net, but it is {whole}")
    points, explained = _points(results, budgets)
    curves = _curves(points, 100 / whole if whole else 1.0)
    names = [in_lines(each.label, _CHARACTERS) for each in curves]
    figure = new_figure(_WIDTH, _HEIGHT)
    margin = 0.4 + max(text_width(name, _SIZE) for name in names)
    area = (
        _LEFT / _WIDTH,
        _BOTTOM / _HEIGHT,
        (_WIDTH - _LEFT - margin) / _WIDTH,
        (_HEIGHT - _BOTTOM - _TOP) / _HEIGHT,
    )
    axes = figure.add_axes(area)
    tidy(axes)
    axes.grid(color=RULE, linewidth=0.8)
    write_heading(figure, title, subtitle or explained, left=_LEFT)
    _set_limits(axes, curves, cost, shares=whole is not None)
    of = f"{COSTS[cost]}, % of the full net" if whole else _WITH_UNIT[cost]
    axes.set_xlabel(f"{of} (lower is better)", labelpad=7, **lettering(10))
    axes.set_ylabel(f"{legible(metric, 40)}, %", labelpad=8, **lettering(10))
    _draw_curves(axes, curves)
    _name_curves(axes, curves, names)
    return save(figure, path)


def check_cost(cost: str) -> None:
    """Check the name of a cost.

    Raises:
        NestlingError: it is none of `COSTS`.
    """
    if cost not in COSTS:
        raise NestlingError(
            f"unknown cost {cost!r}{did_you_mean(cost, COSTS)}; the costs are {', '.join(COSTS)}"
        )


def _points(
    results: Sequence[tuple[str, int, float, float]] | Sequence[Point],
    budgets: Sequence[float] | None,
) -> tuple[dict[str, list[tuple[float, Summary]]], str]:
    """Return the points of each label, cheapest first, and what they are, in words."""
    if not results:
        raise NestlingError("a comparison draws at least one result, but there is none")
    finished = [each for each in results if isinstance(each, Point)]
    if not finished:
        known = [Result(*each) for each in results if not isinstance(each, Point)]
        return _worked_out(known, budgets), _explained(known)
    if len(finished) != len(results) or budgets is not None:
        wrong = "budgets=" if budgets is not None else "results of single runs"
        raise NestlingError(f"points are drawn as they are; leave out {wrong}")
    found: dict[str, list[tuple[float, Summary]]] = {}
    for label, cost, accuracy in sorted(finished, key=lambda each: each.cost):
        _check(label, f"{accuracy.seeds} seeds", cost, accuracy.mean)
        found.setdefault(label, []).append((cost, accuracy))
    counts = {each.accuracy.seeds for each in finished}
    several = f"Mean over {human_seeds(counts)}; bars: ± one standard deviation"
    order = dict.fromkeys(each.label for each in finished)
    return {label: found[label] for label in order}, several if max(counts) > 1 else "One seed"


def _worked_out(
    results: Sequence[Result], budgets: Sequence[float] | None
) -> dict[str, list[tuple[float, Summary]]]:
    """Return the points of each label: its most accurate entries within the budgets."""
    for each in results:
        _check(each.label, f"seed {each.seed}", each.cost, each.accuracy)
    found = {}
    for label, mine in by_label(results).items():
        found[label] = curve(mine, budgets)
        if not found[label]:
            raise NestlingError(
                f"not every seed of {label!r} has a subnet within {max(budgets or [0]):g}, the "
                "largest of the budgets; give larger ones in budgets="
            )
    return found


def _check(label: str, of: str, cost: float, accuracy: float) -> None:
    if not 0 < cost < float("inf") or not 0 <= accuracy <= 1:
        raise NestlingError(
            f"a result has a positive cost and an accuracy from 0 to 1, but that of {label!r}, "
            f"{of}, has cost {cost} and accuracy {accuracy}; divide a percentage by 100"
        )


def _curves(points: Mapping[str, Sequence[tuple[float, Summary]]], scale: float) -> list[_Curve]:
    found = []
    for place, (label, mine) in enumerate(points.items()):
        x = np.array([cost * scale for cost, _ in mine])
        y = np.array([100 * accuracy.mean for _, accuracy in mine])
        std = np.array([100 * (accuracy.std or 0.0) for _, accuracy in mine])
        found.append(_Curve(label, place, x, y, std))
    return found


def _explained(results: Sequence[Result]) -> str:
    """Return what points and bars are, with the number of seeds."""
    counts = {len({each.seed for each in mine}) for mine in by_label(results).values()}
    if max(counts) == 1:
        return "Most accurate subnet at or below each cost; one seed, so no bars"
    return f"Mean over {human_seeds(counts)} at or below each cost; bars: ± one standard deviation"


def _set_limits(axes: Axes, curves: Sequence[_Curve], cost: str, *, shares: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    xs = np.concatenate([each.x for each in curves])
    if shares or cost == "latency":
        number = FuncFormatter(lambda x, _: f"{x:g}")
    else:
        human = human_bytes if cost == "bytes" else human_count
        number = FuncFormatter(lambda x, _: human(x).replace(".0 ", " "))
    if xs.max() / xs.min() > _LOG_FROM:
        axes.set_xscale("log")
        axes.set_xlim(xs.min() / 1.25, xs.max() * 1.06)
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    else:
        left = 0 if xs.min() < _FROM_ZERO * xs.max() else xs.min() - 0.08 * np.ptp(xs)
        axes.set_xlim(left, xs.max() + 0.02 * (xs.max() - left) or 2 * xs.max())
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(number)
    low = min(float((each.y - each.std).min()) for each in curves)
    high = max(float((each.y + each.std).max()) for each in curves)
    air = max(0.06 * (high - low), 0.3)
    limits = max(low - air, -1.0), min(high + air, 101.0)
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(MaxNLocator(7))
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
    axes.set_ylim(*limits)


def _draw_curves(axes: Axes, curves: Sequence[_Curve]) -> None:
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure(root=True)
    assert figure is not None
    shifts = _shifts(axes, curves)
    for each in curves:
        color, mark = color_of(each.place), MARKS[each.place % len(MARKS)]
        bars: dict[str, Any] = {"fmt": "none", "ecolor": color, "elinewidth": 1.2, "capsize": 2.2}
        for x, y, std, shift in zip(each.x, each.y, each.std, shifts[each.place], strict=True):
            if std:
                aside = axes.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
                axes.errorbar(x, y, yerr=std, alpha=0.75, zorder=2, transform=aside, **bars)
        size = 5.5 if len(each.x) > 1 else 7.5
        style: dict[str, Any] = {"color": color, "linewidth": 1.8, "marker": mark}
        axes.plot(
            each.x, each.y, markersize=size, markeredgecolor="white", mew=0.7, zorder=3, **style
        )


def _shifts(axes: Axes, curves: Sequence[_Curve]) -> list[list[float]]:
    """Return how far aside each bar goes, in points: those at about one cost stand in a row."""
    pixels = [axes.transData.transform(np.stack([each.x, each.y], 1))[:, 0] for each in curves]

    def shift(place: int, x: float) -> float:
        near = [n for n, others in enumerate(pixels) if np.any(np.abs(others - x) < _NEAR)]
        return (near.index(place) - (len(near) - 1) / 2) * _DODGE

    return [[shift(n, x) for x in places] for n, places in enumerate(pixels)]


def _name_curves(axes: Axes, curves: Sequence[_Curve], names: Sequence[str]) -> None:
    """Write each curve's name: at its end in the margin, or beside it where it ends earlier."""
    ends = [tuple(axes.transData.transform((each.x[-1], each.y[-1]))) for each in curves]
    window = axes.get_window_extent()
    tallest = max(1 + name.count("\n") for name in names)
    line = (0.2 + 1.15 * tallest) * _SIZE / 72 * DPI
    outer = [
        n
        for n, (x, _) in enumerate(ends)
        if x > window.x0 + _AT_END * window.width and len(curves[n].x) > 1
    ]
    outer.sort(key=lambda n: (ends[n][1], float(curves[n].y.mean())))
    places = spread([ends[n][1] for n in outer], line, window.y0, window.y1)
    for n, y in zip(outer, places, strict=True):
        _write_at_end(axes, curves[n], names[n], ends[n], (window.x1 + _GAP, y))
    inner = [n for n in range(len(curves)) if n not in outer]
    _write_beside(axes, [curves[n] for n in inner], [names[n] for n in inner])


def _write_at_end(
    axes: Axes,
    each: _Curve,
    name: str,
    end: tuple[float, float],
    place: tuple[float, float],
) -> None:
    from matplotlib.transforms import IdentityTransform

    plain, (x, y) = IdentityTransform(), place
    color = color_of(each.place)
    start = end[0] + 7.0
    axes.plot(
        [start, max(start, x - 7), x - 2],
        [end[1], y, y],
        transform=plain,
        color=color,
        linewidth=0.8,
        alpha=0.8,
        clip_on=False,
        scalex=False,
        scaley=False,
        zorder=1.5,
    )
    words = lettering(_SIZE, deep(color), weight="bold", va="center", transform=plain)
    axes.text(x + 2, y, name, **words)


def _write_beside(axes: Axes, curves: Sequence[_Curve], names: Sequence[str]) -> None:
    from matplotlib.transforms import IdentityTransform

    anchors = [tuple(axes.transData.transform((each.x[-1], each.y[-1]))) for each in curves]
    heights = [1.25 * (1 + name.count("\n")) * _SIZE / 72 * DPI for name in names]
    window = axes.get_window_extent()
    boxes = place_labels(
        anchors,
        [
            (text_width(name, _SIZE) * DPI + 10, height)
            for name, height in zip(names, heights, strict=True)
        ],
        keep_off=[Box(x - 8, y - 8, x + 8, y + 8) for x, y in anchors],
        avoid=along_lines(axes),
        bounds=Box(window.x0 + 2, window.y0 + 4, window.x1 + 30, window.y1 + 10),
    )
    plain = IdentityTransform()
    for each, name, box, (x, y) in zip(curves, names, boxes, anchors, strict=True):
        left, bottom = (x + 12, y - 10) if box is None else (box.left + 5, box.bottom)
        color = color_of(each.place)
        words = lettering(_SIZE, deep(color), weight="bold", va="bottom", transform=plain)
        axes.text(left, bottom, name, zorder=6, **words)
        near = (x, y) if box is None else box.nearest(x, y)
        if np.hypot(near[0] - x, near[1] - y) > _FAR:
            line: dict[str, Any] = {"color": color, "linewidth": 0.8, "zorder": 1.5}
            axes.plot(
                [x, near[0]], [y, near[1]], transform=plain, scalex=False, scaley=False,
                clip_on=False, **line,
            )  # fmt: skip


def spread(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Return places as near to the wanted ones as may be, at least a distance apart.

    Args:
        wanted: ascending.
        distance: between neighbours; less where there is no room.
        low: no place lies below.
        high: no place lies above.

    Source: pool adjacent violators; Barlow et al., Statistical Inference under Order Restrictions
    (1972): the least squares solution.

    Example:
        >>> spread([5.0, 5.0, 9.0], 2.0, 0.0, 10.0)
        [4.0, 6.0, 9.0]
    """
    if len(wanted) > 1:
        distance = min(distance, (high - low) / (len(wanted) - 1))
    pools: list[list[float]] = []  # neighbours that share a place, less their own steps
    for n, place in enumerate(wanted):
        pools.append([place - n * distance])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    most = high - (len(wanted) - 1) * distance
    starts = [min(max(fmean(pool), low), most) for pool in pools for _ in pool]
    return [start + n * distance for n, start in enumerate(starts)]
