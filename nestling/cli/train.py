"""`nestling train`: make a menu for a model on a data set, in a run folder of its own."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestling import data as data_sets
from nestling import methods
from nestling.cli import terminal
from nestling.cli.options import AsJson, MethodOptions, ModelArgs, Narrow, Threads, examples
from nestling.report.own import own_options

if TYPE_CHECKING:
    from nestling.experiment import Outcome, Prepared, Settings
    from nestling.progress import Reporter
    from nestling.runfolder import RunFolder

Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the steps: the first of each subnet takes up to a minute, later ones less "
        "than without; for long trainings.",
    ),
]
HeldOut = Annotated[
    int | None,
    typer.Option(
        "--held-out",
        min=1,
        help="Training pictures kept aside for the menu's accuracies. (default: a seventh, at most "
        "5000)",
    ),
]

FewBits = Annotated[
    list[int] | None,
    typer.Option(
        "--bits", help="Bits that weights may have, 1 to 8, besides floating point; repeatable."
    ),
]
InputBits = Annotated[
    list[int] | None,
    typer.Option(
        "--input-bits", help="Bits of the inputs of layers whose weights have few; repeatable."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples(
            "nestling train --model digits_resnet --data digits --epochs 20 --lr 0.05",
            "nestling train --model resnet20 --data cifar10 --epochs 100 --out runs/first",
            "nestling train --model resnet20 --data cifar10 --method norms --option rank_epochs=30",
            "nestling train --model resnet20 --data cifar10 --bits 2 --bits 4 --bits 8",
            "nestling train --resume --out runs/first",
            "nestling train --model mynet.py:make_model --data fashion-mnist --arg width=32",
        )
    )(train)


def train(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="A builder's name such as resnet20, or FILE.py:function.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help=f"Data set: {', '.join(data_sets.names())}.")
    ] = None,
    arg: ModelArgs = None,
    method: Annotated[
        str, typer.Option(help=f"How to train: {', '.join(methods.names())}.")
    ] = "uniform",
    option: MethodOptions = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training pictures.")] = 10,
    batch: Annotated[int, typer.Option(help="Pictures a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, float32, bfloat16 or float32-channels-last.")
    ] = "auto",
    compile: Compile = False,
    threads: Threads = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="What counts go in. (default: hardware-friendly)")
    ] = None,
    held_out: HeldOut = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Safetensors file to start from.")
    ] = None,
    narrow: Narrow = 0,
    bits: FewBits = None,
    input_bits: InputBits = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Where data sets are. (default: $NESTLING_DATA)")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run, which must be new. (default: runs/NAME-1 ...)"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    json: AsJson = False,
) -> None:
    """Train a model as a supernet and make its menu, in a run folder of its own."""
    from nestling import target

    given = dict(context.params)
    for name in ("context", "arg", "option", "out", "resume", "json"):
        given.pop(name, None)
    given["model_args"] = target.arguments(arg or [])
    given["options"] = target.arguments(option or [])
    explicit = {
        {"arg": "model_args", "option": "options"}.get(name, name)
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    ready, folder, reporter = _begin(given, explicit, out, resume)
    _finish(ready, folder, reporter, resume, json)


def _begin(
    given: dict[str, Any], explicit: set[str], out: Path | None, resume: bool
) -> tuple[Prepared, RunFolder, Reporter]:
    """Return a prepared training and its folder, which is made only when all else is well."""
    from nestling import experiment
    from nestling.runfolder import Diary, RunFolder, check_free

    if resume:
        folder, settings = _resumed(given, explicit, out)
        reporter = folder.reporter()
        reporter.say(f"resuming the run in {folder.path}")
        with experiment.threads(settings.threads):
            return experiment.prepare(settings, reporter), folder, reporter
    settings = _settings(given)
    if out is not None:
        check_free(out)
    diary = Diary()
    with experiment.threads(settings.threads):
        ready = experiment.prepare(settings, diary)
    folder = RunFolder.create(settings.name, out, settings.config())
    reporter = folder.reporter(diary)
    reporter.say(f"the run is in {folder.path}")
    return ready, folder, reporter


def _finish(
    ready: Prepared, folder: RunFolder, reporter: Reporter, resume: bool, json: bool
) -> None:
    from nestling import experiment

    with experiment.threads(ready.settings.threads):
        menu = experiment.train(ready, folder, reporter, resume=resume)
        outcome = experiment.finish(ready, menu, folder)
    if json:
        terminal.put_json(_facts(outcome, folder))
        return
    terminal.put_page(outcome.page)
    shares = ", ".join(f"{name} {share:.2%}" for name, share in outcome.test.items())
    terminal.put(f"\naccuracy: on {ready.pictures} training pictures that were held out")
    terminal.put(
        f"test accuracy, on {len(ready.dataset.test.labels)} pictures looked at only now: {shares}"
    )
    terminal.put(f"\nFiles are in {folder.path}; look at report.html there, and try:")
    own = own_options(ready.settings.model, ready.settings.model_args)
    terminal.put(f"  nestling bench {shlex.quote(str(folder.model))}{own}")


def _settings(given: dict[str, Any]) -> Settings:
    from nestling.errors import ModelError
    from nestling.experiment import Settings

    for name, example in (("model", "resnet20"), ("data", "cifar10")):
        if given[name] is None:
            raise ModelError(
                f"a training needs --model and --data, but --{name} is not given; for example "
                f"--{name} {example}"
            )
    return Settings(**_filled(given))


def _filled(given: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those that were left open, so that they take their defaults."""
    return {name: value for name, value in given.items() if value is not None}


def _resumed(
    given: dict[str, Any], explicit: set[str], out: Path | None
) -> tuple[RunFolder, Settings]:
    """Return a run's folder and its settings, which what is given again must not contradict."""
    from nestling.errors import FileError, ModelError
    from nestling.experiment import Settings
    from nestling.runfolder import RunFolder

    if out is None:
        raise ModelError("--resume goes on with the run in --out DIR, but --out is not given")
    folder, config = RunFolder.open(out)
    settings = Settings.from_config(config)
    moved = {"data_dir": given["data_dir"]} if "data_dir" in explicit else {}
    for name, value in asdict(settings).items():
        if name in explicit and name not in moved and given[name] != value:
            flags = {"model_args": "--arg", "options": "--option"}
            flag = flags.get(name, "--" + name.replace("_", "-"))
            raise FileError(
                f"a run is resumed with its own settings: {flag} is {value!r} in {out}, but "
                f"{given[name]!r} was given; leave it out, or start a new run"
            )
    return folder, Settings(**{**asdict(settings), **moved})


def _facts(outcome: Outcome, folder: RunFolder) -> dict[str, Any]:
    return {
        "folder": str(folder.path),
        "model": str(folder.model),
        "menu": [
            entry.to_json() | {"test_accuracy": outcome.test[entry.name]} for entry in outcome.menu
        ],
    }
