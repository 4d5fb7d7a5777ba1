"""`nestling profile`: measure a menu on this machine and keep the figures beside the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nestling.cli import terminal
from nestling.cli.options import (
    AsJson,
    File,
    ModelArgs,
    Narrow,
    OwnModel,
    Seconds,
    Threads,
    examples,
    opened,
    read_header_id,
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples(
            "nestling profile model.nest",
            "nestling profile model.nest --batch 1 --batch 32 --threads 1",
            "nestling profile model.nest --narrow 60",
        )
    )(profile)


def profile(
    file: File,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=65536, help="Examples a call; repeatable. (default: 1)"),
    ] = None,
    threads: Threads = None,
    seconds: Seconds = 1.0,
    narrow: Narrow = 0,
    model: OwnModel = None,
    arg: ModelArgs = None,
    json: AsJson = False,
) -> None:
    """Measure every subnet here, so that a latency_ms budget can be answered on this machine."""
    from nestling import experiment, modelfile, report
    from nestling.profile import beside

    modelfile.describe(file)  # a damaged model file is told before anything is moved
    _set_damaged_aside(file)
    menu = opened(file, model, arg).menu
    with experiment.threads(threads or 0):
        for examples_a_call in dict.fromkeys(batch or [1]):
            key = menu.key(examples_a_call)
            terminal.say(f"measuring {len(menu)} subnets: {key}")
            menu = menu.measured(examples_a_call, seconds=seconds)
            menu.profile.save(beside(file))
            if narrow:
                terminal.say("measuring which counts are worth having")
                menu = menu.narrowed(examples_a_call, seconds=narrow)
                menu.profile.save(beside(file))
            if not json:
                terminal.put_page(report.page_of(menu, str(key), key=key))
        terminal.say(f"written to {beside(file)}")
    if json:
        from nestling import container

        terminal.put_json(container.read_json(beside(file)))


def _set_damaged_aside(file: Path) -> None:
    """Rename a profile that cannot be used, since this verb is the cure that its error names."""
    from nestling.errors import FileError
    from nestling.profile import Profile, beside

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
