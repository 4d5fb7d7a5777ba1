"""`nestling report`: any runs compared, on a page that can be mailed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestling.cli import terminal
from nestling.cli.options import AsJson, examples

if TYPE_CHECKING:
    from nestling.report import Lineup, Summary


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples(
            "nestling report runs/uniform-1 runs/uniform-2 runs/individual-1",
            "nestling report runs/first runs/first/progressive.nest --out /tmp/compared",
            "nestling report runs/resnet20-* --cost latency",
        )
    )(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of finished runs, or .nest files."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder, which must be new. (default: runs/report-1 ...)"),
    ] = None,
    cost: Annotated[
        str, typer.Option(help="What to compare by: macs, params, bytes or latency.")
    ] = "macs",
    json: AsJson = False,
) -> None:
    """Compare runs: accuracy at the same cost, skylines, the paths of searches.

    Runs that differ only in their seed are one curve, with its mean and spread. For a search, give
    its .nest file. The log of a search is drawn, also where the method of a run has searched.
    """
    from nestling.report import line_up, lineup_html, read_run
    from nestling.runfolder import check_free, new_folder

    if out is not None:
        check_free(out)
    lineup = line_up([read_run(run) for run in _once(runs)], cost)
    for line in lineup.warnings:
        terminal.say(f"warning: {line}")
    page = lineup_html(lineup, new_folder("report", out))
    if json:
        terminal.put_json(_facts(lineup, page))
        return
    _write(lineup)
    terminal.put(f"\nThe report is in {page}")


def _once(runs: list[Path]) -> list[Path]:
    """Return each run once, however often and by whatever path it was named."""
    found: dict[Path, Path] = {}
    for run in runs:
        found.setdefault(run.resolve(), run)
    return list(found.values())


def _write(lineup: Lineup) -> None:
    from nestling.report.comparison import COSTS
    from nestling.report.lineup import SHARES
    from nestling.report.units import MISSING

    found = [lineup.at(share) for share in SHARES]
    rows = []
    for label, runs in lineup.groups.items():
        cells = [MISSING if (s := at[label]) is None else _short(s) for at in found]
        rows.append([label, str(len(runs)), *cells])
    heads = [f"{100 * share:g} %" for share in SHARES]
    terminal.put_table(["method", "seeds", *heads], rows)
    terminal.put(
        f"\n{lineup.metric} in % at or below these shares of the full net's {COSTS[lineup.cost]}; "
        "±: standard deviation over the seeds"
    )


def _short(summary: Summary) -> str:
    spread = "" if summary.std is None else f" ± {100 * summary.std:.2f}"
    return f"{100 * summary.mean:.2f}{spread}"


def _facts(lineup: Lineup, page: Path) -> dict[str, Any]:
    from nestling.report.lineup import SHARES

    curves = lineup.curves()
    return {
        "report": str(page),
        "cost": lineup.cost,
        "conditions": None if lineup.key is None else str(lineup.key),
        "full_cost": lineup.whole,
        "metric": lineup.metric,
        "warnings": list(lineup.warnings),
        "methods": [
            {
                "label": label,
                "runs": [str(run.path) for run in runs],
                "seeds": [list(run.seeds) for run in runs],
                "budgets": [
                    {"share": share, **_numbers(lineup.at(share)[label])} for share in SHARES
                ],
                "points": [{"cost": cost, **_numbers(each)} for cost, each in curves[label]],
            }
            for label, runs in lineup.groups.items()
        ],
    }


def _numbers(summary: Summary | None) -> dict[str, Any]:
    names = ("mean", "std", "low", "high", "seeds")
    return dict.fromkeys(names) if summary is None else summary._asdict()
