"""Pictures: methods against cost with error bars, what was found, and how the search found it."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import nestling
from comparison import latencies, results
from comparison.cases import BASELINE, LONG, OURS, PLAIN, Shape, alone_label
from comparison.figures import Comparison
from comparison.protocols import BUDGETS, Protocol, supernet
from comparison.results import SEARCH_LOG, Result
from comparison.tables import title
from nestling import report, strictjson

SOURCES = "accuracy.json"  # what each picture was drawn from
DRAWN = (BASELINE, OURS, LONG, "norms", "slimmable")
ALONE = "progressive's shapes trained alone"
BETWEEN = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15)  # shares of the MACs at which methods are drawn


def draw(folder: Path, to: Path) -> list[Path]:
    """Draw all kept results and note what they were drawn from; return the pictures.

    Args:
        folder: of the results.
        to: the folder of the pictures.
    """
    to.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    for name, group in results.groups(folder).items():
        found = Comparison(group, latencies.read(folder / name)[0])
        picture = _methods(found, to / f"{name}-methods.png")
        drawn += [picture] if picture else []
        if found.seeds(OURS):
            drawn += _found(found, folder / name, to / name)
    strictjson.write(to / SOURCES, digests(folder))
    return drawn


def digests(folder: Path) -> dict[str, str]:
    """Return what tells the results of each protocol and net from any others."""
    return {name: results.digest(group) for name, group in results.groups(folder).items()}


def stale(folder: Path, to: Path) -> list[str]:
    """Return the protocols and nets whose pictures are not those of the kept results."""
    path = to / SOURCES
    drawn = strictjson.read(path) if path.exists() else {}
    now = digests(folder)
    return sorted(name for name in {*drawn, *now} if drawn.get(name) != now.get(name))


def _methods(found: Comparison, path: Path) -> Path | None:
    """Draw the accuracies at matched MACs that the tables have; None if there are none."""
    first = next(iter(found.results.values()))
    full = first.content["full"]["macs"]
    wanted = [(label, label, share) for label in DRAWN for share in BETWEEN]
    alone = {share: alone_label(Shape(OURS, share)) for share in BUDGETS}
    if all(label in found.labels for label in alone.values()):
        wanted += [(ALONE, label, share) for share, label in alone.items()]
    wanted.append((PLAIN, PLAIN, 1.0))
    points = []
    for name, label, share in wanted:
        accuracy = found.accuracy(label, share)
        if accuracy is not None:
            points.append(report.Point(name, share * full, accuracy))
    if not points:
        return None
    return report.comparison(
        points, path, title=title(found.settings), metric="test accuracy", whole=full
    )


def _found(found: Comparison, folder: Path, stem: Path) -> list[Path]:
    """Draw the subnets that were found, beside the uniform ones, and the path of the search."""
    seed = found.seeds(OURS)[0]
    ours = found[OURS, seed]
    net = _net(ours)
    even = f"{BASELINE}, 50 %"
    specs, notes = {even: dict(net.space.spec(fraction=0.5))}, {}
    for share in BUDGETS:
        row = found.at(OURS, seed, share)
        if row is not None:
            label = f"{OURS}, {100 * share:g} %"
            specs[label] = ours.spec(row)
            part = row.macs / ours.content["full"]["macs"]
            notes[label] = f"{part:.0%} of the MACs, {row.test:.1%} right"
    drawn = [
        report.skylines(
            specs,
            net.space,
            stem.with_name(f"{stem.name}-subnets.png"),
            title=title(found.settings),
            notes=notes,
            places={label: DRAWN.index(label.partition(",")[0]) for label in specs},
        )
    ]
    log = folder / SEARCH_LOG
    if log.exists():
        with tempfile.TemporaryDirectory() as place:
            plain = Path(place) / "search.jsonl"
            plain.write_bytes(gzip.decompress(log.read_bytes()))
            path = stem.with_name(f"{stem.name}-search.png")
            drawn.append(report.search_path(plain, net.space, path, title=title(found.settings)))
    return drawn


def _net(ours: Result) -> nestling.Supernet:
    """Return a fresh net of the same space; on the CPU, wherever it was trained."""
    of = Protocol.of({**ours.settings, "device": "cpu"})
    return supernet(of, ours.content["shape"], ours.content["classes"])
