"""Which architectures work, how much of them is elastic, and whether every number is right.

    python benchmarks/coverage.py                   # every architecture of the zoo, result kept
    python benchmarks/coverage.py --resume          # go on with those that the kept result lacks
    python benchmarks/coverage.py --only 'timm/*'   # some, merged into the kept result
    python benchmarks/coverage.py --fast            # a few, without the rival; nothing is kept
    python benchmarks/coverage.py --summary         # the kept result as one line of JSON
    python benchmarks/coverage.py --table           # the kept result as Markdown tables

Every architecture runs in a process of its own with a time limit, with one thread; then the same
model is given to Torch-Pruning in another one (`rival.py`). `checks.py` says what is checked, and
`masked.py` is the masked model that subnets are compared with.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import checks
import torch
import zoo
from zoo.registry import matching

from nestling.profile import machine

KEPT = Path(__file__).parent / "results" / "coverage.json"
LIMIT = 600  # seconds of processor time for one architecture
RIVAL_LIMIT = 60
PATIENCE = 10  # how much longer than its limit a process may take where others are busy
FAST = (
    "nestling/resnet20",
    "plain/transformer-encoder",
    "traps/fused-attention",
    "traps/unvisited-experts",
    "transformers/llama",
    "timm/vit",
)
LIBRARIES = ("transformers", "timm", "torchvision", "torch-pruning")
DISCOVERY = {
    "discovery_vit_b_s": ("transformers/vit-full", "timm/vit-full"),
    "discovery_llama_s": ("transformers/llama-full",),
}


def measure(name: str) -> dict[str, Any]:
    """Return the row of an architecture, measured in this process."""
    try:
        case = zoo.make(name)
    except ImportError as error:
        return {"missing": " ".join(str(error).split())[:160]}
    try:
        only = "discovery" if zoo.ARCHITECTURES[name].full else "all"
        return checks.check(case, run=only)
    except Exception as error:  # noqa: BLE001  (it is the result of this row)
        text = " ".join(str(error).split())[:300]
        return {"failures": [f"{type(error).__name__}: {text}"]}


def measure_apart(name: str, limit: float) -> dict[str, Any]:
    """Return the row of an architecture, measured in a process of its own."""
    return _apart([__file__, "--one", name], limit) or {"failures": [f"stopped after {limit:g} s"]}


def rival_apart(name: str, limit: float) -> dict[str, Any]:
    """Return what Torch-Pruning makes of an architecture: with its hints, and else without."""
    script = str(Path(__file__).with_name("rival.py"))
    stopped = {"ok": False, "left": 1.0, "note": f"stopped after {limit:g} s", "hints": ""}
    first = _apart([script, name, "--hints"], limit)
    if first is None:
        return stopped
    if first["ok"] or not first["hints"]:
        return first
    second = _apart([script, name], limit)
    return second if second is not None and second["ok"] else first


def _apart(command: Sequence[str], limit: float) -> dict[str, Any] | None:
    """Run a script of ours and return the last line that it prints; None if it was stopped.

    The limit is in seconds of processor time, so that a busy neighbour does not matter.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    seconds = math.ceil(limit)
    try:
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=PATIENCE * limit,
            env=environment,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1)),
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode == -signal.SIGXCPU:
        return None
    lines = done.stdout.strip().splitlines()
    try:
        row: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"failures": said, "ok": False, "left": 1.0, "note": said[0][:160], "hints": ""}
    return row


# -- the kept result ---------------------------------------------------------------------------


def kept(path: Path = KEPT) -> dict[str, Any]:
    """Return the kept result."""
    return json.loads(path.read_text()) if path.exists() else {"rows": {}}


def surroundings() -> dict[str, Any]:
    """Return hardware, versions and commit."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "missing"
    return {"machine": machine(), "versions": versions, "commit": _commit()}


def _commit() -> str:
    """Return the commit that is measured, marked when files differ from it."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "../nestling", "*.py", "zoo")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def small(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows that were measured, but for those of full size."""
    return {
        name: row
        for name, row in result["rows"].items()
        if "missing" not in row and not name.endswith("-full")
    }


def passed(row: Mapping[str, Any]) -> bool:
    """Return whether an architecture passes: no exception, and nothing wrong."""
    return not row["failures"]


def summary(result: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Return the figures of a result; a row that raised counts as nothing elastic."""
    rows = small(result)
    shares = [row.get("share", 0.0) for row in rows.values()]
    figures: dict[str, float | int | None] = {
        "architectures": len(rows),
        "passed": sum(map(passed, rows.values())),
        "min_elastic_share": round(min(shares), 4) if shares else None,
        "median_elastic_share": round(statistics.median(shares), 4) if shares else None,
        "rival_passed": sum(bool(row.get("rival", {}).get("ok")) for row in rows.values()),
    }
    for key, names in DISCOVERY.items():
        found = [
            result["rows"][n]["discovery_s"]
            for n in names
            if "discovery_s" in result["rows"].get(n, {})
        ]
        figures[key] = round(max(found), 3) if found else None
    return figures


def words(result: Mapping[str, Any]) -> str:
    """Return the figures of a result in words."""
    found, rows = summary(result), small(result)
    if not rows:
        return "Nothing is kept yet."
    controls = sum(row.get("controls", 0) for row in rows.values())
    caught = sum(row.get("caught", 0) for row in rows.values())
    library = sum(row.get("joint_by", {}).get("library", 0) for row in rows.values())
    joint = sum(sum(row.get("joint_by", {}).values()) for row in rows.values())
    alone = sum(row.get("axes_checked", 0) for row in rows.values())
    lines = [
        f"- {found['passed']} of {found['architectures']} architectures pass; Torch-Pruning "
        f"prunes {found['rival_passed']} of them.",
        f"- Share of the parameters that is elastic: at least {found['min_elastic_share']:.1%}, "
        f"median {found['median_elastic_share']:.1%}.",
        f"- {alone:,} axes cut one by one and {joint} joint subnets compared, {joint - library} of "
        f"the latter with zeroed weights alone, {library} by the library's replay.",
        f"- {caught} of {controls} damaged axes caught.",
    ]
    for key, name in (("discovery_vit_b_s", "ViT-B/16"), ("discovery_llama_s", "a 150 M Llama")):
        if found[key] is not None:
            lines.append(f"- The axes of {name} are found in {found[key]:.2f} s.")
    return "\n".join(lines)


def table(result: Mapping[str, Any]) -> str:
    """Return the kept result as Markdown: a table, the full-size nets, what is missing."""
    lines = [
        "| architecture | parameters | axes | elastic | axes proven | subnets | MACs "
        "| damage caught | discovery, all (s) | Torch-Pruning | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(name, row) for name, row in small(result).items()]
    full = [(n, r) for n, r in result["rows"].items() if n.endswith("-full") and "discovery_s" in r]
    if full:
        lines += [
            "",
            "| full size | parameters | axes found | discovery (s) | of processor time |",
            "|---|---|---|---|---|",
        ]
    for name, row in full:
        lines.append(
            f"| {name} | {row['parameters']:,} | {row['axes_found']} | {row['discovery_s']:.2f} "
            f"| {row['discovery_cpu_s']:.2f} |"
        )
    missing = [f"{n} ({r['missing']})" for n, r in result["rows"].items() if "missing" in r]
    if missing:
        lines += ["", "Not importable: " + "; ".join(missing) + "."]
    return "\n".join([*lines, "", _where(result)])


def _line(name: str, row: Mapping[str, Any]) -> str:
    other = row.get("rival", {})
    beside = f"{other['left']:.0%} left" if other.get("ok") else other.get("note", "not run")
    verdict = "passes" if passed(row) else "; ".join(row["failures"])
    if "share" not in row:
        cells = [f"{row['parameters']:,}" if "parameters" in row else "", *[""] * 7]
    else:
        if row["share"] < checks.SHARE and passed(row):
            verdict += "; frozen: " + "; ".join(row["reasons"])
        library = row["axes_by"].get("library", 0)
        right = row["axes_checked"] - len(row["axes_wrong"])
        cells = [
            f"{row['parameters']:,}",
            str(row["axes"]),
            f"{row['share']:.1%}",
            f"{right} of {row['axes_checked']}" + (f" ({library} by replay)" if library else ""),
            f"{row['joint']} of {checks.JOINT}",
            f"{row['macs_equal']} of {row['macs_of']}",
            f"{row['caught']} of {row['controls']}",
            f"{row['discovery_s']:.2f}, {row['seconds']:.0f}",
        ]
    return "| " + " | ".join(_plain(text) for text in (name, *cells, beside, verdict)) + " |"


def _plain(text: str) -> str:
    """Return a text that stays in its cell."""
    return text.replace("|", "/").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def _where(result: Mapping[str, Any]) -> str:
    where, versions = result.get("machine", {}), result.get("versions", {})
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{where.get('processor')}, 1 thread, torch {where.get('torch')}, Python "
        f"{where.get('python')}; {libraries}; commit {result.get('commit')}."
    )


# -- the command -------------------------------------------------------------------------------


def measure_all(names: Sequence[str], options: argparse.Namespace) -> None:
    """Measure architectures one after the other; the result is kept after each."""
    path: Path = options.results
    # The full-size ones come first: their seconds are those of a machine that has just begun.
    for name in sorted(names, key=lambda name: not zoo.ARCHITECTURES[name].full):
        result = kept(path)
        if options.resume and name in result["rows"]:
            continue
        row = measure_apart(name, options.limit)
        if not options.fast and not zoo.ARCHITECTURES[name].full and "missing" not in row:
            row["rival"] = rival_apart(name, options.rival_limit)
        print(_said(name, row), flush=True)
        if not options.fast:
            rows = {**result["rows"], name: row}
            ordered = {n: rows[n] for n in zoo.ARCHITECTURES if n in rows}
            path.parent.mkdir(exist_ok=True)
            kept_now = {**surroundings(), "rows": ordered}
            path.write_text(json.dumps(kept_now, indent=1) + "\n")


def _said(name: str, row: Mapping[str, Any]) -> str:
    if "missing" in row:
        return f"{name:<36} not importable: {row['missing']}"
    share = f"{row['share']:6.1%}" if "share" in row else "      "
    seconds = row.get("seconds", row.get("discovery_s", 0.0))
    other = row.get("rival", {})
    beside = "" if not other else " rival ok" if other["ok"] else " rival fails"
    verdict = "passes" if passed(row) else "FAILS " + "; ".join(row["failures"])[:200]
    return f"{name:<36} {row.get('axes', ''):>4} {share} {seconds:6.1f} s{beside:<12} {verdict}"


def main() -> None:
    """Measure the chosen architectures, or print what is kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", metavar="PATTERN", help="names, patterns or parts")
    parser.add_argument("--resume", action="store_true", help="skip what is kept already")
    parser.add_argument("--fast", action="store_true", help="a few, without the rival, not kept")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one architecture")
    parser.add_argument("--rival-limit", type=float, default=RIVAL_LIMIT, help="the same for it")
    parser.add_argument("--results", type=Path, default=KEPT, help="where the result is kept")
    parser.add_argument("--summary", action="store_true", help="print the kept figures as JSON")
    parser.add_argument("--table", action="store_true", help="print the kept result as tables")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.summary:
        print(json.dumps(summary(kept(options.results))))
    elif options.table:
        print(table(kept(options.results)))
    elif options.one:
        torch.set_num_threads(1)
        print(json.dumps(measure(options.one)))
    else:
        torch.set_num_threads(1)
        names = list(FAST) if options.fast else list(zoo.ARCHITECTURES)
        if options.only is not None:
            names = list(dict.fromkeys(n for p in options.only for n in matching(p)))
        elif not options.fast and not options.resume:
            options.results.unlink(missing_ok=True)
        measure_all(names, options)


if __name__ == "__main__":
    main()
