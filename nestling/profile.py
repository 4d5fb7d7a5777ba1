"""Profile: the measured latencies of a menu, by device, backend, threads, batch and dtype.

A JSON file beside the model file. A latency budget is only ever answered with figures that were
measured for this model under the conditions of the call; there is no estimate to fall back on.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from nestling import strictjson
from nestling.costs.latency import Latency
from nestling.errors import BudgetError, FileError
from nestling.files import StrPath
from nestling.narrowing import Narrowing
from nestling.upkeep import Upkeep

FORMAT = "nestling-profile"
VERSION = 1
_CURE = "measure again with `nestling profile`"


@dataclass(frozen=True)
class Key:
    """The conditions of a measurement; a figure holds for these and no others.

    Attributes:
        device: model name of the processor, or of the GPU.
        backend: what runs the subnet: eager (views of the shared weights), packed (a copy of its
            own), onnxruntime ...; see `nestling.backends`.
        threads: threads that one call may use.
        batch: inputs per call.
        dtype: of the input, such as float32.
    """

    device: str
    backend: str
    threads: int
    batch: int
    dtype: str

    def __str__(self) -> str:
        return (
            f"{self.device}, {self.backend}, {self.threads} thread(s), "
            f"batch {self.batch}, {self.dtype}"
        )


_Row = TypeVar("_Row", Key, Latency)
_T = TypeVar("_T")


def this_key(
    batch: int,
    *,
    device: torch.device | str = "cpu",
    backend: str = "eager",
    dtype: torch.dtype | str = "float32",
) -> Key:
    """Return the key of a call that is made here and now.

    Args:
        batch: inputs per call, at least 1.
        device: where the subnet runs.
        backend: what runs it.
        dtype: of the input.

    Raises:
        BudgetError: a batch below 1.

    Example:
        >>> this_key(1, dtype=torch.float32).threads == torch.get_num_threads()
        True
    """
    if batch < 1:
        raise BudgetError(f"a batch holds at least 1 input, not {batch}; pass batch=1 or more")
    where = torch.device(device)
    if where.type == "cpu":
        name = processor()
    elif where.type == "cuda":
        name = torch.cuda.get_device_name(where)
    else:
        name = where.type
    return Key(name, backend, torch.get_num_threads(), batch, str(dtype).removeprefix("torch."))


class ForeignProfile(FileError):
    """A profile whose figures belong to another model."""


@dataclass(frozen=True)
class Profile:
    """Latencies of the entries of one menu, under one or more conditions.

    Attributes:
        file_id: identity of the model file (or menu) that the figures belong to.
        tables: key -> name of the entry -> latency in milliseconds.
        machines: key -> what `machine()` said when that table was measured.
        narrowings: key -> which counts are worth having under these conditions; the one that was
            measured last stands last.
        upkeeps: key -> what the backend costs beside time; not every table has one.

    Raises:
        FileError: figures that are not finite and positive, or not in order.

    Example:
        >>> key = Key("some processor", "eager", threads=2, batch=1, dtype="float32")
        >>> profile = Profile("abc").with_table(key, {"small": Latency(2.0, 1.9, 2.1, 40)})
        >>> profile.table(key)["small"].median
        2.0
    """

    file_id: str
    tables: Mapping[Key, Mapping[str, Latency]] = field(default_factory=dict)
    machines: Mapping[Key, Mapping[str, str]] = field(default_factory=dict)
    narrowings: Mapping[Key, Narrowing] = field(default_factory=dict)
    upkeeps: Mapping[Key, Upkeep] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, table in self.tables.items():
            if not table:
                raise FileError(f"the table for {key} must have an entry, and has none; {_CURE}")
            for name, latency in table.items():
                _check_latency(name, latency)

    def table(self, key: Key) -> Mapping[str, Latency]:
        """Return the latencies under these conditions: name of the entry -> milliseconds.

        Raises:
            BudgetError: nothing was measured under them.
        """
        if key in self.tables:
            return self.tables[key]
        known = "; ".join(str(known) for known in self.tables) or "nothing yet"
        command = f"nestling profile FILE --batch {key.batch} --threads {key.threads}"
        if key.backend != "eager":
            command += f" --backend {key.backend}"
        raise BudgetError(
            f"a latency budget needs a profile measured on this device in the same way ({key}); "
            f"measured so far: {known}. Run `{command}`, or give a budget in macs, params or "
            "fraction"
        )

    def with_table(
        self, key: Key, table: Mapping[str, Latency], upkeep: Upkeep | None = None
    ) -> Profile:
        """Return a profile with a table that was just measured here, in place of one of that key.

        Raises:
            FileError: figures that are not finite and positive, or no figures.
        """
        others = {each: found for each, found in self.upkeeps.items() if each != key}
        return Profile(
            self.file_id,
            {**self.tables, key: dict(table)},
            {**self.machines, key: machine()},
            self.narrowings,
            others if upkeep is None else {**others, key: upkeep},
        )

    def without_table(self, key: Key) -> Profile:
        """Return a profile without the table of a key, if it has one.

        Example:
            >>> key = Key("some processor", "eager", threads=2, batch=1, dtype="float32")
            >>> Profile("abc", {key: {"a": Latency(2, 1, 3, 9)}}).without_table(key).tables
            {}
        """
        parts: list[dict[Key, Any]] = [
            {each: found for each, found in part.items() if each != key}
            for part in (self.tables, self.machines, self.upkeeps)
        ]
        return replace(self, tables=parts[0], machines=parts[1], upkeeps=parts[2])

    def with_narrowing(self, key: Key, narrowing: Narrowing) -> Profile:
        """Return a profile with a narrowing that was just measured here, in place of an older one.

        Example:
            >>> key = Key("some processor", "eager", threads=2, batch=1, dtype="float32")
            >>> Profile("abc").with_narrowing(key, Narrowing()).narrowings[key]
            Narrowing(axes=(), specs=(), open=0)
        """
        others = {each: found for each, found in self.narrowings.items() if each != key}
        return replace(self, narrowings={**others, key: narrowing})

    def save(self, path: StrPath) -> None:
        """Write the profile as JSON, whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        tables = [
            {
                "key": asdict(key),
                "milliseconds": {name: asdict(latency) for name, latency in table.items()},
                "machine": dict(self.machines.get(key, {})),
                **({"upkeep": self.upkeeps[key].to_json()} if key in self.upkeeps else {}),
            }
            for key, table in self.tables.items()
        ]
        content = {"format": FORMAT, "version": VERSION, "file_id": self.file_id, "tables": tables}
        if self.narrowings:
            content["narrowings"] = [
                {"key": asdict(key), **narrowing.to_json()}
                for key, narrowing in self.narrowings.items()
            ]
        strictjson.write(path, content)

    @classmethod
    def load(cls, path: StrPath, file_id: str) -> Profile:
        """Read the profile of a model.

        Args:
            path: the JSON file, see `beside`.
            file_id: identity of the model that the figures must belong to.

        Raises:
            FileError: the file is missing, damaged, of another version or not a profile.
            ForeignProfile: its figures belong to another model.
        """
        content = strictjson.read(path, cure=_CURE)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise FileError(f"cannot read {path}: it is not a Nestling profile; {_CURE}")
        version = content.get("version")
        if type(version) is not int or version != VERSION:
            raise FileError(
                f"cannot read {path}: this release reads profiles of version {VERSION}, and this "
                f"one is of version {version!r}; {_CURE}"
            )
        if content.get("file_id") != file_id:
            raise ForeignProfile(
                f"cannot use {path}: its figures belong to another model (id "
                f"{content.get('file_id')!r:.80}, the model's is {file_id!r}); {_CURE}"
            )
        try:
            profile = _from_tables(file_id, _typed(content.get("tables"), list, "tables"))
            rows = _typed(content.get("narrowings", []), list, "narrowings")
            return replace(profile, narrowings=_narrowings(rows))
        except ValueError as problem:
            raise FileError(f"cannot read {path}: {problem}; {_CURE}") from problem


def beside(model_path: StrPath) -> Path:
    """Return where the profile of a model file lies.

    Example:
        >>> beside("model.nest").name
        'model.profile.json'
    """
    path = Path(model_path)
    return path.parent / f"{path.stem}.profile.json"


def _from_tables(file_id: str, rows: list[Any]) -> Profile:
    tables: dict[Key, dict[str, Latency]] = {}
    machines: dict[Key, dict[str, str]] = {}
    upkeeps: dict[Key, Upkeep] = {}
    for row in rows:
        row = _typed(row, dict, "a table")
        key = _filled(Key, row.get("key"), "a key")
        if key in tables:
            raise ValueError(f"a key has one table, and ({key}) has two")
        found = _typed(row.get("milliseconds"), dict, "milliseconds")
        tables[key] = {name: _filled(Latency, item, f"{name!r}") for name, item in found.items()}
        facts = _typed(row.get("machine"), dict, "machine")
        machines[key] = {name: _typed(fact, str, "a fact") for name, fact in facts.items()}
        if "upkeep" in row:  # an earlier release wrote none, and reads past it
            upkeeps[key] = Upkeep.from_json(row["upkeep"])
    return Profile(file_id, tables, machines, upkeeps=upkeeps)


def _narrowings(rows: list[Any]) -> dict[Key, Narrowing]:
    found: dict[Key, Narrowing] = {}
    for row in rows:
        rest = dict(_typed(row, dict, "a narrowing"))
        key = _filled(Key, rest.pop("key", None), "a key")
        if key in found:
            raise ValueError(f"a key has one narrowing, and ({key}) has two")
        found[key] = Narrowing.from_json(rest)
    return found


def _typed(value: Any, kind: type[_T], what: str) -> _T:
    if not isinstance(value, kind):
        raise ValueError(f"{what} must be of type {kind.__name__}, not {value!r:.80}")
    return value


def _filled(kind: type[_Row], value: Any, what: str) -> _Row:
    """Make a dataclass of numbers and texts from JSON, every field present and of its type."""
    types: dict[str, Any] = {"str": str, "int": int, "float": (float, int)}
    content = _typed(value, dict, what)
    if set(content) != {entry.name for entry in fields(kind)}:
        raise ValueError(
            f"{what} must have {[entry.name for entry in fields(kind)]}, not {list(content)!r:.80}"
        )
    for entry in fields(kind):
        found = content[entry.name]
        if isinstance(found, bool) or not isinstance(found, types[str(entry.type)]):
            raise ValueError(
                f"{entry.name} of {what} must be of type {entry.type}, not {found!r:.80}"
            )
        if entry.type == "float" and abs(found) > sys.float_info.max:  # JSON integers have no end
            raise ValueError(f"{entry.name} of {what} must be finite, not {found!r:.80}")
    return kind(**content)


def _check_latency(name: str, latency: Latency) -> None:
    low, median, high = latency.low, latency.median, latency.high
    if not (0 < low <= median <= high < math.inf and latency.runs >= 1):
        raise FileError(
            f"the latency of {name!r} must be positive, finite and in order (low <= median <= "
            f"high, at least 1 run), not {latency}; {_CURE}"
        )


# ---------------------------------------------------------------------------- this machine


def machine() -> dict[str, str]:
    """Return what this machine is, as `nestling doctor` prints it and results store it.

    Every value is text; what cannot be found out is "unknown". Threads are those of torch now;
    memory is in GiB.

    Example:
        >>> machine()["torch"] == torch.__version__
        True
    """
    facts = {
        "processor": processor(),
        "cores": str(os.cpu_count() or "unknown"),
        "threads": str(torch.get_num_threads()),
        "memory": _memory(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "nestling": _nestling_version(),
        "cpu_capability": _capability(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


@lru_cache(maxsize=1)
def processor() -> str:
    """Return the model name of the processor; looked up once."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine() or "unknown"


@lru_cache(maxsize=1)
def _cpuinfo() -> dict[str, str]:
    """Return the first processor's lines of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _capability() -> str:
    """Return the vector instructions torch uses, and the low-precision units of the processor."""
    flags = _cpuinfo().get("flags", "").split()
    units = {"avx512_vnni": "VNNI", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}
    found = [label for flag, label in units.items() if flag in flags]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *found])


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, OSError, ValueError):
        return "unknown"


def _nestling_version() -> str:
    try:
        return importlib.metadata.version("nestling")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
