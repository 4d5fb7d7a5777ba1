"""onnxruntime: ONNX Runtime runs the subnet, converted to ONNX.

Source: https://onnxruntime.ai/docs/
"""

from __future__ import annotations

from functools import partial

from nestling.backends.subject import Call, Subject
from nestling.costs.latency import paired_ratio
from nestling.exporters import onnx
from nestling.extras import imported
from nestling.interface import example

EXTRA = "onnx"
PACKAGES = ("onnxruntime", "onnx", "onnxscript")
COPIES = True
TRIAL_SECONDS = 0.5
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

    Whether its threads wait for each other awake or asleep is tried: alone on the processor the one
    is quicker, beside other work the other.

    Raises:
        ModelError: a package is missing, or the subnet cannot be converted.
    """
    path, source = subject.conversions.onnx(subject)
    if subject.threads == 1:
        return onnx.session(path, source, 1)
    asleep, awake = (onnx.session(path, source, subject.threads, spin=s) for s in (False, True))
    args, kwargs = example(source.interface.signature, 1)
    found = paired_ratio(
        partial(asleep, *args, **kwargs), partial(awake, *args, **kwargs), seconds=TRIAL_SECONDS
    )
    return awake if found.median > 1 else asleep
