"""Work: trains the cases that are not kept yet, one after the other, and says where it is."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import results, trial
from comparison.cases import Case
from comparison.commands import UNFINISHED
from comparison.figures import Comparison
from comparison.protocols import BUDGETS, Material, Protocol, material
from nestling.errors import NestlingError
from nestling.interruption import Interrupted

COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # where the compiler keeps what it has made


def train(
    of: Protocol, every: Sequence[Case], wanted: Sequence[Case], options: argparse.Namespace
) -> int:
    """Train the cases that are not kept yet; return the exit status.

    Args:
        of: the protocol.
        every: all cases of it, among which are those that others need.
        wanted: those to train, in this order.
        options: `data_dir`, `work`, `results` and `any_commit` of the command.
    """
    known = {(case.label, case.seed): case for case in every}
    given: Material | None = None
    status = 0
    for case in wanted:
        if results.find(of, case, options.results) is not None:
            continue
        needed = trial.Needed(of, case, known, options.results)
        if needed.missing:
            print(f"{case.name} waits for {', '.join(needed.missing)}", flush=True)
            status = status or UNFINISHED
            continue
        print(f"{of.folder}: {case.name}", flush=True)
        try:
            given = given or material(of, options.data_dir)
            any_commit = options.any_commit
            content = trial.run(of, case, given, needed, options.work, any_commit=any_commit)
        except Interrupted as stop:
            print(f"{case.name}: {stop}", flush=True)
            return UNFINISHED
        except NestlingError as error:
            print(f"{case.name} failed: {error}", file=sys.stderr, flush=True)
            status = 1
            continue
        trial.keep_search_log(of, case, options.work, options.results)
        results.write(results.place(of, case, options.results), content)
        trial.clear(of, case, options.work)
        print(_said(case, content), flush=True)
    return status


def share_compiled(of: Protocol, work: Path) -> None:
    """Let all cases, and those that go on later, have what the compiler has made once."""
    if of.compiled:
        os.environ.setdefault(COMPILED, str((work / "compiled").resolve()))


def _said(case: Case, content: Mapping[str, Any]) -> str:
    """Return a line on a case that was trained: accuracies at the budgets, and seconds."""
    result = results.Result(content)
    full = content["full"]["macs"]
    found = Comparison([result])
    rows = [found.at(case.label, case.seed, share) for share in (1.0, *BUDGETS)]
    shown = [
        f"{row.test:.2%} with {row.macs / full:.0%} of the MACs"
        for row in (result.rows if case.method == "individual" else dict.fromkeys(rows))
        if row is not None
    ]
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items())
    return f"{case.name}: {', '.join(shown)}; {spent}"


def listed(of: Protocol, every: Sequence[Case], options: argparse.Namespace) -> str:
    """Return the cases with their states, a line each."""
    kept = {case.name for case in every if results.find(of, case, options.results) is not None}
    by_label = {(case.label, case.seed): case for case in every}
    lines = []
    for case in every:
        waits = [n for n in case.needs if by_label[n, case.seed].name not in kept]
        state = "kept" if case.name in kept else "to do"
        if waits and case.name not in kept:
            state = f"waits for {', '.join(waits)}"
        lines.append(f"{case.group:<14} {case.label!r:<44} seed {case.seed}  {state}")
    return "\n".join(lines)
