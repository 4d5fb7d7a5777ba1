"""Options that several verbs share, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nestling import container, modelfile, target
from nestling.errors import FileError, ModelError
from nestling.runtime import LoadedModel, load


def in_run(file: Path) -> Path:
    """Return the model file of a run's folder; another path as it is."""
    model = file / "model.nest"
    return model if model.is_file() else file


File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="A .nest model file, or the folder of a run.", callback=in_run
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FILE.py:FUNCTION",
        help="For a model of your own class: the function that makes it.",
    ),
]
ModelArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--arg", "--model-args", metavar="KEY=VALUE", help="An argument of the model; repeatable."
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="KEY=VALUE", help="An option of the method (JSON); repeatable."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=4096, help="Threads a call may use; torch's default."),
]
Seconds = Annotated[
    float, typer.Option("--seconds", min=0.01, max=3600, help="Longest time to measure a subnet.")
]
Narrow = Annotated[
    float,
    typer.Option(
        "--narrow",
        metavar="SECONDS",
        min=0,
        max=86400,
        help="Time for measuring which counts are worth having here.",
    ),
]


def opened(file: Path, own: str | None = None, args: list[str] | None = None) -> LoadedModel:
    """Load a model file; one of a user's own class needs the function that makes it.

    Raises:
        FileError: the file cannot be read, or needs `--model`.
    """
    header = modelfile.describe(file)  # cheap, and clear errors before anything is loaded
    if own is None and "class" in header["model"]:
        raise FileError(
            f"{file} holds a model of your own class {header['model']['class']}, whose source a "
            "file does not carry; name the function that makes it with --model FILE.py:function"
        )
    if own is None and args:
        raise ModelError(
            "--arg is for --model FILE.py:function; the file itself holds the arguments of its "
            "builder"
        )
    made = None if own is None else target.make(own, target.arguments(args or []))
    return load(file, model=made, backend="eager")  # nothing is made ready that is run once


def read_header_id(file: Path) -> str:
    """Return the identity of a model file, which its profile must name."""
    return str(container.read_header(file)["id"])


def examples(*lines: str) -> str:
    """Return examples as the foot of a verb's help."""
    return "\n\n".join(["[bold]Examples[/bold]", *lines])
