"""Trainings: each way to come to a net of a cost, with its accuracy over time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nestling
from execution.protocols import Job, Material, Protocol, compact, optimizer, supernet
from nestling import rankers
from nestling.evaluation import evaluate
from nestling.execution.cutoff import cutoff
from nestling.execution.settings import Settings
from nestling.execution.stage import Executor
from nestling.methods.channel_execution import SLOWER
from nestling.methods.individual import alone
from nestling.models import initialize
from nestling.objectives.sandwich import task_loss
from nestling.profile import machine
from nestling.training import Objective, Run

POINTS = 10  # of the curve of accuracy over time
SLIM = 0.75  # of the epochs train with the penalty, the others tune the cut, as long in all
CALIBRATION = 50  # batches


class Curve:
    """Accuracy over the seconds of training, kept beside the checkpoint.

    Args:
        path: where it is kept.
        test: batches that are scored.
        every: steps between two points.
        resumed: whether what is kept counts.
    """

    def __init__(self, path: Path, test: Any, every: int, resumed: bool) -> None:
        self.path, self.test, self.every = path, test, every
        known = json.loads(path.read_text()) if resumed and path.exists() else {}
        self.points: list[list[float]] = known.get("points", [])
        self.spent: float = known.get("spent", 0.0)
        self.step = int(known.get("step", 0))

    def along(self, objective: Objective) -> Objective:
        """Return the objective that scores its module on the way; this takes no time of its own."""

        def timed(net: nestling.Supernet) -> Iterator[tuple[nn.Module, Any]]:
            start = time.perf_counter()
            for module, loss in objective(net):
                yield module, loss
                _wait(net)
            self.spent += time.perf_counter() - start
            self.step += 1
            if self.step % self.every == 0:
                self.points.append([self.spent, evaluate(module, self.test)])
                kept = {"points": self.points, "spent": self.spent, "step": self.step}
                self.path.write_text(json.dumps(kept))

        return timed


def _wait(net: nestling.Supernet) -> None:
    if next(net.parameters()).is_cuda:
        torch.cuda.synchronize()


def train(of: Protocol, job: Job, material: Material, work: Path) -> dict[str, Any]:
    """Train one way, or go on where it was stopped, and return its result.

    Raises:
        Interrupted: it was stopped; the state is saved.
    """
    torch.manual_seed(job.seed)
    given = of.nets[job.net]
    net = supernet(of, given, material.shape, len(material.data.classes))
    spec = compact(net, given.keep)
    state = work / f"{job.name}.checkpoint"
    train_batches = material.train(job.seed)
    run = Run(
        net,
        train_batches,
        of.epochs,
        seed=job.seed,
        optimizer=optimizer(of),
        precision=of.precision,
        checkpoint=state,
        settings={"way": job.way, "of": of.settings(job)},
    )
    run.resume()
    every = max(1, of.epochs * run.length // POINTS)
    curve = Curve(work / f"{job.name}.curve", list(material.test()), every, run.resumed)
    with run.undone_on_failure():
        module, found, more = _WAYS[job.way](of, job, run, curve, spec)
    space = net.space
    if net.private:
        net.recalibrate(module, islice(run.calibration(), CALIBRATION))
    result = {
        "accuracy": evaluate(module, curve.test),
        "seconds": curve.spent,
        "curve": curve.points,
        "macs": space.macs(found),
        "params": space.params(found),
        "full_macs": space.macs(space.full),
        "full_params": space.params(space.full),
        "precision": str(run.precise),
        "machine": machine(),
        **more,
    }
    state.unlink(missing_ok=True)
    curve.path.unlink(missing_ok=True)
    return result


def _dense(of: Protocol, job: Job, run: Run, curve: Curve, spec: Any) -> Any:
    full = run.net.space.full

    def objective(net: nestling.Supernet) -> Iterator[tuple[nn.Module, Any]]:
        yield net.pooled(full).train(), task_loss

    run.train_stage(curve.along(objective), name=job.name)
    return run.net.subnet(full), full, {}


def _executed(of: Protocol, job: Job, run: Run, curve: Curve, spec: Any) -> Any:
    options = {**of.options, **of.course}
    if job.way == "random":
        options["saliency"] = "random"
    settings = Settings(keep=of.nets[job.net].keep, **options)
    executor = Executor(run, settings, of.epochs)
    run.train_stage(
        curve.along(executor.objective), name=job.name, extra=executor.bandit, executor=executor
    )
    found = nestling.Spec(run.net.space, executor.final_counts())
    run.reorder(rankers.orders(run.net.space, executor.bandit.scores()))
    shares = executor.clock.shares()
    return run.net.subnet(found), found, {"shares": shares}


def _alone(of: Protocol, job: Job, run: Run, curve: Curve, spec: Any) -> Any:
    module = nestling.pack(run.net.subnet(spec))
    initialize(module, seed=job.seed)
    run.train_stage(curve.along(partial(alone, module)), name=job.name, alone=module)
    return module, spec, {}


def _slimming(of: Protocol, job: Job, run: Run, curve: Curve, spec: Any) -> Any:
    """Network Slimming: scales shrink, one cut over all layers, the rest is tuned."""
    first = max(1, round(SLIM * of.epochs))
    strength = of.nets[job.net].slimming
    space = run.net.space
    stage = run.train_stage

    def along(objective: Objective, **options: Any) -> None:
        stage(curve.along(objective), **options)

    run.train_stage = along  # type: ignore[method-assign]
    scores = rankers.scores(run, "slimming", strength=strength, epochs=first)
    run.train_stage = stage  # type: ignore[method-assign]
    found = cutoff(space, scores, space.macs(spec) / space.macs(space.full))
    run.reorder(rankers.orders(space, scores))
    module = nestling.pack(run.net.subnet(found))
    usual = run.optimizer
    assert usual is not None
    slower = partial(usual, lr=SLOWER * of.lr)
    run.optimizer = slower
    run.train_stage(
        curve.along(partial(alone, module)), name=job.name, alone=module, epochs=of.epochs - first
    )
    return module, found, {}


_WAYS = {
    "dense": _dense,
    "executed": _executed,
    "random": _executed,
    "alone": _alone,
    "slimming": _slimming,
}
