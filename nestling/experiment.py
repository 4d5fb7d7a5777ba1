"""Experiment: settings in, a trained menu in a run folder out; what the shell's `train` does."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nestling import data, methods, models, precision, target
from nestling.bits import Bits
from nestling.data import Dataset, Epochs
from nestling.errors import DataError, FileError, ModelError
from nestling.evaluation import evaluate
from nestling.fitting import fit
from nestling.interruption import Interrupted
from nestling.menu import Menu
from nestling.optimizers import default_optimizer
from nestling.progress import Reporter
from nestling.report.own import Own
from nestling.report.rows import Page
from nestling.runfolder import RunFolder
from nestling.supernet import Supernet
from nestling.timing import check_narrow

MOST_HELD_OUT = 5000  # pictures; more would not make the accuracies much surer
SHARE_HELD_OUT = 7  # one in seven of the training pictures, where these are few


@dataclass(frozen=True)
class Settings:
    """All that decides a training; kept in `config.json`, so that a run can be resumed.

    Attributes:
        model: a builder's name, or FILE.py:function.
        model_args: its keyword arguments.
        data: name of a data set.
        data_dir: where its files are.
        method: name of a method.
        options: of the method, such as `{"rank_by": "l1"}` of "progressive".
        epochs: passes over the training pictures.
        batch: pictures a step.
        lr: peak learning rate.
        seed: of all random choices.
        device: "auto", "cpu", "cuda" ...
        precision: "auto", "float32", "bfloat16" or "float32-channels-last".
        compile: whether the passes of a training step are compiled.
        threads: of torch; 0 leaves its default.
        step: what the counts of the axes go in; 0 chooses hardware-friendly steps.
        held_out: training pictures that are kept aside for the accuracies; 0 chooses a share.
        weights: safetensors file to start from.
        narrow: seconds for measuring which counts are worth having here; 0 for none.
        bits: numbers of bits that weights may have besides floating point; none for that alone.
        input_bits: of the inputs of such layers; one number holds wherever a weight has few.
    """

    model: str
    data: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    data_dir: str | None = None
    method: str = "uniform"
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 10
    batch: int = 128
    lr: float = 0.1
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    threads: int = 0
    step: int = 0
    held_out: int = 0
    weights: str | None = None
    narrow: float = 0
    bits: Sequence[int] = ()
    input_bits: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("bits", "input_bits"):  # JSON has no tuples
            object.__setattr__(self, name, list(getattr(self, name)))
        if self.input_bits and not self.bits:
            raise ModelError("--input-bits is for layers whose weights are in few: add --bits too")
        least = {"epochs": 1, "batch": 1, "threads": 0, "step": 0, "held_out": 0, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ModelError(
                    f"{_flag(name)} is a whole number of at least {low}, not {value!r}"
                )
        if not isinstance(self.lr, int | float) or not 0 < self.lr < 1e3:
            raise ModelError(f"--lr is a positive number such as 0.1, not {self.lr!r}")
        check_narrow(self.narrow)
        recipe = methods.find(self.method)
        methods.check_options(self.method, recipe, self.options)

    @property
    def title(self) -> str:
        """What a report calls the run."""
        return f"{_short(self.model)} on {self.data}"

    @property
    def name(self) -> str:
        """What a run folder is called."""
        return f"{_short(self.model)}-{self.data}-{self.method}"

    def config(self) -> dict[str, Any]:
        """Return what `config.json` holds."""
        return {"nestling": 1, "settings": asdict(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Return the settings that `config` gave.

        Raises:
            FileError: it holds something else.
        """
        found = config.get("settings")
        known = {entry.name for entry in fields(cls)}
        if config.get("nestling") != 1 or not isinstance(found, dict) or set(found) - known:
            raise FileError(
                "config.json is not that of a training of this Nestling; start in a new folder"
            )
        try:
            return cls(**found)
        except (TypeError, AttributeError) as error:
            raise FileError(
                f"config.json does not hold together ({error}); start in a new folder"
            ) from error


@dataclass(frozen=True)
class Prepared:
    """What a training runs on."""

    settings: Settings
    dataset: Dataset
    net: Supernet
    train: Epochs
    held_out: Epochs
    pictures: int  # held out


@dataclass(frozen=True)
class Outcome:
    """What a training gave: the menu, its page, and the accuracies on the test pictures."""

    menu: Menu
    page: Page
    test: Mapping[str, float]


def _bits(settings: Settings) -> Bits | None:
    """Return the bits that weights and inputs may have; None for floating point."""
    if not settings.bits:
        return None
    inputs = settings.input_bits
    return Bits(settings.bits, inputs=inputs[0] if len(inputs) == 1 else inputs or None)


def prepare(settings: Settings, reporter: Reporter) -> Prepared:
    """Read the data, make the model and find its axes; everything that can fail early, fails here.

    Raises:
        DataError: the data set is missing or damaged, or does not fit the model.
        ModelError: the model cannot be made, or has nothing elastic.
    """
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    model = target.make(settings.model, settings.model_args)
    dataset = data.load(settings.data, settings.data_dir)
    if settings.model == "mlp" and "in_features" not in settings.model_args:
        torch.manual_seed(settings.seed)
        fitting = {"in_features": math.prod(dataset.shape)}
        model = target.make("mlp", {**settings.model_args, **fitting})
    if settings.weights is not None:
        models.load_weights(model, settings.weights)
    precision.choose(settings.precision, device, model)
    count = len(dataset.train.labels)
    wanted = settings.held_out or max(1, min(MOST_HELD_OUT, count // SHARE_HELD_OUT))
    train, held_out = dataset.split(wanted, settings.seed)
    shown = "x".join(str(length) for length in dataset.shape)
    reporter.say(
        f"data: {dataset.name}, {len(train.labels)} pictures ({shown}) to train on, {wanted} of "
        f"the training set held out, {len(dataset.test.labels)} to test"
    )
    _check_inputs(model, dataset)
    example = torch.randn(2, *dataset.shape)
    started = time.perf_counter()
    net = Supernet(model, example, step=settings.step or None, bits=_bits(settings))
    _check_classes(net.model, example, len(dataset.classes))
    space = net.space
    reporter.say(
        f"model: {_short(settings.model)}, {space.params(space.full):,} parameters, "
        f"{space.macs(space.full):,} MACs, {len(space.axes)} elastic axes found and proven in "
        f"{time.perf_counter() - started:.1f} s"
    )
    near = dataset.to(device)
    reporter.say(f"device: {device}, {torch.get_num_threads()} thread(s), seed {settings.seed}")
    return Prepared(
        settings,
        dataset,
        net.to(device),
        near.train_batches(settings.batch, settings.seed, part=train),
        near.test_batches(max(settings.batch, 256), part=near.in_memory(held_out)),
        wanted,
    )


def train(ready: Prepared, folder: RunFolder, reporter: Reporter, *, resume: bool = False) -> Menu:
    """Train, save the menu, and return it.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state is in the folder.
        NestlingError: as `fit`.
    """
    settings = ready.settings
    try:
        with resumable(folder):
            menu = fit(
                ready.net,
                ready.train,
                ready.held_out,
                method=settings.method,
                epochs=settings.epochs,
                seed=settings.seed,
                optimizer=lambda parameters: _optimizer(parameters, settings.lr),
                precision=settings.precision,
                compile=settings.compile,
                narrow=settings.narrow,
                checkpoint=folder.checkpoint,
                resume=resume,
                progress=reporter,
                **settings.options,
            )
    finally:
        folder.write_metrics()
    dataset = ready.dataset
    facts = {
        **menu.facts,
        "model": _short(settings.model),
        "data": dataset.name,
        "training batch": settings.batch,
        "lr": settings.lr,
        "accuracy on": f"{ready.pictures} held-out training pictures"
        + (", which also chose the subnets" if "chosen on" in menu.facts else ""),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "classes": list(dataset.classes),
    }
    return replace(menu, facts=facts)


def finish(ready: Prepared, menu: Menu, folder: RunFolder, *, batch: int = 1) -> Outcome:
    """Save the menu, draw its report, and only now look at the test pictures.

    Args:
        ready: what the training ran on.
        menu: measured with `batch` examples a call.
        folder: of the run.
        batch: which of its profiles the report shows.
    """
    with resumable(folder):
        return _finish(ready, menu, folder, batch)


def _finish(ready: Prepared, menu: Menu, folder: RunFolder, batch: int) -> Outcome:
    menu.save(folder.model)
    tests = ready.dataset.test_batches(256)
    test = {entry.name: evaluate(menu.module(entry.name), tests) for entry in menu}
    facts = {"test accuracy": _shown(test)}
    model, title = ready.settings.model, ready.settings.title
    own = Own(model, ready.settings.model_args) if ".py:" in model else None
    page = folder.write_report(menu, title, key=menu.key(batch), facts=facts, own=own)
    return Outcome(menu, page, test)


@contextmanager
def resumable(folder: RunFolder) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM say what is saved, and how to go on.

    Raises:
        Interrupted: in place of what the block was interrupted with.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        out = shlex.quote(str(folder.path))
        if folder.model.exists():
            text = f"the model is saved in {folder.model}; its report is not complete"
        elif folder.checkpoint.exists():
            text = (
                f"the state is saved in {folder.checkpoint}; go on with: "
                f"nestling train --resume --out {out}"
            )
        else:
            text = (
                f"before anything was saved; start anew with: nestling train --resume --out {out}"
            )
        raise Interrupted(f"stopped; {text}") from stop


def choose_device(name: str) -> torch.device:
    """Return a device by name; "auto" is a GPU where there is one.

    Raises:
        ModelError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = "auto, cpu" + (", cuda" if torch.cuda.is_available() else "")
        raise ModelError(f"--device {name!r} is not on this machine; choose {here}") from error
    if device.type == "meta":
        raise ModelError("--device 'meta' computes nothing; choose auto or cpu")
    return device


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run a block with so many torch threads; 0 leaves the number as it is."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _optimizer(parameters: Any, lr: float) -> torch.optim.Optimizer:
    optimizer = default_optimizer(nn.ParameterList(parameters))
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer


def _check_inputs(model: nn.Module, dataset: Dataset) -> None:
    made, found = models.built(model), dataset.shape[0]
    numbers = math.prod(dataset.shape)
    if made is not None and made.arguments.get("in_features", numbers) != numbers:
        raise DataError(
            f"{made.name} takes {made.arguments['in_features']} numbers a picture, but those of "
            f"{dataset.name} have {numbers}; give --arg in_features={numbers}"
        )
    wanted = made.arguments.get("in_channels", found) if made is not None else found
    if made is not None and wanted != found:
        raise DataError(
            f"{made.name} takes pictures with {wanted} channels, but those of {dataset.name} have "
            f"{found}; give --arg in_channels={found}"
        )


def _check_classes(model: nn.Module, example: torch.Tensor, classes: int) -> None:
    with torch.no_grad():
        outputs = model.eval()(example)
    model.train()
    shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else None
    if shape is None or len(shape) != 2 or shape[1] < classes:
        got = type(outputs).__name__ if shape is None else f"the shape {shape}"
        raise DataError(
            f"a model for this data must return scores of shape (batch, {classes}), but it returns "
            f"{got}; for builders give --arg num_classes={classes}"
        )


def _short(model: str) -> str:
    """Return a builder's name, or the function of FILE.py:function with its file's stem."""
    file, _, function = model.rpartition(":")
    return f"{Path(file).stem}-{function}" if file else model


def _shown(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.2%}" for name, share in shares.items())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
