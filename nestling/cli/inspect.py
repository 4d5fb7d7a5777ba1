"""`nestling inspect`: what is elastic in a model, what is frozen and why, what to do about it."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from nestling.cli import terminal
from nestling.cli.options import AsJson, ModelArgs, examples
from nestling.report.units import human_count

Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]SHAPE",
        help="Shape of an example input, the batch first, such as 1,3,32,32 or 1,16:int64, or "
        "mask=1,16 for a keyword; once for each input. (default: the builder's usual size)",
    ),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY", help="A key or index of what the model returns that you need; repeatable."
    ),
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="An axis, module or parameter to keep whole; repeatable."),
]
Tie = Annotated[
    list[str] | None,
    typer.Option(metavar="AXIS,AXIS", help="Axes to cut together; repeatable."),
]
Step = Annotated[
    int | None, typer.Option(min=1, help="What counts go in. (default: hardware-friendly)")
]
One = Annotated[
    str | None, typer.Option(metavar="NAME", help="Show one axis: every dimension it cuts.")
]
All = Annotated[bool, typer.Option("--all", help="Show like axes of several layers one by one.")]


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples(
            "nestling inspect resnet20",
            "nestling inspect resnet20 --axis layer2",
            "nestling inspect resnet18 --arg num_classes=10 --arg stem=cifar --freeze 'layer1*'",
            "nestling inspect mynet.py:make_model --input 1,3,224,224",
            "nestling inspect bert.py:make --input input_ids=2,16:int64 --outputs logits --json",
        )
    )(inspect)


def inspect(
    target: Annotated[
        str, typer.Argument(help="A builder's name such as resnet20, or FILE.py:function.")
    ],
    inputs: Inputs = None,
    arg: ModelArgs = None,
    outputs: Outputs = None,
    freeze: Freeze = None,
    tie: Tie = None,
    step: Step = None,
    axis: One = None,
    everything: All = False,
    json: AsJson = False,
) -> None:
    """Show what is elastic in a model, what is frozen and why, and what to do about it."""
    from nestling import description
    from nestling.supernet import Supernet

    model, args, kwargs = _model_and_inputs(target, arg or [], inputs or [])
    started = time.perf_counter()
    net = Supernet(
        model,
        *args,
        kwargs=kwargs,
        outputs=_outputs(outputs or []),
        freeze=freeze or [],
        tie=[[name.strip() for name in group.split(",")] for group in tie or []],
        step=step,
    )
    seconds = time.perf_counter() - started
    terminal.say(
        f"{target} on {_shapes(args, kwargs)}: every axis found and proven in {seconds:.1f} s"
    )
    space = net.space
    if axis is not None:
        _check_axis(space, axis)
    if json:
        facts = description.axis_facts(space, axis) if axis is not None else _facts(target, space)
        terminal.put_json(facts)
    elif axis is not None:
        terminal.put(description.describe_axis(space, axis))
    else:
        terminal.put(_headline(target, space))
        terminal.put(description.describe(space, fold=not everything))


def _headline(target: str, space: Any) -> str:
    return (
        f"{target}: {human_count(space.params(space.full))} parameters, "
        f"{human_count(space.macs(space.full))} MACs; the narrowest uniform subnet has "
        f"{space.macs(space.uniform[0]) / max(space.macs(space.full), 1):.1%} of the MACs"
    )


def _model_and_inputs(
    target: str, arguments: list[str], inputs: list[str]
) -> tuple[Any, list[Any], dict[str, Any]]:
    """Return the model, its positional and its keyword inputs, as the options name them."""
    from nestling import target as targets
    from nestling.errors import ModelError

    model = targets.make(target, targets.arguments(arguments))
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in inputs:
        key, equals, shape = text.rpartition("=")
        if not equals:
            args.append(targets.example(text))
        elif not key.isidentifier() or key in kwargs:
            raise ModelError(
                f"a keyword input is NAME=SHAPE, each name once, not {text!r}; for example "
                "input_ids=2,16:int64"
            )
        else:
            kwargs[key] = targets.example(shape, key)
    if not inputs:
        args.append(targets.usual_input(model))
    return model, args, kwargs


def _shapes(args: list[Any], kwargs: dict[str, Any]) -> str:
    named = [("", tensor) for tensor in args] + [(f"{key}=", t) for key, t in kwargs.items()]
    return ", ".join(f"{key}{'x'.join(map(str, tensor.shape))}" for key, tensor in named)


def _outputs(keys: list[str]) -> Any:
    """Return the supernet's `outputs=`: indices where they are whole numbers, else keys."""
    found = [int(key) if key.isdecimal() else key for key in keys]
    return (found if len(found) > 1 else found[0]) if found else None


def _check_axis(space: Any, name: str) -> None:
    from nestling.errors import SpecError, did_you_mean

    if name not in space.axes:
        listed = ", ".join(list(space.axes)[:8]) + (" ..." if len(space.axes) > 8 else "")
        near = did_you_mean(name, space.axes)
        raise SpecError(f"--axis names the unknown axis {name!r}{near}; the axes are {listed}")


def _facts(target: str, space: Any) -> dict[str, Any]:
    from nestling import description

    return {
        "model": target,
        "macs": space.macs(space.full),
        "params": space.params(space.full),
        "bytes": space.bytes(space.full),
        "elastic_share": space.elastic_share(),
        "narrowest_macs": space.macs(space.uniform[0]),
        "axes": {name: description.axis_facts(space, name) for name in space.axes},
        "frozen": [asdict(row) for row in space.frozen],
        "causes": [description.cause_facts(cause) for cause in description.causes(space)],
        "notes": list(space.notes),
    }
