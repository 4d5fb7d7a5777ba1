"""`nestling inspect`: what is elastic in a model, what is frozen and why."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from nestling.cli import terminal
from nestling.cli.options import AsJson, ModelArgs, examples
from nestling.report.units import human_count


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples(
            "nestling inspect resnet20",
            "nestling inspect resnet18 --arg num_classes=10 --arg stem=cifar",
            "nestling inspect mynet.py:make_model --input 1,3,224,224",
            "nestling inspect mynet.py:make_model --input 2,16:int64 --json",
        )
    )(inspect)


def inspect(
    target: Annotated[
        str, typer.Argument(help="A builder's name such as resnet20, or FILE.py:function.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SHAPE",
            help="Shape of an example input, the batch first, such as 1,3,32,32 or 1,16:int64; "
            "once for each input. (default: the builder's usual size)",
        ),
    ] = None,
    arg: ModelArgs = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="What counts go in. (default: hardware-friendly)")
    ] = None,
    json: AsJson = False,
) -> None:
    """Show what is elastic in a model, and what is frozen and why."""
    from nestling import target as targets
    from nestling.supernet import Supernet

    model = targets.make(target, targets.arguments(arg or []))
    given = [targets.example(shape) for shape in inputs or []] or [targets.usual_input(model)]
    started = time.perf_counter()
    net = Supernet(model, *given, step=step)
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in given)
    terminal.say(
        f"{target} on {shapes}: every axis found and proven in "
        f"{time.perf_counter() - started:.1f} s"
    )
    if json:
        terminal.put_json(_facts(target, net))
        return
    space = net.space
    terminal.put(
        f"{target}: {human_count(space.params(space.full))} parameters, "
        f"{human_count(space.macs(space.full))} MACs; the narrowest uniform subnet has "
        f"{space.macs(space.uniform[0]) / max(space.macs(space.full), 1):.1%} of the MACs"
    )
    terminal.put(str(space))


def _facts(target: str, net: Any) -> dict[str, Any]:
    space = net.space
    return {
        "model": target,
        "macs": space.macs(space.full),
        "params": space.params(space.full),
        "bytes": space.bytes(space.full),
        "elastic_share": space.elastic_share(),
        "axes": {
            axis.name: {"size": axis.size, "kind": axis.kind, "counts": list(axis.counts)}
            for axis in space.axes.values()
        },
        "frozen": [asdict(row) for row in space.frozen],
        "notes": list(space.notes),
    }
