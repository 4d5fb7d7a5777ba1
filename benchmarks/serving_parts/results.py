"""Kept results: one JSON file a trial, with the machine, the versions and the commit."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comparison.results import commit, versions

from nestling import strictjson
from nestling.profile import machine

BENCHMARKS = Path(__file__).resolve().parent.parent
KEPT = BENCHMARKS / "results" / "serving"
COSTS = "costs"
FIELDS = (
    "scenario", "policy", "attained", "mean_accuracy", "p99_ms", "objective_ms", "queries", "late",
)  # fmt: skip
OTHERS = ("quarter_macs_speedup_b1", "quarter_macs_speedup_b32", "auto_against_best_engine")


def write(folder: Path, name: str, content: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Keep the result of a trial.

    Args:
        folder: of the results.
        name: of the trial.
        content: what was measured.
        about: the menu and what else was equal for all trials of a run.
    """
    place = folder / f"{name}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    where = {"machine": machine(), "versions": versions(), "commit": commit()}
    strictjson.write(place, {**content, "about": dict(about), **where})
    return place


def read(folder: Path = KEPT) -> list[dict[str, Any]]:
    """Return all kept trials, by name; not the costs."""
    places = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [strictjson.read(p, cure="run the benchmark again") for p in places if p.stem != COSTS]


def entries(folder: Path = KEPT) -> list[str]:
    """Return the entries of the menu of the kept trials, fastest first; none without a trial."""
    found = read(folder)
    return [row["name"] for row in reversed(found[0]["about"]["menu"])] if found else []


def read_costs(folder: Path = KEPT) -> dict[str, Any]:
    """Return what the engine itself costs, as kept; empty if it was not measured."""
    place = folder / f"{COSTS}.json"
    return dict(strictjson.read(place, cure="run the benchmark again")) if place.exists() else {}


def name_of(found: Mapping[str, Any]) -> str:
    """Return the name of a trial's scenario; with its load where LoadGen made it."""
    scenario = found["scenario"]
    if isinstance(scenario, Mapping):
        return str(scenario["name"])
    return f"{scenario}-{found['load']}"


def summary(folder: Path = KEPT, benchmarks: Path = BENCHMARKS) -> list[dict[str, Any]]:
    """Return a row for each trial and one for the engine itself.

    Speed-ups of subnets and the choice of backends are measured by another benchmark; where its
    results are kept, they are part of the last row.

    Args:
        folder: of the results.
        benchmarks: folder of the other benchmarks.
    """
    rows = []
    for found in read(folder):
        row = {**found, "scenario": name_of(found)}
        rows.append({field: row[field] for field in FIELDS})
    costs = read_costs(folder)
    last: dict[str, Any] = {
        "engine_overhead_p99_ms": costs.get("overhead", {}).get("p99_ms"),
        "governor_step_us": costs.get("governor_step_us"),
        "memory_growth_mib": costs.get("memory", {}).get("mib"),
    }
    return [*rows, {**last, **_of_backends(benchmarks)}]


def _of_backends(folder: Path) -> dict[str, Any]:
    """Return the figures of the benchmark of the backends, where it is beside this one, else None.

    Args:
        folder: of the benchmarks.
    """
    found: dict[str, Any] = dict.fromkeys(OTHERS)
    script = folder / "backends.py"
    if script.exists():
        spec = importlib.util.spec_from_file_location("benchmark_backends", script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        figures = module.summary(module.kept())
        found.update({name: figures[name] for name in OTHERS if name in figures})
    return found
