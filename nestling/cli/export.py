"""`nestling export`: a subnet as a file that other software runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestling.cli import terminal
from nestling.cli.options import AsJson, File, ModelArgs, OwnModel, examples, opened
from nestling.report.units import human_bytes, human_percent

if TYPE_CHECKING:
    from nestling.exporters.certificate import Certificate


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples(
            "nestling export model.nest --subnet m25 --to onnx",
            "nestling export model.nest --subnet m25 --to openvino --out small.xml --data digits",
        )
    )(export)


def export(
    file: File,
    subnet: Annotated[
        str | None, typer.Option(help="Name of the subnet. (default: the full net)")
    ] = None,
    to: Annotated[
        str, typer.Option("--to", help="onnx, openvino, torch-export or safetensors.")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The new file. (default: FILE-SUBNET, beside FILE)")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A data set whose test pictures both are tried on.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Where data sets are. (default: $NESTLING_DATA)")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Largest difference, as a share of the largest output."),
    ] = None,
    model: OwnModel = None,
    arg: ModelArgs = None,
    json: AsJson = False,
) -> None:
    """Write a subnet for other software, run it, and certify that it computes the same."""
    from nestling import exporters
    from nestling.exporting import certificate_of
    from nestling.exporting import export as write

    exporter = exporters.find(to)
    menu = opened(file, model, arg).menu
    name = (menu.full if subnet is None else menu[subnet]).name
    path = out or file.with_name(f"{file.stem}-{name}{exporter.suffix}")
    if not path.suffix:
        path = path.with_name(f"{path.name}{exporter.suffix}")
    batches = None if data is None else _batches(data, data_dir)
    terminal.say(f"exporting {name} to {to}, which takes some seconds")
    found = write(menu, path, to=to, subnet=name, data=batches, tolerance=tolerance)
    if json:
        terminal.put_json({"file": str(path), **found.to_json()})
        return
    _write(found, path)
    terminal.say(f"certificate: {certificate_of(path)}")


def _batches(name: str, data_dir: str | None) -> Any:
    from nestling import data

    return data.load(name, data_dir).test_batches(256)


def _write(found: Certificate, path: Path) -> None:
    size = sum(file["bytes"] for file in found.files.values())
    terminal.put(f"{path}: {human_bytes(size)} in {', '.join(found.files)}")
    sizes = ", ".join(str(each.batch) for each in found.differences)
    terminal.put(
        f"largest difference from the subnet: {found.absolute:.2g} ({found.relative:.2g} of the "
        f"largest output), on batches of {sizes}"
    )
    if found.accuracy is not None:
        both = found.accuracy
        terminal.put(
            f"accuracy: {human_percent(both['export'])}, the subnet's is "
            f"{human_percent(both['subnet'])}"
        )
