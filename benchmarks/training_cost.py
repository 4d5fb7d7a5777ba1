"""What channel execution saves: time, memory and weights of a training, and what it reaches.

    python benchmarks/training_cost.py --data-dir FOLDER             # short protocol, on the CPU
    python benchmarks/training_cost.py --protocol full               # full protocol, on a GPU
    python benchmarks/training_cost.py --list                        # the jobs and their states
    python benchmarks/training_cost.py --only 'vgg16-half-*'         # some jobs, or patterns
    python benchmarks/training_cost.py --part 2/4 --minutes 9        # a part; stops and goes on
    python benchmarks/training_cost.py --summary                     # a line of JSON for each net
    python benchmarks/training_cost.py --tables                      # Markdown, pictures, the page

Channel execution at a share of the units of every axis, against: the dense net, random units of the
same number, the compact shape trained alone, and Network Slimming cut to the same MACs. All train
for the same epochs, with the same pictures, schedule and optimiser. Every job (a net, a way and a
seed) keeps its state in a work folder and its result in `benchmarks/results/training_cost/`; the
same command goes on where it was stopped, and passes over what is kept. Speed and memory are jobs
of their own ("cost"): run them while nothing else does.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comparison import documents
from comparison.cases import parse_part
from comparison.commands import UNFINISHED, add_protocol, command, ended, replaced
from comparison.trial import stopping_after
from execution import figures, measured, tables, trial
from execution.protocols import COST, PROTOCOLS, Job, Material, Protocol, jobs, protocol

from nestling.errors import NestlingError
from nestling.files import write_atomically
from nestling.interruption import Interrupted
from nestling.report.arms import Trained, accuracy_over_time, training_cost

KEPT = Path(__file__).resolve().parent / "results" / "training_cost"
WORK = Path("runs") / "training_cost"
PICTURES = documents.DOCS / "pictures"


def folder_of(of: Protocol, results: Path) -> Path:
    """Return where a protocol's results are kept, a file each."""
    return results / f"{of.name}-{of.data}"


def kept(of: Protocol, results: Path) -> dict[str, dict[str, Any]]:
    """Return the kept results by job name; those of other settings do not count."""
    found = {}
    for job in jobs(of):
        path = folder_of(of, results) / f"{job.name}.json"
        if path.exists():
            content = json.loads(path.read_text())
            if content["settings"] == json.loads(json.dumps(of.settings(job))):
                found[job.name] = content
    return found


def groups(results: Path = KEPT) -> list[tables.Group]:
    """Return every protocol that anything is kept of, in that folder and in those within it."""
    folders = [results, *sorted(path for path in results.glob("*") if path.is_dir())]
    found = [(of, kept(of, folder)) for of in PROTOCOLS.values() for folder in folders]
    return [(of, known) for of, known in found if known]


def cost_page() -> str:
    """Return the table of what steps cost, from all kept results, for docs/generate.py."""
    return tables.costs(groups())


def accuracy_page() -> str:
    """Return the tables of what trainings reach, from all kept results, for docs/generate.py."""
    return tables.page(groups(), PICTURES)


def train(of: Protocol, wanted: Sequence[Job], options: argparse.Namespace) -> int:
    """Do the jobs that are not kept yet; return the exit status."""
    known, status = kept(of, options.results), 0
    material: Material | None = None
    for job in wanted:
        if job.name in known:
            continue
        print(job.name, flush=True)
        try:
            material = material or Material(of, options.data_dir)
            result = _result(of, job, material, options)
        except Interrupted as stop:
            print(f"{job.name}: {stop}", flush=True)
            return UNFINISHED
        except NestlingError as error:
            print(f"{job.name} failed: {error}", file=sys.stderr, flush=True)
            status = 1
            continue
        content = {"job": job.name, "settings": of.settings(job), "result": result}
        path = folder_of(of, options.results) / f"{job.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
        print(f"{job.name}: {_said(result)}", flush=True)
    return status


def _result(
    of: Protocol, job: Job, material: Material, options: argparse.Namespace
) -> dict[str, Any]:
    if job.way == COST:
        return measured.measure(of, job.net, material, _words(of, options))
    work = options.work / of.name
    work.mkdir(parents=True, exist_ok=True)
    return trial.train(of, job, material, work)


def _words(of: Protocol, options: argparse.Namespace) -> list[str]:
    """Return the command that measures memory in a process of its own."""
    words = [str(Path(__file__).resolve()), "--protocol", of.name, "--data", of.data]
    words += ["--device", of.device, "--threads", str(options.threads), "--batch", str(of.batch)]
    words += ["--precision", of.precision]
    return words + (["--data-dir", options.data_dir] if options.data_dir else [])


def _said(result: dict[str, Any]) -> str:
    if "speedup" in result:
        return f"{result['speedup']:.2f} times the speed, {result['memory_ratio']:.2f} the memory"
    return f"{result['accuracy']:.2%} after {result['seconds']:.0f} s"


def draw(of: Protocol, results: Path, folder: Path) -> list[Path]:
    """Draw time, memory and accuracy of each net that was trained and measured."""
    known, drawn = kept(of, results), []
    for net in of.nets:
        cost = known.get(f"{net}-cost", {}).get("result")
        found = {w: figures.seeds_of(of, known, net, w) for w in ("dense", "executed", "alone")}
        folder.mkdir(parents=True, exist_ok=True)
        if cost and all(found.values()):
            runs = [
                Trained(
                    figures.TOLD[way],
                    cost["images_per_second"][way],
                    cost["peak_memory"][way],
                    [each["accuracy"] for each in each_seed],
                )
                for way, each_seed in found.items()
            ]
            path = folder / f"training-cost-{of.name}-{net}.png"
            drawn.append(training_cost(runs, path, title=f"{net} on {of.data}"))
        ways = {w: figures.seeds_of(of, known, net, w)[:1] for w in figures.TOLD}
        curves = {
            figures.TOLD[way]: [(point[0], point[1]) for point in each[0]["curve"]]
            for way, each in ways.items()
            if each and each[0]["curve"]
        }
        if curves:
            path = folder / f"training-time-{of.name}-{net}.png"
            drawn.append(accuracy_over_time(curves, path, title=f"{net} on {of.data}"))
    return drawn


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    made = command(__doc__, "job", KEPT)
    add_protocol(made, PROTOCOLS, WORK)
    made.add_argument("--steps", type=int, help="timed of each way, instead of the protocol's")
    made.add_argument("--precision", help="instead of the protocol's")
    made.add_argument("--threads", type=int, default=2, help="of torch")
    made.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N parts")
    made.add_argument("--pictures", type=Path, default=PICTURES, help="where --tables draws")
    made.add_argument("--memory", nargs=2, metavar=("NET", "WAY"), help=argparse.SUPPRESS)
    return made


def do(options: argparse.Namespace) -> int:
    """Do what the options ask for; return the exit status."""
    of = protocol(options.protocol, **replaced(options, "steps", "precision"))
    if options.summary or options.tables or options.list:
        return _show(of, options)
    torch.set_num_threads(options.threads)
    if options.memory:
        print(measured.memory_of(of, *options.memory, Material(of, options.data_dir)))
        return 0
    first, parts = parse_part(options.part)
    patterns = options.only or ["*"]
    every = [j for j in jobs(of) if any(fnmatch.fnmatchcase(j.name, p) for p in patterns)]
    with stopping_after(options.minutes):
        return train(of, every[first - 1 :: parts], options)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return ended(do, parser().parse_args(words))


def _show(of: Protocol, options: argparse.Namespace) -> int:
    known = kept(of, options.results)
    if options.list:
        for job in jobs(of):
            print(f"{job.name:<32} {'kept' if job.name in known else 'to do'}")
    if options.summary:
        for row in figures.summary(of, known):
            print(json.dumps(row))
    if options.tables:
        print("\n\n".join([tables.costs([(of, known)]), tables.accuracies(of, known)]).strip())
        for path in draw(of, options.results, options.pictures):
            print(f"written: {path}", file=sys.stderr)
        if options.results == KEPT:
            documents.write("channel-execution.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
