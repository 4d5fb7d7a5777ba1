"""How verbs and Python name a model of the user's own class, whose source a file does not carry."""

from __future__ import annotations

import json
import keyword
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Own(NamedTuple):
    """The function that makes a model of the user's own.

    Attributes:
        target: FILE.py:function.
        arguments: it is called with.
    """

    target: str
    arguments: Mapping[str, Any]


def own_options(model: str, args: Mapping[str, Any]) -> str:
    """Return the options that name a model of a user's own to other verbs; "" for a builder's.

    Example:
        >>> own_options("my net.py:make", {"width": 8})
        " --model 'my net.py:make' --arg width=8"
    """
    if ".py:" not in model:
        return ""
    pairs = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in args.items()]
    named = [word for pair in pairs for word in ("--arg", pair)]
    return " " + shlex.join(["--model", model, *named])


def own_call(own: Own) -> tuple[str, str]:
    """Return the line of Python that imports the function, and the call that makes the model.

    Example:
        >>> own_call(Own("nets/mynet.py:make", {"width": 8}))
        ('from mynet import make  # nets/mynet.py', 'make(width=8)')
    """
    file, _, function = own.target.rpartition(":")
    stem = Path(file).stem
    arguments = ", ".join(f"{name}={value!r}" for name, value in own.arguments.items())
    if stem.isidentifier() and not keyword.iskeyword(stem):
        line = f"from {stem} import {function}  # {file}"
    else:  # a file name that no import statement takes
        line = f'{function} = importlib.import_module("{stem}").{function}  # {file}'
    return line, f"{function}({arguments})"
