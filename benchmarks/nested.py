"""Fully nested nets: each kind of units alone, against its rival, and all kinds together.

    python benchmarks/nested.py --data-dir FOLDER                     # short protocol, on the CPU
    python benchmarks/nested.py --part channels depth                 # some parts
    python benchmarks/nested.py --protocol full --part channels       # full protocol, on a GPU
    python benchmarks/nested.py --protocol pretrained --weights FOLDER  # bits, from trained weights
    python benchmarks/nested.py --list                                # the cases and their states
    python benchmarks/nested.py --only 'channels*'                    # some cases, variants too
    python benchmarks/nested.py --slice 2/4 --minutes 9               # a part; stops and goes on
    python benchmarks/nested.py --summary                             # a line of JSON for each part
    python benchmarks/nested.py --tables                              # docs/nested.md

The parts: `channels` of ResNet-20 against Universally Slimmable, at equal epochs (a step of ordered
dropout is one pass, theirs is four) and at equal compute (of training: what the search takes is
told apart); `depth` of ResNet-56, `neurons` of an MLP on Fashion-MNIST and `paths` of a small
ResNeXt, against the share that is removed; `all` kinds of that ResNeXt together against each alone;
`bits` of ResNet-20, and of the wide pre-activation ResNet-20 (`"wide bits"`, in the full protocol
unless it is named), against Any-Precision and AdaBits, at equal epochs (a step of theirs is a pass
for each number of bits) and at equal compute.
Every case keeps its state in a work folder and its result in `benchmarks/results/nested/`. The same
command goes on where it was stopped, and passes over what is kept. Protocols, trials and results
are those of `accuracy.py`; `nesting/` says the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import integers
import torch
from comparison import documents, trial
from comparison.cases import chosen, parse_part
from comparison.commands import add_cases, add_protocol, command, ended, replaced
from comparison.figures import Comparison
from comparison.protocols import PROTOCOLS, Protocol, with_weights
from comparison.results import groups
from comparison.work import listed, share_compiled, train
from nesting import tables
from nesting.figures import summary
from nesting.parts import PARTS, Part, cases, part_of, parts_in, protocol_of

from nestling.errors import ModelError

KEPT = Path(__file__).resolve().parent / "results" / "nested"
WORK = Path("runs") / "nested"


def page() -> str:
    """Return the tables of the kept results, for docs/generate.py."""
    return tables.page(KEPT)


def document() -> None:
    """Write the tables of docs/nested.md anew."""
    documents.write("nested.md")


def summaries(folder: Path) -> list[str]:
    """Return a line of JSON for each part that the kept results answer."""
    lines = []
    for group in groups(folder).values():
        found = Comparison(group)
        for part in parts_in(found.labels, found.settings["net"]):
            lines.append(json.dumps(summary(part, found)))
    speed = folder.parent / integers.KEPT.name
    if speed.exists():
        lines.append(json.dumps(integers.summary(json.loads(speed.read_text()))))
    return lines


def settings(part: Part, options: argparse.Namespace) -> Protocol:
    """Return the protocol of a part with what the options change."""
    changes = replaced(options, "pictures", "held_out", "threads", "lr")
    # Every step draws another subnet, so that nothing that is compiled would be used again.
    changes["compiled"] = False
    found = protocol_of(part, options.protocol, **changes)
    return found if options.list else with_weights(found, options.weights)


def work(options: argparse.Namespace) -> int:
    """List or train the cases of the wanted parts; return the exit status."""
    status, matched = 0, False
    for part in _asked(options):
        of = settings(part, options)
        every = cases(part, of)
        if options.list:
            print(listed(of, every, options))
            continue
        try:
            wanted = chosen(every, only=options.only, part=parse_part(options.slice, "--slice"))
        except ModelError:
            if options.part or not options.only:
                raise
            continue  # what was asked for is of another part
        matched = True
        torch.set_num_threads(of.threads)
        share_compiled(of, options.work)
        status = train(of, every, wanted, options) or status
    if not matched and not options.list:
        raise ModelError(f"no part has a case called {options.only}; --list shows all")
    return status


def _asked(options: argparse.Namespace) -> list[Part]:
    """Return the parts to work on: those that are named, or all that the protocol is for."""
    if options.part:
        return [part_of(name) for name in options.part]
    return [part for part in PARTS.values() if part.asked_of(options.protocol)]


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    made = command(__doc__, "case", KEPT)
    add_protocol(made, PROTOCOLS, WORK)
    add_cases(made)
    made.add_argument("--part", nargs="+", metavar="NAME", help=f"some of {', '.join(PARTS)}")
    made.add_argument("--slice", default="1/1", metavar="I/N", help="the I-th of N slices")
    return made


def do(options: argparse.Namespace) -> int:
    """Do what the options ask for; return the exit status."""
    if options.summary:
        print("\n".join(summaries(options.results)))
        return 0
    if options.tables:
        document()
        return 0
    with trial.stopping_after(options.minutes):
        return work(options)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return ended(do, parser().parse_args(words))


if __name__ == "__main__":
    sys.exit(main())
