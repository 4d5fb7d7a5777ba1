"""`nestling profile`: measure a menu on this machine and keep the figures beside the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nestling import strictjson
from nestling.cli import terminal
from nestling.cli.options import (
    AsJson,
    File,
    ModelArgs,
    Narrow,
    OwnModel,
    Seconds,
    examples,
    opened,
    read_header_id,
)
from nestling.profile import beside
from nestling.report.units import human_bytes

if TYPE_CHECKING:
    from nestling.menu import Menu


ALL = "all"
USUAL = ("eager", "packed")


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples(
            "nestling profile model.nest",
            "nestling profile model.nest --batch 1 --batch 32 --threads 1 --threads 2",
            "nestling profile model.nest --backend all --sustained 10",
            "nestling profile model.nest --narrow 60",
        )
    )(profile)


def profile(
    file: File,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=65536, help="Examples a call; repeatable. (default: 1)"),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=4096, help="Threads a call may use; repeatable. (default: torch's)"
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="What runs the subnets; repeatable; all: each that is installed, which takes some "
            "seconds more for each subnet. (default: eager and packed)"
        ),
    ] = None,
    seconds: Seconds = 1.0,
    sustained: Annotated[
        float,
        typer.Option(
            metavar="MINUTES", min=0, max=1440, help="Go on for so long, as in service: warm."
        ),
    ] = 0,
    narrow: Narrow = 0,
    model: OwnModel = None,
    arg: ModelArgs = None,
    json: AsJson = False,
) -> None:
    """Measure every subnet here, so that a latency_ms budget can be answered on this machine.

    Each is measured on every backend named, for every number of examples and threads: time, memory
    and, where the machine can tell, energy. A loaded model then runs on the fastest.
    """
    from nestling import experiment, modelfile

    names = _backends(backend or list(USUAL))
    modelfile.describe(file)  # a damaged model file is told before anything is moved
    _set_damaged_aside(file)
    menu = opened(file, model, arg).menu
    place = beside(file)
    for count in dict.fromkeys(threads or [0]):
        with experiment.threads(count):
            for examples_a_call in dict.fromkeys(batch or [1]):
                menu = _measured(menu, examples_a_call, names, (seconds, sustained, narrow), place)
                if not json:
                    _show(menu, examples_a_call, names)
    terminal.say(f"written to {place}")
    if json:
        terminal.put_json(strictjson.read(place))


def _backends(asked: list[str]) -> list[str]:
    """Return the backends to measure; those that are not installed are told and left out of all.

    Raises:
        ModelError: one is unknown, or was asked for by name and is not installed.
    """
    from nestling import backends

    if ALL not in asked:
        return list(dict.fromkeys(map(backends.check, asked)))
    for name in backends.names():
        if missing := backends.find(name).missing:
            terminal.say(f"left out: {missing}")
    # Views and copies first: what fails for the others, fails for these at once.
    return sorted(backends.installed(), key=lambda name: (name not in USUAL, name))


def _measured(
    menu: Menu, batch: int, names: list[str], times: tuple[float, float, float], place: Path
) -> Menu:
    """Return the menu with all figures for one number of examples and threads, kept on the disk."""
    from nestling.energy import find_meter
    from nestling.profiling import profiled

    seconds, sustained, narrow = times
    key = menu.key(batch)
    terminal.say(
        f"measuring {len(menu)} subnets on {', '.join(names)}: {key.device}, {key.threads} "
        f"thread(s), batch {batch}, {key.dtype}"
    )
    meter = find_meter(next(menu.net.parameters()).device)
    menu = profiled(menu, batch, backends=names, seconds=seconds, sustained=sustained, meter=meter)
    menu.profile.save(place)
    if narrow:
        terminal.say("measuring which counts are worth having")
        menu = menu.narrowed(batch, seconds=narrow)
        menu.profile.save(place)
    return menu


def _show(menu: Menu, batch: int, names: list[str]) -> None:
    """Write the figures of every backend, and what each costs beside time."""
    from nestling import report

    names = [name for name in names if menu.key(batch, name) in menu.profile.tables]
    for name in names:
        key = menu.key(batch, name)
        terminal.put_page(report.page_of(menu, str(key), key=key))
        terminal.put()
    rows = []
    for name in names:
        upkeep = menu.profile.upkeeps[menu.key(batch, name)]
        rows.append(
            [
                name,
                human_bytes(upkeep.bytes),
                f"{upkeep.ready_seconds:.2g} s",
                f"{upkeep.switch_us:.2g} us",
                "not measured" if upkeep.drift is None else f"{100 * upkeep.drift:+.1f} %",
                upkeep.energy if not upkeep.joules else f"{max(upkeep.joules.values()):.3g} J",
            ]
        )
    heads = ["backend", "memory", "to make ready", "switch", "drift", "energy"]
    terminal.put_table(heads, rows)
    terminal.put(
        "\nmemory: of the whole menu beside the shared weights; to make ready: one subnet that is\n"
        "not held; switch: to pick one that is; energy: of the largest, for one example"
    )
    for name in names:
        for entry, why in menu.profile.upkeeps[menu.key(batch, name)].left_out.items():
            terminal.put(f"left out: {entry} on {name}: {why}")


def _set_damaged_aside(file: Path) -> None:
    """Rename a profile that cannot be used, since this verb is the cure that its error names."""
    from nestling.errors import FileError
    from nestling.profile import Profile

    place = beside(file)
    if not place.exists():
        return
    try:
        Profile.load(place, read_header_id(file))
    except FileError as error:
        aside = place.with_suffix(".json.old")
        try:
            place.replace(aside)
        except OSError as problem:
            raise FileError(f"{error}; and it cannot be renamed to {aside} ({problem})") from error
        terminal.say(f"the old profile is now {aside.name}: {error}")
