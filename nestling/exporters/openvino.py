"""OpenVINO: a description (.xml) and its weights (.bin) for Intel's runtime of that name.

The way there is ONNX, which keeps the names. Weights stay in their own precision.

Source: https://docs.openvino.ai/2026/documentation/openvino-ir-format.html
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from nestling.errors import ModelError, brief
from nestling.exporters import onnx
from nestling.exporters.subject import Call, Subject
from nestling.extras import imported

SUFFIX = ".xml"
EXTRA = "openvino"
PACKAGES = ("openvino", "onnx", "onnxscript")


def write(subject: Subject, path: Path) -> None:
    """Write a subject as OpenVINO's `.xml`, with the `.bin` beside it.

    Raises:
        ModelError: a package is missing, or the model cannot be converted.
    """
    openvino = imported("openvino", EXTRA, "OpenVINO")
    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "model.onnx"
        onnx.write(subject, between)
        try:
            openvino.save_model(openvino.Core().read_model(between), path, compress_to_fp16=False)
        except Exception as error:
            raise ModelError(
                f"OpenVINO cannot convert {type(subject.module).__name__}: {brief(error)}; export "
                "to onnx instead"
            ) from error


def reopen(path: Path, subject: Subject) -> Call:
    """Return what runs an OpenVINO or ONNX file with OpenVINO."""
    return compiled(path, subject, torch.get_num_threads())


def compiled(path: Path, subject: Subject, threads: int) -> Call:
    """Return what runs a file with OpenVINO on so many threads, in the model's own precision.

    OpenVINO would take bfloat16 on processors that have it, which gives other results.
    """
    openvino = imported("openvino", EXTRA, "OpenVINO")
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    model = openvino.Core().compile_model(path, "CPU", hints)
    interface = subject.interface
    names = [_names(each) for each in model.inputs]  # an input that is not used is not there
    places = [next(i for i, n in enumerate(interface.inputs) if n in each) for each in names]
    own = threading.local()  # a request serves one call at a time

    def run(*args: Any, **kwargs: Any) -> Any:
        request = getattr(own, "request", None)
        if request is None:
            request = own.request = model.create_infer_request()
        flat = interface.flat(args, kwargs)
        # What it returns lies in the request's own memory, which the next call writes to.
        found = request.infer([onnx.array(flat[place]) for place in places], share_inputs=True)
        return interface.nested([torch.from_numpy(found[each].copy()) for each in model.outputs])

    return run


def _names(port: Any) -> set[str]:
    return set(port.get_names())
