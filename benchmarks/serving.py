"""Whether the governor holds its objective while the load changes, and what it gains by that.

    python benchmarks/serving.py --data-dir FOLDER              # all scenarios and policies
    python benchmarks/serving.py --only 'bursty*' --policies governor largest
    python benchmarks/serving.py --measure --again              # on a quiet machine, all anew
    python benchmarks/serving.py --loadgen                      # MLCommons LoadGen's scenarios
    python benchmarks/serving.py --costs                        # engine, governor, memory
    python benchmarks/serving.py --list                         # trials and their states
    python benchmarks/serving.py --summary                      # a line of JSON for each trial
    python benchmarks/serving.py --tables                       # docs/serving.md and the picture

A menu is trained first where `--menu` does not exist (Fashion-MNIST, some minutes). Each trial runs
in real time and keeps its result in `benchmarks/results/serving/`; the same command goes on where
it was stopped. Run it on a quiet machine, and note in `--note` where that was not possible.
`serving_parts/` says the rest: scenarios, rivals, trials, LoadGen, costs, results.
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
from comparison.commands import command, ended
from serving_parts import costs, loadgen, menus, picture, results, rivals, tables, trial
from serving_parts.scenarios import SCENARIOS, Scenario

from nestling.engine import figures

MENU = Path("runs") / "serving" / "menu.nest"
PICTURE = "serving-{}.png"
SHOWN = ("step-20-smallest", "bursty8-40-smallest")
OBJECTIVES = 3  # the first scenarios: 70 % of the largest's capacity at three objectives


def trials(options: argparse.Namespace, entries: Sequence[str]) -> list[tuple[Scenario, str]]:
    """Return the scenarios and policies that are asked for.

    Args:
        options: of the command.
        entries: of the menu, in order of their speed.
    """
    return [
        (scenario.scaled(options.scale), policy)
        for scenario in SCENARIOS
        if any(fnmatch.fnmatch(scenario.name, pattern) for pattern in options.only or ["*"])
        for policy in rivals.each_of(options.policies, entries)
    ]


def measure(options: argparse.Namespace) -> None:
    """Run what is not kept yet and keep it."""
    served = opened(options)
    about = described(served, options)
    folder = options.results
    if options.costs:
        taken: dict[str, Any] = {
            "governor_step_us": costs.step_us(served),
            "overhead": costs.overhead(served),
            "memory": costs.memory_growth(served, options.requests),
        }
        print(f"written: {results.write(folder, results.COSTS, taken, about)}")
    elif options.loadgen:
        for scenario in (each.scaled(options.scale) for each in SCENARIOS[:OBJECTIVES]):
            found = loadgen.server(scenario, served, options.queries)
            keep(folder, f"loadgen-server-{scenario.name}", found, about)
        found = loadgen.single_stream(SCENARIOS[0].scaled(options.scale), served)
        keep(folder, "loadgen-single-stream", found, about)
    else:
        for scenario, policy in trials(options, figures.forecast(served.model).names):
            name = f"{scenario.name}--{policy}"
            if (folder / f"{name}.json").exists() and not options.again:
                continue
            found = trial.run(scenario, policy, served, options.seconds, options.seed)
            keep(folder, name, found, about)


def keep(folder: Path, name: str, found: dict[str, Any], about: dict[str, Any]) -> None:
    """Write a result and say what it is."""
    results.write(folder, name, found, about)
    reached = found["mean_accuracy"]
    print(
        f"{name}: {found['attained']:.2%} within {found['objective_ms']:g} ms, "
        f"{found['late']} of {found['queries']} late, accuracy "
        f"{'-' if reached is None else format(reached, '.2%')}",
        flush=True,
    )


def opened(options: argparse.Namespace) -> menus.Served:
    """Return what is served; trained first where there is no such file."""
    names = ("data", "epochs", "pictures")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    recipe = menus.Recipe(**given)
    if not options.menu.exists():
        print(f"training {recipe}", flush=True)
        menus.train(recipe, options.menu, options.data_dir)
    return menus.serve(options.menu, recipe, options.data_dir, anew=options.measure)


def described(served: menus.Served, options: argparse.Namespace) -> dict[str, Any]:
    """Return what all trials of this run have in common."""
    forecast = figures.forecast(served.model)
    rows = [
        {
            "name": name,
            "accuracy": served.accuracy[name],
            "ms": {str(batch): forecast.times[rung][batch] for batch in forecast.batches},
        }
        for rung, name in reversed(list(enumerate(forecast.names)))
    ]
    for row in rows:
        print(row, flush=True)
    facts = {key: value for key, value in served.facts.items() if key in ("file", "data", "recipe")}
    return {"menu": rows, "threads": torch.get_num_threads(), "note": options.note, "facts": facts}


def document(folder: Path) -> None:
    """Write the page of docs/ and draw its pictures anew."""
    kept: dict[str, dict[str, Any]] = {}
    for found in results.read(folder):
        kept.setdefault(results.name_of(found), {})[found["policy"]] = found
    for name in SHOWN:
        if rivals.OURS in kept.get(name, {}):
            path = picture.draw(kept[name], documents.DOCS / "pictures" / PICTURE.format(name))
            print(f"written: {path}")
    documents.write("serving.md")


def page() -> str:
    """Return the tables of the kept results, for docs/generate.py."""
    return tables.page(results.KEPT)


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    made = command(__doc__, "scenario", results.KEPT)
    made.add_argument("--menu", type=Path, default=MENU, help="a .nest file; trained if missing")
    made.add_argument("--seconds", type=float, default=20.0, help="of one trial")
    made.add_argument("--seed", type=int, default=0, help="of the arrivals")
    made.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="times the objectives, for a machine that is shared",
    )
    made.add_argument("--data", help="train on this data set instead of the recipe's")
    made.add_argument("--epochs", type=int, help="train for so many instead of the recipe's")
    made.add_argument("--pictures", type=int, help="train on so many instead of the recipe's")
    made.add_argument("--threads", type=int, default=1, help="for the model")
    made.add_argument("--policies", nargs="+", default=rivals.POLICIES, choices=rivals.POLICIES)
    made.add_argument("--again", action="store_true", help="also what is kept already")
    made.add_argument("--measure", action="store_true", help="measure the menu anew before")
    made.add_argument("--loadgen", action="store_true", help="run LoadGen's scenarios")
    made.add_argument("--queries", type=int, default=loadgen.QUERIES, help="of LoadGen's Server")
    made.add_argument("--costs", action="store_true", help="measure engine, governor and memory")
    made.add_argument("--requests", type=int, default=costs.REQUESTS, help="of the memory's part")
    made.add_argument("--note", default="", help="what readers must know of the machine's state")
    return made


def do(options: argparse.Namespace) -> int:
    """Do what the options ask for; return the exit status."""
    if options.summary:
        for row in results.summary(options.results):
            print(json.dumps(row))
    elif options.tables:
        document(options.results)
    elif options.list:
        for scenario, policy in trials(options, results.entries(options.results)):
            name = f"{scenario.name}--{policy}"
            kept = (options.results / f"{name}.json").exists()
            print(f"{name:<44} {'kept' if kept else 'to do'}")
    else:
        torch.set_num_threads(options.threads)
        measure(options)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return ended(do, parser().parse_args(words))


if __name__ == "__main__":
    sys.exit(main())
