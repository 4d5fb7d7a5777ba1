"""Kept results: one small JSON file a case, so that two machines' results merge by copying files.

A file holds all that its figures rest on: the settings of the protocol, the case, the machine,
versions, commit, seconds by stage. Files of different settings are never read together.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from comparison import recipes
from comparison.cases import Case
from comparison.protocols import Protocol
from nestling import strictjson
from nestling.checkpoint import differing
from nestling.errors import FileError
from nestling.files import write_atomically
from nestling.profile import machine

KEPT = Path(__file__).resolve().parent.parent / "results" / "accuracy"
FORMAT = 1
SEARCH_LOG = "search.jsonl.gz"  # of one search, beside the results
COMPILING = "compiling"  # the part of the seconds that belongs to no stage
LIBRARIES = ("torch", "numpy", "nestling")


@dataclass(frozen=True)
class Row:
    """One subnet of a trained case.

    Attributes:
        name: of the subnet.
        counts: kept units of each axis, in the order of the result's axes.
        macs: multiply-accumulates for one picture.
        params: number of parameters.
        held_out: accuracy on held-out pictures, 0 to 1; None where these were trained on.
        test: accuracy on the test pictures.
    """

    name: str
    counts: tuple[int, ...]
    macs: int
    params: int
    held_out: float | None
    test: float


@dataclass(frozen=True)
class Result:
    """A case that was trained and scored: the content of one file."""

    content: Mapping[str, Any]

    @cached_property
    def case(self) -> Case:
        """What was trained."""
        return Case.of(self.content["case"])

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Its subnets, largest first."""
        found = [Row(**{**each, "counts": tuple(each["counts"])}) for each in self.subnets]
        return tuple(sorted(found, key=lambda row: row.macs, reverse=True))

    @property
    def subnets(self) -> Sequence[Mapping[str, Any]]:
        """The same as JSON has them."""
        found: Sequence[Mapping[str, Any]] = self.content["subnets"]
        return found

    @property
    def settings(self) -> Mapping[str, Any]:
        """What results must share to be compared."""
        found: Mapping[str, Any] = self.content["protocol"]
        return found

    @property
    def seconds(self) -> Mapping[str, float]:
        """Processor seconds by stage."""
        found: Mapping[str, float] = self.content["seconds"]
        return found

    @property
    def spent(self) -> float:
        """Processor seconds of the training, without those of the compiler: a cache saves these."""
        return sum(value for name, value in self.seconds.items() if name != COMPILING)

    @property
    def trained(self) -> float:
        """Those of them that are not of a search, which a longer training would not make longer."""
        return self.spent - self.seconds.get("search", 0.0)

    @property
    def complete(self) -> bool:
        """Whether the seconds are all that were spent; a killed process takes its own along."""
        return bool(self.content["seconds_complete"])

    @property
    def epochs(self) -> int:
        """Epochs of a training."""
        return int(self.content["epochs"])

    @property
    def processors(self) -> set[str]:
        """What its seconds belong to: more than one where it was moved to another machine."""
        return {
            processor_of(each["machine"]) for each in self.content.get("pieces", [self.content])
        }

    @property
    def commits(self) -> set[str]:
        """Under which commits it was trained and scored."""
        return {str(each["commit"]) for each in self.content.get("pieces", [self.content])}

    @property
    def updates(self) -> int:
        """Optimiser steps a batch, of the joint training where there is one."""
        case = self.case
        if case.method == "individual":
            return case.steps
        known = inspect.signature(recipes.find(case.method)).parameters
        options = {**{name: each.default for name, each in known.items()}, **case.options}
        if options.get("summed", True):
            return 1
        drawn = options.get("random", options.get("draw"))
        return len(self.rows) if drawn is None else 2 + int(drawn)

    def spec(self, row: Row) -> dict[str, int]:
        """Return the counts of a subnet by axis name."""
        return dict(zip(self.content["axes"], row.counts, strict=True))


def processor_of(machine: Mapping[str, Any]) -> str:
    """Return what a machine computes with."""
    return str(machine.get("gpu") or machine["processor"])


def piece() -> dict[str, Any]:
    """Return under what a piece of a training runs: commit, versions, machine."""
    return {"commit": commit(), "versions": versions(), "machine": machine()}


def content_of(
    of: Protocol, case: Case, pieces: Sequence[Mapping[str, Any]], **facts: Any
) -> dict[str, Any]:
    """Return what the file of a case holds.

    Args:
        of: the protocol.
        case: what was trained.
        pieces: what it was trained and scored under, see `piece`: the first is where it began.
        **facts: what the trial has found: epochs, seconds, axes, subnets and so on.
    """
    return {
        "format": FORMAT,
        "protocol": of.settings(),
        "case": asdict(case),
        **pieces[0],
        "pieces": list(pieces),
        **facts,
    }


def write(path: Path, content: Mapping[str, Any], rows: str = "subnets") -> None:
    """Write a result whole or not at all, with a line for each of its rows."""
    text = json.dumps({**content, rows: []}, indent=1)
    each = ",\n  ".join(json.dumps(row) for row in content[rows])
    text = text.replace(f'"{rows}": []', f'"{rows}": [\n  {each}\n ]')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (text + "\n").encode())


def read(path: Path) -> Result:
    """Read a result.

    Raises:
        FileError: the file is damaged, or of another version of this benchmark.
    """
    content = strictjson.read(path, cure="train the case again")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileError(f"{path} is no result of this benchmark; remove it and train again")
    return Result(content)


def find(of: Protocol, case: Case, folder: Path = KEPT) -> Result | None:
    """Return the kept result of a case; None if there is none.

    Raises:
        FileError: it was made with other settings.
    """
    path = place(of, case, folder)
    if not path.exists():
        return None
    found = read(path)
    different = other_than(found.content, of, case)
    if different:
        raise FileError(
            f"{path} was made with {', '.join(different)}; keep other settings apart with "
            "--results, or remove it"
        )
    return found


def other_than(found: Mapping[str, Any], of: Protocol, case: Case) -> list[str]:
    """Return in words how the settings that a file tells differ from a protocol's and a case's.

    Args:
        found: the content of the file.
        of: the protocol.
        case: of the protocol.
    """
    theirs = [found["protocol"], json.loads(json.dumps(asdict(Case.of(found["case"]))))]
    mine = json.loads(json.dumps([of.settings(), asdict(case)]))
    return [line for each, own in zip(theirs, mine, strict=True) for line in differing(each, own)]


def place(of: Protocol, case: Case, folder: Path = KEPT) -> Path:
    """Return where the result of a case is kept."""
    return folder / of.folder / f"{case.name}.json"


def groups(folder: Path = KEPT) -> dict[str, list[Result]]:
    """Return all kept results by the folder of their protocol and net.

    Raises:
        FileError: results in one folder are of different settings.
    """
    found: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("*/*-seed*.json")):
        found.setdefault(path.parent.name, []).append(read(path))
    for name, results in found.items():
        check_alike(results, folder / name)
    return found


def check_alike(results: Sequence[Result], where: Path) -> None:
    """Check that results may be compared with each other.

    Raises:
        FileError: their settings differ, or the number format that they were trained in; or one
            is at equal compute with another one that was trained again since.
    """
    first = results[0]
    for other in results[1:]:
        different = differing(
            {**first.settings, "trained in": first.content["trained_in"]},
            {**other.settings, "trained in": other.content["trained_in"]},
        )
        if different:
            raise FileError(
                f"the results in {where} were not made alike: {first.case.name} with "
                f"{', '.join(different)} for {other.case.name}; keep them in separate folders"
            )
    known = {(each.case.label, each.case.seed): each for each in results}
    for each in results:
        for label, told in each.content.get("equal_to", {}).items():
            other = known.get((label, each.case.seed))
            if other is not None and digest([other]) != told:
                raise FileError(
                    f"{each.case.name} in {where} cost as much as an earlier {other.case.name}, "
                    "which was trained again since; remove it and train it again too"
                )


def versions() -> dict[str, str]:
    """Return the versions of the libraries that results depend on."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "missing"
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def commit() -> str:
    """Return the commit that is measured, with a digest of the changes where files differ from it.

    In a copy without its history the environment variable NESTLING_COMMIT tells it.
    """
    told = os.environ.get("NESTLING_COMMIT")
    if told:
        return told
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, check=False
            )
        except OSError:
            return ""
        return done.stdout.strip()

    code = ("../../nestling", ".")
    told = git("rev-parse", "--short", "HEAD")
    if not told:
        return "unknown"
    changed = git("diff", "HEAD", "--", *code).encode()
    added = git("ls-files", "-z", "--others", "--exclude-standard", "--", *code)
    for name in filter(None, added.split("\0")):
        changed += name.encode() + (folder / name).read_bytes()
    return f"{told} with changes {hashlib.sha256(changed).hexdigest()[:7]}" if changed else told


def digest(results: Iterable[Result]) -> str:
    """Return what tells results from any others, whatever their order."""
    each = sorted(json.dumps(result.content, sort_keys=True) for result in results)
    return hashlib.sha256("\n".join(each).encode()).hexdigest()[:16]
