"""What views cost: subnets against stand-alone nets, steps, switching, memory, discovery, files.

    python benchmarks/overhead.py                       # all sections, result kept, table printed
    python benchmarks/overhead.py --sections forward    # one section, merged into the kept result
    python benchmarks/overhead.py --summary             # the kept figures as one line of JSON
    python benchmarks/overhead.py --table               # the kept figures as a Markdown table

Ratios are medians over pairs of runs measured in turn (A B, B A, ...) in one process, with a 95 %
interval. "Stand-alone" is an ordinary net of the same shape with contiguous weights of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestling
from nestling.axes.discovery import discover
from nestling.costs.latency import Ratio, paired_ratio
from nestling.objectives.sandwich import soft_cross_entropy
from nestling.precision import choose
from nestling.profile import machine
from nestling.training import default_optimizer

KEPT = Path(__file__).parent / "results" / "overhead.json"
CACHED = Path(tempfile.gettempdir()) / f"nestling-overhead-{nestling.__version__}.nest"
WIDTHS = (0.25, 0.5, 1.0)
GOALS = {
    "forward_b1": 1.10,
    "forward_b32": 1.03,
    "forward_packed": 1.02,
    "train_step": 1.05,
    "joint_step": 1.05,
    "switch_p99_us": 20.0,
    "memory_64": 1.30,
    "discovery_resnet50_s": 1.0,
    "file_16": 1.05,
}


def row(name: str, ratio: Ratio) -> dict[str, Any]:
    """Return a measured ratio as a row of the result."""
    print(f"  {name:<44} {ratio.median:.3f}  ({ratio.low:.3f} to {ratio.high:.3f})", flush=True)
    return {
        "case": name,
        "value": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "runs": ratio.runs,
    }


def value(name: str, figure: float, **more: Any) -> dict[str, Any]:
    """Return a measured figure as a row of the result."""
    print(f"  {name:<44} {figure:.4g}", flush=True)
    return {"case": name, "value": figure, **more}


def supernet() -> nestling.Supernet:
    """Return a ResNet-18 supernet at 224 pixels, in evaluation mode, proven once and cached."""
    if not CACHED.exists():
        net = nestling.Supernet(nestling.models.resnet18(), torch.randn(1, 3, 224, 224))
        specs = [net.space.spec(width=width) for width in WIDTHS]
        nestling.make_menu(net, specs, calibrate=[torch.randn(4, 3, 224, 224)], measure=False).save(
            CACHED
        )
    return nestling.load(CACHED).menu.net


def alone(width: float) -> nn.Module:
    """Return an ordinary ResNet-18 of this width."""
    return nestling.models.resnet18(width=round(64 * width))


# -- sections ---------------------------------------------------------------------------------


def forward(seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Forward runs of views and of packed copies, batch 1 and 32."""
    net = supernet()
    result: dict[str, list[dict[str, Any]]] = {
        "forward_b1": [],
        "forward_b32": [],
        "forward_packed": [],
    }
    for batch in (1, 32):
        images = torch.randn(batch, 3, 224, 224)
        for width in WIDTHS:
            subnet = net.subnet(net.space.spec(width=width)).eval()
            packed = nestling.pack(subnet)
            plain = alone(width).eval()
            plain.load_state_dict(packed.state_dict())

            def call(module: nn.Module, images: Tensor = images) -> Tensor:
                with torch.no_grad():
                    return module(images)

            assert torch.allclose(call(subnet), call(plain), atol=1e-4)
            name = f"ResNet-18 width {width:.2f} batch {batch}"
            ratio = paired_ratio(
                partial(call, subnet), partial(call, plain), precision=0.005, seconds=seconds
            )
            result[f"forward_b{batch}"].append(row(f"{name}, views", ratio))
            ratio = paired_ratio(
                partial(call, packed), partial(call, plain), precision=0.005, seconds=seconds
            )
            result["forward_packed"].append(row(f"{name}, packed", ratio))
    return result


def train_step(seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Forward and backward at batch 64, in the precision that `fit` chooses and in float32."""
    net = supernet()
    images, labels = torch.randn(64, 3, 224, 224), torch.randint(1000, (64,))
    rows = []
    for kind in ("auto", "float32-channels-last"):
        precise = choose(kind, torch.device("cpu"), net.model)
        net.to(memory_format=precise.memory_format)
        pictures = images.to(memory_format=precise.memory_format)
        for width in WIDTHS if kind == "auto" else (0.5,):
            subnet = net.subnet(net.space.spec(width=width)).train()
            plain = alone(width).train()
            plain.to(memory_format=precise.memory_format)

            def step(module: nn.Module, owner: Any, x: Tensor = pictures, p: Any = precise) -> None:
                with p.autocast(torch.device("cpu")):
                    outputs = module(x)
                F.cross_entropy(outputs.float(), labels).backward()
                for parameter in owner.parameters():
                    parameter.grad.zero_()

            ratio = paired_ratio(
                partial(step, subnet, net),
                partial(step, plain, plain),
                precision=0.01,
                seconds=seconds,
            )
            rows.append(row(f"ResNet-18 width {width:.2f} batch 64, {precise}", ratio))
    return {"train_step": rows}


def joint_step(seconds: float) -> dict[str, list[dict[str, Any]]]:
    """A sandwich step of ResNet-20 at batch 128 against its four passes as stand-alone nets."""
    rows = []
    labels = torch.randint(10, (128,))
    for kind in ("auto", "float32-channels-last"):
        net = nestling.Supernet(nestling.models.resnet20(), torch.randn(1, 3, 32, 32))
        precise = choose(kind, torch.device("cpu"), net.model)
        net.to(memory_format=precise.memory_format)
        images = torch.randn(128, 3, 32, 32).to(memory_format=precise.memory_format)
        optimizer = default_optimizer(net.model)
        specs = [net.space.full, *(net.space.spec(width=w) for w in (0.75, 0.5, 0.25))]
        plain = [nestling.pack(net.subnet(spec)).train() for spec in specs]
        own = default_optimizer(plain[0])

        def passes(members: Iterable[nn.Module], p: Any = precise, x: Tensor = images) -> None:
            teacher = None
            for member in members:
                with p.autocast(torch.device("cpu")):
                    outputs = member(x)
                outputs = outputs.float()
                if teacher is None:
                    teacher = outputs.detach()
                    F.cross_entropy(outputs, labels).backward()
                else:
                    soft_cross_entropy(outputs, teacher).backward()

        def joint(
            net: Any = net,
            specs: Any = specs,
            optimizer: Any = optimizer,
            passes: Callable[..., None] = passes,
        ) -> None:
            passes(net.pooled(spec).train() for spec in specs)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

        def apart(plain: Any = plain, own: Any = own, passes: Callable[..., None] = passes) -> None:
            passes(plain)
            own.step()
            for module in plain:
                for parameter in module.parameters():
                    parameter.grad.zero_()

        ratio = paired_ratio(joint, apart, precision=0.01, seconds=3 * seconds)
        rows.append(row(f"ResNet-20 batch 128, {precise}", ratio))
    return {"joint_step": rows}


def switch(seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Choosing an entry by a budget and picking its module, 99th percentile in microseconds."""
    net = nestling.Supernet(nestling.models.resnet20(), torch.randn(1, 3, 32, 32), step=2)
    widths = [0.25 + 0.05 * i for i in range(16)]
    menu = nestling.make_menu(
        net,
        {f"s{i}": net.space.spec(width=w) for i, w in enumerate(widths)},
        measure=False,
        calibrate=[torch.randn(2, 3, 32, 32)],
    )
    model = nestling.LoadedModel(menu.measured(seconds=0.05))
    slowest = max(latency.median for latency in menu.measured(seconds=0.05).latencies().values())
    draw = random.Random(0)
    rows = []
    for cost, low, high in (("fraction", 0.1, 1.0), ("latency_ms", 2 * slowest, 4 * slowest)):
        taken = []
        for _ in range(50_000):
            budget = {cost: draw.uniform(low, high)}
            start = time.perf_counter_ns()
            model.subnet(model.choose(**budget).name)
            taken.append((time.perf_counter_ns() - start) / 1000)
        cut = statistics.quantiles(taken, n=100)
        rows.append(value(f"by {cost}, p99 in us", cut[98], median=statistics.median(taken)))
    return {"switch_p99_us": rows}


def memory(seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Growth of a fresh process that holds 64 subnets of ResNet-18, over the weights' bytes."""
    code = f"""
import gc, resource, torch, nestling
torch.set_num_threads({torch.get_num_threads()})
def resident():
    gc.collect()
    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()
menu = nestling.load({str(CACHED)!r}).menu
net = menu.net
weights = sum(p.numel() * p.element_size() for p in net.parameters())
start = resident()
specs = [net.space.spec(width=0.2 + 0.0125 * i) for i in range(64)]
subnets = [net.subnet(spec).eval() for spec in specs]
grown = resident() - start
print(1 + grown / weights, grown / 64)
"""
    supernet()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ratio, each = map(float, found.stdout.split())
    return {
        "memory_64": [
            value("ResNet-18, 64 subnets, over its weights", ratio, bytes_per_subnet=each)
        ]
    }


def discovery(seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Discovery of ResNet-50 at 224 pixels, without and with proof."""
    model = nestling.models.resnet50().eval()
    image = torch.randn(1, 3, 224, 224)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        discover(model, [image], {})
        taken.append(time.perf_counter() - start)
    start = time.perf_counter()
    net = nestling.Supernet(model, image)
    proof = time.perf_counter() - start
    return {
        "discovery_resnet50_s": [value("ResNet-50, discovery, seconds", statistics.median(taken))],
        "proof_resnet50_s": [
            value("ResNet-50, with proof, seconds", proof, axes=len(net.space.axes))
        ],
    }


def file(seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Bytes of a file with 16 subnets of ResNet-18 over one with the full net alone."""
    net = supernet()
    specs = {f"s{i}": net.space.spec(width=0.25 + 0.05 * i) for i in range(16)}
    calibrate = [torch.randn(2, 3, 64, 64)]
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for chosen in ({"full": net.space.full}, specs):
            path = Path(folder) / f"{len(chosen)}.nest"
            nestling.make_menu(net, chosen, calibrate=calibrate, measure=False).save(path)
            sizes.append(path.stat().st_size)
    return {"file_16": [value("ResNet-18, 16 subnets over 1", sizes[1] / sizes[0])]}


SECTIONS = {
    f.__name__: f for f in (forward, train_step, joint_step, switch, memory, discovery, file)
}


# -- the kept result --------------------------------------------------------------------------


def kept() -> dict[str, Any]:
    """Return the kept result."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {"figures": {}, "machine": {}}


def summary(result: dict[str, Any]) -> dict[str, float]:
    """Return the worst case of every figure."""
    return {
        key: round(max(r["value"] for r in result["figures"][key]), 4)
        for key in GOALS
        if key in result["figures"]
    }


def table(result: dict[str, Any]) -> str:
    """Return the kept figures as a Markdown table."""
    lines = ["| figure | case | measured (95 % interval) | goal |", "|---|---|---|---|"]
    for key, rows in result["figures"].items():
        for r in rows:
            interval = f" ({r['low']:.3f} to {r['high']:.3f})" if "low" in r else ""
            goal = f"{GOALS[key]:g}" if key in GOALS else ""
            lines.append(f"| {key} | {r['case']} | {r['value']:.3f}{interval} | {goal} |")
    where = result["machine"]
    lines.append("")
    lines.append(
        f"{where.get('processor')}, {where.get('threads')} threads, "
        f"torch {where.get('torch')}, Python {where.get('python')}."
    )
    return "\n".join(lines)


def main() -> None:
    """Run the chosen sections, or print what is kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="*", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=20.0, help="longest time for one pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="print the kept figures as JSON")
    parser.add_argument("--table", action="store_true", help="print the kept figures as a table")
    options = parser.parse_args()
    if options.summary:
        print(json.dumps(summary(kept())))
        return
    if options.table:
        print(table(kept()))
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    CACHED.unlink(missing_ok=True)  # of an earlier version, perhaps
    result = kept()
    for name in options.sections:
        print(name, flush=True)
        result["figures"].update(SECTIONS[name](options.seconds))
        gc.collect()
        result["machine"] = machine()
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(summary(result)))


if __name__ == "__main__":
    main()
