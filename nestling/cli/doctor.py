"""`nestling doctor`: what this machine is, what is installed, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from nestling.cli import terminal
from nestling.cli.options import AsJson, examples

PACKAGES = ("torch", "numpy", "safetensors", "typer", "rich", "matplotlib", "scikit-learn")
EXTRAS = {
    "pillow": "reading picture files, in `nestling run` and in data sets",
    "onnx": "exporting to ONNX",
    "onnxscript": "exporting to ONNX",
    "onnxruntime": "the backend onnxruntime",
    "openvino": "the backend openvino, and exporting to it",
}


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(epilog=examples("nestling doctor", "nestling doctor --json > environment.json"))(
        doctor
    )


def doctor(
    data_dir: Annotated[
        str | None, typer.Option(help="Where data sets are. (default: $NESTLING_DATA)")
    ] = None,
    json: AsJson = False,
) -> None:
    """Show the machine, the versions, the data sets found, and what is missing."""
    from nestling.profile import machine

    found = {
        "machine": machine(),
        "computing": _computing(),
        "packages": _packages(),
        "data": _data(data_dir),
    }
    missing = _missing(found)
    if json:
        terminal.put_json({**found, "missing": missing})
        return
    for title, facts in found.items():
        facts = {name: value.partition(": data set")[0] for name, value in facts.items()}
        terminal.put(title)
        for name, value in facts.items():
            terminal.put(f"  {name:<15} {value}")
    terminal.put("missing" if missing else "nothing is missing")
    for line in missing:
        terminal.put(f"  {line}")


def _computing() -> dict[str, str]:
    import torch

    from nestling.precision import fast_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": str(device),
        "usable cores": str(usable),
        "torch threads": str(torch.get_num_threads()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "bf16": "fast: trains in bfloat16" if fast_bfloat16(device) else "slow: trains in float32",
    }


def _packages() -> dict[str, str]:
    found = {}
    for name in (*PACKAGES, *EXTRAS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _data(data_dir: str | None) -> dict[str, str]:
    from nestling import data
    from nestling.errors import DataError

    where = data_dir or os.environ.get("NESTLING_DATA") or Path.home() / ".cache/nestling/data"
    found = {"folder": str(where)}
    for name in data.names():
        try:
            dataset = data.load(name, data_dir, download=False)
        except DataError as error:
            found[name] = f"not there: {error}"
        else:
            counts = len(dataset.train.labels), len(dataset.test.labels)
            found[name] = f"found: {counts[0]} training and {counts[1]} test pictures"
    return found


def _missing(found: dict[str, dict[str, Any]]) -> list[str]:
    packages, sets = found["packages"], found["data"]
    lines = [
        f"{name}: {EXTRAS.get(name, 'needed')}; run `pip install {name}`"
        for name, version in packages.items()
        if version == "not installed"
    ]
    lines += [
        value.removeprefix("not there: ")
        + (" (`nestling train` tries to fetch it)" if "by hand" in value else "")
        for name, value in sets.items()
        if value.startswith("not there")
    ]
    usable, threads = found["computing"]["usable cores"], found["computing"]["torch threads"]
    if usable.isdigit() and int(threads) > int(usable):
        lines.append(
            f"cores: torch uses {threads} threads on {usable} cores; set OMP_NUM_THREADS={usable}"
        )
    return lines
