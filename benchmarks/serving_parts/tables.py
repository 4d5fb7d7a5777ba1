"""Tables: the kept results as Markdown, for docs/serving.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving_parts import results, rivals
from serving_parts.results import name_of


def page(folder: Path = results.KEPT) -> str:
    """Return the tables of all kept results."""
    found = results.read(folder)
    if not found:
        return "No result is kept yet."
    parts = [conditions(found), menu(found[0]), scenarios(found), leads(found), loadgen(found)]
    parts.append(costs(results.read_costs(folder)))
    return "\n\n".join(part for part in parts if part)


def conditions(found: list[dict[str, Any]]) -> str:
    """Return where and how the results were measured, in words."""
    machines = sorted(
        {f"{r['machine']['processor']}, torch {r['machine']['torch']}" for r in found}
    )
    commits = sorted({str(r["commit"]) for r in found})
    notes = sorted({str(r["about"]["note"]) for r in found if r["about"].get("note")})
    about = found[0]["about"]
    return (
        f"{'; '.join(machines)}, {about['threads']} thread(s) for the model; commit "
        f"{', '.join(commits)}. {' '.join(notes)} Open-loop arrivals; latency counts from the time "
        "at which a request was due; every request has the objective as its deadline. Energy: "
        f"{', '.join(sorted({str(r['energy']) for r in found if 'energy' in r}))}."
    )


def menu(found: Mapping[str, Any]) -> str:
    """Return the table of the menu that was served."""
    rows = found["about"]["menu"]
    lines = ["| subnet | accuracy on test pictures | " + " | ".join(
        f"batch {batch}, ms" for batch in rows[0]["ms"]) + " |"]  # fmt: skip
    lines.append("|---" * (2 + len(rows[0]["ms"])) + "|")
    for row in rows:
        times = " | ".join(f"{ms:.2f}" for ms in row["ms"].values())
        lines.append(f"| {row['name']} | {row['accuracy']:.2%} | {times} |")
    return "\n".join(["**What was served**", "", *lines])


def scenarios(found: list[dict[str, Any]]) -> str:
    """Return a table of the policies under every scenario.

    Of the fixed nets it has the largest and the smallest; those between them are in `leads`.
    """
    rows = [
        each
        for each in found
        if isinstance(each["scenario"], Mapping) and not each["policy"].startswith(rivals.FIXED)
    ]
    order = {name: place for place, name in enumerate(rivals.POLICIES)}
    rows.sort(key=lambda r: (name_of(r), order.get(r["policy"], 99)))
    lines = [
        "| scenario | p99 objective | policy | within it | accuracy of the answers | p99, ms | "
        "late of all | changes a second |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        p99 = "not reached" if row["p99_ms"] is None else f"{row['p99_ms']:.1f}"
        lines.append(
            f"| {name_of(row)}, {row['scenario']['rate']:.0f}/s | {row['objective_ms']:g} ms | "
            f"{row['policy']} | {row['attained']:.2%} | {_percent(row['mean_accuracy'])} | {p99} | "
            f"{row['late']} of {row['queries']} | {row['switches_per_s']:.2f} |"
        )
    return "\n".join(["**Under load**", "", *lines])


def leads(found: list[dict[str, Any]]) -> str:
    """Return what the governor gains over the fixed nets in each scenario."""
    lines = []
    by: dict[str, dict[str, dict[str, Any]]] = {}
    for each in found:
        if isinstance(each["scenario"], Mapping):
            by.setdefault(name_of(each), {})[each["policy"]] = each
    for name, rows in by.items():
        if not {rivals.OURS, rivals.LARGEST, rivals.SMALLEST} <= rows.keys():
            continue
        ours, large, small = rows[rivals.OURS], rows[rivals.LARGEST], rows[rivals.SMALLEST]
        times = ours["attained"] / large["attained"] if large["attained"] else float("inf")
        points = 100 * (ours["mean_accuracy"] - small["mean_accuracy"])
        kept = "yes" if ours["late"] <= 0.01 * ours["queries"] else "no"
        alone = "yes" if small["late"] <= 0.01 * small["queries"] else "no"
        lines.append(
            f"| {name} | {times:.2f} x | {points:+.2f} | {equal(rows)} | {kept} | {alone} |"
        )
    if not lines:
        return ""
    head = [
        "**The governor against fixed nets**",
        "",
        "| scenario | attainment over the largest's | accuracy over the smallest's, points | over "
        "the best fixed net that attains as much, points | at most 1 % late | so would the "
        "smallest |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines])


def equal(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the governor's lead over the most accurate fixed net that attains no less.

    Such a net is chosen with hindsight, for this very load.

    Args:
        rows: results of one scenario, by policy.
    """
    ours = rows[rivals.OURS]
    fixed = {
        name: row
        for name, row in rows.items()
        if name in (rivals.LARGEST, rivals.SMALLEST) or name.startswith(rivals.FIXED)
    }
    as_good = {name: row for name, row in fixed.items() if row["attained"] >= ours["attained"]}
    if not as_good:
        return "none attains as much"
    best = max(as_good, key=lambda name: as_good[name]["mean_accuracy"])
    lead = 100 * (ours["mean_accuracy"] - as_good[best]["mean_accuracy"])
    return f"{lead:+.2f} ({best.removeprefix(rivals.FIXED)})"


def loadgen(found: list[dict[str, Any]]) -> str:
    """Return the table of LoadGen's scenarios."""
    rows = [each for each in found if "loadgen" in each]
    if not rows:
        return ""
    lines = [
        f"**MLCommons LoadGen** ({rows[0]['note']}; held: at most 1 % late, with 99 % confidence)",
        "",
        "| LoadGen scenario | load | objective | late | held | LoadGen says | p99, ms | accuracy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        held = "yes" if row["held"] else "no"
        p99 = "-" if row["p99_ms"] is None else f"{row['p99_ms']:.1f}"
        lines.append(
            f"| {row['scenario'].removeprefix('loadgen-')} | {row['load']} | "
            f"{row['objective_ms']:g} ms | {row['late']} of {row['queries']} | {held} | "
            f"{row['loadgen'] or '-'} | {p99} | {_percent(row['mean_accuracy'])} |"
        )
    return "\n".join(lines)


def costs(kept: Mapping[str, Any]) -> str:
    """Return what the engine and the governor take themselves."""
    if not kept:
        return ""
    over, memory = kept["overhead"], kept["memory"]
    lines = [
        "**What they take themselves**",
        "",
        "| what | measured | goal |",
        "|---|---|---|",
        f"| engine, idle, closed loop, over the model's own time: 99th percentile (median) | "
        f"{over['p99_ms']:.3f} ms ({over['p50_ms']:.3f}) | 0.3 ms |",
        f"| a step of the governor | {kept['governor_step_us']:.1f} µs | 10 µs |",
        f"| growth of memory over {memory['requests']:,.0f} requests that switch all the time | "
        f"{memory['mib']:.1f} MiB | 20 MiB |",
    ]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
