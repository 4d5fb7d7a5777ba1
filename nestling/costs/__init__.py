"""Costs: what a spec costs. One file each; a cost is a function of (space, spec)."""

from nestling.costs.bitops import bitops
from nestling.costs.bytes import bytes_
from nestling.costs.latency import Latency, Ratio, measure, order_interval, paired_ratio
from nestling.costs.macs import macs
from nestling.costs.params import params

__all__ = [
    "Latency",
    "Ratio",
    "bitops",
    "bytes_",
    "macs",
    "measure",
    "order_interval",
    "paired_ratio",
    "params",
]
