"""Paper A's own table: the latency of four ResNet-18 subnets at 224 pixels, ours beside theirs.

    python benchmarks/paper_a.py                   # on the processor, batch 1; result kept
    python benchmarks/paper_a.py --device cuda     # on a GPU, batch 128
    python benchmarks/paper_a.py --table           # the kept figures as a Markdown table

The paper (Yang et al., "Non-uniform DNN Structured Subnets Sampling for Dynamic Inference", DAC
2020) gives four latencies on a Xeon and, at batch 128, on a Titan GPU. It is not public how many
multiply-accumulates (MACs) its subnets have. On a GPU at batch 128 the time goes with the MACs, so
ours have the share of the full net's MACs that theirs have of the GPU's time. Weights are random:
time does not depend on them. Milliseconds of different machines say little; what compares is how
many times faster than the largest each subnet is.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from comparison.results import commit
from torch import nn

import nestling
from nestling import backends
from nestling.energy import find_meter
from nestling.extras import versions
from nestling.profile import machine
from nestling.profiling import profiled

KEPT = Path(__file__).parent / "results" / "paper_a.json"
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy")
# Theirs in milliseconds, smallest subnet first; the batch on the processor is not told.
THEIRS = {"cpu": (30.5, 38.7, 51.0, 65.4), "cuda": (13.4, 24.6, 41.3, 62.1)}
BATCHES = {"cpu": 1, "cuda": 128}
ON_GPU = ("eager", "packed", "compiled")


def shares() -> list[float]:
    """Return the shares of the full net's MACs, smallest first; the last is 1."""
    times = THEIRS["cuda"]
    return [time / times[-1] for time in times]


def menu_of(model: nn.Module, images: torch.Tensor, step: int = 8) -> nestling.Menu:
    """Return a menu of the full net and the three smaller subnets; nothing is trained."""
    net = nestling.Supernet(model, images, step=step)
    specs = {
        f"subnet{number}": net.space.spec(fraction=share)
        for number, share in enumerate(shares()[:-1], 1)
    }
    return nestling.make_menu(net, specs, calibrate=[images], measure=False)


def run(
    menu: nestling.Menu, batch: int, names: Sequence[str], seconds: float
) -> list[dict[str, Any]]:
    """Return a row for each subnet, smallest first: its MACs, and milliseconds by backend.

    `backend` is the one that `auto` takes.
    """
    device = next(menu.net.parameters()).device
    options: dict[str, Any] = {"seconds": seconds, "precision": 0.01, "say": print}
    measured = profiled(menu, batch, backends=names, meter=find_meter(device), **options)
    loaded = nestling.LoadedModel(measured)
    loaded.prepare(batch)
    tables = {
        name: (table, measured.profile.upkeeps[key])
        for name in names
        if (table := measured.profile.tables.get(key := menu.key(batch, name)))
    }
    return [
        {
            "macs": entry.macs,
            "share": entry.macs / menu.full.macs,
            "backend": loaded.backend_of(entry.name, batch),
            "ms": {
                name: t[entry.name].median for name, (t, _) in tables.items() if entry.name in t
            },
            "joules": {
                name: upkeep.joules[entry.name]
                for name, (_, upkeep) in tables.items()
                if entry.name in upkeep.joules
            },
        }
        for entry in sorted(menu, key=lambda entry: entry.macs)
    ]


# -- the kept result --------------------------------------------------------------------------


def kept() -> dict[str, Any]:
    """Return the kept result: by device, rows and where they were measured."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def table(result: Mapping[str, Any]) -> str:
    """Return the kept figures beside the paper's as Markdown."""
    if not result:
        return "Not measured yet."
    return "\n\n".join(_part(device, found) for device, found in result.items())


def _part(device: str, found: Mapping[str, Any]) -> str:
    rows, theirs = found["rows"], THEIRS[device]
    largest = rows[-1]["ms"][rows[-1]["backend"]]
    energy = any(row["joules"] for row in rows)
    lines = [
        "| share of the MACs | theirs, ms | ours, ms | theirs, times faster | ours, times faster "
        f"| on |{' J an example |' if energy else ''}",
        "|---|---|---|---|---|---|" + ("---|" if energy else ""),
    ]
    for row, their in zip(rows, theirs, strict=True):
        ours = row["ms"][row["backend"]]
        cells = [f"{row['share']:.1%}", f"{their:g}", f"{ours:.1f}"]
        cells += [f"{theirs[-1] / their:.2f}", f"{largest / ours:.2f}", row["backend"]]
        if energy:
            joules = row["joules"].get(row["backend"])
            cells.append("" if joules is None else f"{joules:.3g}")
        lines.append(f"| {' | '.join(cells)} |")
    where = found["machine"]
    what = where.get("gpu") if device == "cuda" else where.get("processor")
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines += [
        "",
        f"Ours: {what}, {where.get('threads')} threads, batch {found['batch']}, float32; "
        f"{packages}; commit {found['commit']}; load average {found['load']}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, or print what is kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=tuple(THEIRS), default="cpu")
    parser.add_argument("--backends", nargs="*", default=None)
    parser.add_argument("--seconds", type=float, default=10.0, help="longest time for one call")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=KEPT, help="where the result is kept")
    parser.add_argument("--table", action="store_true", help="print the kept figures as a table")
    options = parser.parse_args()
    if options.table:
        print(table(kept()))
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, batch = options.device, BATCHES[options.device]
    menu = menu_of(nestling.models.resnet18().eval(), torch.randn(2, 3, 224, 224))
    if device == "cuda":
        menu.net.to(device)
    names = options.backends or [
        name for name in backends.installed() if device == "cpu" or name in ON_GPU
    ]
    result = kept()
    result[device] = {
        "batch": batch,
        "rows": run(menu, batch, names, options.seconds),
        "machine": machine(),
        "versions": versions(PACKAGES),
        "commit": commit(),
        "load": round(os.getloadavg()[0], 1),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
