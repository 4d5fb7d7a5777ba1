"""Rivals: the policies that are compared, each a function from a forecast to a governor."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nestling import governor
from nestling.engine.dispatcher import Steer, steered
from nestling.engine.turn import Run
from nestling.governor import Choice, Forecast, Policy, Reading, State
from nestling.runtime import LoadedModel

OURS, LARGEST, SMALLEST = "governor", "largest", "smallest"
RANDOM, RELOAD, SLACK = "random", "reload", "slackfit"
BETWEEN, FIXED = "between", "fixed-"  # every fixed net between these two; the name of one of them
POLICIES = (OURS, LARGEST, SMALLEST, RANDOM, RELOAD, SLACK, BETWEEN)
BUCKETS = 16  # of SlackFit

Made = Callable[[Forecast], Steer]


def each_of(policies: Sequence[str], entries: Sequence[str]) -> list[str]:
    """Return the names of policies, with one for each net between the largest and the smallest.

    Args:
        policies: of `POLICIES`.
        entries: of the menu, in order of their speed.
    """
    between = [FIXED + entry for entry in entries[1:-1]]
    return [name for policy in policies for name in (between if policy == BETWEEN else [policy])]


def made(name: str, ms: float, percentile: float = 99.0, seed: int = 0) -> Made:
    """Return what makes the policy of a name for an objective.

    All of them may batch as the governor may (with a call's time at most half the objective), but
    SlackFit, which has a rule of its own.
    """
    options = {"ms": ms, "percentile": percentile}

    def latency(forecast: Forecast) -> Policy:
        return governor.policy("latency", forecast, options)

    if name in (OURS, RELOAD):
        return lambda forecast: steered(latency(forecast))
    if name == LARGEST:
        return lambda forecast: steered(only(latency(forecast), forecast.top))
    if name == SMALLEST:
        return lambda forecast: steered(only(latency(forecast), 0))
    if name.startswith(FIXED):
        entry = name.removeprefix(FIXED)
        return lambda forecast: steered(only(latency(forecast), forecast.rung(entry)))
    if name == RANDOM:
        return lambda forecast: at_random(latency(forecast), seed)
    return lambda forecast: slackfit(latency(forecast))


def only(policy: Policy, rung: int) -> Policy:
    """Return a policy that always chooses one rung, with calls of at most half the objective."""
    half = (policy.limit_ms or float("inf")) / 2

    def judge(asked: int, *_: Any) -> tuple[bool, int]:
        return asked <= rung, max(policy.forecast.batch_within(asked, half), 1)

    return replace(policy, judge=judge, relief=None, least=rung)


def at_random(policy: Policy, seed: int) -> Steer:
    """Return a governor that draws an entry for every batch."""
    draw = random.Random(seed)
    each = [steered(only(policy, rung)) for rung in range(len(policy.forecast.names))]
    return lambda reading: draw.choice(each)(reading)


def slackfit(policy: Policy, buckets: int = BUCKETS) -> Steer:
    """Return SuperServe's SlackFit as a governor.

    Off line, the range from the fastest call to the objective is cut into evenly spaced buckets of
    latency, and each bucket keeps one pair of a subnet and a batch: of those with the largest
    batch, the most accurate. On line, the slack of the most urgent request (objective less waiting
    time) picks the bucket that is closest below it; with less slack than any bucket, the fastest
    call runs.

    Source: Khare et al., SuperServe: Fine-Grained Inference Serving for Unpredictable Workloads
    (NSDI 2025, arXiv 2312.16733), section 5; the number of buckets is ours.
    """
    forecast, limit = policy.forecast, policy.limit_ms or float("inf")
    low = forecast.times[0][1]
    width = (limit - low) / buckets
    pairs: dict[int, tuple[int, int]] = {}  # bucket -> (batch, rung)
    for rung in range(forecast.top + 1):
        for batch in forecast.batches:
            took = forecast.times[rung][batch]
            if took <= limit:
                place = min(int((took - low) / width), buckets - 1)
                pairs[place] = max(pairs.get(place, (0, 0)), (batch, rung))
    ladder = sorted((forecast.times[rung][batch], rung, batch) for batch, rung in pairs.values())
    state = [governor.begin(policy)]

    def steer(reading: Reading) -> Choice:
        slack = limit - reading.waited_ms
        fitting = [each for each in ladder if each[0] <= slack] or [(low, 0, 1)]
        _, rung, batch = fitting[-1]
        before = state[0]
        now: State = before._replace(rung=rung)
        state[0] = now
        cause = "stay" if rung == before.rung else "up" if rung > before.rung else "down"
        names = forecast.names
        return Choice(rung, names[rung], batch, names[before.rung], cause, policy, reading, now)

    return steer


def reloading(model: LoadedModel, folder: Path) -> Run:
    """Return what runs batches with one separate net at a time, read from its file at each change.

    Kinder than life: structures are made already, and the files stay in the system's cache.
    """
    bare: dict[str, nn.Module] = {}
    for entry in model.menu:
        module = model.subnet(entry.name)
        tensors = {name: each.detach().contiguous() for name, each in module.state_dict().items()}
        save_file(tensors, folder / f"{entry.name}.safetensors")
        bare[entry.name] = copy.deepcopy(module).to("meta")
    held: dict[str, nn.Module] = {}

    def run(entry: str, args: list[torch.Tensor], kwargs: dict[str, Any]) -> Any:
        if entry not in held:
            held.clear()
            module = copy.deepcopy(bare[entry])
            module.load_state_dict(load_file(folder / f"{entry}.safetensors"), assign=True)
            held[entry] = module.eval()
        with torch.no_grad():
            return held[entry](*args, **kwargs)

    return run
