"""Figures: what the kept results of a protocol say, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from execution.protocols import WAYS, Protocol

GOALS = {
    "vgg16-half": {"speedup": 3.0, "memory_ratio": 0.75},
    "resnet56-half": {"speedup": 1.8, "memory_ratio": 0.6},
}
SELECTION = 0.08  # the most of a step that selection, gathering and saliency may take
TOLD = {
    "dense": "dense",
    "executed": "channel execution",
    "random": "random units",
    "alone": "compact shape alone",
    "slimming": "Network Slimming",
}

Results = Mapping[str, Mapping[str, Any]]


def seeds_of(of: Protocol, results: Results, net: str, way: str) -> list[Mapping[str, Any]]:
    """Return the kept results of a way, seed by seed."""
    names = (f"{net}-{way}-{seed}" for seed in of.seeds)
    return [results[name]["result"] for name in names if name in results]


def summary(of: Protocol, results: Results) -> list[dict[str, Any]]:
    """Return one row a net; what is not kept yet is null."""
    return [_row(of, results, net) for net in of.nets if any(n.startswith(net) for n in results)]


def _row(of: Protocol, results: Results, net: str) -> dict[str, Any]:
    cost = results.get(f"{net}-cost", {}).get("result", {})
    means = {way: _mean(seeds_of(of, results, net, way)) for way in WAYS}
    executed = seeds_of(of, results, net, "executed")
    shares = cost.get("shares")
    return {
        "protocol": of.name,
        "net": net,
        "data": of.data,
        "seeds": len(executed),
        "keep": of.nets[net].keep,
        "speedup": _rounded(cost.get("speedup")),
        "memory_ratio": _rounded(cost.get("memory_ratio")),
        "selection_share": _rounded(sum(shares.values()) if shares else None),
        "accuracy": means["executed"],
        "accuracy_dense": means["dense"],
        "accuracy_alone": means["alone"],
        "accuracy_random": means["random"],
        "accuracy_slimming": means["slimming"],
        "macs_ratio": _ratio(executed, "macs"),
        "params_ratio": _ratio(executed, "params"),
    }


def _mean(found: list[Mapping[str, Any]]) -> float | None:
    return _rounded(fmean(each["accuracy"] for each in found)) if found else None


def _ratio(found: list[Mapping[str, Any]], what: str) -> float | None:
    return _rounded(fmean(r[f"full_{what}"] / r[what] for r in found)) if found else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def tables(of: Protocol, results: Results) -> str:
    """Return the kept results as two Markdown tables: cost and accuracy."""
    lines = [
        "| net | images/s dense | executed | alone | speed-up (goal) | memory (goal) | alone "
        "| selection, gathering, saliency |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for net in of.nets:
        cost = results.get(f"{net}-cost", {}).get("result")
        if cost:
            lines.append(_cost_line(net, cost))
    lines += [
        "",
        "| net | way | seeds | accuracy, % | to dense, points | MACs | parameters | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for net in of.nets:
        dense = seeds_of(of, results, net, "dense")
        for way in WAYS:
            found = seeds_of(of, results, net, way)
            if found:
                lines.append(_accuracy_line(net, way, found, dense))
    where = next((r["result"]["machine"] for r in results.values()), {})
    lines += ["", f"{where.get('processor')}, torch {where.get('torch')}."]
    return "\n".join(lines)


def _cost_line(net: str, cost: Mapping[str, Any]) -> str:
    speed, goals = cost["images_per_second"], GOALS.get(net, {})
    told = {k: f" (≥ {g:g}×)" if k == "speedup" else f" (≤ {g:g}×)" for k, g in goals.items()}
    shares = cost["shares"].values()
    parts = ", ".join(f"{100 * share:.1f}" for share in shares)
    return (
        f"| {net} | {speed['dense']:.0f} | {speed['executed']:.0f} | {speed['alone']:.0f} "
        f"| {cost['speedup']:.2f}×{told.get('speedup', '')} "
        f"| {cost['memory_ratio']:.2f}×{told.get('memory_ratio', '')} "
        f"| {cost['speedup_alone']:.2f}× in {cost['memory_ratio_alone']:.2f}× "
        f"| {100 * sum(shares):.1f} % ({parts}) |"
    )


def _accuracy_line(
    net: str, way: str, found: list[Mapping[str, Any]], dense: list[Mapping[str, Any]]
) -> str:
    values = [100 * each["accuracy"] for each in found]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    gap = f"{fmean(values) - 100 * fmean(d['accuracy'] for d in dense):+.2f}" if dense else ""
    macs = fmean(each["full_macs"] / each["macs"] for each in found)
    params = fmean(each["full_params"] / each["params"] for each in found)
    seconds = fmean(each["seconds"] for each in found)
    return (
        f"| {net} | {TOLD[way]} | {len(found)} | {fmean(values):.2f}{spread} | {gap} "
        f"| 1/{macs:.1f} | 1/{params:.1f} | {seconds:.0f} |"
    )
