"""Runs as a comparison needs them: read from the headers of their files, no weights loaded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling import container, modelfile, strictjson
from nestling.checkpoint import NAME as CHECKPOINT
from nestling.errors import FileError
from nestling.header import space_from_json
from nestling.profile import Key, Profile, beside
from nestling.search.stage import log_of
from nestling.spec import Space

_MODEL = "model.nest"  # what a training leaves in its folder
# What two runs may differ in and still be seeds of one curve.
_ASIDE = ("seed", "data_dir", "threads", "device", "search seed")
# Facts of a menu that are settings, under the names that config.json has for them.
_FACTS = {
    "method": "method",
    "epochs": "epochs",
    "model": "model",
    "data": "data",
    "training batch": "batch",
    "lr": "lr",
    "precision": "precision",
    "narrowed in": "narrow",
}


@dataclass(frozen=True)
class Measured:
    """One subnet of a run with its figures.

    Attributes:
        name: in its menu.
        counts: axis -> kept units.
        macs: multiply-accumulates.
        params: parameters.
        bytes: of parameters and buffers.
        accuracy: 0 to 1; None where it was not measured or is no share.
    """

    name: str
    counts: Mapping[str, int]
    macs: int
    params: int
    bytes: int
    accuracy: float | None


@dataclass(frozen=True)
class ReadRun:
    """A run, or a search on one, as its files tell of it.

    Attributes:
        path: of its model file.
        settings: all that decides its outcome, without what tells seeds apart.
        seeds: the run's seed, and the search's.
        entries: the subnets, largest first.
        full: the full net among them.
        space: of the net.
        metric: what the accuracies are.
        accuracy_on: which examples they rest on, in the menu's words.
        flattered: whether the same examples have chosen the subnets.
        profile: measured latencies; empty where there are none.
        log: of the search that chose the subnets, where it lies beside the file.
    """

    path: Path
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    entries: tuple[Measured, ...]
    full: Measured
    space: Space
    metric: str
    accuracy_on: str
    flattered: bool
    profile: Profile
    log: Path | None

    @property
    def search(self) -> str:
        """Name of the search that chose the subnets; empty where a method did."""
        return str(self.settings.get("search", ""))

    def costs(self, cost: str, key: Key | None) -> dict[str, float]:
        """Return what its subnets cost, by name; those without a measured latency are left out."""
        if cost == "latency":
            table = self.profile.tables.get(key, {}) if key is not None else {}
            return {e.name: table[e.name].median for e in self.entries if e.name in table}
        return {entry.name: float(getattr(entry, cost)) for entry in self.entries}


def read_run(path: Path) -> ReadRun:
    """Read a run.

    Args:
        path: the folder of a finished run, or a `.nest` file.

    Raises:
        FileError: there is no run, it is not finished, or a file of it cannot be read.
    """
    file = _file_of(path)
    header = container.read_header(file)
    told = modelfile.describe(file)
    with modelfile.guarded(file):
        space = space_from_json(header["space"])
    facts = {name: v for name, v in told["facts"].items() if isinstance(v, str | int | float)}
    settings = _settings(file, facts, told["model"])
    entries = tuple(sorted(map(_entry, told["menu"]), key=lambda each: -each.macs))
    accuracy_on = str(facts.get("accuracy on", ""))
    return ReadRun(
        file,
        {name: value for name, value in settings.items() if name not in _ASIDE},
        tuple(_seed(settings[name]) for name in ("seed", "search seed") if name in settings),
        entries,
        entries[0],
        space,
        told["metric"],
        accuracy_on,
        "chosen on" in facts or "chose" in accuracy_on,
        _profile(file, str(header["id"])),
        _log_of(file, search="search" in facts),
    )


def _file_of(path: Path) -> Path:
    """Return the model file of a run.

    Raises:
        FileError: there is none, and why.
    """
    if path.is_file() and path.suffix == ".nest":
        return path
    file = path / _MODEL
    if file.is_file():
        return file
    if (path / "config.json").is_file():
        raise FileError(
            f"the run in {str(path)!r} is not finished (no model.nest); finish it with "
            f"`nestling train --resume --out {shlex.quote(str(path))}`, or leave it out"
        )
    what = "is no run" if path.exists() else "does not exist"
    raise FileError(
        f"a report compares the folders of finished runs, or .nest files, but {str(path)!r} {what};"
        " make one with `nestling train`"
    )


def _entry(row: Mapping[str, Any]) -> Measured:
    score = row["accuracy"]
    return Measured(
        row["name"],
        row["spec"],
        row["macs"],
        row["params"],
        row["bytes"],
        score if score is not None and 0 <= score <= 1 else None,
    )


def _settings(file: Path, facts: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run: of `config.json` where it is there, else what the menu says.

    What belongs to a search stands beside them; of nested settings, each has its own name.
    """
    config = file.parent / "config.json"
    found: dict[str, Any] = {}
    if config.is_file():
        content = strictjson.read(config, cure="leave the run out, or train it anew")
        given = content.get("settings") if isinstance(content, dict) else None
        if not isinstance(given, dict):
            raise FileError(f"{config} is not that of a training; give the .nest file elsewhere")
        for name, value in given.items():
            if isinstance(value, dict):
                found |= {f"{name}.{key}": each for key, each in value.items()}
            else:
                found[name] = value
    else:
        found = {name: facts[fact] for fact, name in _FACTS.items() if fact in facts}
        found.setdefault("model", model.get("name") or model.get("class"))
        arguments = model.get("arguments", {})
        found |= {f"model_args.{key}": each for key, each in arguments.items()}
        found |= {"seed": facts["seed"]} if "seed" in facts else {}
    if "search" in facts:
        names = ("search", "search seed", "cost")
        found |= {name: facts[name] for name in names if name in facts}
        found |= _options(file)
    if "method" not in found and "search" not in found:  # a menu of the user's own making
        found["file"] = str(file)
    return found


def _options(file: Path) -> dict[str, Any]:
    """Return the options of a search, which the first line of its log has."""
    log = _log_of(file, search=True)
    if log is None:
        return {}
    with log.open("rb") as lines:
        first = lines.readline(strictjson.MAX_BYTES)
    try:
        header = strictjson.parse(first)
    except ValueError:
        return {}
    options = header.get("options") if isinstance(header, dict) else None
    if not isinstance(options, dict):
        return {}
    # The search's seed is told apart by itself.
    return {f"search.{name}": value for name, value in options.items() if name != "seed"}


def _log_of(file: Path, *, search: bool) -> Path | None:
    """Return the log of the search that made a menu; None where there is none.

    Args:
        file: of the menu.
        search: whether `nestling search` made it, which writes its log beside the file. That of a
            method that searches lies beside the checkpoint.
    """
    if search:
        log = file.with_suffix(".jsonl")
    elif file.name == _MODEL:
        log = log_of(file.with_name(CHECKPOINT))
    else:
        return None
    return log if log.is_file() else None


def _seed(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _profile(file: Path, file_id: str) -> Profile:
    """Return the latencies beside a file; none where there are none of this file."""
    try:
        return Profile.load(beside(file), file_id)
    except FileError:
        return Profile(file_id)


def common_keys(runs: Sequence[ReadRun]) -> list[Key]:
    """Return the conditions under which all runs were timed, most examples a call first."""
    shared = [key for key in runs[0].profile.tables if all(key in r.profile.tables for r in runs)]
    return sorted(shared, key=lambda key: -key.batch)
