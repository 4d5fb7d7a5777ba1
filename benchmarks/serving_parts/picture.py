"""The picture of a run: load, chosen subnet and lateness over time, beside fixed nets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling.report.picture import (
    BLUE,
    COLORS,
    GREY,
    MUTED,
    RULE,
    VERMILION,
    lettering,
    new_figure,
    save,
    tidy,
    write_heading,
)
from serving_parts import rivals
from serving_parts.trial import BIN

WIDTH, HEIGHT, LEFT = 8.0, 6.6, 0.95  # inches
SMOOTH = 4  # points that lateness is averaged over
DRAWN = {rivals.OURS: BLUE, rivals.LARGEST: VERMILION, rivals.SMALLEST: COLORS[2]}


def draw(found: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Draw a scenario as a PNG and return its path.

    Args:
        found: policy -> its result; the governor's and the two fixed nets'.
        path: of the picture.
    """
    ours = found[rivals.OURS]
    scenario, limit = ours["scenario"], ours["objective_ms"]
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots(3, 1, sharex=True)
    figure.subplots_adjust(left=LEFT / WIDTH, right=0.97, top=0.86, bottom=0.08, hspace=0.36)
    write_heading(
        figure,
        f"{scenario['shape']} arrivals",
        f"{scenario['share']:.0%} of the {scenario['of']} subnet's capacity; "
        f"p{scenario['percentile']:g} <= {limit:g} ms; each stretch is {BIN:g} s",
        left=LEFT,
    )
    asked = ours["timeline"]["asked"]
    times = [BIN * (place + 0.5) for place in range(len(asked))]
    axes[0].fill_between(times, [n / BIN for n in asked], color=GREY, alpha=0.5, linewidth=0)
    _name(axes[0], "requests a second")
    _draw_subnets(axes[1], times, ours["timeline"])
    _name(axes[1], "subnet that answered (governor), % of the requests")
    for policy, color in DRAWN.items():
        if policy in found:
            line = found[policy]["timeline"]
            late = _smooth(line["late"], line["asked"])
            within, reached = 100 * found[policy]["attained"], _share(found[policy])
            label = f"{policy}: {within:.1f} % within, accuracy {reached}"
            axes[2].plot(times[: len(late)], late, color=color, linewidth=1.6, label=label)
    axes[2].set_ylim(-3, 103)
    _name(axes[2], "late, % of the requests")
    axes[2].set_xlabel("seconds", **lettering(9, MUTED))
    axes[2].legend(frameon=False, fontsize=8, loc="best")
    return save(figure, path)


def _draw_subnets(axes: Any, times: Sequence[float], line: Mapping[str, Sequence[int]]) -> None:
    """Draw which share of the answers each subnet gave: the darker, the larger the net."""
    names = [name.removeprefix("by ") for name in line if name.startswith("by ")]
    rows = [line[f"by {name}"] for name in names]
    totals = [sum(column) or 1 for column in zip(*rows, strict=True)]
    shares = [[100 * n / all_ for n, all_ in zip(row, totals, strict=True)] for row in rows]
    shades = [0.15 + 0.85 * place / max(1, len(names) - 1) for place in range(len(names))]
    stacks = axes.stackplot(times, shares, colors=[BLUE] * len(names), linewidth=0, labels=names)
    for stack, shade in zip(stacks, shades, strict=True):
        stack.set_alpha(shade)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(  # above, where it hides nothing
        handles[::-1], labels[::-1], frameon=False, fontsize=7, loc="lower right",
        bbox_to_anchor=(1.0, 1.0), ncol=len(names), columnspacing=1.0, handlelength=1.2,
    )  # fmt: skip
    axes.set_ylim(0, 100)


def _smooth(late: Sequence[int], asked: Sequence[int]) -> list[float]:
    """Return the share that was late, in %, over some stretches before each."""
    found = []
    for place in range(len(late)):
        first = max(0, place - SMOOTH + 1)
        found.append(100 * sum(late[first : place + 1]) / max(1, sum(asked[first : place + 1])))
    return found


def _share(found: Mapping[str, Any]) -> str:
    reached = found["mean_accuracy"]
    return "-" if reached is None else f"{reached:.1%}"


def _name(axes: Any, text: str) -> None:
    tidy(axes)
    axes.set_title(text, loc="left", **lettering(9, MUTED))
    axes.grid(axis="y", color=RULE, linewidth=0.8)
