"""Which method's subnets are best at the same cost: the comparison of methods.

    python benchmarks/accuracy.py --data-dir FOLDER                 # short protocol, on the CPU
    python benchmarks/accuracy.py --protocol full --net resnet18    # full protocol, on a GPU
    python benchmarks/accuracy.py --protocol pretrained --weights FOLDER   # from trained weights
    python benchmarks/accuracy.py --list                            # the cases and their states
    python benchmarks/accuracy.py --only progressive 'alone*'       # some cases, ablations too
    python benchmarks/accuracy.py --part 2/4 --minutes 9            # a part; stops and goes on
    python benchmarks/accuracy.py --latency                         # measure what was found
    python benchmarks/accuracy.py --step-cost                       # what a joint step costs
    python benchmarks/accuracy.py --summary                         # a line of JSON for each net
    python benchmarks/accuracy.py --tables                          # docs/accuracy.md and pictures

Every case (a method with its options and a seed) is trained with the same pictures, schedule and
optimiser, keeps its state in a work folder and its result in `benchmarks/results/accuracy/`. The
same command goes on where it was stopped, and passes over what is kept; with other code only by
`--any-commit`. `comparison/` says the
rest: protocols, cases, trials, results, figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from comparison import documents, latencies, pictures, results, steps, tables, trial
from comparison.caption import caption
from comparison.cases import cases, chosen, parse_part
from comparison.commands import add_cases, add_protocol, command, ended, replaced
from comparison.figures import Comparison, summary
from comparison.protocols import NETS, PROTOCOLS, Protocol, material, protocol, with_weights
from comparison.work import listed, share_compiled, train

from nestling.errors import ModelError

WORK = Path("runs") / "accuracy"
PICTURES = documents.DOCS / "pictures"


def measure(of: Protocol, options: argparse.Namespace) -> None:
    """Measure what --latency and --step-cost ask for, and keep it."""
    folder = options.results / of.folder
    group = results.groups(options.results).get(of.folder, [])
    if options.latency:
        if not group:
            raise ModelError(f"nothing is kept in {folder} whose latency could be measured")
        latencies.write(folder, latencies.measure(of, group, options.seconds))
        print(f"written: {latencies.file_of(folder)}")
    if options.step_cost:
        data = material(of, options.data_dir).data
        found = Comparison(group) if group else None
        content = steps.measure(of, data.shape, len(data.classes), found, 60 * options.seconds)
        steps.write(folder, content)
        print(steps.table(folder))


def document(folder: Path) -> None:
    """Write the page of docs/ and the README's caption, and draw their pictures anew."""
    for path in pictures.draw(folder, PICTURES):
        print(f"written: {path}")
    documents.write("accuracy.md")
    documents.write("../README.md")


def page() -> str:
    """Return the tables of the kept results, for docs/generate.py."""
    return tables.page(results.KEPT, PICTURES)


def told(name: str) -> str:
    """Return the caption of the picture of a protocol and net, for docs/generate.py.

    Args:
        name: of their folder among the kept results.
    """
    group = results.groups(results.KEPT).get(name)
    return caption(Comparison(group)) if group else "*No result is kept yet.*"


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    made = command(__doc__, "case", results.KEPT)
    add_protocol(made, PROTOCOLS, WORK)
    add_cases(made)
    made.add_argument("--net", default="resnet20", help=f"one of {', '.join(NETS)}")
    made.add_argument("--latency-batch", type=int, help="instead of the protocol's")
    made.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile training steps, or do not, whatever the protocol does",
    )
    made.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N parts")
    made.add_argument("--latency", action="store_true", help="measure the kept subnets")
    made.add_argument("--step-cost", action="store_true", help="measure a joint step")
    made.add_argument("--seconds", type=float, default=0.5, help="for the latency of one subnet")
    return made


def settings(options: argparse.Namespace) -> Protocol:
    """Return the protocol that the options ask for."""
    changes = replaced(options, "pictures", "held_out", "threads", "lr", "latency_batch")
    if options.compile is not None:
        changes["compiled"] = options.compile
    found = protocol(options.protocol, options.net, **changes)
    return found if options.list else with_weights(found, options.weights)


def do(options: argparse.Namespace) -> int:
    """Do what the options ask for; return the exit status."""
    if options.summary:
        for group in results.groups(options.results).values():
            print(json.dumps(summary(Comparison(group))))
        return 0
    if options.tables:
        document(options.results)
        return 0
    of = settings(options)
    every = cases(of)
    if options.list:
        print(listed(of, every, options))
        return 0
    torch.set_num_threads(of.threads)
    share_compiled(of, options.work)
    if options.latency or options.step_cost:
        measure(of, options)
        return 0
    wanted = chosen(every, only=options.only, part=parse_part(options.part))
    with trial.stopping_after(options.minutes):
        return train(of, every, wanted, options)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return ended(do, parser().parse_args(words))


if __name__ == "__main__":
    sys.exit(main())
