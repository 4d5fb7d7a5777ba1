"""What runs a subnet fastest: ResNet-18 at 224 pixels on every backend, against runtimes alone.

    python benchmarks/backends.py                     # batches 1 and 32, result kept, table printed
    python benchmarks/backends.py --batches 1         # one batch, merged into the kept result
    python benchmarks/backends.py --summary           # the kept figures as one line of JSON
    python benchmarks/backends.py --table             # the kept figures as a Markdown table

All latencies of a batch are from one run, sampled round by round in shuffled order. The two ratios
are medians over pairs timed in turn (A B, B A, ...), with a 95 % interval: `auto` at the full net
over the fastest runtime that is given the plain model by its own interface, and the full net over
the subnet at a quarter of the MACs, both on `auto`.

Plain runtimes keep their usual options, as in a program of their own. In such a program nobody else
calls, so here each sample follows 50 ms of calls of its own: the threads of a plain session of
ONNX Runtime spin for 30 ms after a call, and on two cores whatever runs meanwhile is up to twice as
slow. Sessions of Nestling let their threads sleep after each call, as many are held ready.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comparison.results import commit
from torch import Tensor, nn

import nestling
from nestling import backends
from nestling.costs.latency import Ratio, measure, paired_ratio
from nestling.extras import versions
from nestling.profile import machine
from nestling.profiling import profiled

KEPT = Path(__file__).parent / "results" / "backends.json"
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy")
SHARE = 0.25  # of the full net's MACs
SETTLE = 0.05  # seconds; longer than threads of any runtime spin after a call
GOALS = {"auto_against_best_runtime": 1.03, "quarter_macs_speedup": 3.0}
Call = Callable[[], object]


def plain_runtimes(model: nn.Module, images: Tensor, names: list[str]) -> dict[str, Call]:
    """Return what runs the plain model, each runtime as its own documentation has it."""
    threads, array = torch.get_num_threads(), images.numpy()
    makers: dict[str, Callable[[], Call]] = {
        "eager": lambda: ungraded(partial(model, images)),
        "eager channels-last": lambda: channels_last(model, images),
        "compiled": lambda: compiled(model, images),
        "onnxruntime": lambda: onnxruntime(model, images, threads),
        "openvino": lambda: openvino(model, images, threads),
    }
    assert array.dtype.name == "float32"
    return {name: make() for name, make in makers.items() if name.partition(" ")[0] in names}


def ungraded(call: Call) -> Call:
    """Return a call without gradients."""

    def run() -> object:
        with torch.no_grad():
            return call()

    return run


def channels_last(model: nn.Module, images: Tensor) -> Call:
    """Return the model in the memory layout that torch's convolutions like best."""
    laid = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return ungraded(partial(laid, images.to(memory_format=torch.channels_last)))


def compiled(model: nn.Module, images: Tensor) -> Call:
    """Return the model compiled, with frozen weights."""
    import torch._inductor.config as inductor

    plain = copy.deepcopy(model)
    code = torch.compile(lambda inputs: plain(inputs), dynamic=False, fullgraph=True)
    with torch.no_grad(), inductor.patch(freezing=True):
        code(images)
    return ungraded(partial(code, images))


def exported(model: nn.Module, images: Tensor) -> bytes:
    """Return the model as ONNX, for this batch."""
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def onnxruntime(model: nn.Module, images: Tensor, threads: int) -> Call:
    """Return a session of ONNX Runtime with its usual options."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(
        exported(model, images), options, providers=["CPUExecutionProvider"]
    )
    inputs = {session.get_inputs()[0].name: images.numpy()}
    return partial(session.run, None, inputs)


def openvino(model: nn.Module, images: Tensor, threads: int) -> Call:
    """Return a model of OpenVINO in float32, tuned for latency."""
    import openvino as runtime

    core = runtime.Core()
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    made = core.compile_model(core.read_model(exported(model, images)), "CPU", hints)
    request, array = made.create_infer_request(), images.numpy()
    return lambda: request.infer([array], share_inputs=True)


def menu_of(model: nn.Module) -> nestling.Menu:
    """Return a menu of the full net and the subnet at a quarter of its MACs; nothing is trained."""
    net = nestling.Supernet(model, torch.randn(1, 3, 224, 224), step=16)
    spec = net.space.spec(fraction=SHARE)
    calibrate = [torch.randn(4, 3, 224, 224)]
    return nestling.make_menu(net, {"quarter": spec}, calibrate=calibrate, measure=False)


def ratio(found: Ratio) -> dict[str, float]:
    """Return a ratio as the result keeps it."""
    return {"median": found.median, "low": found.low, "high": found.high, "runs": found.runs}


def run(model: nn.Module, menu: nestling.Menu, batch: int, options: Any) -> dict[str, Any]:
    """Return the figures of one batch."""
    names, seconds = options.backends, options.seconds
    print(f"batch {batch}: making {', '.join(names)} ready", flush=True)
    measured = profiled(menu, batch, backends=names, seconds=seconds, precision=0.01)
    profile = measured.profile
    images = menu.net.signature.example(batch, torch.device("cpu"))[0][0]
    loaded = nestling.LoadedModel(measured)
    loaded.prepare(batch)
    rivals = plain_runtimes(model, images, names)
    auto = {name: partial(loaded, images, subnet=name) for name in ("full", "quarter")}
    calls = rivals | {f"auto {name}": call for name, call in auto.items()}
    alone = measure(calls, precision=0.01, seconds=seconds * len(calls), settle=SETTLE)
    best = min(rivals, key=lambda name: alone[name].median)
    pairs = {"precision": 0.005, "seconds": 4 * seconds, "settle": SETTLE}
    against = paired_ratio(auto["full"], rivals[best], **pairs)
    speedup = paired_ratio(auto["full"], auto["quarter"], **pairs)
    rows = {
        name: {
            "full_ms": table["full"].median,
            "quarter_ms": table["quarter"].median,
            "memory_bytes": profile.upkeeps[key].bytes,
            "ready_seconds": profile.upkeeps[key].ready_seconds,
            "switch_us": profile.upkeeps[key].switch_us,
        }
        for name in names
        if (table := profile.tables[key := menu.key(batch, name)])
    }
    found = {
        "backends": rows,
        "plain_ms": {name: alone[name].median for name in rivals},
        "auto": {name: loaded.backend_of(name, batch) for name in auto},
        "auto_ms": {name: alone[f"auto {name}"].median for name in auto},
        "best_runtime": best,
        "auto_against_best_runtime": ratio(against),
        "quarter_macs_speedup": ratio(speedup),
    }
    print(json.dumps(found), flush=True)
    return found


# -- the kept result --------------------------------------------------------------------------


def kept() -> dict[str, Any]:
    """Return the kept result."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {"batches": {}, "machine": {}}


def summary(result: dict[str, Any]) -> dict[str, float]:
    """Return the figures that goals are set for; of several batches the worst.

    Those who read the line know the figure of `auto` by an older word for the runtimes.
    """
    batches = result["batches"]
    found = {
        f"quarter_macs_speedup_b{batch}": round(rows["quarter_macs_speedup"]["median"], 3)
        for batch, rows in batches.items()
    }
    against = [rows["auto_against_best_runtime"]["median"] for rows in batches.values()]
    return found | ({"auto_against_best_engine": round(max(against), 4)} if against else {})


def table(result: dict[str, Any]) -> str:
    """Return the kept figures as Markdown."""
    lines = [
        "| batch | what runs it | plain model, ms | full net, ms | quarter, ms | memory, MiB "
        "| to make ready, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch, found in result["batches"].items():
        plain, rows = found["plain_ms"], found["backends"]
        for name in dict.fromkeys([*rows, *plain]):
            alone = f"{plain[name]:.1f}" if name in plain else ""
            cells = ["", "", "", ""]
            if name in rows:
                row = rows[name]
                memory, ready = row["memory_bytes"] / 2**20, row["ready_seconds"]
                times = [f"{row['full_ms']:.1f}", f"{row['quarter_ms']:.1f}"]
                cells = [*times, f"{memory:.0f}", f"{ready:.1f}"]
            lines.append(f"| {batch} | {name} | {alone} | {' | '.join(cells)} |")
    lines.append("")
    for batch, found in result["batches"].items():
        against, speedup = found["auto_against_best_runtime"], found["quarter_macs_speedup"]
        lines += [
            f"Batch {batch}: `auto` ({found['auto']['full']}) takes "
            f"{shown(against)} times as long as the fastest runtime given the plain model "
            f"({found['best_runtime']}; goal: at most {GOALS['auto_against_best_runtime']}); the "
            f"full net takes {shown(speedup)} times as long as the subnet at a quarter of the MACs "
            f"(goal: at least {GOALS['quarter_macs_speedup']:g}).",
            "",
        ]
    where = result["machine"]
    lines.append(
        f"{where.get('processor')}, {where.get('threads')} threads, float32; "
        + ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
        + f"; Python {where.get('python')}, commit {result.get('commit')}; load average "
        f"{result.get('load')} (a machine of its own has about {where.get('threads')})."
    )
    return "\n".join(lines)


def shown(found: dict[str, float]) -> str:
    """Return a ratio with its interval."""
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def main() -> None:
    """Measure, or print what is kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--backends", nargs="*", default=backends.installed())
    parser.add_argument("--seconds", type=float, default=10.0, help="longest time for one call")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="print the kept figures as JSON")
    parser.add_argument("--table", action="store_true", help="print the kept figures as a table")
    options = parser.parse_args()
    if options.summary or options.table:
        print(json.dumps(summary(kept())) if options.summary else table(kept()))
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = nestling.models.resnet18().eval()
    menu = menu_of(model)
    result = kept()
    for batch in options.batches:
        result["batches"][str(batch)] = run(model, menu, batch, options)
        result |= {
            "machine": machine(),
            "versions": versions(PACKAGES),
            "commit": commit(),
            "load": round(os.getloadavg()[0], 1),
        }
        KEPT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(summary(result)))


if __name__ == "__main__":
    main()
