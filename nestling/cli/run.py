"""`nestling run`: one input through the best subnet within a budget."""

from __future__ import annotations

import io
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestling.cli import terminal
from nestling.cli.options import AsJson, File, ModelArgs, OwnModel, Threads, examples, opened
from nestling.report.units import human_bytes, human_count, human_list, human_ms, human_percent

if TYPE_CHECKING:
    from torch import Tensor

    from nestling.entry import Entry
    from nestling.runtime import LoadedModel
    from nestling.signature import TensorSpec

TOP = 5

Watch = Annotated[
    bool, typer.Option("--watch", help="Show the model under a load that is made up.")
]
Objective = Annotated[
    str | None, typer.Option(help="latency (default), throughput, fixed, energy, schedule.")
]
ObjectiveOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="Of the objective, such as ms=20."),
]
Rate = Annotated[float | None, typer.Option(help="Requests a second.", min=1e-3, max=1e6)]
Shape = Annotated[
    str | None, typer.Option(help="even, poisson, bursty4, bursty8, step (default), trace.")
]
Lasting = Annotated[
    float | None, typer.Option("--for", metavar="SECONDS", help="How long.", min=0.1)
]


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples(
            "nestling run model.nest picture.png",
            "nestling run model.nest batch.npy --fraction 0.25 --json",
            "nestling run model.nest picture.jpg --latency-ms 8",
            "nestling run model.nest --watch --option ms=20 --shape bursty8",
            "python make_inputs.py | nestling run model.nest - --subnet m50",
        )
    )(run)


def run(
    file: File,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            help="A .npy file, a picture (PNG, JPEG ...), or - for .npy data on stdin.",
        ),
    ] = None,
    fraction: Annotated[float | None, typer.Option(help="Share of the full net's MACs.")] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Milliseconds of a call, as profiled on this machine.")
    ] = None,
    macs: Annotated[float | None, typer.Option(help="Multiply-accumulates an example.")] = None,
    params: Annotated[float | None, typer.Option(help="Number of parameters.")] = None,
    size: Annotated[float | None, typer.Option("--bytes", help="Bytes of the weights.")] = None,
    subnet: Annotated[
        str | None, typer.Option(help="Name of a subnet, instead of a budget.")
    ] = None,
    threads: Threads = None,
    model: OwnModel = None,
    arg: ModelArgs = None,
    watch: Watch = False,
    objective: Objective = None,
    option: ObjectiveOptions = None,
    rate: Rate = None,
    shape: Shape = None,
    seconds: Lasting = None,
    json: AsJson = False,
) -> None:
    """Run an input through the best subnet within a budget; the full net without one.

    With --watch there is no input: a load is made up, and a live view shows how the governor holds
    the objective.
    """
    from nestling import experiment
    from nestling.errors import BudgetError, DataError

    budget = {"fraction": fraction, "latency_ms": latency_ms, "macs": macs, "params": params}
    given = {name: value for name, value in {**budget, "bytes": size}.items() if value is not None}
    load = {"objective": objective, "option": option, "rate": rate, "shape": shape, "for": seconds}
    asked = {name: value for name, value in load.items() if value is not None and value != []}
    if watch:
        others = {**given, "subnet": subnet, "INPUT": source}
        _check_alone([name for name, value in others.items() if value is not None])
        with experiment.threads(threads or 0):
            _watch(opened(file, model, arg), file, asked, json)
        return
    if source is None:
        raise DataError(
            "an input is missing; give a .npy file, a picture or - for stdin; or --watch"
        )
    if asked:
        raise BudgetError(f"--{', --'.join(asked)} is for --watch; add it, or leave them out")
    if subnet is not None and given:
        raise BudgetError(
            f"a subnet is chosen by name or by budget, but --subnet and {', '.join(given)} were "
            "given; leave one out"
        )
    loaded = opened(file, model, arg)
    inputs = _read(source, loaded)
    with experiment.threads(threads or 0):
        entry = loaded.menu[subnet] if subnet is not None else None
        _answer(loaded, inputs, entry or _chosen(loaded, file, given, len(inputs)), json)


def _answer(loaded: LoadedModel, inputs: Tensor, entry: Entry, json: bool) -> None:
    """Run inputs through a subnet and write the results."""
    started = time.perf_counter()
    outputs = loaded(inputs, subnet=entry.name)
    milliseconds = 1000 * (time.perf_counter() - started)
    terminal.say(_told(entry, milliseconds))
    results = _results(outputs, loaded.menu.facts.get("classes"))
    if json:
        terminal.put_json({"subnet": _figures(entry), "ms": milliseconds, "results": results})
    else:
        _write(results)


def _check_alone(others: Sequence[str]) -> None:
    """Check that nothing is asked for beside --watch that it has no use for.

    Raises:
        BudgetError: something is.
    """
    from nestling.errors import BudgetError

    if others:
        raise BudgetError(
            f"--watch makes up its inputs and holds an objective, so that {', '.join(others)} "
            "says nothing; leave it out, or write --objective fixed --option subnet=NAME"
        )


def _watch(loaded: LoadedModel, file: Path, asked: Mapping[str, Any], json: bool) -> None:
    """Show a model under a load."""
    from nestling.cli.watch import Wishes, watch
    from nestling.target import arguments

    names = {"for": "seconds", "option": "options"}
    wishes = {names.get(name, name): value for name, value in asked.items()}
    if "options" in wishes:
        wishes["options"] = arguments(wishes["options"])
    watch(loaded, file, Wishes(**wishes), json=json)


def _chosen(loaded: LoadedModel, file: Path, given: dict[str, float], batch: int) -> Entry:
    """Return the entry for a budget; where a profile is missing, name the whole command."""
    from nestling.errors import BudgetError

    try:
        return loaded.choose(**given, batch=batch)
    except BudgetError as error:
        text = str(error).replace("profile FILE", f"profile {shlex.quote(str(file))}")
        raise BudgetError(text) from error


def _read(source: str, loaded: LoadedModel) -> Tensor:
    """Return the input as a batch that fits the model's signature."""
    from nestling.errors import ModelError

    signature = loaded.menu.net.signature
    wanted = signature.args[0] if len(signature.args) == 1 and not signature.kwargs else None
    if wanted is None:
        raise ModelError(
            f"`nestling run` gives a model one input, but this one takes {signature}; call it from "
            "Python with nestling.load"
        )
    if source == "-":
        numbers = _array(sys.stdin.buffer.read(), "stdin")
    elif source.endswith(".npy"):
        numbers = _array(_bytes(source), source)
    else:
        picture = _picture(_bytes(source), source, wanted.shape, loaded.menu.facts)
        return _batch(picture, source, wanted, loaded)
    inputs = _batch(numbers, source, wanted, loaded)
    if normalisation := _normalisation(loaded.menu.facts):
        terminal.say(f"{source}: numbers taken as already normalised, {normalisation}")
    return inputs


def _batch(inputs: Tensor, source: str, wanted: TensorSpec, loaded: LoadedModel) -> Tensor:
    """Return inputs as a batch of the model's dtype; one example becomes a batch of its own.

    Raises:
        ModelError: they are of another kind or shape than the model takes.
    """
    import torch

    from nestling.errors import ModelError

    signature, normalisation = loaded.menu.net.signature, _normalisation(loaded.menu.facts)
    dtype: torch.dtype = getattr(torch, wanted.dtype)
    if inputs.dim() == len(wanted.shape) - 1:
        inputs = inputs[None]
    if inputs.dtype != dtype and not (inputs.is_floating_point() and dtype.is_floating_point):
        kind = str(inputs.dtype).removeprefix("torch.")
        raise ModelError(
            f"the model takes {signature}, but {source} holds {kind}; convert it first (pictures: "
            f"scale to 0 to 1 and normalise as in training{normalisation and ', '}{normalisation}, "
            "or give the picture file itself)"
        )
    if inputs.dim() != len(wanted.shape) or not inputs.numel():
        raise ModelError(
            f"the model takes {signature}, but {source} has the shape {tuple(inputs.shape)}; give "
            "one example or a batch of them"
        )
    return inputs.to(dtype)


def _normalisation(facts: Mapping[str, Any]) -> str:
    """Return how pictures were normalised in training; empty where the file does not say."""
    mean, std = human_list(facts, "mean"), human_list(facts, "std")
    return f"with mean {mean} and std {std}" if mean and std else ""


def _bytes(source: str) -> bytes:
    from nestling.errors import DataError

    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {source!r} ({error.strerror}); give a .npy file, a picture, or - for "
            "stdin"
        ) from error


def _array(content: bytes, source: str) -> Tensor:
    import numpy as np
    import torch

    from nestling.errors import DataError

    if not content.startswith(b"\x93NUMPY"):
        raise DataError(
            f"{source} is no .npy array of numbers (its first bytes are not those of the format); "
            "write it with numpy.save"
        )
    try:
        return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
    except (ValueError, EOFError, OSError, TypeError, AttributeError, MemoryError) as error:
        raise DataError(
            f"{source} is no .npy array of numbers (it is damaged, or holds something else); "
            "write one with numpy.save"
        ) from error


def _picture(content: bytes, source: str, shape: tuple[int, ...], facts: Any) -> Tensor:
    """Return a picture, resized to the model's input and normalised as in its training."""
    from nestling.errors import DataError, ModelError

    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"{source} is a picture, and reading one needs Pillow; run `pip install pillow`, or "
            "give a .npy file"
        ) from error
    import numpy as np
    import torch

    channels = shape[1] if len(shape) == 4 else 0
    mean, std = facts.get("mean"), facts.get("std")
    modes = {1: "L", 3: "RGB"}
    if channels not in modes or not _are_numbers(mean, channels) or not _are_numbers(std, channels):
        raise ModelError(
            f"{source} is a picture, but the model file does not say how to prepare one for its "
            "input; give a .npy file with the prepared input"
        )
    try:
        opened = Image.open(io.BytesIO(content)).convert(modes[channels])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{source} is no picture that Pillow can read{_reason(error)}; give a PNG or JPEG, or "
            "a .npy file"
        ) from error
    height, width = shape[2:]
    if opened.size != (width, height):
        terminal.say(
            f"{source}: resized from {opened.size[0]}x{opened.size[1]} to {width}x{height}"
        )
        opened = opened.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(opened, dtype=np.float32).copy()) / 255
    planes = pixels.reshape(height, width, channels).permute(2, 0, 1)
    return (planes - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def _reason(error: Exception) -> str:
    """Return Pillow's reason in brackets, unless it names nothing but our own buffer."""
    return "" if "BytesIO" in str(error) else f" ({error})"


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) for value in values)
    )


def _told(entry: Entry, milliseconds: float) -> str:
    score = "" if entry.accuracy is None else f", {human_percent(entry.accuracy)} accurate"
    return (
        f"subnet {entry.name}: {human_count(entry.macs)} MACs, {human_count(entry.params)} "
        f"parameters, {human_bytes(entry.bytes)}{score}; this call took "
        f"{human_ms(max(milliseconds, 1e-3))} ms, the first one"
    )


def _figures(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "macs": entry.macs,
        "params": entry.params,
        "bytes": entry.bytes,
        "accuracy": entry.accuracy,
    }


def _results(outputs: Any, classes: Any) -> list[dict[str, Any]]:
    """Return the best classes of every example, or the plain outputs if they are no scores."""
    import torch

    from nestling.errors import ModelError

    if not isinstance(outputs, torch.Tensor):
        raise ModelError(
            f"`nestling run` shows one tensor, but the model returns {type(outputs).__name__}; "
            "call it from Python with nestling.load"
        )
    if outputs.dim() != 2:
        return [{"outputs": row.tolist()} for row in outputs]
    shares = outputs.float().softmax(1)
    found = []
    for row in shares:
        best = row.topk(min(TOP, len(row)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        found.append({"top": [_top(index, share, classes) for share, index in pairs]})
    return found


def _top(index: int, share: float, classes: Any) -> dict[str, Any]:
    named = isinstance(classes, list) and index < len(classes)
    return {"class": str(classes[index]) if named else str(index), "index": index, "score": share}


def _write(results: list[dict[str, Any]]) -> None:
    for number, result in enumerate(results):
        if "top" in result:
            tops = "  ".join(f"{top['class']} {top['score']:.1%}" for top in result["top"])
            terminal.put(f"{number}: {tops}" if len(results) > 1 else tops)
        else:
            terminal.put(str(result["outputs"]))
