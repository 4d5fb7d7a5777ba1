"""Trainings that stop at a place of one's choice, and go on."""

import os
import signal

import pytest
import torch
import torch.nn.functional as F

import nestling
from nestling import search
from nestling.interruption import Interrupted
from nestling.weights import cloned, tensors_of


@pytest.fixture(autouse=True)
def _no_latencies(unmeasured):
    pass


class Story:
    """Trains with a method, and stops in the n-th call of the loss, or of the search's scoring.

    It is stopped by a signal, after which the state is saved; with -n by a crash.

    Args:
        small: the small nets.
        method: the name.
        kind: of the net.
        **options: of the fit.
    """

    def __init__(self, small, method, *, kind="ConvNet", **options):
        self.small, self.method, self.kind = small, method, kind
        self.options = {"epochs": 2, "precision": "float32", "progress": False, **options}
        self.losses = self.scores = 0

    def net(self):
        model = self.small.seeded(getattr(self.small, self.kind))
        inputs = (torch.randn(2, 6),) if self.kind == "Mlp" else ()
        return self.small.supernet(model, *inputs)

    def data(self, *args, **kwargs):
        found = self.small.batches(*args, **kwargs)
        return [(x.flatten(1)[:, :6], y) for x, y in found] if self.kind == "Mlp" else found

    def __call__(self, path=None, *, stop=(0, 0), resume=False):
        """Train; return the net and the menu."""
        self.losses = self.scores = 0
        net = self.net()

        def loss(outputs, targets):
            self.losses += 1
            if self.losses == abs(stop[0]):
                if stop[0] < 0:
                    raise KeyboardInterrupt
                os.kill(os.getpid(), signal.SIGTERM)
            return F.cross_entropy(outputs, targets)

        def pick(scorer, *args):
            self.scores += 1
            if self.scores == abs(stop[1]):
                if stop[1] < 0:
                    raise KeyboardInterrupt
                os.kill(os.getpid(), signal.SIGTERM)
            return original(scorer, *args)

        original = search.Scorer.pick
        search.Scorer.pick = pick
        torch.manual_seed(self.losses + sum(stop))  # what happened before does not count
        try:
            menu = nestling.fit(
                net, self.data(), self.data(48, seed=5), method=self.method, loss=loss,
                checkpoint=path, resume=resume, **self.options,
            )  # fmt: skip
        finally:
            search.Scorer.pick = original
        return net, menu

    def goes_on_everywhere(self, folder, stops):
        """Check that a stop at each of the places changes nothing: net, menu, last checkpoint."""
        net, menu = self(folder / "whole")
        expected = told(net, menu), (folder / "whole").read_bytes()
        calls = self.losses, self.scores
        for stop in stops(*calls):
            path = folder / f"stop-{stop[0]}-{stop[1]}"
            with pytest.raises((KeyboardInterrupt, Interrupted)):
                self(path, stop=stop)
            net, menu = self(path, resume=True)
            assert told(net, menu) == expected[0], f"stopped at {stop} of {calls}"
            assert path.read_bytes() == expected[1], f"stopped at {stop} of {calls}"
            assert self.losses + self.scores < sum(calls), f"it started anew after {stop}"
        return net, menu


def told(net, menu):
    """All that a training leaves, to compare."""
    entries = [(entry.name, dict(entry.spec), entry.accuracy) for entry in menu]
    return entries, menu.identity(), net.orders


@pytest.fixture
def story(small):
    """Make a training by its method and options."""
    return lambda method, **options: Story(small, method, **options)


@pytest.fixture
def snapshots(monkeypatch):
    """The weights of the net at the beginning of every stage, by its name."""
    from nestling.training import Run

    found, original = {}, Run.train_stage

    def train_stage(run, objective, **options):
        found[options.get("name", "training")] = cloned(tensors_of(run.net.model))
        original(run, objective, **options)

    monkeypatch.setattr(Run, "train_stage", train_stage)
    return found
