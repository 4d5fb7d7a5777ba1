"""Objectives: which subnets train in a step, and with what loss. One file each.

An objective is a generator: called once a step with the supernet, it yields `(subnet, loss)` pairs;
the caller runs the subnet, calls `loss(outputs, targets).backward()`, and after the last pair makes
one optimiser step. Random choices come from torch's global generator, so a restored random state
repeats them.
"""

from nestling.objectives.law import Draws, Law, draws_of
from nestling.objectives.listed import listed
from nestling.objectives.ordered_dropout import ordered_dropout
from nestling.objectives.sandwich import sandwich, soft_cross_entropy

__all__ = [
    "Draws",
    "Law",
    "draws_of",
    "listed",
    "ordered_dropout",
    "sandwich",
    "soft_cross_entropy",
]
