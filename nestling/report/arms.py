"""Pictures of a channel execution: which units live, what it costs beside the dense training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from nestling.errors import ModelError
from nestling.execution.bandit import Bandit
from nestling.report.picture import (
    BLUE,
    GREY,
    INK,
    MARKS,
    MUTED,
    RULE,
    color_of,
    legible,
    lettering,
    new_figure,
    save,
    tidy,
    write_heading,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEFT, _RIGHT, _TOP, _FOOT = 2.0, 1.35, 0.85, 0.6  # inches around the strips of `arms`
_STRIPS = 24  # axes that get a strip each; more are thinned out evenly
_LETTERS = 24  # of a name


class Trained(NamedTuple):
    """What one way to train has cost and reached.

    Attributes:
        label: its name.
        speed: images a second.
        memory: peak bytes above those of the idle process.
        accuracy: as a share, of each seed.
    """

    label: str
    speed: float
    memory: float
    accuracy: Sequence[float]


def arms(
    bandit: Bandit, path: str | os.PathLike[str], *, title: str = "Which units are executed"
) -> Path:
    """Draw which units were executed over the training as a PNG and return its path.

    One strip an axis, one line a unit, the best mean at the top; time runs to the right. The darker
    a place, the larger the share of that period's steps in which the unit was executed.

    Args:
        bandit: after a training, of `nestling.execution.stage.execute`.
        path: the PNG file to write.
        title: the head line.

    Raises:
        ModelError: the bandit has played no round.
        FileError: the place cannot be written.
    """
    seen = bandit.steps.nonzero().view(-1).tolist()
    if not seen:
        raise ModelError(
            "the picture shows the rounds that a bandit has played, but it has played none; draw "
            "it after the training"
        )
    history = bandit.history.cpu().double()[seen] / bandit.steps.double()[seen, None]
    parts = [
        part[:, means.argsort(descending=True, stable=True)].T.numpy()
        for part, means in zip(
            torch.split(history, bandit.sizes, 1),
            torch.split(bandit.means.cpu(), bandit.sizes),
            strict=True,
        )
    ]
    every = -(-len(parts) // _STRIPS)
    chosen = list(zip(bandit.axes, parts, strict=True))[::every]
    strip = min(1.2, max(0.3, 7.0 / len(chosen)))
    width, height = 8.0, _TOP + _FOOT + strip * len(chosen)
    figure = new_figure(width, height)
    shown = f"; every {every}. axis" if every > 1 else ""
    words = f"Share of the steps in which a unit was executed, best mean at the top{shown}"
    write_heading(figure, title, words, left=0.3)
    for number, (axis, image) in enumerate(chosen):
        base = (height - _TOP - strip * (number + 1)) / height
        span = (width - _LEFT - _RIGHT) / width
        axes = figure.add_axes((_LEFT / width, base, span, 0.86 * strip / height))
        drawn = _draw_heat(axes, image)
        name = f"{legible(axis.name, _LETTERS)} ({axis.size})"
        right = lettering(8, INK, ha="right", va="center")
        axes.annotate(name, (0, 0.5), (-8, 0), "axes fraction", "offset points", **right)
    last = figure.axes[-1]
    last.set_xticks([-0.5, len(seen) - 0.5], ["start", "end"], **lettering(8, MUTED))
    last.set_xlabel("training", labelpad=-4, **lettering(9, MUTED))
    bar = figure.add_axes((1 - (_RIGHT - 0.3) / width, _FOOT / height, 0.018, 1.2 / height))
    scale: Any = figure.colorbar(drawn, cax=bar, ticks=[0, 0.5, 1])
    scale.outline.set_visible(False)
    bar.set_yticks([0, 0.5, 1], ["never", "half", "always"], **lettering(8, MUTED))
    bar.tick_params(length=0)
    return save(figure, path)


def _draw_heat(axes: Axes, image: npt.NDArray[np.float64]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("executed", ["#f2f5f9", BLUE])
    drawn = axes.imshow(image, aspect="auto", cmap=shades, vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks([])
    axes.set_xticks([])
    for side in axes.spines.values():
        side.set(color=RULE, linewidth=0.6)
    return drawn


def training_cost(
    runs: Sequence[Trained],
    path: str | os.PathLike[str],
    *,
    title: str,
    subtitle: str = "",
) -> Path:
    """Draw images a second, peak memory and accuracy of several ways to train as a PNG.

    Bars are relative to the first run, the dense one; accuracies carry one standard deviation.

    Args:
        runs: the dense one first.
        path: the PNG file to write.
        title: the head line.
        subtitle: the line below.

    Raises:
        ModelError: there is no run, or the first one has no speed or memory.
        FileError: the place cannot be written.
    """
    if not runs or not (runs[0].speed > 0 and runs[0].memory > 0):
        raise ModelError(
            "bars are relative to the first run, the dense one, which needs a speed and a memory "
            f"above 0, but the runs are {[run.label for run in runs]}"
        )
    height = 1.75 + 0.36 * len(runs)
    figure = new_figure(9.0, height)
    write_heading(figure, title, subtitle or "Bars relative to the dense run", left=0.3)
    dense = runs[0]
    panels = (
        ("images a second", [run.speed / dense.speed for run in runs], "{:.2f}×"),
        ("peak memory", [run.memory / dense.memory for run in runs], "{:.2f}×"),
        ("accuracy, %", [100 * float(np.mean(run.accuracy)) for run in runs], "{:.2f}"),
    )
    spread = [100 * float(np.std(r.accuracy, ddof=1)) if len(r.accuracy) > 1 else 0 for r in runs]
    for number, (name, values, form) in enumerate(panels):
        left = (1.95 + 2.35 * number) / 9.0
        area = (left, 0.45 / height, 1.75 / 9.0, (height - 1.45) / height)
        axes = figure.add_axes(area)
        bars = spread if number == 2 else [0.0] * len(runs)
        _draw_bars(axes, values, bars, form)
        axes.set_title(name, loc="left", pad=6, **lettering(9, MUTED))
        if number == 0:
            names = [legible(run.label, _LETTERS) for run in runs]
            axes.set_yticks(range(len(runs)), names, **lettering(9, INK))
    return save(figure, path)


def _draw_bars(axes: Axes, values: Sequence[float], spread: Sequence[float], form: str) -> None:
    tidy(axes)
    places = range(len(values))
    colors = [GREY, *[BLUE] * (len(values) - 1)]
    axes.barh(places, values, height=0.62, color=colors)
    for place, value, bar in zip(places, values, spread, strict=True):
        if bar:
            axes.plot([value - bar, value + bar], [place, place], color=INK, linewidth=1)
        text = form.format(value) + (f" ± {bar:.2f}" if bar else "")
        style = lettering(8.5, INK, va="center")
        axes.annotate(text, (value, place), (5, 0), "data", "offset points", **style)
    axes.set_xlim(0, max(values) * (1.75 if any(spread) else 1.35))  # room for the figures
    axes.set_yticks([])
    axes.set_xticks([])
    axes.invert_yaxis()


def accuracy_over_time(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: str | os.PathLike[str],
    *,
    title: str,
    subtitle: str = "",
) -> Path:
    """Draw held-out accuracy against the time that was spent on training, one line a run.

    Args:
        curves: label to (seconds, accuracy as a share), in the order of time.
        path: the PNG file to write.
        title: the head line.
        subtitle: the line below.

    Raises:
        ModelError: there is no curve, or one has no point.
        FileError: the place cannot be written.
    """
    if not curves or not all(curves.values()):
        raise ModelError("every curve has a point or more, but there is one without; leave it out")
    figure = new_figure(8.0, 4.6)
    write_heading(figure, title, subtitle or "Held-out accuracy over training time", left=0.75)
    axes = figure.add_axes((0.75 / 8, 0.65 / 4.6, 5.3 / 8, 3.0 / 4.6))
    tidy(axes)
    axes.grid(color=RULE, linewidth=0.8)
    for number, (label, points) in enumerate(curves.items()):
        x, y = zip(*points, strict=True)
        axes.plot(
            np.array(x) / 60,
            100 * np.array(y),
            color=color_of(number),
            marker=MARKS[number % len(MARKS)],
            markersize=4,
            linewidth=1.6,
            label=legible(label, _LETTERS),
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes of training", labelpad=7, **lettering(10))
    axes.set_ylabel("accuracy, %", labelpad=8, **lettering(10))
    words = axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    for text in words.get_texts():
        text.set(**lettering(9, INK))
    return save(figure, path)
