"""Speed and memory of training steps: dense, executed in part, and the compact shape alone.

Speed: the ways take turns, a step each, in one process. Memory: each way in a process of its own;
what counts is the peak above the process with torch and the data loaded, before any net was made.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import nestling
from execution.protocols import Material, Protocol, compact, optimizer, supernet
from nestling.execution.settings import Settings
from nestling.execution.stage import OVERHEAD, Executor
from nestling.objectives.sandwich import task_loss
from nestling.precision import in_float32
from nestling.profile import machine
from nestling.training import Run

MEASURED = ("dense", "executed", "alone")
WARM = 3  # steps before the first that counts
MEMORY_STEPS = 4

Step = Callable[[Any, Any], None]


class Bench:
    """One way to train, a step at a time.

    Args:
        of: the protocol.
        net: name of the net in it.
        way: one of `MEASURED`.
        material: pictures; a few batches are kept.
        steps: that will be made.
    """

    def __init__(self, of: Protocol, net: str, way: str, material: Material, steps: int) -> None:
        given = of.nets[net]
        made = supernet(of, given, material.shape, len(material.data.classes))
        kept = compact(made, given.keep)
        data = _Few(material.train(0), steps)
        self.run = Run(made, data, 1, optimizer=optimizer(of), precision=of.precision)
        self.precise = self.run.precise
        made.to(memory_format=self.precise.memory_format)
        self.executor: Executor | None = None
        self.module: nn.Module | None = None
        self.steps, self.made = steps, 0
        if way == "executed":
            self.executor = Executor(self.run, Settings(given.keep, **of.options), 1)
            self.executor.clock.every = 1
            weights: Any = made.parameters()
        else:
            spec = kept if way == "alone" else made.space.full
            self.module = nestling.pack(made.subnet(spec)).train()
            self.run.net = None  # type: ignore[assignment]
            weights = self.module.parameters()
        self.optimizer = optimizer(of)(weights)
        self.batches = data.items
        self.device = torch.device(of.device)

    def step(self) -> float:
        """Make a step and return the seconds that it took."""
        inputs, targets = self.batches[self.made % len(self.batches)]
        start = self._now()
        inputs = inputs.to(memory_format=self.precise.memory_format)
        if self.executor is None:
            assert self.module is not None
            self._pass(self.module, inputs, targets)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=False)
        else:
            self.run.done = self.made / self.steps
            for module, _ in self.executor.objective(self.run.net):
                self._pass(module, inputs, targets)
            self.executor.step(self.optimizer)
        taken = self._now() - start
        self.made += 1
        return taken

    def _pass(self, module: nn.Module, inputs: Any, targets: Any) -> None:
        with self.precise.autocast(self.device):
            outputs = in_float32(module(inputs))
        task_loss(outputs, targets).backward()  # type: ignore[no-untyped-call]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class _Few:
    """A few batches, as many steps as are made."""

    def __init__(self, loader: Any, steps: int) -> None:
        self.items = [item for item, _ in zip(loader, range(4), strict=False)]
        self.steps = steps

    def __len__(self) -> int:
        return self.steps


def at_full_size(of: Protocol, net: str) -> Protocol:
    """Return the protocol with the net at the size at which it is measured."""
    given = of.nets[net]
    changed = replace(given, arguments={**given.arguments, **given.measured}, step=None)
    if given.builder.startswith("dense"):
        changed = replace(changed, step=given.step)
    return replace(of, nets={**of.nets, net: changed})


def measure(of: Protocol, net: str, material: Material, words: list[str]) -> dict[str, Any]:
    """Return images a second, peak memory and the share of what channel execution adds.

    Args:
        of: the protocol.
        net: name of the net.
        material: its pictures.
        words: of the command that is run for the memory of a way.
    """
    of = at_full_size(of, net)
    total = WARM + of.steps
    benches = {way: Bench(of, net, way, material, total) for way in MEASURED}
    taken: dict[str, list[float]] = {way: [] for way in MEASURED}
    for number in range(total):
        if number == WARM:
            clock = benches["executed"].executor
            assert clock is not None
            clock.clock.forget()
        for way in MEASURED:
            taken[way].append(benches[way].step())
    speed = {way: of.batch / median(times[WARM:]) for way, times in taken.items()}
    executor = benches["executed"].executor
    assert executor is not None
    shares = executor.clock.shares()
    precision = str(benches["executed"].run.precise)
    del benches, executor
    gc.collect()
    memory = {way: _in_a_process(words, net, way) for way in MEASURED}
    space = supernet(of, of.nets[net], material.shape, len(material.data.classes)).space
    return {
        "images_per_second": speed,
        "mean_seconds": {way: sum(t[WARM:]) / of.steps for way, t in taken.items()},
        "peak_memory": memory,
        "shares": {part: shares.get(part, 0.0) for part in OVERHEAD},
        "speedup": speed["executed"] / speed["dense"],
        "speedup_alone": speed["alone"] / speed["dense"],
        "memory_ratio": memory["executed"] / memory["dense"],
        "memory_ratio_alone": memory["alone"] / memory["dense"],
        "parameters": space.params(space.full),
        "arguments": dict(of.nets[net].arguments),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "machine": machine(),
    }


def _in_a_process(words: list[str], net: str, way: str) -> int:
    command = [sys.executable, *words, "--memory", net, way]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {found.stderr.strip()[-2000:]}")
    return int(json.loads(found.stdout.strip().splitlines()[-1]))


def memory_of(of: Protocol, net: str, way: str, material: Material) -> int:
    """Return the peak bytes of training steps, in this process, above what it has now."""
    of = at_full_size(of, net)
    cuda = torch.device(of.device).type == "cuda"
    gc.collect()
    if not cuda:
        _give_back()
    idle = torch.cuda.memory_allocated() if cuda else _status("VmRSS")
    bench = Bench(of, net, way, material, MEMORY_STEPS)
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        _give_back()
    for _ in range(MEMORY_STEPS):
        bench.step()
    return (torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")) - idle


def _give_back() -> None:
    """Give freed memory back to the system and let the kernel's peak begin anew (Linux)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """Return a figure of this process in bytes, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
