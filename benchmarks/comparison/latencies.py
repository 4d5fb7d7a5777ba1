"""Latencies: how long every subnet of kept results takes, as a share of the full net's time.

All subnets of a protocol and net are measured in turn within one run, on a machine that does
nothing else; as contiguous copies, in float32. Weights make no difference, so fresh ones serve.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comparison import results
from comparison.figures import Latencies
from comparison.protocols import Protocol, supernet
from comparison.results import Result
from nestling import strictjson
from nestling.costs import latency
from nestling.errors import UncalibratedWarning
from nestling.profile import machine
from nestling.timing import packed_copy, prepared, waiting

SECONDS = 0.5  # longest time for one subnet


def file_of(folder: Path) -> Path:
    """Return where the latencies of a protocol and net are kept."""
    return folder / "latency.json"


def measure(of: Protocol, group: Sequence[Result], seconds: float = SECONDS) -> dict[str, Any]:
    """Measure every subnet of some results of one net, and the full net with them.

    Args:
        of: the protocol; its device and pictures a call may be others than those of the results.
        group: results of one protocol and net; those of nets built otherwise are passed over.
        seconds: longest time for one subnet.

    Returns:
        The content of a latency file.
    """
    plain = [each for each in group if not each.case.arguments]
    first = plain[0]
    net = supernet(of, first.content["shape"], first.content["classes"])
    net.to(memory_format=torch.channels_last)
    axes = list(net.space.axes)
    whole = tuple(axis.size for axis in net.space.axes.values())
    counts = list(dict.fromkeys([whole, *(row.counts for each in plain for row in each.rows)]))
    batch: Tensor = torch.randn(of.latency_batch, *first.content["shape"], device=of.device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)  # only the time is of interest
        modules: dict[str, nn.Module] = {
            str(number): packed_copy(net, net.subnet(dict(zip(axes, each, strict=True))))
            for number, each in enumerate(counts)
        }
        found = latency.measure(
            {name: prepared(module, (batch,), {}) for name, module in modules.items()},
            seconds=seconds * len(modules),
            synchronize=waiting(torch.device(of.device)),
        )
    full = found["0"].median
    return {
        "machine": machine(),
        "commit": results.commit(),
        "batch": of.latency_batch,
        "device": of.device,
        "threads": torch.get_num_threads(),
        "axes": axes,
        "full_ms": full,
        "rows": [
            {
                "counts": list(each),
                "ratio": found[str(number)].median / full,
                "low": found[str(number)].low / full,
                "high": found[str(number)].high / full,
                "runs": found[str(number)].runs,
            }
            for number, each in enumerate(counts)
        ],
    }


def write(folder: Path, content: dict[str, Any]) -> None:
    """Keep latencies beside the results that they are of, a line for each subnet."""
    results.write(file_of(folder), content, rows="rows")


def read(folder: Path) -> tuple[Latencies, dict[str, Any]]:
    """Return the latency of counts over the full net's, and where it was measured; or nothing."""
    path = file_of(folder)
    if not path.exists():
        return {}, {}
    content = strictjson.read(path, cure="measure again with --latency")
    return {tuple(row["counts"]): row["ratio"] for row in content.pop("rows")}, content
