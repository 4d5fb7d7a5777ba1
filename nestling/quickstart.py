"""Quickstart: train, measure, save, load and answer budgets, on the digits that ship inside.

The whole story of Nestling in plain functions; `nestling quickstart` calls `tell`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestling import experiment
from nestling.entry import Entry
from nestling.experiment import Outcome, Prepared, Settings
from nestling.menu import Menu
from nestling.progress import Reporter
from nestling.report.units import human_bytes, human_count, human_ms
from nestling.runfolder import RunFolder
from nestling.runtime import LoadedModel, load

BATCH = 64  # pictures a measured call: enough that computing counts, not the call
SECONDS = 0.6  # longest time to measure one subnet under one condition
WIDTH = 40
EPOCHS = 20


def settings(*, seed: int = 0, epochs: int = EPOCHS) -> Settings:
    """Return how the quickstart trains.

    One thread: with ops this small, two threads on a busy machine were seen to take more than
    sixteen times as long; and the weights do not depend on the number of cores.
    """
    return Settings(
        model="digits_resnet",
        model_args={"width": WIDTH},
        data="digits",
        epochs=epochs,
        batch=64,
        lr=0.1,
        seed=seed,
        device="cpu",
        threads=1,
        held_out=300,
    )


@dataclass(frozen=True)
class Answer:
    """What a loaded model did with a budget.

    Attributes:
        budget: as the user writes it, such as `fraction=0.25`.
        entry: the subnet that answered.
        milliseconds: the call took.
        right: pictures that it got right.
        pictures: in the call.
    """

    budget: str
    entry: Entry
    milliseconds: float
    right: int
    pictures: int


@dataclass(frozen=True)
class Story:
    """What the quickstart did."""

    folder: RunFolder
    outcome: Outcome
    answers: list[Answer]
    threads: int
    held_out: int
    seconds: float


def tell(out: Path | None = None, *, seed: int = 0, epochs: int = EPOCHS) -> Story:
    """Run the whole story and return what happened.

    Args:
        out: the run folder; the first free `runs/quickstart-N` if None.
        seed: of all random choices.
        epochs: passes over the training pictures.

    Raises:
        FileError: the folder exists, or cannot be written.
        Interrupted: Ctrl-C or SIGTERM; the state is in the folder.
    """
    started = time.perf_counter()
    chosen = settings(seed=seed, epochs=epochs)
    folder = RunFolder.create("quickstart", out, chosen.config())
    reporter = folder.reporter()
    usual = torch.get_num_threads()
    with experiment.threads(chosen.threads):
        ready = experiment.prepare(chosen, reporter)
        reporter.say("training: every step trains the full net, the narrowest and two between")
        menu = experiment.train(ready, folder, reporter)
    with experiment.resumable(folder):
        menu, threads = measure(menu, usual, reporter)
    with experiment.threads(threads):
        outcome = experiment.finish(ready, menu, folder, batch=BATCH)
        reporter.say(f"saved {folder.model}; loading it again")
        answers = ask(load(folder.model), ready)
    return Story(folder, outcome, answers, threads, ready.pictures, time.perf_counter() - started)


def measure(menu: Menu, usual: int, reporter: Reporter) -> tuple[Menu, int]:
    """Measure the menu with one thread and with the usual number, at batch 1 and at `BATCH`.

    Returns:
        The menu with all profiles, and the number of threads with which the full net was faster;
        the menu's offers rest on the latter's profile at `BATCH`.
    """
    medians: dict[int, float] = {}
    measured: dict[int, Menu] = {}
    for count in dict.fromkeys([usual, 1]):
        reporter.say(
            f"measuring {len(menu)} subnets with {count} thread(s), 1 and {BATCH} pictures a call"
        )
        with experiment.threads(count):
            for batch in (1, BATCH):
                menu = menu.measured(batch, seconds=SECONDS)
            measured[count] = menu
            medians[count] = menu.latencies(BATCH)[menu.full.name].median
    best = min(medians, key=lambda count: medians[count])
    reporter.say(f"the figures below are with {best} thread(s), the faster here")
    return replace(measured[best], profile=menu.profile), best


def ask(model: LoadedModel, ready: Prepared) -> list[Answer]:
    """Answer three budgets with a loaded model: a latency, a fraction, and bytes.

    Each is just enough for one subnet of those on offer: the largest, the middle and the smallest.
    """
    images, labels = next(iter(ready.dataset.test_batches(BATCH)))
    table = model.menu.latencies(BATCH)
    offered = [entry for entry in model.menu if entry.offered]
    largest, middle, smallest = offered[0], offered[len(offered) // 2], offered[-1]
    budgets = {
        "latency_ms": _rounded_up(1.05 * table[largest.name].median),
        "fraction": _rounded_up(middle.macs / model.menu.full.macs),
        "bytes": _rounded_up(smallest.bytes),
    }
    return [_answer(model, {cost: limit}, images, labels) for cost, limit in budgets.items()]


def _rounded_up(value: float) -> float:
    """Return a value rounded up to two digits: a budget as a person would give it."""
    step = Decimal(10) ** (Decimal(value).adjusted() - 1)
    return float((Decimal(value) / step).to_integral_value(ROUND_CEILING) * step)


def _answer(model: LoadedModel, budget: dict[str, Any], images: Tensor, labels: Tensor) -> Answer:
    entry = model.choose(**budget, batch=len(images))
    model(images, **budget)  # the first call of a shape prepares kernels
    started = time.perf_counter()
    outputs = model(images, **budget)
    milliseconds = 1000 * (time.perf_counter() - started)
    right = int((outputs.argmax(1) == labels).sum())
    shown = ", ".join(f"{cost}={limit:.12g}" for cost, limit in budget.items())
    return Answer(shown, entry, milliseconds, right, len(images))


def explain(story: Story, write: Callable[[str], object]) -> None:
    """Write the answers, the test accuracies, where the files are and what to try next."""
    write(
        f"ms: median of a call with {BATCH} pictures (so many that computing counts, not the\n"
        f"call) and {story.threads} thread(s); CI: confidence interval; accuracy: on "
        f"{story.held_out} pictures of\nthe training set that were held out"
    )
    write("")
    write(f"Three budgets, answered by the saved file, with {BATCH} test digits a call:")
    for answer in story.answers:
        entry = answer.entry
        write(
            f"  {answer.budget:<14} -> {entry.name:<4} {human_count(entry.macs):>6} MACs "
            f"{human_bytes(entry.bytes):>7}: {human_ms(answer.milliseconds)} ms, "
            f"{answer.right} of {answer.pictures} right"
        )
    shares = [f"{name} {share:.1%}" for name, share in story.outcome.test.items()]
    write("")
    write("Accuracy on the 360 test digits, looked at only now:")
    write(f"  {', '.join(shares)}")
    write("")
    write(_next_steps(story))


def _next_steps(story: Story) -> str:
    path = story.folder.path
    file = shlex.quote(str(story.folder.model))
    return f"""\
Everything is in {path}: open report.html in a browser; model.nest is the
model, model.profile.json its latencies; pareto.png and skyline.png are the pictures.

Next, in Python:
  import nestling
  model = nestling.load({str(story.folder.model)!r})
  data = nestling.data.load("digits")
  images, labels = next(iter(data.test_batches({BATCH})))  # normalised as in training
  scores = model(images, fraction=0.5)  # or latency_ms=, bytes= ...
and in the shell:
  nestling info {file}
  nestling bench {file} --batch {BATCH}
  nestling inspect resnet20"""
