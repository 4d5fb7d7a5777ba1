"""safetensors: the packed weights by the names of the parameters, and a JSON file about them.

For whoever has the model's class: build it at the sizes that the JSON names, then
`model.load_state_dict(safetensors.torch.load_file(path))`.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from nestling import container, strictjson
from nestling.exporters.subject import Call, Subject

SUFFIX = ".safetensors"
EXTRA = ""
PACKAGES: tuple[str, ...] = ()


def write(subject: Subject, path: Path) -> None:
    """Write the weights of a subject, and `PATH.json` with its class, inputs and shapes.

    Raises:
        FileError: the files cannot be written.
    """
    state = subject.module.state_dict()
    about = description(subject)
    container.write(path, about, state)
    strictjson.write(path.with_name(f"{path.name}.json"), about)


def description(subject: Subject) -> dict[str, Any]:
    """Return what the JSON file says, as JSON values."""
    kind = type(subject.module)
    return {
        "format": "nestling-weights",
        "version": 1,
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "inputs": subject.interface.signature.to_json(),
        "shapes": {name: list(each.shape) for name, each in subject.module.state_dict().items()},
    }


def reopen(path: Path, subject: Subject) -> Call:
    """Return what runs the weights of a file: the module, emptied and filled from there."""
    module = copy.deepcopy(subject.module)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()
        module.load_state_dict(load_file(path))

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return module(*args, **kwargs)

    return run
