"""onnxruntime: ONNX Runtime runs the subnet, converted to ONNX.

Source: https://onnxruntime.ai/docs/
"""

from __future__ import annotations

from nestling.backends.subject import Call, Subject
from nestling.exporters import onnx
from nestling.extras import imported

EXTRA = "onnx"
PACKAGES = ("onnxruntime", "onnx", "onnxscript")
COPIES = True
BOUND = "threads"


def convert(subject: Subject) -> None:
    """Convert the subnet to ONNX, on the disk.

    Raises:
        ModelError: a package is missing, or the subnet cannot be converted.
    """
    subject.on_cpu("onnxruntime")
    imported("onnxruntime", EXTRA, "the backend onnxruntime")
    subject.conversions.onnx(subject)


def prepare(subject: Subject) -> Call:
    """Return a session of ONNX Runtime, for any number of examples.

    Raises:
        ModelError: a package is missing, or the subnet cannot be converted.
    """
    path, source = subject.conversions.onnx(subject)
    return onnx.session(path, source, subject.threads)
