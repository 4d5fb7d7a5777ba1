"""Steps: what a joint step costs over its passes as nets of their own, and compiled over eager.

The measuring is that of `joint_step.py`, on the subnets that a comparison has found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import joint_step
import torch
from torch import Tensor, nn

import nestling
from comparison import results
from comparison.cases import OURS
from comparison.figures import Comparison
from comparison.protocols import Protocol, compiling, optimizer, supernet
from nestling import strictjson
from nestling.objectives.sandwich import task_loss
from nestling.precision import choose
from nestling.profile import machine
from nestling.spec import Spec
from nestling.training import Run

SHARES = (0.75, 0.5, 0.15)  # of the MACs: two that are drawn, and the smallest, beside the full net
APART = "its passes as nets of their own"
CALLED = {  # a ratio -> what the table calls it, and the goal
    joint_step.JOINT: (f"joint step, the optimiser's after each pass, over {APART}", 1.05),
    joint_step.SUMMED: (f"joint step, one of the optimiser's, over {APART}", 1.05),
    joint_step.COMPILED: ("compiled joint step, the optimiser's after each pass, over eager", 1.0),
    joint_step.BOTH: (f"the same compiled step over {APART}, compiled", 1.05),
    joint_step.SUMMED_BOTH: (
        f"compiled joint step, one of the optimiser's, over {APART}, compiled",
        1.05,
    ),
}
EPOCHS, STEPS = 3, 4  # of a training whose graphs are counted; the first epoch compiles


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
        seconds: longest time for a ratio.

    Returns:
        The content of a file of steps.
    """
    net = supernet(of, shape, classes)
    specs = _specs(net, found)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(of.batch, *shape, generator=generator).to(of.device)
    labels = torch.randint(classes, (of.batch,), generator=generator).to(of.device)
    precise = choose(of.precision, torch.device(of.device), net.model)
    given = joint_step.Material(net, specs, images, labels, precise)
    ratios = joint_step.compare(given, compiled=of.compiled, seconds=seconds)
    rows = [
        {
            "what": CALLED[name][0],
            "value": ratio.median,
            "low": ratio.low,
            "high": ratio.high,
            "runs": ratio.runs,
            "goal": CALLED[name][1],
        }
        for name, ratio in ratios.items()
    ]
    after = graphs(of, supernet(of, shape, classes), specs, (images, labels)) if of.compiled else []
    return {
        "machine": machine(),
        "commit": results.commit(),
        "batch": of.batch,
        "precision": str(precise),
        "macs": [net.space.macs(spec) for spec in specs],
        "graphs": after,
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


class _Counting:
    """One batch many times; notes how many graphs were compiled when an epoch begins."""

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.batch = batch
        self.graphs: list[int] = []

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.note()
        return iter([self.batch] * STEPS)

    def note(self) -> None:
        self.graphs.append(int(torch._dynamo.utils.counters["stats"]["unique_graphs"]))


def graphs(
    of: Protocol,
    net: nestling.Supernet,
    specs: Sequence[Spec],
    batch: tuple[Tensor, Tensor],
) -> list[int]:
    """Return how many graphs each epoch of a compiled training makes; all but the first none."""

    def objective(net: nestling.Supernet) -> Iterator[tuple[nn.Module, Callable[..., Tensor]]]:
        for spec in specs:
            yield net.pooled(spec).train(), task_loss

    data = _Counting(batch)
    options: dict[str, Any] = {"optimizer": optimizer(of), "precision": of.precision}
    Run(net, data, EPOCHS, **options, **compiling(of)).train_stage(objective, summed=False)
    data.note()
    return [after - before for before, after in zip(data.graphs, data.graphs[1:], strict=False)]


# -- the kept figures ----------------------------------------------------------------------------


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Keep the figures beside the results."""
    results.write(file_of(folder), content, rows="rows")


def table(folder: Path) -> str:
    """Return the kept figures as a Markdown table; "" if there are none."""
    path = file_of(folder)
    if not path.exists():
        return ""
    content = strictjson.read(path, cure="measure again with --step-cost")
    where = content["machine"]
    shares = ", ".join(f"{100 * macs / content['macs'][0]:.0f} %" for macs in content["macs"])
    lines = [
        f"**Steps** of {content['batch']} pictures, passes of {shares} of the MACs, "
        f"{content['precision']}, on {where.get('gpu') or where['processor']}, torch "
        f"{where['torch']}:",
        "",
        "| what | ratio (95 % interval) | goal |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['what']} | {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}) "
        f"| {row['goal']:g} |"
        for row in content["rows"]
    ]
    if content["graphs"]:
        counted = ", ".join(map(str, content["graphs"]))
        lines += ["", f"Graphs compiled in the epochs of a training: {counted}."]
    return "\n".join(lines)
