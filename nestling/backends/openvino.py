"""openvino: Intel's OpenVINO runs the subnet, converted to ONNX, in the model's own precision.

Source: https://docs.openvino.ai/2026/openvino-workflow/running-inference.html
"""

from __future__ import annotations

from nestling.backends.subject import Call, Subject
from nestling.exporters import openvino
from nestling.extras import imported

EXTRA = "openvino"
PACKAGES = ("openvino", "onnx", "onnxscript")
COPIES = True
BOUND = "threads"


def convert(subject: Subject) -> None:
    """Convert the subnet to ONNX, on the disk.

    Raises:
        ModelError: a package is missing, or the subnet cannot be converted.
    """
    subject.on_cpu("openvino")
    imported("openvino", EXTRA, "the backend openvino")
    subject.conversions.onnx(subject)


def prepare(subject: Subject) -> Call:
    """Return a compiled model of OpenVINO, for any number of examples.

    Raises:
        ModelError: a package is missing, or the subnet cannot be converted.
    """
    path, source = subject.conversions.onnx(subject)
    return openvino.compiled(path, source, subject.threads)
