"""ONNX: one file for ONNX Runtime, OpenVINO and many others; opens in Netron.

Inputs and outputs have the names of the model's own arguments and results, weights those of its
parameters. The first dimension of every batched input is free.

Source: https://onnx.ai/onnx/; the conversion is `torch.onnx.export` on a traced program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nestling.errors import ModelError, NestlingError, brief
from nestling.exporters.subject import Call, Subject, quiet
from nestling.extras import imported
from nestling.files import write_atomically

SUFFIX = ".onnx"
EXTRA = "onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")

LARGEST = 2**31 - 2**20  # bytes of one protobuf; beyond that the weights go into a second file


def write(subject: Subject, path: Path) -> None:
    """Write a subject as ONNX; beyond two gigabytes, weights lie in `PATH.data` beside it.

    Raises:
        ModelError: a package is missing, or the model holds what ONNX cannot say.
    """
    program = converted(subject)
    large = sum(t.numel() * t.element_size() for t in subject.module.state_dict().values())
    if large > LARGEST:
        program.save(str(path), external_data=True)
    else:
        write_atomically(path, program.model_proto.SerializeToString())


def converted(subject: Subject) -> Any:
    """Return the `torch.onnx.ONNXProgram` of a subject.

    Raises:
        ModelError: as `write`.
    """
    for package in ("onnx", "onnxscript"):
        imported(package, EXTRA, "ONNX")
    try:
        with quiet():
            return torch.onnx.export(
                subject.program,
                input_names=list(subject.interface.inputs),
                output_names=list(subject.interface.outputs),
                dynamic_shapes=subject.dynamic_shapes,
                dynamo=True,
                verbose=False,
            )
    except NestlingError:
        raise
    except Exception as error:
        raise ModelError(
            f"torch.onnx cannot convert {type(subject.module).__name__}: {brief(error)}; export "
            "to torch-export instead"
        ) from error


def reopen(path: Path, subject: Subject) -> Call:
    """Return what runs an ONNX file with ONNX Runtime."""
    return session(path, subject, torch.get_num_threads())


def session(path: Path, subject: Subject, threads: int, *, spin: bool = False) -> Call:
    """Return what runs an ONNX file with ONNX Runtime on so many threads.

    Args:
        path: of the file.
        subject: that it was made of.
        threads: that a call may use.
        spin: whether threads wait for each other awake within a call, which is quicker where they
            have the processor for themselves. After a call they sleep in any case: other sessions
            and torch want the processor, too.
    """
    runtime = imported("onnxruntime", EXTRA, "running ONNX")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    made = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    interface = subject.interface
    known = {each.name for each in made.get_inputs()}  # an input that is not used is not there

    def run(*args: Any, **kwargs: Any) -> Any:
        flat = zip(interface.inputs, interface.flat(args, kwargs), strict=True)
        given = {name: array(tensor) for name, tensor in flat if name in known}
        return interface.nested([torch.from_numpy(each) for each in made.run(None, given)])

    return run


def array(tensor: torch.Tensor) -> Any:
    """Return a tensor of the CPU as a contiguous array; the memory is shared where it can be."""
    if tensor.requires_grad or not tensor.is_contiguous():
        tensor = tensor.detach().contiguous()
    return tensor.numpy()
