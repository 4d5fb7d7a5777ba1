"""The runs that are compared: which are seeds of one curve, and how far they can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nestling.errors import FileError
from nestling.profile import Key
from nestling.report.comparison import check_cost
from nestling.report.runs import Measured, ReadRun, common_keys
from nestling.report.searchlog import SearchLog, read_search
from nestling.report.seeds import Result, Summary, at_budget, by_label, curve, summarize
from nestling.report.units import human_list_of

SHARES = (0.75, 0.5, 0.25, 0.15)  # of the full net's cost, at which the methods are compared

_SHOWN = {  # setting -> how a label says it; others are written as name=value
    "epochs": "{} epochs",
    "data": "{}",
    "model": "{}",
    "held_out": "{} held out",
}


@dataclass(frozen=True)
class Lineup:
    """Runs, grouped into curves, with their results.

    Attributes:
        groups: label -> its runs, one a seed, in the order in which they were given.
        cost: what the subnets cost: macs, params, bytes or latency.
        key: the conditions of the latencies; None for other costs.
        results: of all labels and seeds; seeds are counted from 0 in each label.
        whole: cost of the full net, of the first run.
        searches: label -> what the first search of it with a log has done.
        warnings: what keeps the runs from being comparable, a line each.
    """

    groups: Mapping[str, Sequence[ReadRun]]
    cost: str
    key: Key | None
    results: Sequence[Result]
    whole: float
    searches: Mapping[str, SearchLog]
    warnings: Sequence[str]

    @property
    def runs(self) -> list[ReadRun]:
        """All runs."""
        return [run for group in self.groups.values() for run in group]

    @property
    def metric(self) -> str:
        """What the accuracies are."""
        return self.runs[0].metric

    def at(self, share: float) -> dict[str, Summary | None]:
        """Return each label's accuracy at a share of the full net's cost; None where it has none.

        Measured latencies vary, so that the full net itself may take a little more than the whole.
        """
        found = by_label(self.results)
        return {label: at_budget(found[label], share * self.whole) for label in self.groups}

    def curves(self) -> dict[str, list[tuple[float, Summary]]]:
        """Return each label's points: cost, and accuracy over its seeds."""
        return {label: curve(mine) for label, mine in by_label(self.results).items()}

    def chosen(self, share: float) -> dict[str, Measured]:
        """Return the subnet that the first run of each label has at a share of the full cost."""
        found: dict[str, Measured] = {}
        for label, runs in self.groups.items():
            costs = runs[0].costs(self.cost, self.key)
            within = [
                (each.accuracy, -costs[each.name], each)
                for each in runs[0].entries
                if each.accuracy is not None
                and costs.get(each.name, float("inf")) <= share * self.whole
            ]
            if within:
                found[label] = max(within, key=lambda row: row[:2])[2]
        return found

    def gain(self, label: str, over: str) -> Summary | None:
        """Return by how much one label is more accurate than another, as a share.

        The mean over the budgets that both meet, of each pair of runs with the same seeds; None
        where there is no such pair.
        """
        pairs = [
            (n, m)
            for n, one in enumerate(self.groups[label])
            for m, other in enumerate(self.groups[over])
            if one.seeds[:1] == other.seeds[:1]
        ]
        gains = []
        for n, m in pairs:
            mine = [each for each in self.results if each[:2] == (label, n)]
            theirs = [each for each in self.results if each[:2] == (over, m)]
            budgets = [share * self.whole for share in SHARES]
            both = [(at_budget(mine, each), at_budget(theirs, each)) for each in budgets]
            known = [a.mean - b.mean for a, b in both if a is not None and b is not None]
            if known:
                gains.append(sum(known) / len(known))
        return summarize(gains) if gains else None


def line_up(runs: Sequence[ReadRun], cost: str = "macs") -> Lineup:
    """Group runs into curves and check how far they can be compared.

    Runs that differ in nothing but their seeds are one curve.

    Args:
        runs: at least one.
        cost: macs, params, bytes or latency.

    Raises:
        NestlingError: an unknown cost.
        FileError: there is nothing in common to compare by, or one run is given twice.
    """
    check_cost(cost)
    if not runs:
        raise FileError("a report compares at least one run, but none was given")
    metrics = list(dict.fromkeys(run.metric for run in runs))
    if len(metrics) > 1:
        raise FileError(
            f"runs are compared by one metric, but these have {', '.join(map(repr, metrics))}; "
            "compare those of one metric"
        )
    key = _key(runs) if cost == "latency" else None
    groups = _grouped(runs)
    results = [
        Result(label, seed, costs[entry.name], entry.accuracy)
        for label, group in groups.items()
        for seed, run in enumerate(group)
        for costs in [run.costs(cost, key)]
        for entry in run.entries
        if entry.accuracy is not None and entry.name in costs
    ]
    for label, group in groups.items():
        for seed, run in enumerate(group):
            if not any(each[:2] == (label, seed) for each in results):
                raise FileError(
                    f"{run.path} has no subnet with a {run.metric} from 0 to 1 and a {cost}, so "
                    "that there is nothing to compare; make its menu with held-out data"
                )
    whole = runs[0].costs(cost, key).get(runs[0].full.name)
    if whole is None:
        raise FileError(f"the full net of {runs[0].path} was not timed; run `nestling profile`")
    searches, unread = _searches(groups)
    return Lineup(groups, cost, key, results, whole, searches, [*_warnings(groups), *unread])


def _key(runs: Sequence[ReadRun]) -> Key:
    """Return the conditions under which all runs were timed."""
    shared = common_keys(runs)
    if shared:
        return shared[0]
    told = "; ".join(
        f"{run.path}: {', '.join(str(key) for key in run.profile.tables) or 'not timed'}"
        for run in runs
    )
    raise FileError(
        "latencies are compared under conditions that all runs were timed in, but there are none "
        f"({told}); time each with `nestling profile FILE`, or compare by --cost macs"
    )


# -- which runs are one curve ---------------------------------------------------------------------


def _grouped(runs: Sequence[ReadRun]) -> dict[str, list[ReadRun]]:
    """Return the runs of each curve under its label.

    Raises:
        FileError: two runs differ in nothing, not even in their seeds.
    """
    found: list[list[ReadRun]] = []
    for run in runs:
        for group in found:
            if group[0].settings == run.settings:
                group.append(run)
                break
        else:
            found.append([run])
    for group in found:
        for n, one in enumerate(group):
            for other in group[:n]:
                if one.seeds == other.seeds:
                    raise FileError(
                        f"{other.path} and {one.path} have the same settings and the same seed, "
                        "so that they count as one run; leave one of them out"
                    )
    labels = _labels([group[0] for group in found])
    return dict(zip(labels, found, strict=True))


def _labels(firsts: Sequence[ReadRun]) -> list[str]:
    """Return what tells the curves apart: the method or search, and settings where these do not."""
    base = [_base(run) for run in firsts]
    labels = []
    for run, name in zip(firsts, base, strict=True):
        rivals = [each for each, other in zip(firsts, base, strict=True) if other == name]
        keys = dict.fromkeys(key for each in rivals for key in each.settings)
        differing = [
            key
            for key in keys
            if any(each.settings.get(key) != run.settings.get(key) for each in rivals)
        ]
        if len(differing) > 1:  # a place is no setting, as long as there are others
            differing = [key for key in differing if key != "file"]
        labels.append(", ".join([name, *(_said(run, key) for key in differing)]))
    return labels


def _base(run: ReadRun) -> str:
    if run.search:
        return f"{run.search} search"
    if "method" in run.settings:
        return str(run.settings["method"])
    return run.path.stem if run.path.stem != "model" else run.path.absolute().parent.name


def _said(run: ReadRun, key: str) -> str:
    value = run.settings.get(key)
    return _SHOWN.get(key, f"{key.rpartition('.')[2]}={{}}").format(_plain(value))


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


# -- how far they can be compared -----------------------------------------------------------------


def _searches(groups: Mapping[str, Sequence[ReadRun]]) -> tuple[dict[str, SearchLog], list[str]]:
    """Return the searches, and what is wrong with logs: these are no reason to show nothing."""
    found: dict[str, SearchLog] = {}
    unread = []
    for label, runs in groups.items():
        logged = next((run for run in runs if run.log is not None), None)
        if logged is not None and logged.log is not None:
            try:
                found[label] = read_search(logged.log, logged.space)
            except FileError as error:
                unread.append(f"the path of {label} is not drawn: {error}")
    return found, unread


def _warnings(groups: Mapping[str, Sequence[ReadRun]]) -> list[str]:
    """Return what keeps runs from being comparable, a line each."""
    firsts = {label: runs[0] for label, runs in groups.items()}
    told: list[tuple[str, dict[str, Any]]] = [
        ("data sets", {k: r.settings.get("data") for k, r in firsts.items()}),
        ("models", {k: _model(r) for k, r in firsts.items()}),
        ("numbers of epochs", {k: r.settings.get("epochs") for k, r in firsts.items()}),
        ("held-out examples", {k: _slice(r) for k, r in firsts.items()}),
        ("seeds", {k: _seeds(runs) for k, runs in groups.items()}),
    ]
    lines = [
        f"the {what} differ: "
        + "; ".join(f"{label} has {_plain(value)}" for label, value in by.items())
        for what, by in told
        if len(set(by.values())) > 1
    ]
    flattered = [label for label, run in firsts.items() if run.flattered]
    if flattered and len(flattered) < len(firsts):
        lines.append(
            f"the accuracies of {human_list_of(flattered)} flatter: they are of the held-out "
            "examples that have chosen the subnets"
        )
    alone = [label for label, runs in groups.items() if len(runs) == 1]
    if alone:
        lines.append(f"the spread is unknown with one seed: {', '.join(alone)}")
    return lines


def _model(run: ReadRun) -> str:
    """Return what the model is: its name, arguments, and multiply-accumulates."""
    given = {
        key.partition(".")[2]: value
        for key, value in run.settings.items()
        if key.startswith("model_args.")
    }
    arguments = ", ".join(f"{key}={value}" for key, value in sorted(given.items()))
    name = str(run.settings.get("model"))
    return f"{name}({arguments}), {run.full.macs:,} MACs"


def _slice(run: ReadRun) -> str:
    return run.accuracy_on.partition(",")[0] or "unknown"


def _seeds(runs: Sequence[ReadRun]) -> str:
    known = sorted({run.seeds[0] for run in runs if run.seeds})
    return ", ".join(map(str, known)) or "unknown"
