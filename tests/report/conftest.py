"""A small menu and a large, awkward one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nestling.report import Page, Row

HOSTILE = '<script>alert("x")</script>'


def make_row(name="s", macs=1_000_000, accuracy=0.9, latency=None, offered=True, counts=None):
    return Row(name, macs, macs // 40, macs // 10, accuracy, latency, offered, counts or {})


@pytest.fixture
def small():
    rows = [
        make_row("full", 12_300_000, 0.992, (3.10, 3.02, 3.21)),
        make_row("s1", 7_600_000, 0.990, (2.21, 2.15, 2.30), counts={"conv1": 12, "head": 52}),
        make_row("s2", 5_000_000, 0.986, (1.62, 1.60, 1.71), counts={"conv1": 10, "head": 44}),
        make_row("s2-alt", 5_500_000, 0.983, (1.85, 1.80, 1.98), False, {"conv1": 8, "head": 40}),
        make_row("s3", 2_700_000, 0.975, (1.05, 1.01, 1.12), counts={"conv1": 8, "head": 24}),
        make_row("s4", 900_000, 0.951, (0.60, 0.585, 0.634), counts={"conv1": 4, "head": 16}),
    ]
    facts = {"data set": "digits", "batch": "1", "threads": "2", "file": "model.nest"}
    sizes = {"conv1": 16, "head": 64}
    return Page("digits", rows, sizes, "accuracy", {"cpu": "EPYC 9654"}, facts)


@pytest.fixture
def awkward():
    """Return 16 subnets of 60 axes: twins, missing figures, long and hostile names."""
    sizes = {f"net.stage{1 + i // 15}.block{i % 15}.conv": 16 << i // 15 for i in range(60)}
    rows = []
    for n in range(16):
        share = 1 - 0.06 * n
        time = 40 * share
        counts = {axis: max(1, int(size * share)) for axis, size in sizes.items()}
        figures = (int(4e9 * share**2), 0.76 - 0.01 * n, (time, 0.98 * time, 1.03 * time))
        rows.append(make_row(f"w{n}", *figures, counts=counts))
    rows[4] = replace(rows[3], name="a-very-long-name-with-$math$-and_underscores\n" * 3)
    rows[5] = replace(rows[5], name=HOSTILE, offered=False, latency=(39.0, 38.0, 41.0))
    rows[6] = replace(rows[6], accuracy=None)
    rows[7] = replace(rows[7], latency=None, offered=False)
    rows[8] = replace(rows[8], name="名前 \x1b[31m")
    return Page(
        f"{HOSTILE} $x_", rows, sizes, "top-1 <&>", {"<cpu>": HOSTILE}, {"file": "a b.nest"}
    )
