"""Figures: what the kept results of a protocol say, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
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
