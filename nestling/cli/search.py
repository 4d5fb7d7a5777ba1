"""`nestling search`: look for better subnets of a net that was trained as a supernet."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestling.cli import terminal
from nestling.cli.options import AsJson, ModelArgs, OwnModel, Threads, examples
from nestling.search import check_cost, costs

if TYPE_CHECKING:
    from nestling.experiment import Prepared, Settings
    from nestling.menu import Menu
    from nestling.progress import Reporter
    from nestling.search import Found
    from nestling.search.request import Search
    from nestling.spec import Space
    from nestling.supernet import Supernet

OPTIONS = ("groups", "floor", "threshold", "target", "budget", "kind", "trials")  # of searches
REPEATABLE = {"budget": "budgets", "kind": "kinds"}  # what searches call them

Budgets = Annotated[
    list[float] | None,
    typer.Option(help="Cost to reach, in its own units (MACs, bytes, ms); repeatable."),
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(help="Cut axes of this kind alone, such as depth; repeatable."),
]


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples(
            "nestling search runs/first",
            "nestling search runs/first --cost latency --target 0.5 --target 0.25",
            "nestling search runs/first --threshold 0.5 --resume",
            "nestling search runs/first --by evolution --trials 500",
        )
    )(search)


def search(
    context: typer.Context,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or its .nest file.")
    ],
    by: Annotated[
        str, typer.Option(help="Search: greedy, progressive, evolution or uniform.")
    ] = "greedy",
    cost: Annotated[str, typer.Option(help=f"What to save: {', '.join(costs())}.")] = "macs",
    groups: Annotated[
        int | None, typer.Option(min=1, help="Equal parts of an axis; one goes at a time.")
    ] = None,
    floor: Annotated[
        float | None, typer.Option(help="Share of its units that every axis keeps.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Accuracy, 0 to 1, below which to fine-tune.")
    ] = None,
    target: Annotated[
        list[float] | None, typer.Option(help="Share of the full cost to reach; repeatable.")
    ] = None,
    budget: Budgets = None,
    kind: Kinds = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Specs that evolution tries.")] = None,
    points: Annotated[int, typer.Option(min=2, help="Most subnets that the menu offers.")] = 9,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random choices.")] = 0,
    model: OwnModel = None,
    arg: ModelArgs = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Where data sets are. (default: that of the run)")
    ] = None,
    threads: Threads = None,
    out: Annotated[
        Path | None, typer.Option(help="The new file. (default: RUN/SEARCH.nest)")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search that was stopped.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Search a trained net for the subnets that keep the most accuracy; write them as a menu.

    Every evaluation is a line of JSON in the log beside the new file. The held-out pictures are
    those of the run; the test pictures are not looked at.
    """
    from nestling import experiment
    from nestling.progress import Reporter

    given = {name: context.params[name] for name in OPTIONS if context.params[name]}
    make = _choice(by, given, seed)
    check_cost(cost)
    file, settings = _run(run, data_dir)
    out = out or file.parent / f"{by}.nest"
    _check_out(out, resume)
    reporter = Reporter()
    with experiment.threads(threads or settings.threads), reporter:
        ready, net = _opened(file, settings, model, arg, reporter)
        conducted = _conducted(ready, net, cost, reporter)
        log = out.with_suffix(".jsonl")
        found = conducted(make(net.space), log=log, resume=resume, seed=seed)
        menu = _menu(ready, net, found, points, {"search": by, "search seed": seed, "cost": cost})
        menu.save(out)
    reporter.say(f"written to {out}; every evaluation is in {log}")
    _show(menu, found, out, json)


def _run(run: Path, data_dir: str | None) -> tuple[Path, Settings]:
    """Return the model file of a run, and the settings that it was trained with."""
    from dataclasses import replace

    from nestling import strictjson
    from nestling.errors import FileError, ModelError
    from nestling.experiment import Settings

    file = run / "model.nest" if run.is_dir() else run
    config = file.parent / "config.json"
    if not file.is_file() or not config.is_file():
        missing = file if not file.is_file() else config
        raise FileError(
            f"a search needs the folder of a finished run, with model.nest and config.json, but "
            f"there is no {missing}; make one with `nestling train`"
        )
    settings = Settings.from_config(strictjson.read(config, cure="train anew"))
    if settings.method == "individual":
        raise ModelError(
            "a search needs nested weights, and the method 'individual' trained each net on its "
            "own; train with another --method"
        )
    return file, settings if data_dir is None else replace(settings, data_dir=data_dir)


def _check_out(out: Path, resume: bool) -> None:
    from nestling.errors import FileError

    log = out.with_suffix(".jsonl")
    if out.exists():
        raise FileError(
            f"a search never overwrites anything, and {str(out)!r} exists; choose another file "
            "with --out"
        )
    if log.exists() and not resume:
        raise FileError(
            f"a search was begun there ({log}); go on with --resume, or choose another file with "
            "--out"
        )
    if resume and not log.exists():
        raise FileError(f"there is no search to resume (no {log}); leave out --resume")


def _opened(
    file: Path, settings: Settings, own: str | None, args: list[str] | None, reporter: Reporter
) -> tuple[Prepared, Supernet]:
    """Return the data of a run, and its trained net.

    Raises:
        ModelError: its subnets share less than a search needs.
    """
    from nestling import experiment, modelfile, target
    from nestling.cli.options import opened
    from nestling.menu import Menu

    if own is None and "class" in modelfile.describe(file)["model"]:
        made = target.make(settings.model, settings.model_args)  # the run knows where it is from
        menu = Menu.load(file, made)
    else:
        menu = opened(file, own, args).menu
    _check_shared(menu, file)  # before the data is read, which takes longer
    ready = experiment.prepare(settings, reporter)
    return ready, menu.net.to(experiment.choose_device(settings.device))


def _check_shared(menu: Menu, file: Path) -> None:
    """Refuse nets whose shared norm weights were trained by the full net alone.

    The others had norm weights of their own, which belong to their counts. A search would run every
    other count with the full net's, beside features that were never trained with these.
    """
    from nestling.errors import ModelError

    space = menu.net.space
    for entry in menu:
        weights = [name for name in entry.private if space.layouts[name].parameter]
        # A net that was trained alone has all for itself, and says nothing of the shared weights.
        if weights and set(entry.private) != set(space.present(entry.spec)):
            raise ModelError(
                f"a search needs norm weights that all subnets share, but {entry.name!r} in {file} "
                f"has {len(weights)} of its own, such as {weights[0]!r}, and the shared ones were "
                "trained with the full net alone; train anew with --option own_norms=false"
            )


def _choice(by: str, given: dict[str, Any], seed: int) -> Callable[[Space], Search]:
    """Return the search of a name, with those of the options that were given."""
    from nestling import search as searches
    from nestling.errors import ModelError

    make = searches.find(by)
    if by == "path":
        raise ModelError(
            "the search 'path' needs the widths that a ranker has recorded, which a file does not "
            "hold; choose progressive, greedy, evolution or uniform"
        )
    known = inspect.signature(make).parameters
    names = {**REPEATABLE, "target": "targets" if "targets" in known else "fractions"}
    for name in given:
        if names.get(name, name) not in known:
            raise ModelError(f"the search {by!r} takes no --{name}; leave it out")
    options = {names.get(name, name): value for name, value in given.items()}
    return functools.partial(make, **options, **({"seed": seed} if "seed" in known else {}))


def _conducted(
    ready: Prepared, net: Supernet, cost: str, reporter: Reporter
) -> Callable[..., list[Found]]:
    """Return `conduct` with all that belongs to the run."""
    from nestling.search import Scorer, Tuner, conduct, cost_of

    precision = ready.settings.precision
    score = Scorer(net, ready.held_out, calibrate=ready.train, precision=precision)
    tune = Tuner(net, ready.train, score, precision=precision)
    return functools.partial(
        conduct, net=net, score=score, tune=tune, cost=cost_of(net, cost), reporter=reporter
    )


def _menu(
    ready: Prepared, net: Supernet, found: list[Found], points: int, facts: dict[str, Any]
) -> Menu:
    """Return a menu of the Pareto front, thinned to so many points at even distances in MACs.

    The full net is always one of them, also where a smaller one is more accurate.
    """
    from dataclasses import replace

    from nestling.menu import CALIBRATION, make_menu
    from nestling.search import front

    space, dataset = net.space, ready.dataset
    kept = list(dict.fromkeys([space.full, *(each.spec for each in front(found, space.macs))]))
    if len(kept) > points:
        low, high = space.macs(kept[-1]), space.macs(kept[0])
        wanted = [low + (high - low) * place / (points - 1) for place in range(points)]
        near = (min(kept, key=lambda spec: abs(space.macs(spec) - macs)) for macs in wanted)
        kept = list(dict.fromkeys(near))
    batches = list(itertools.islice(ready.train.at(0), CALIBRATION))
    menu = make_menu(net, kept, ready.held_out, calibrate=batches)
    whole = {
        "data": dataset.name,
        "accuracy on": f"{ready.pictures} held-out training pictures, which also chose the subnets",
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "classes": list(dataset.classes),
    }
    return replace(menu, facts={**facts, **whole})


def _show(menu: Menu, found: list[Found], out: Path, json: bool) -> None:
    from nestling import report

    if not json:
        terminal.put_page(report.page_of(menu, str(out), key=menu.key(1)))
        terminal.put("\naccuracy: on the held-out pictures that chose the subnets")
        return
    space = menu.net.space
    terminal.put_json(
        {
            "model": str(out),
            "log": str(out.with_suffix(".jsonl")),
            "found": [
                {"spec": dict(spec), "accuracy": accuracy, "macs": space.macs(spec)}
                for spec, accuracy in found
            ],
            "menu": [entry.to_json() for entry in menu],
        }
    )
