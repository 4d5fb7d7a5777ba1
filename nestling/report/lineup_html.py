"""The report of a comparison: one page that needs no network, and the pictures beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from nestling.files import write_atomically
from nestling.report.comparison import COSTS, comparison
from nestling.report.html import embedded, fact_list
from nestling.report.lineup import SHARES, Lineup
from nestling.report.page import COMPARISON
from nestling.report.runs import ReadRun
from nestling.report.search_path import search_path
from nestling.report.seeds import Summary
from nestling.report.skyline import skylines
from nestling.report.units import (
    MISSING,
    human_bytes,
    human_count,
    human_list_of,
    human_ms,
    human_percent,
    human_seeds,
    human_share,
)

_Cell = tuple[str, float | None]  # what is shown, and the number that it is sorted by


def lineup_html(lineup: Lineup, folder: Path) -> Path:
    """Draw the pictures, write the page, and return its path.

    Args:
        lineup: the runs.
        folder: that is there; `comparison.png`, `skyline-75.png` ..., `search-1.png` ... and
            `report.html` are written into it.

    Raises:
        FileError: a log of a search is damaged, or a file cannot be written.
    """
    title = title_of(lineup)
    picture = comparison(
        lineup.results,
        folder / "comparison.png",
        title=title,
        cost=lineup.cost,
        metric=lineup.metric,
        whole=lineup.whole,
    )
    head = head_line(lineup)
    parts = {
        "title": escape(title),
        "head_line": escape(head[:1].upper() + head[1:]),
        "key_figures": escape(_key_figures(lineup)),
        "warnings": _warned(lineup.warnings),
        "picture": embedded(f"Accuracy against {COSTS[lineup.cost]}, all methods", picture),
        "rule": escape(_rule(lineup)),
        "budgets": _budgets(lineup),
        "points": _points(lineup),
        "subnets": _subnets(lineup),
        "skylines": _skylines(lineup, folder),
        "searches": _searches(lineup, folder),
        "facts": fact_list("What was compared", _compared(lineup)),
        "machine": fact_list("Where it was measured", _machine(lineup)),
    }
    path = folder / "report.html"
    write_atomically(path, Template(COMPARISON).substitute(parts).encode())
    return path


def title_of(lineup: Lineup) -> str:
    """Return the head line of a comparison: models and data sets."""
    models = dict.fromkeys(_short(run.settings.get("model")) for run in lineup.runs)
    data = dict.fromkeys(str(run.settings.get("data") or "data of its own") for run in lineup.runs)
    return f"{human_list_of(list(models))} on {human_list_of(list(data))}"


def head_line(lineup: Lineup) -> str:
    """Return the key result in one sentence: how the best label compares with the first.

    A difference is claimed only where its 95 % interval has no zero in it.
    """
    first, *others = lineup.groups
    if not others:
        return f"{first}, {human_seeds([len(lineup.groups[first])])}."
    gains = {label: gain for label in others if (gain := lineup.gain(label, first)) is not None}
    if not gains:
        return f"No run of another method has a seed in common with {first}."
    # One that is known by several seeds says more than one that is not.
    best = max(gains, key=lambda label: (gains[label].seeds > 1, gains[label].mean))
    gain = gains[best]
    points = 100 * gain.mean
    differ = f"{abs(points):.{1 if abs(points) >= 1 else 2}f} points"
    if gain.low is None or gain.high is None:
        word = "more" if points >= 0 else "less"
        return (
            f"{best} is {differ} {word} accurate than {first} at the same budgets, with one seed "
            "in common, which proves little."
        )
    interval = f"95 % interval {_signed(100 * gain.low)} to {_signed(100 * gain.high)}"
    if gain.low <= 0 <= gain.high:
        mean = f"{_signed(points)} points, {interval}"
        return f"No clear difference between {best} and {first} ({mean})."
    word = "more" if points > 0 else "less"
    return f"{best} is {differ} {word} accurate than {first} at the same budgets ({interval})."


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")


def _key_figures(lineup: Lineup) -> str:
    if len(lineup.groups) == 1:
        return ""
    budgets = ", ".join(f"{100 * share:g}" for share in SHARES)
    return (
        f"Mean over the budgets {budgets} % of the full net's {COSTS[lineup.cost]} that both meet, "
        "run by run of the same seed; interval by Student's t. Of several methods, the one that is "
        "the furthest ahead of the first is named, so that its lead is partly luck."
    )


def _rule(lineup: Lineup) -> str:
    unit = f" {COSTS[lineup.cost]}" if lineup.cost in ("macs", "params") else ""
    whole = f"{_human_cost(lineup, lineup.whole)}{unit}"
    where = f" ({lineup.key})" if lineup.key is not None else ""
    return (
        f"At each budget, the most accurate subnet that costs no more; nothing is interpolated. "
        f"100 % are {whole}, the full net of the first run{where}. Mean and standard deviation "
        f"over the seeds; 95 % interval of the mean by Student's t."
    )


# -- tables ---------------------------------------------------------------------------------------


def _budgets(lineup: Lineup) -> str:
    heads = ["Method", f"Budget, % of {COSTS[lineup.cost]}", *_summary_heads(lineup)]
    rows = [
        (label, [(human_share(share), share), *_summary_cells(found, lineup.groups[label])])
        for share in SHARES
        for label, found in lineup.at(share).items()
    ]
    return _table(heads, rows, sortable=True)


def _points(lineup: Lineup) -> str:
    heads = ["Method", COSTS[lineup.cost], "Share", *_summary_heads(lineup)]
    rows = [
        (
            label,
            [
                (_human_cost(lineup, budget), budget),
                (human_share(budget / lineup.whole), budget),
                *_summary_cells(summary, lineup.groups[label]),
            ],
        )
        for label, points in lineup.curves().items()
        for budget, summary in reversed(points)
    ]
    return _table(heads, rows)


def _subnets(lineup: Lineup) -> str:
    heads = ["Run", "Subnet", "MACs", "Parameters", "Bytes", "Latency, ms", lineup.metric]
    rows = []
    for label, runs in lineup.groups.items():
        for run in runs:
            times = run.costs("latency", lineup.key)
            for each in run.entries:
                time = times.get(each.name)
                cells: list[_Cell] = [
                    (each.name, None),
                    (human_count(each.macs), each.macs),
                    (human_count(each.params), each.params),
                    (human_bytes(each.bytes), each.bytes),
                    (MISSING if time is None else human_ms(time), time),
                    (human_percent(each.accuracy), each.accuracy),
                ]
                rows.append((f"{label}, seed {_seed(run, runs)}", cells))
    return _table(heads, rows)


def _summary_heads(lineup: Lineup) -> list[str]:
    metric = lineup.metric[:1].upper() + lineup.metric[1:]
    return [metric, "Std, points", "95 % interval", "Seeds"]


def _summary_cells(found: Summary | None, runs: Sequence[ReadRun]) -> list[_Cell]:
    if found is None:
        return [("no subnet so cheap", None), (MISSING, None), (MISSING, None), (MISSING, None)]
    seeds = ", ".join(_seed(run, runs) for run in runs)
    if found.std is None or found.low is None or found.high is None:
        spread: list[_Cell] = [(MISSING, None), (MISSING, None)]
    else:
        interval = f"{100 * found.low:.2f}–{100 * found.high:.2f}"
        spread = [(f"{100 * found.std:.2f}", found.std), (interval, found.low)]
    return [(human_percent(found.mean), found.mean), *spread, (seeds, found.seeds)]


def _table(
    heads: Sequence[str], rows: Sequence[tuple[str, Sequence[_Cell]]], *, sortable: bool = False
) -> str:
    """Return a table; every cell carries the exact value, by which it is sorted."""
    button = '<button type="button">{}</button>' if sortable else "{}"
    head = "".join(f'<th scope="col">{button.format(escape(word))}</th>' for word in heads)
    lines = []
    for name, cells in rows:
        shown = "".join(
            f'<td data-v="{"" if value is None else f"{value:.9g}"}">{escape(text)}</td>'
            for text, value in cells
        )
        long = ' class="long"' if len(name) > 16 else ""
        lines.append(
            f'<tr><th scope="row"{long} data-v="{escape(name)}">{escape(name)}</th>{shown}</tr>'
        )
    body = "\n".join(lines)
    return f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"


# -- pictures -------------------------------------------------------------------------------------


def _skylines(lineup: Lineup, folder: Path) -> str:
    """Draw the subnets that each label's first run has at the budgets; equal nets only."""
    space = lineup.runs[0].space
    shape = [(axis.name, axis.size) for axis in space.axes.values()]
    firsts = {label: runs[0] for label, runs in lineup.groups.items()}
    other = [
        label
        for label, run in firsts.items()
        if [(axis.name, axis.size) for axis in run.space.axes.values()] != shape
    ]
    shown = []
    for share in SHARES:
        chosen = {k: each for k, each in lineup.chosen(share).items() if k not in other}
        if not chosen:
            continue
        percent = f"{100 * share:g} % of the {COSTS[lineup.cost]}"
        picture = skylines(
            {label: each.counts for label, each in chosen.items()},
            space,
            folder / f"skyline-{100 * share:g}.png",
            title=f"The most accurate subnets within {percent}",
            subtitle="First run of each method",
            notes={
                label: f"{each.name} · {human_share(each.macs / firsts[label].full.macs)} MACs · "
                f"{human_percent(each.accuracy)}"
                for label, each in chosen.items()
            },
            places={label: place for place, label in enumerate(firsts)},
        )
        shown.append(embedded(f"Units kept on each axis, within {percent}", picture))
    if other:
        words = f"Not drawn, since their nets have other axes: {', '.join(other)}."
        shown.append(f'<p class="key">{escape(words)}</p>')
    return "\n".join(shown) or '<p class="key">No subnet is within any of the budgets.</p>'


def _searches(lineup: Lineup, folder: Path) -> str:
    """Draw the path of the first search of each label that left a log."""
    shown: list[str] = []
    for label, told in lineup.searches.items():
        runs = lineup.groups[label]
        run = next(run for run in runs if run.log is not None)
        file = folder / f"search-{len(shown) + 1}.png"
        picture = search_path(told, run.space, file, title=label)
        shown.append(embedded(f"{label}, seed {_seed(run, runs)}: the way it went", picture))
    if not shown:
        return ""
    pictures = "\n".join(shown)
    return f"<section>\n<h2>The paths of the searches</h2>\n{pictures}\n</section>"


# -- words ----------------------------------------------------------------------------------------


def _warned(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line[:1].upper() + line[1:])}.</li>" for line in lines)
    return f'<div class="warn" role="note"><p>Before you compare</p><ul>{items}</ul></div>'


def _compared(lineup: Lineup) -> dict[str, str]:
    """Return the files and the setting of each label."""
    told = {}
    for label, runs in lineup.groups.items():
        settings = ", ".join(
            f"{key.rpartition('.')[2]} {value}"
            for key, value in runs[0].settings.items()
            if value not in (None, "", 0, "auto") and key != "file"
        )
        files = ", ".join(str(run.path) for run in runs)
        on = f"; accuracy on {runs[0].accuracy_on}" if runs[0].accuracy_on else ""
        told[label] = f"{settings}{on}; {files}"
    return told


def _machine(lineup: Lineup) -> Mapping[str, str]:
    if lineup.key is None:
        return {}
    return lineup.runs[0].profile.machines.get(lineup.key, {})


def _human_cost(lineup: Lineup, cost: float) -> str:
    if lineup.cost == "latency":
        return f"{human_ms(cost)} ms"
    return human_bytes(cost) if lineup.cost == "bytes" else human_count(cost)


def _seed(run: ReadRun, runs: Sequence[ReadRun]) -> str:
    """Return a run's seed, and that of its search where the searches have different ones."""
    searched = len({each.seeds[1:] for each in runs}) > 1
    return "/".join(map(str, run.seeds if searched else run.seeds[:1])) or "unknown"


def _short(model: object) -> str:
    """Return a builder's name, or the function of FILE.py:function with its file's stem."""
    file, _, function = str(model).rpartition(":")
    return f"{Path(file).stem}-{function}" if file else str(model)
