"""Steps: what a joint step costs over its passes as nets of their own, and compiled over eager."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestling
from comparison import results
from comparison.cases import OURS
from comparison.figures import Comparison
from comparison.protocols import Protocol, optimizer, supernet
from nestling import container
from nestling.costs.latency import paired_ratio
from nestling.objectives.sandwich import soft_cross_entropy, task_loss
from nestling.precision import Precision, choose
from nestling.profile import machine
from nestling.spec import Spec
from nestling.timing import waiting
from nestling.training import Run

SHARES = (0.75, 0.5, 0.15)  # of the MACs: two that are drawn, and the smallest, beside the full net
GOAL = 1.05
EPOCHS, STEPS = 4, 30  # of a training whose steps are timed; the first epoch compiles


def file_of(folder: Path) -> Path:
    """Return where the figures of a protocol and net are kept."""
    return folder / "steps.json"


def measure(
    of: Protocol, shape: Sequence[int], classes: int, found: Comparison | None, seconds: float
) -> dict[str, Any]:
    """Measure a joint step of four passes, and the compiled one against it where that is wanted.

    Args:
        of: the protocol.
        shape: of a picture.
        classes: how many there are.
        found: kept results, whose subnets are trained; uniform widths without them.
        seconds: longest time for a pair.
    """
    net = supernet(of, shape, classes)
    specs = _specs(net, found)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(of.batch, *shape, generator=generator).to(of.device)
    labels = torch.randint(classes, (of.batch,), generator=generator).to(of.device)
    rows = [_joint_over_alone(of, net, specs, (images, labels), seconds)]
    if of.compiled:
        rows.append(_compiled_over_eager(of, specs, shape, classes, (images, labels)))
    return {
        "machine": machine(),
        "commit": results.commit(),
        "batch": of.batch,
        "macs": [net.space.macs(spec) for spec in specs],
        "rows": rows,
    }


def _specs(net: nestling.Supernet, found: Comparison | None) -> list[Spec]:
    seeds = found.seeds(OURS) if found is not None else []
    if found is None or not seeds:
        return [net.space.full, *(net.space.spec(fraction=share) for share in SHARES)]
    rows = [found.at(OURS, seeds[0], share) for share in SHARES]
    ours = found[OURS, seeds[0]]
    chosen = [net.space.spec(ours.spec(row)) for row in rows if row is not None]
    return list(dict.fromkeys([net.space.full, *chosen]))


def _joint_over_alone(
    of: Protocol,
    net: nestling.Supernet,
    specs: Sequence[Spec],
    batch: tuple[Tensor, Tensor],
    seconds: float,
) -> dict[str, Any]:
    """Time a step of the shared weights against the same passes of nets with weights of their own.

    One optimiser steps in both: the shared weights, and those of the full net alone.
    """
    device = torch.device(of.device)
    precise = choose(of.precision, device, net.model)
    net.to(memory_format=precise.memory_format)
    images = batch[0].contiguous(memory_format=precise.memory_format)
    plain = [nestling.pack(net.subnet(spec)).train() for spec in specs]
    for module in plain:
        module.to(memory_format=precise.memory_format)
    make = optimizer(of)
    shared, own = make(net.parameters()), make(plain[0].parameters())

    def joint() -> None:
        _passes((net.pooled(spec).train() for spec in specs), precise, device, images, batch[1])
        shared.step()
        shared.zero_grad(set_to_none=False)

    def alone() -> None:
        _passes(iter(plain), precise, device, images, batch[1])
        own.step()
        for module in plain:
            module.zero_grad(set_to_none=False)

    ratio = paired_ratio(
        joint, alone, precision=0.005, seconds=seconds, synchronize=waiting(device)
    )
    return {
        "what": f"joint step over its {len(specs)} passes as nets of their own",
        "precision": str(precise),
        "value": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "runs": ratio.runs,
        "goal": GOAL,
    }


def _passes(
    members: Iterator[nn.Module],
    precise: Precision,
    device: torch.device,
    images: Tensor,
    labels: Tensor,
) -> None:
    """Run forward and backward of each member: the first on the labels, the others on it."""
    taught: Tensor | None = None
    for member in members:
        with precise.autocast(device):
            outputs = member(images)
        outputs = outputs.float()
        if taught is None:
            taught = outputs.detach()
            loss = F.cross_entropy(outputs, labels)
        else:
            loss = soft_cross_entropy(outputs, taught)
        loss.backward()  # type: ignore[no-untyped-call]


class _Clocked:
    """One batch many times; remembers when each epoch begins, and how many graphs there are."""

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.batch = batch
        self.starts: list[float] = []
        self.graphs: list[int] = []

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.note()
        return iter([self.batch] * STEPS)

    def note(self) -> None:
        self.starts.append(time.perf_counter())
        self.graphs.append(int(torch._dynamo.utils.counters["stats"]["unique_graphs"]))


def _compiled_over_eager(
    of: Protocol,
    specs: Sequence[Spec],
    shape: Sequence[int],
    classes: int,
    batch: tuple[Tensor, Tensor],
) -> dict[str, Any]:
    """Time the steps of a run after its first epoch: eager, compiled, and eager again."""
    timed = partial(_timed, of, specs, shape, classes, batch)
    first, _ = timed(compiled=False)
    compiled, graphs = timed(compiled=True)
    second, _ = timed(compiled=False)
    eager = (first + second) / 2
    return {
        "what": "compiled step over eager",
        "value": compiled / eager,
        "low": compiled / max(first, second),
        "high": compiled / min(first, second),
        "ms": 1000 * compiled,
        "runs": (EPOCHS - 1) * STEPS,
        "graphs": graphs[1] - graphs[0],
        "graphs after the first epoch": graphs[-1] - graphs[1],
        "goal": 1.0,
    }


def _timed(
    of: Protocol,
    specs: Sequence[Spec],
    shape: Sequence[int],
    classes: int,
    batch: tuple[Tensor, Tensor],
    *,
    compiled: bool,
) -> tuple[float, list[int]]:
    """Return the seconds of a step after the first epoch, and the graphs at each epoch's start."""
    net = supernet(of, shape, classes)
    data = _Clocked(batch)

    def objective(net: nestling.Supernet) -> Iterator[tuple[nn.Module, Callable[..., Tensor]]]:
        for spec in specs:
            yield net.pooled(spec).train(), task_loss

    make = optimizer(of)
    run = Run(net, data, EPOCHS, optimizer=make, precision=of.precision, compile=compiled)
    run.train_stage(objective)
    data.note()
    epochs = [after - before for before, after in zip(data.starts, data.starts[1:], strict=False)]
    return median(epochs[1:]) / STEPS, data.graphs


# -- the kept figures ----------------------------------------------------------------------------


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Keep the figures beside the results."""
    results.write(file_of(folder), content, rows="rows")


def table(folder: Path) -> str:
    """Return the kept figures as a Markdown table; "" if there are none."""
    path = file_of(folder)
    if not path.exists():
        return ""
    content = container.read_json(path, cure="measure again with --step-cost")
    where = content["machine"]
    shares = ", ".join(f"{100 * macs / content['macs'][0]:.0f} %" for macs in content["macs"])
    lines = [
        f"**Steps** of {content['batch']} pictures, passes of {shares} of the MACs, on "
        f"{where.get('gpu') or where['processor']}, torch {where['torch']}:",
        "",
        "| what | ratio (95 % interval or range) | goal |",
        "|---|---|---|",
    ]
    for row in content["rows"]:
        more = row.get("graphs after the first epoch")
        told = "" if more is None else f"; {more} graphs compiled after the first epoch"
        lines.append(
            f"| {row['what']}{told} | {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}) "
            f"| {row['goal']:g} |"
        )
    return "\n".join(lines)
