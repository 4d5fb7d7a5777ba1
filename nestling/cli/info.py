"""`nestling info`: what a model file holds, read from its header alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from nestling.cli import terminal
from nestling.cli.options import AsJson, File, ModelArgs, OwnModel, examples, opened, read_header_id
from nestling.report.of_menu import narrowed_lines
from nestling.report.units import (
    MISSING,
    human_bytes,
    human_count,
    human_list,
    human_ms,
    human_percent,
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples(
            "nestling info model.nest",
            "nestling info model.nest --json | jq '.menu\\[].name'",
        )
    )(info)


def info(file: File, model: OwnModel = None, arg: ModelArgs = None, json: AsJson = False) -> None:
    """Show the menu of a model file, with its latencies where they were measured.

    A model of your own class need not be named; one that is named is checked to fit the file.
    """
    from nestling import modelfile

    if model is not None or arg:
        opened(file, model, arg)
    found = modelfile.describe(file)
    profile = _profile(file)
    specs = [entry["spec"] for entry in found["menu"]]
    sizes = {name: axis["size"] for name, axis in found["axes"].items()}
    found["narrowed"] = narrowed_lines(profile, sizes, specs) if profile else []
    tables = list(profile.tables.items()) if profile else []
    for entry in found["menu"]:
        entry["latencies"] = [
            {**asdict(key), **asdict(table[entry["name"]])}
            for key, table in tables
            if entry["name"] in table
        ]
    if json:
        terminal.put_json({"menu": found.pop("menu"), **found})
        return
    _write(file, found)


def _profile(file: Path) -> Any:
    """Return the profile beside a file; None where there is none, with a word if it is unusable."""
    from nestling.errors import FileError
    from nestling.profile import Profile, beside

    if not beside(file).exists():
        return None
    try:
        return Profile.load(beside(file), read_header_id(file))
    except FileError as error:
        terminal.say(f"no latencies: {error}")
        return None


def _write(file: Path, found: dict[str, Any]) -> None:
    model = found["model"]
    made = model.get("class") or f"{model['name']}({_arguments(model['arguments'])})"
    terminal.put(f"{file}: {made}")
    facts = {k: v for k, v in found["facts"].items() if isinstance(v, str | int | float)}
    facts |= {name: text for name in ("mean", "std") if (text := human_list(found["facts"], name))}
    if facts:
        terminal.put(", ".join(f"{name} {value}" for name, value in facts.items()))
    terminal.put()
    keys: list[tuple[Any, ...]] = []
    for entry in found["menu"]:
        keys += [_key(row) for row in entry["latencies"] if _key(row) not in keys]
    heads = ["name", "MACs", "params", "bytes", found["metric"], "offered"]
    heads += [_head(*key) for key in keys]
    rows = [[*_cells(entry), *_latencies(entry, keys)] for entry in found["menu"]]
    terminal.put_table(heads, rows)
    if keys:
        devices = ", ".join(dict.fromkeys(str(key[0]) for key in keys))
        terminal.put(f"\nmedian ms of a call; b: pictures a call, t: threads; on {devices}")
    for entry in found["menu"]:
        if not entry["offered"] and entry["reason"]:
            terminal.put(f"not offered: {entry['name']}, {entry['reason']}")
    for line in found["narrowed"]:
        terminal.put(f"narrowed: {line}")
    terminal.put(f"\n{len(found['axes'])} elastic axes: {', '.join(found['axes'])}")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("device", "backend", "threads", "batch", "dtype"))


def _head(device: str, backend: str, threads: int, batch: int, dtype: str) -> str:
    """Return the head of a column of latencies; views are what runs where nothing else is said."""
    return f"ms b{batch} t{threads}" + ("" if backend == "eager" else f" {backend}")


def _cells(entry: dict[str, Any]) -> list[str]:
    score = entry["accuracy"]
    return [
        entry["name"],
        human_count(entry["macs"]),
        human_count(entry["params"]),
        human_bytes(entry["bytes"]),
        human_percent(score) if score is None or 0 <= score <= 1 else f"{score:.4g}",
        "yes" if entry["offered"] else "no",
    ]


def _latencies(entry: dict[str, Any], keys: list[tuple[Any, ...]]) -> list[str]:
    medians = {_key(row): row["median"] for row in entry["latencies"]}
    return [human_ms(medians[key]) if key in medians else MISSING for key in keys]


def _arguments(given: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items())
