"""`nestling bench`: measure every subnet of a model file now."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from nestling.cli import terminal
from nestling.cli.options import (
    AsJson,
    File,
    ModelArgs,
    OwnModel,
    Seconds,
    Threads,
    examples,
    opened,
)
from nestling.report.units import (
    human_bytes,
    human_count,
    human_interval,
    human_ms,
    human_times,
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples(
            "nestling bench model.nest",
            "nestling bench model.nest --batch 32 --threads 1 --csv figures.csv",
        )
    )(bench)


def bench(
    file: File,
    batch: Annotated[int, typer.Option(min=1, max=65536, help="Examples a call.")] = 1,
    threads: Threads = None,
    seconds: Seconds = 1.0,
    model: OwnModel = None,
    arg: ModelArgs = None,
    json: AsJson = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the figures to this file, too.")
    ] = None,
) -> None:
    """Measure latency, throughput, speed-up and memory of every subnet, now and here."""
    from nestling import experiment
    from nestling.files import write_atomically
    from nestling.profile import machine

    menu = opened(file, model, arg).menu
    with experiment.threads(threads or 0):
        key = menu.key(batch)
        terminal.say(f"measuring {len(menu)} subnets: {key}")
        rows = _figures(menu.measured(batch, seconds=seconds), batch)
        facts = machine()
    if csv_file is not None:
        write_atomically(csv_file, _csv(rows).encode())
        terminal.say(f"written to {csv_file}")
    if json:
        from dataclasses import asdict

        terminal.put_json({"conditions": asdict(key), "machine": facts, "subnets": rows})
    else:
        _write(rows, batch)


def _figures(menu: Any, batch: int) -> list[dict[str, Any]]:
    from nestling.costs.memory import peak_bytes

    table, full = menu.latencies(batch), menu.full
    device = next(menu.net.parameters()).device
    args, kwargs = menu.net.signature.example(batch, device)
    rows = []
    for entry in menu:
        found, module = table[entry.name], menu.module(entry.name)
        rows.append(
            {
                "name": entry.name,
                "macs": entry.macs,
                "bytes": entry.bytes,
                "median_ms": found.median,
                "low_ms": found.low,
                "high_ms": found.high,
                "runs": found.runs,
                "per_second": 1000 * batch / found.median,
                "speedup": table[full.name].median / found.median,
                "ideal_speedup": full.macs / entry.macs,
                "activation_bytes": peak_bytes(partial(module, *args, **kwargs), device),
                "accuracy": entry.accuracy,
            }
        )
    return rows


def _write(rows: list[dict[str, Any]], batch: int) -> None:
    heads = ["name", "MACs", "ms", "95 % CI", "per s", "speed-up", "ideal", "weights"]
    terminal.put_table(
        [*heads, "memory"],
        [
            [
                row["name"],
                human_count(row["macs"]),
                human_ms(row["median_ms"]),
                human_interval((row["median_ms"], row["low_ms"], row["high_ms"])),
                human_count(row["per_second"]),
                human_times(row["speedup"]),
                human_times(row["ideal_speedup"]),
                human_bytes(row["bytes"]),
                human_bytes(row["activation_bytes"]),
            ]
            for row in rows
        ],
    )
    terminal.put(
        f"\nms: median of a call with {batch} example(s); CI: confidence interval; ideal: if time\n"
        "fell with MACs; memory: peak of activations in a call, beside the weights"
    )


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
