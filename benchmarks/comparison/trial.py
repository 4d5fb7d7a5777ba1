"""Trials: train a case, go on with one that was stopped, and score its subnets at the end.

Every case has a work folder with the checkpoint of its training, the seconds that it took so far,
and the scores that it has. The test pictures are read when all training is done, once a subnet.
"""

from __future__ import annotations

import gzip
import inspect
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nestling
from comparison import recipes, results
from comparison.cases import OURS, UNIFORM_SHAPE, Case
from comparison.figures import Comparison
from comparison.protocols import (
    Material,
    Protocol,
    batches,
    compiling,
    optimizer,
    scored,
    supernet,
)
from comparison.results import SEARCH_LOG, Result
from comparison.rivals.layers import all_in, counts_of, name_of
from nestling import strictjson
from nestling.binding import binding
from nestling.checkpoint import differing
from nestling.data.dataset import split_by_class
from nestling.entry import names_for
from nestling.errors import FileError, ModelError
from nestling.files import write_atomically
from nestling.interruption import Interrupted
from nestling.menu import CALIBRATION
from nestling.objectives import draws_of
from nestling.objectives.sandwich import Loss
from nestling.progress import Reporter
from nestling.search.stage import log_of
from nestling.spec import Spec
from nestling.training import Objective, Run

STATE = "state"  # the checkpoint in a work folder
UNKNOWN = {"commit": "unknown", "versions": {}, "machine": {"processor": "unknown"}}  # a piece
MARGIN = 20.0  # seconds that are left for saving when the time is up


class Needed:
    """The results that a case needs: those of the same seed, by label."""

    def __init__(
        self, of: Protocol, case: Case, every: Mapping[tuple[str, int], Case], kept: Path
    ) -> None:
        self.of, self.seed, self.every, self.kept = of, case.seed, every, kept
        self.missing = [label for label in case.needs if self.get(label) is None]

    def get(self, label: str) -> Result | None:
        """Return the result of a label, or None."""
        return results.find(self.of, self.every[label, self.seed], self.kept)

    def __getitem__(self, label: str) -> Result:
        found = self.get(label)
        if found is None:
            raise ModelError(f"the case {label!r} of seed {self.seed} has no result yet")
        return found


def run(
    of: Protocol,
    case: Case,
    given: Material,
    needed: Needed,
    work: Path,
    *,
    any_commit: bool = False,
) -> dict[str, Any]:
    """Train and score a case, or go on with it; return the content of its result.

    Args:
        of: the protocol.
        case: what is trained.
        given: the pictures.
        needed: what other cases have found.
        work: where the state is kept.
        any_commit: go on with what other code began too; the result names both.

    Raises:
        Interrupted: the time is up, or Ctrl-C; the state was saved.
        FileError: the work folder holds a training of other settings, or one of other code.
    """
    folder = _folder(of, case, work)
    folder.mkdir(parents=True, exist_ok=True)
    shape, classes = given.data.shape, len(given.data.classes)
    net = supernet(of, shape, classes, case.seed, case.arguments)
    options, epochs = _settled(case, net, needed, of.epochs)
    pieces = _begin(folder, replace(of, epochs=epochs), case, any_commit=any_commit)
    training, chosen = _begun(of, case, given, net, options, epochs, folder / STATE)
    modules = _trained(training, case, chosen, folder)
    calibrate = list(islice(batches(of, given, given.final, case.seed).at(epochs), CALIBRATION))
    offered = _offered(case, net, modules)
    subnets = _scores(of, training, offered, given, calibrate, folder)
    seconds = json.loads((folder / "seconds.json").read_text())
    space = net.space
    return results.content_of(
        of,
        case,
        pieces,
        shape=list(shape),
        classes=classes,
        axes=list(space.axes),
        kinds=[axis.kind for axis in space.axes.values()],
        trained=_number_trained(net, case, offered),
        full={"macs": space.macs(space.full), "params": space.params(space.full)},
        epochs=epochs,
        equal_to={label: results.digest([needed[label]]) for label in case.needs if case.equals},
        trained_in=str(training.precise),
        seconds={name: round(value, 2) for name, value in seconds["seconds"].items()},
        seconds_complete=not seconds["lost"],
        subnets=subnets,
    )


@dataclass
class Repeating(Run):
    """A training whose nets alone make several optimiser steps a batch, each on that batch.

    Attributes:
        repeats: steps a batch; with 1 it is any training.
    """

    repeats: int = 1

    def train_stage(self, objective: Objective, **options: Any) -> None:
        """Train a stage, see `Run.train_stage`."""
        if self.repeats > 1:
            objective, options = _repeated(objective, self.repeats), {**options, "summed": False}
        super().train_stage(objective, **options)


def _repeated(objective: Objective, times: int) -> Objective:
    """Return the objective that has all passes of another one several times."""

    def again(net: nestling.Supernet) -> Iterator[tuple[nn.Module, Loss]]:
        for _ in range(times):
            yield from objective(net)

    return again


def _begun(
    of: Protocol,
    case: Case,
    given: Material,
    net: nestling.Supernet,
    options: Mapping[str, Any],
    epochs: int,
    state: Path,
) -> tuple[Run, dict[str, Any]]:
    """Return the training of a case, and the options that its method is called with."""
    chosen = dict(options)
    part = given.final
    if of.all_pictures and _searches(case):
        part = given.learn  # to rank and search
    if case.method == "progressive" and of.all_pictures:
        chosen["train_all"] = batches(of, given, given.final, case.seed)
    if case.looked_at is not None and case.looked_at < len(given.held_out.labels):
        order = torch.arange(len(given.held_out.labels))
        _, slice_ = split_by_class(given.held_out, case.looked_at, order)
        chosen["held_out"] = list(scored(given, slice_))
    training = Repeating(
        net,
        batches(of, given, part, case.seed),
        epochs,
        seed=case.seed,
        held_out=list(scored(given, given.held_out)),
        optimizer=optimizer(replace(of, lr=of.lr * case.lr)),
        precision=of.precision,
        checkpoint=state,
        reporter=Reporter(),
        settings={"method": case.method, "options": dict(options)},
        **compiling(of),
    )
    training.repeats = case.steps
    return training, chosen


def _searches(case: Case) -> bool:
    """Return whether a case chooses subnets on held-out pictures while it trains."""
    listed = case.options.get("fractions") == [1.0]
    return case.method == "progressive" or (case.method == "nested" and not listed)


def _settled(
    case: Case, net: nestling.Supernet, needed: Needed, epochs: int
) -> tuple[dict[str, Any], int]:
    """Return the options and epochs of a case, with what other cases have found."""
    options = dict(case.options)
    if case.method == "slimmable":  # its list is that of the widest widths within the shares
        full = net.space.macs(net.space.full)
        widest = [net.space.spec(fraction=share) for share in options["fractions"]]
        options["fractions"] = [net.space.macs(spec) / full for spec in widest]
    if case.shapes:
        specs = [_shaped(shape.of, shape.share, net, needed) for shape in case.shapes]
        options["specs"] = list(dict.fromkeys(specs))
    if case.equals:
        whole = needed[case.compute].spent
        others = [needed[label] for label in case.equals]
        _check_machine([needed[case.compute], *others])
        an_epoch = sum(each.trained / each.epochs for each in others)
        return options, max(1, round(whole / an_epoch))
    return options, epochs * case.stretch


def _shaped(of: str, share: float, net: nestling.Supernet, needed: Needed) -> Spec:
    if share == 1:
        return net.space.full
    if of == UNIFORM_SHAPE:
        return net.space.spec(fraction=share)
    result = needed[of]
    row = Comparison([result]).at(of, result.case.seed, share)
    if row is None:
        raise ModelError(f"{of!r} has no subnet within {share:.0%} of the full net's MACs")
    return net.space.spec(result.spec(row))


def _check_machine(used: list[Result]) -> None:
    """Check that seconds may be compared.

    Raises:
        ModelError: they are of different machines, or not all are known.
    """
    where = set[str]().union(*(result.processors for result in used))
    if len(where) > 1:
        raise ModelError(
            f"equal compute is told from seconds on one machine, but these are of {sorted(where)}; "
            "train the cases that it needs on one"
        )
    lost = [result.case.name for result in used if not result.complete]
    if lost:
        raise ModelError(
            f"equal compute is told from seconds, and a killed process took some of "
            f"{', '.join(lost)} along; train again what was killed"
        )


def _folder(of: Protocol, case: Case, work: Path) -> Path:
    """Return where the state of a case is kept."""
    return work / of.folder / case.name


def clear(of: Protocol, case: Case, work: Path) -> None:
    """Remove the state of a case whose result is kept.

    Otherwise the same weights would count as trained anew, by the code of that day, once somebody
    removes the result to train the case again.
    """
    shutil.rmtree(_folder(of, case, work))


def _begin(folder: Path, of: Protocol, case: Case, *, any_commit: bool) -> list[dict[str, Any]]:
    """Note under what a training runs, from its first piece on; return this of all pieces.

    Raises:
        FileError: the work folder is of other settings, or of other code.
    """
    path, now = folder / "case.json", results.piece()
    begun = json.loads(json.dumps({"protocol": of.settings(), "case": asdict(case), "pieces": []}))
    if path.exists():
        begun = {"pieces": [UNKNOWN], **strictjson.read(path)}
    different = results.other_than(begun, of, case)
    if different:
        raise FileError(
            f"{folder} holds a training with {', '.join(different)}; remove it, or give another "
            "--work"
        )
    pieces: list[dict[str, Any]] = begun["pieces"]
    other = differing(_code(pieces[-1]), _code(now)) if pieces else []
    if other and not any_commit:
        raise FileError(
            f"{folder} holds a training that other code began: {', '.join(other)}; go on with that "
            "code, remove the folder to begin anew, or give --any-commit, and the result names both"
        )
    if now not in pieces:
        pieces.append(now)
    strictjson.write(path, {**begun, "pieces": pieces})
    return pieces


def _code(piece: Mapping[str, Any]) -> dict[str, str]:
    return {"commit": piece["commit"], **piece["versions"]}


# -- training ------------------------------------------------------------------------------------


def _trained(run: Run, case: Case, options: Mapping[str, Any], folder: Path) -> Any:
    """Train, or go on, and keep the seconds whatever happens but a kill."""
    with run.undone_on_failure(), _timed(run, folder / "seconds.json"):
        run.resume()
        with run.reporter:
            return recipes.find(case.method)(run, **options)


@contextmanager
def _timed(run: Run, path: Path) -> Iterator[None]:
    """Add the seconds of a piece of a training to those of the pieces before it."""
    found: dict[str, Any] = {"seconds": {}, "lost": False, "open": False}
    if path.exists():
        found = json.loads(path.read_text())
    found["lost"] = found["lost"] or found["open"]  # a kill left no time to write them down
    strictjson.write(path, {**found, "open": True})
    try:
        yield
    finally:
        run.spent("other")
        for name, value in run.seconds.items():
            found["seconds"][name] = found["seconds"].get(name, 0.0) + value
        strictjson.write(path, found)


@contextmanager
def stopping_after(minutes: float | None) -> Iterator[None]:
    """End what runs as Ctrl-C would when the time is up, and on SIGTERM."""

    def stop(*_: object) -> None:
        raise Interrupted("the time is up; the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    timer = None
    try:  # from here on: the time may be up before anything else is done
        if minutes is not None:
            seconds = 60 * minutes
            left = max(seconds - MARGIN, 0.8 * seconds)
            timer = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
            timer.daemon = True
            timer.start()
        yield
    finally:
        if timer is not None:
            timer.cancel()
        signal.signal(signal.SIGTERM, before)


def _number_trained(net: nestling.Supernet, case: Case, offered: Mapping[str, Any]) -> int:
    """Return how many nets of its own shape each a training is made for: those on offer, or more.

    Ordered dropout trains every spec that it may draw.
    """
    if case.method != "nested":
        return len(offered)
    known = inspect.signature(draws_of).parameters
    return draws_of(net.space, **{k: v for k, v in case.options.items() if k in known}).number


# -- scoring -------------------------------------------------------------------------------------


def _offered(case: Case, net: nestling.Supernet, modules: Any) -> dict[str, tuple[Spec, Any]]:
    """Return the subnets to score: those of the method, and the full net that trained with them.

    The uniform baseline has every width that it was trained for, ordered dropout of bits every
    number of them. What is None is made when it is scored, so that not all are in memory.
    """
    if case.method == "individual" or recipes.is_rival(case.method):
        return dict(modules)
    if case.method == "nested":
        few = {name_of(n): (all_in(net.space, n), None) for n in counts_of(net.space)}
        modules = {**few, **modules}
    full = net.space.full
    if case.method != "uniform":
        known = any(spec == full for spec, _ in modules.values())
        return dict(modules) if known else {"full": (full, None), **modules}
    least = min(net.space.macs(spec) for spec, _ in modules.values())
    specs = [spec for spec in net.space.uniform if net.space.macs(spec) >= least]
    named = names_for(net.space, reversed(specs))
    return {name: (spec, None) for name, spec in named.items()}


def _scores(
    of: Protocol,
    run: Run,
    offered: Mapping[str, tuple[Spec, Any]],
    given: Material,
    calibrate: list[Any],
    folder: Path,
) -> list[dict[str, Any]]:
    """Recalibrate and score every subnet; those that were scored before are passed over."""
    net, path = run.net, folder / "scores.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    run.reporter.say(f"scoring {len(offered)} subnets")
    for name, (spec, module) in offered.items():
        if name in found:
            continue
        subnet = net.subnet(spec) if module is None else module
        with run.precise.autocast(run.device):  # as it was trained
            tie = binding(subnet)
            if tie is None or not tie.measured:  # nets that were trained alone too: alike for all
                net.recalibrate(subnet, calibrate)
            kept_out = None
            if not of.all_pictures:
                kept_out = nestling.evaluate(subnet, scored(given, given.held_out))
            test = nestling.evaluate(subnet, scored(given, None))
        found[name] = {
            "name": name,
            "counts": [spec[axis] for axis in net.space.axes],
            "macs": net.space.macs(spec),
            "params": net.space.params(spec),
            "held_out": kept_out,
            "test": test,
        }
        strictjson.write(path, found)
    return [found[name] for name in offered]


def keep_search_log(of: Protocol, case: Case, work: Path, kept: Path) -> None:
    """Keep the log of one search, the first that is trained, for the picture of its path."""
    path = kept / of.folder / SEARCH_LOG
    log = log_of(work / of.folder / case.name / STATE)
    if case.label == OURS and log.exists() and not path.exists():
        packed = gzip.compress(log.read_bytes(), mtime=0)  # equal logs make equal files
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, packed)
