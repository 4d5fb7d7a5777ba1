"""Target: the model that a shell names, as a builder's name or as FILE.py:function."""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from nestling import models
from nestling.errors import ModelError, did_you_mean
from nestling.signature import LARGEST, made_up

USUAL = {  # builder -> height and width of the pictures that it is made for
    "digits_resnet": 8,
    "resnet20": 32,
    "resnet56": 32,
    "preact_resnet20": 32,
    "densenet40": 32,
    "vgg11_bn": 32,
    "vgg16_bn": 32,
    "vgg19_bn": 32,
    "resnet18": 224,
    "resnet50": 224,
    "densenet121": 224,
    "mobilenet_v1": 224,
    "mobilenet_v2": 224,
}


def make(target: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Return the model of a target.

    Args:
        target: a builder's name such as `resnet20`, or `FILE.py:function`, where the function
            returns a model. The file is run as Python: name only files that you trust.
        arguments: keyword arguments of the builder or the function.

    Raises:
        ModelError: no such builder, file or function; the function fails or returns no module.

    Example:
        >>> type(make("resnet20", {"width": 8})).__name__
        'Sequential'
    """
    if ".py" not in target and ":" not in target:
        if target in models.names():
            return models.build(target, arguments)
        raise ModelError(
            f"no builder is named {target!r}{did_you_mean(target, models.names())}; give "
            f"FILE.py:function, or one of {', '.join(models.names())}"
        )
    file, _, name = target.rpartition(":") if ".py:" in target else (target, "", "")
    if not name:
        raise ModelError(
            f"a model of your own is named FILE.py:function, not {target!r}; the function takes "
            "no argument that must be given and returns the model"
        )
    return _called(_imported(Path(file).expanduser()), name, file, dict(arguments or {}))


def arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Return arguments from `KEY=VALUE` texts; a value is JSON where it can be, else text.

    Raises:
        ModelError: a text without a key, or a key that comes twice.

    Example:
        >>> arguments(["width=8", "shortcut=zero_pad", "hidden=[32,16]"])
        {'width': 8, 'shortcut': 'zero_pad', 'hidden': [32, 16]}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ModelError(f"an argument is KEY=VALUE, not {pair!r}; for example width=8")
        if key in found:
            raise ModelError(f"the argument {key!r} is given twice; give it once")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = {"True": True, "False": False}.get(text, text)
    return found


def example(shape: str, name: str = "") -> Tensor:
    """Return an example input from a shape such as `1,3,32,32` or `1,16:int64`.

    Numbers are random, integers zero, or one where the name contains "mask". Where the batch is 1,
    nothing changes: the shape is taken as it stands.

    Raises:
        ModelError: no shape, an unknown dtype, or more numbers than make sense.
    """
    sizes, _, kind = shape.partition(":")
    dtype = getattr(torch, kind or "float32", None)
    try:
        lengths = [int(size) for size in sizes.replace("x", ",").split(",")]
    except ValueError as error:
        raise ModelError(
            f"an input is a shape such as 1,3,32,32 (the batch first), not {shape!r}"
        ) from error
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"{kind!r} is no dtype of an input; use float32, int64 ...")
    entries = 1
    for length in lengths:
        entries *= length
        if length < 1 or entries > LARGEST:
            raise ModelError(f"an input has 1 to {LARGEST} entries, but {shape!r} has not")
    return made_up(lengths, dtype, name)


def usual_input(model: nn.Module) -> Tensor:
    """Return an example input of the size that a builder's net is made for.

    Raises:
        ModelError: the model is of no builder, or of one whose usual size is not known.
    """
    made = models.built(model)
    if made is None:
        raise ModelError(
            "a model of your own needs the shape of an example input, the batch first; give "
            "--input, for example --input 1,3,224,224"
        )
    if made.name == "mlp":
        return example(f"2,{made.arguments['in_features']}")
    side = USUAL.get(made.name)
    if side is None:
        raise ModelError(f"{made.name} has no usual input size; give --input, the batch first")
    if made.arguments.get("stem") == "cifar" or made.arguments.get("stem_stride") == 1:
        side = 32
    return example(f"2,{made.arguments.get('in_channels', 3)},{side},{side}")


def _imported(path: Path) -> ModuleType:
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.py")])
        raise ModelError(f"there is no file {str(path)!r}{near}; give the path of a Python file")
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_{abs(hash(path)):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{str(path)!r} is no Python file; give FILE.py:function")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.modules[name] = module  # dataclasses and copies look a class up by its module's name
    sys.path.insert(0, folder)  # so that the file can import its neighbours, as when it is run
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ModelError(
            f"{path} cannot be imported: {_failure(error, path)}; run `python {path}` to see more"
        ) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def _called(module: ModuleType, name: str, file: str, given: dict[str, Any]) -> nn.Module:
    made: Any = getattr(module, name, None)
    if isinstance(made, nn.Module) and not given:
        return made
    if not callable(made):
        local = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        listed = f"; it has {', '.join(local[:8])}" if local else ""
        raise ModelError(
            f"{file} has no function {name!r}{did_you_mean(name, local)}{listed}; write a function "
            "that returns the model"
        )
    try:
        model = made(**given)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{name} of {file} must return a model, but it failed: "
            f"{_failure(error, Path(file))}; correct it, or give its arguments with --arg"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{name} of {file} must return a torch.nn.Module, but it returned "
            f"{type(model).__name__}; return the model itself"
        )
    return model


def _failure(error: BaseException, path: Path) -> str:
    """Return what went wrong and in which line of the user's file."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == path.name
    ]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"
