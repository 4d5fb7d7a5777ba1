"""Real speed from bits: a ResNet-18 in few bits on integer instructions, against its float32 self.

    python benchmarks/integers.py              # all runtimes that are installed, result kept
    python benchmarks/integers.py --summary    # the kept figures as one line of JSON
    python benchmarks/integers.py --table      # the kept figures as a Markdown table

Weights of 4, 7 and 8 bits, inputs of 8, at 224 pixels; the first convolution and the classifier in
floating point. OpenVINO and ONNX Runtime have an ONNX file of them, "inductor" is `torch.compile`
of the packed copy. Where torchao is installed, the same net as it quantises it by itself is
measured too (PT2E, 8 bits, all layers). Each ratio is the median over pairs of calls in turn (A B,
B A, ...) of the time of the same runtime in float32 to that in integers, with a 95 % interval. The
weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nestling
from nestling.costs.latency import Ratio, measure, paired_ratio
from nestling.profile import machine

KEPT = Path(__file__).parent / "results" / "integers.json"
BITS, BATCHES = (4, 7, 8), (1, 32)
SECONDS = 10.0  # for each ratio
GOAL = 3.0  # times as fast as the same runtime in float32
RUNTIMES = ("openvino", "onnxruntime", "inductor")  # the last in the best number of bits alone
BEST = 7  # bits: the most that kernels take as they are
TORCHAO = "torchao"

Call = Callable[[], object]


def pairs(folder: Path) -> Iterator[tuple[dict[str, Any], Call, Call, float]]:
    """Yield each case with its call in float32, that in integers, and how far outputs differ."""
    net = nestling.Supernet(
        nestling.models.resnet18(), torch.randn(2, 3, 64, 64), bits=nestling.Bits(BITS, inputs=8)
    )
    for batch in BATCHES:
        images = torch.randn(batch, 3, 224, 224)
        plain = made(net, {}, images)
        for bits in BITS:
            few = made(net, {"*.bits": bits}, images)
            packed = nestling.pack(few, integers=True)
            with torch.no_grad():
                wanted = few(images)
            for runtime in RUNTIMES if bits == BEST else RUNTIMES[:2]:
                floating, few_bits = (
                    call(runtime, module, images, folder) for module in (plain, packed)
                )
                case = {"runtime": runtime, "bits": bits, "batch": batch}
                yield case, floating, few_bits, difference(few_bits(), wanted)
        if find_spec(TORCHAO) is not None:
            floating = call("inductor", plain, images, folder)
            quantised = compiled(by_torchao(plain, images), images)
            case = {"runtime": TORCHAO, "bits": 8, "batch": batch}
            yield case, floating, quantised, difference(quantised(), floating())


def difference(found: Tensor, wanted: Tensor) -> float:
    """Return how far outputs are off, over the largest of them."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def made(net: nestling.Supernet, spec: dict[str, int], images: Tensor) -> nn.Module:
    """Return a subnet with statistics of its own."""
    return net.recalibrate(net.subnet(spec), [images]).eval()


def written(module: nn.Module, images: Tensor, folder: Path) -> Path:
    """Return an ONNX file of a module."""
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    torch.onnx.export(nestling.pack(module), (images,), str(path), dynamo=True, verbose=False)
    return path


def call(runtime: str, module: nn.Module, images: Tensor, folder: Path) -> Callable[[], Tensor]:
    """Return what runs a module on the images, by a file in the folder if the runtime reads one."""
    if runtime == "inductor":
        return compiled(nestling.pack(module), images)
    path = written(module, images, folder)
    if runtime == "openvino":
        return openvino(path, images)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: images.numpy()}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def compiled(module: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Return what runs a module on the images by PyTorch's compiler, with its weights as constants.

    Else the compiler does not find the integers.
    """
    made = torch.compile(module)

    def run() -> Tensor:
        with torch.no_grad():
            found: Tensor = made(images)
        return found

    with torch._inductor.config.patch(freezing=True):
        run()
    return run


def by_torchao(plain: nn.Module, images: Tensor) -> nn.Module:
    """Return the net with weights and inputs in 8 bits, as torchao makes it for this compiler.

    It cannot tell the calls of a ReLU that a block has once and runs twice: functions it can.
    """
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as quantizers

    copy = nestling.pack(plain)
    for block in copy.modules():
        if isinstance(getattr(block, "relu", None), nn.ReLU) and hasattr(block, "conv2"):
            del block.relu
            block.relu = torch.nn.functional.relu
    with torch.no_grad():
        exported = torch.export.export(copy, (images,)).module()
        quantizer = quantizers.X86InductorQuantizer()
        quantizer.set_global(quantizers.get_default_x86_inductor_quantization_config())
        prepared = quantize_pt2e.prepare_pt2e(exported, quantizer)
        prepared(images)
        found: nn.Module = quantize_pt2e.convert_pt2e(prepared)
    return found


def openvino(path: Path, images: Tensor) -> Callable[[], Tensor]:
    """Return what runs a file on the images with OpenVINO, in full float32 where it is floats."""
    from openvino import Core

    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = Core().compile_model(str(path), "CPU", options).create_infer_request()
    return lambda: torch.from_numpy(next(iter(request.infer([images.numpy()]).values())))


def row(case: dict[str, Any], ratio: Ratio, milliseconds: dict[str, float], away: float) -> Any:
    """Return a case as a row of the result."""
    print(case, f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})", flush=True)
    return {
        **case,
        "speedup": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "runs": ratio.runs,
        "float32_ms": milliseconds["float"],
        "integers_ms": milliseconds["few"],
        "difference": away,
    }


def measured(seconds: float) -> dict[str, Any]:
    """Return all rows, with what they were measured on."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case, plain, few, away in pairs(Path(folder)):
            ratio = paired_ratio(plain, few, seconds=seconds)
            table = measure({"float": plain, "few": few}, seconds=seconds / 2)
            rows.append(row(case, ratio, {n: found.median for n, found in table.items()}, away))
    names = [name for name in (*RUNTIMES, TORCHAO) if find_spec(name) is not None]
    versions = {name: version(name) for name in names}
    return {"machine": {**machine(), **versions}, "net": "resnet18, 224 pixels", "rows": rows}


def kept() -> dict[str, Any]:
    """Return the kept figures."""
    found: dict[str, Any] = json.loads(KEPT.read_text())
    return found


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the runtime that is fastest in 7 bits, against its own float32."""
    seven = [each for each in found["rows"] if each["bits"] == BEST]
    best = [
        min((each for each in seven if each["batch"] == batch), key=lambda e: e["integers_ms"])
        for batch in BATCHES
    ]
    return {
        "part": "speed",
        "protocol": "measured",
        "net": found["net"],
        "data": "random pictures",
        "seeds": 1,
        "runtimes": [each["runtime"] for each in best],
        **{f"int8_speedup_b{each['batch']}": round(each["speedup"], 2) for each in best},
        "goal": GOAL,
    }


def table(found: dict[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| runtime | bits | batch | float32, ms | integers, ms | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    for each in found["rows"]:
        speed = f"{each['speedup']:.2f} ({each['low']:.2f} to {each['high']:.2f})"
        times = f"{each['float32_ms']:.1f} | {each['integers_ms']:.1f}"
        lines.append(
            f"| {each['runtime']} | {each['bits']} | {each['batch']} | {times} | {speed} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, or show what was kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--summary", action="store_true", help="the kept figures as JSON")
    parser.add_argument("--table", action="store_true", help="the kept figures as a table")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each ratio")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if not (given.summary or given.table):
        torch.set_num_threads(given.threads)
        torch.manual_seed(0)
        KEPT.write_text(json.dumps(measured(given.seconds), indent=1) + "\n")
    print(json.dumps(summary(kept())) if given.summary else table(kept()))


if __name__ == "__main__":
    main()
