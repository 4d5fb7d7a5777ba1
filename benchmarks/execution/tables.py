"""Tables: the kept results as Markdown, for docs/channel-execution.md and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from execution.figures import GOALS, SELECTION, TOLD, Results, seeds_of
from execution.protocols import WAYS, Protocol
from nestling.report.seeds import Summary, summarize

SIGNS = {"speedup": "≥", "memory_ratio": "≤"}  # of the goals
NOTHING = "No training is kept yet."
COST = (
    *("net", "numbers", "weights", "dense, pictures/s", "executed", "alone", "speed-up (goal)"),
    *("alone", "peak memory (goal)", "alone"),
    f"selection, gathering, saliency, % of a step (≤ {100 * SELECTION:g})",
)
REACHED = (
    *("net", "way", "seeds", "accuracy, %", "to dense, points", "channel execution's lead, points"),
    *("MACs", "weights", "minutes"),
)

Group = tuple[Protocol, Results]
"""A protocol with what is kept of it in one folder."""


def costs(groups: Sequence[Group]) -> str:
    """Return what steps cost, a line for each net that was measured; "" where none was."""
    rows, machines = [], {}
    for of, results in groups:
        for net in of.nets:
            cost = results.get(f"{net}-cost", {}).get("result")
            if cost:
                rows.append(_cost_row(net, cost))
                machines[_conditions(of, cost)] = None
    return f"{_table(COST, rows)}\n\n{' '.join(machines)}" if rows else ""


def accuracies(of: Protocol, results: Results) -> str:
    """Return what trainings reach, a line for each net and way that was trained; "" if none was."""
    rows = [
        _reached_row(of, results, net, way)
        for net in of.nets
        for way in WAYS
        if seeds_of(of, results, net, way)
    ]
    if not rows:
        return ""
    trained = [r["result"] for name, r in results.items() if not name.endswith("-cost")]
    machines = dict.fromkeys(_machine(each) for each in trained)
    numbers = dict.fromkeys(each["precision"] for each in trained)
    scored = f"{of.held_out:,} others of the training set" if of.held_out else "the test pictures"
    used = f"{of.pictures:,}" if of.pictures else "all"
    told = (
        f"Protocol `{of.name}`: {used} training pictures of {of.data}, {of.epochs} epochs of "
        f"batches of {of.batch}, scored on {scored}, in {' and in '.join(numbers)}; "
        f"{'; '.join(machines)}. "
        "Behind ± is the standard deviation over the seeds; a lead is of seeds that both have. "
        "Minutes are those of training, without scoring."
    )
    return f"{_table(REACHED, rows)}\n\n{told}"


def page(groups: Sequence[Group], pictures: Path) -> str:
    """Return the accuracies of all protocols, with the pictures that exist, for a page of docs/.

    Args:
        groups: protocols with what is kept of them.
        pictures: their folder, which lies beside the page.
    """
    parts = []
    for of, results in groups:
        table = accuracies(of, results)
        shown = sorted(pictures.glob(f"training-*-{of.name}-*.png")) if table else []
        parts += [table, *(f"![{path.stem}]({pictures.name}/{path.name})" for path in shown)]
    return "\n\n".join(part for part in parts if part) or NOTHING


# -- rows ----------------------------------------------------------------------------------------


def _cost_row(net: str, cost: Mapping[str, Any]) -> list[str]:
    speed, goals, shares = cost["images_per_second"], GOALS.get(net, {}), cost["shares"]
    told = {key: f" ({sign} {goals[key]:g})" if key in goals else "" for key, sign in SIGNS.items()}
    parts = ", ".join(f"{100 * share:.1f}" for share in shares.values())
    return [
        *(net, cost.get("precision", "not kept"), f"{cost['parameters'] / 1e6:.2f} M"),
        *(f"{speed[way]:.0f}" for way in ("dense", "executed", "alone")),
        *(f"{cost['speedup']:.2f} x{told['speedup']}", f"{cost['speedup_alone']:.2f} x"),
        *(f"{cost['memory_ratio']:.2f} x{told['memory_ratio']}",),
        f"{cost['memory_ratio_alone']:.2f} x",
        f"{100 * sum(shares.values()):.1f} ({parts})",
    ]


def _reached_row(of: Protocol, results: Results, net: str, way: str) -> list[str]:
    found = seeds_of(of, results, net, way)
    params = [fmean(each[what] for each in found) / 1e6 for what in ("full_params", "params")]
    macs = fmean(each["macs"] / each["full_macs"] for each in found)
    lead = _difference(of, results, net, "executed", way) if way != "executed" else None
    behind = _difference(of, results, net, way, "dense") if way != "dense" else None
    return [
        *(net, TOLD[way], str(len(found))),
        _with_spread(summarize([100 * each["accuracy"] for each in found]), ".2f"),
        _with_spread(behind, "+.2f"),
        _with_spread(lead, "+.2f"),
        f"{100 * macs:.0f} %",
        f"{params[1]:.2f} of {params[0]:.2f} M",
        f"{fmean(each['seconds'] for each in found) / 60:.1f}",
    ]


def _difference(of: Protocol, results: Results, net: str, way: str, other: str) -> Summary | None:
    """Return how many points a way is ahead of another one, seed by seed; None if no seed is."""
    names = [(f"{net}-{way}-{seed}", f"{net}-{other}-{seed}") for seed in of.seeds]
    pairs = [
        [results[name]["result"]["accuracy"] for name in pair]
        for pair in names
        if all(name in results for name in pair)
    ]
    return summarize([100 * (one - two) for one, two in pairs]) if pairs else None


def _with_spread(figure: Summary | None, form: str) -> str:
    if figure is None:
        return ""
    return f"{figure.mean:{form}}" + ("" if figure.std is None else f" ± {figure.std:.2f}")


def _conditions(of: Protocol, cost: Mapping[str, Any]) -> str:
    return f"Batches of {of.batch} pictures of {of.data}, {_machine(cost)}."


def _machine(result: Mapping[str, Any]) -> str:
    where = result["machine"]
    threads = int(where["threads"])
    return (
        f"{where.get('gpu') or where['processor']}, {threads} thread{'s' * (threads > 1)}, "
        f"torch {where['torch']}"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
