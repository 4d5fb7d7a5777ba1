"""Exporting: a subnet to a file that other software runs, compared with the subnet before it stays.

Deployment tools are known for exports that compute something else than the net did in training.
So every file is opened again and run; what differs beyond rounding is removed, and the rest gets a
certificate beside it that says how far apart the two are.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from nestling import exporters, strictjson
from nestling.binding import binding, is_calibrated, order_of
from nestling.errors import FileError, ModelError, NestlingError, SpecError, brief
from nestling.evaluation import check_rereadable
from nestling.exporters import Exporter, Subject
from nestling.exporters.certificate import (
    Certificate,
    accuracies,
    certified,
    differences,
    tolerance_of,
)
from nestling.extras import imported, versions
from nestling.menu import Menu
from nestling.runtime import LoadedModel
from nestling.signature import Signature

ALWAYS = ("torch", "nestling")  # packages whose versions every certificate names


def export(
    model: nn.Module | LoadedModel | Menu,
    path: str | Path,
    *,
    to: str = "onnx",
    subnet: str | None = None,
    inputs: Any = None,
    data: Iterable[Any] | None = None,
    tolerance: float | None = None,
) -> Certificate:
    """Write a subnet as a file that runs without Nestling, and a certificate beside it.

    The subnet is packed, written, opened again with the target's own software and run on batches of
    several sizes, beside the subnet itself. A file that differs is removed; nothing is overwritten.

    Args:
        model: a loaded model or menu; or a subnet, or any module.
        path: of the file; the target's suffix is added where it has none.
        to: the target: onnx, openvino, safetensors or torch-export; see `nestling.exporters`.
        subnet: the entry's name, for a loaded model or menu; the full net without one.
        inputs: for a module: a tensor or tuple of tensors by place, or a mapping by keyword. They
            are compared, too. A menu knows what its inputs look like.
        data: `(inputs, targets)` batches, on which the accuracy of both is measured.
        tolerance: largest difference that is allowed, as a share of the largest output; by default
            what rounding explains: 1e-4 in float32.

    Returns:
        What `PATH.certificate.json` says.

    Raises:
        ModelError: an unknown target, a package that is missing, or a model that cannot be
            converted, or whose file computes something else.
        SpecError: there is no such subnet, or its norm statistics are not its own.
        FileError: a file of that name exists, or cannot be written.

    Example:
        >>> nestling.export(nestling.load("model.nest"), "m25.onnx", subnet="m25").relative
        2.1e-07
    """
    exporter = exporters.find(to)
    if data is not None:
        check_rereadable(data)
    for package in exporter.packages:
        imported(package, exporter.extra, f"exporting to {to}")
    final = _place(Path(path), exporter)
    module, signature, about = _source(model, subnet, inputs)
    given = None if inputs is None else _arguments(inputs)
    subject = Subject.of(module, signature)
    allowed = tolerance_of(subject.module) if tolerance is None else tolerance
    with _workshop(final) as folder:
        file = folder / final.name
        _written(exporter, subject, file)
        run = _opened(exporter, subject, file)
        found = _compared(subject, run, given, data, exporter)
        files = sorted(folder.iterdir())
        certificate = certified(
            subject,
            to,
            files,
            about,
            differences=tuple(found),
            tolerance=allowed,
            accuracy=None if data is None else accuracies(subject, run, data),
            versions=versions([*ALWAYS, *exporter.packages]),
        )
        if not certificate.relative <= allowed:
            raise ModelError(
                f"an export computes what the subnet computes, within {allowed:g} of the largest "
                f"output, but this {to} file differs by {certificate.relative:.3g}; it was "
                "removed: choose another target, or allow more with tolerance="
            )
        strictjson.write(folder / certificate_of(final).name, certificate.to_json())
        del run  # it may hold the files open
        _moved(folder, final)
    return certificate


def certificate_of(path: Path) -> Path:
    """Return where the certificate of an exported file lies.

    Example:
        >>> certificate_of(Path("m25.onnx")).name
        'm25.onnx.certificate.json'
    """
    return path.with_name(f"{path.name}.certificate.json")


def _place(path: Path, exporter: Exporter) -> Path:
    """Return the path of the file to write.

    Raises:
        FileError: its suffix is another one, or the file exists.
    """
    if not path.suffix:
        path = path.with_name(f"{path.name}{exporter.suffix}") if path.name else path
    if path.suffix != exporter.suffix:
        raise FileError(
            f"a file for {exporter.name} ends in {exporter.suffix}, but the path is {path}; rename "
            "it, or choose another target"
        )
    _check_free(path, [path, certificate_of(path)])
    return path


def _check_free(final: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise FileError(
                f"an export never overwrites anything, and {str(path)!r} exists; choose another "
                f"path than {final}, or remove it"
            )


def _source(
    model: Any, subnet: str | None, inputs: Any
) -> tuple[nn.Module, Signature, dict[str, Any]]:
    """Return the module to export, its inputs, and where it is from."""
    if isinstance(model, LoadedModel | Menu):
        menu = model.menu if isinstance(model, LoadedModel) else model
        entry = menu.full if subnet is None else menu[subnet]
        about = {
            "name": entry.name,
            "spec": dict(entry.spec),
            "order": menu.order,
            "model": type(menu.net.model).__name__,
            "id": menu.profile.file_id,
        }
        return menu.module(entry.name), menu.net.signature, about
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"export takes a loaded model, a menu or a subnet, not {type(model).__name__}; of a "
            "supernet, export net.subnet(spec)"
        )
    if subnet is not None:
        raise ModelError("subnet= names an entry of a menu, and this is a module; leave it out")
    if not is_calibrated(model):
        raise SpecError(
            "an export keeps norm statistics for good, and this subnet's are mere slices of the "
            "full net's; call net.recalibrate(subnet, batches) first"
        )
    if inputs is None:
        raise ModelError(
            "a module does not say what it takes; pass example inputs, such as "
            "inputs=torch.randn(1, 3, 224, 224)"
        )
    tie = binding(model)
    about = {
        "name": None,
        "spec": None if tie is None else dict(tie.counts),
        "order": order_of(model),
        "model": type(model).__name__,
        "id": None,
    }
    args, kwargs = _arguments(inputs)
    return model, Signature.of(args, kwargs), about


def _arguments(inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


@contextmanager
def _workshop(final: Path) -> Any:
    """Make a folder beside the file to come, which is gone when the block ends."""
    folder = final.parent / f".nestling-{secrets.token_hex(8)}"
    try:
        folder.mkdir()
    except OSError as problem:
        raise FileError(
            f"cannot write {final}: {problem.strerror or problem}; choose a folder that exists and "
            "that you may write to"
        ) from problem
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _written(exporter: Exporter, subject: Subject, file: Path) -> None:
    try:
        exporter.write(subject, file)
    except OSError as problem:
        raise FileError(
            f"cannot write {file.name}: {problem.strerror or problem}; free some space, or choose "
            "another folder"
        ) from problem


def _opened(exporter: Exporter, subject: Subject, file: Path) -> exporters.Call:
    try:
        return exporter.reopen(file, subject)
    except NestlingError:
        raise
    except Exception as error:
        raise ModelError(
            f"the {exporter.name} file was written, but cannot be opened: {brief(error)}; it was "
            "removed: choose another target"
        ) from error


def _compared(
    subject: Subject, run: exporters.Call, given: Any, data: Any, exporter: Exporter
) -> Any:
    try:
        return differences(subject, run, given, data)
    except NestlingError:
        raise
    except Exception as error:
        raise ModelError(
            f"the {exporter.name} file was written, but does not run: {brief(error)}; it was "
            "removed: choose another target, and check that data and inputs= fit "
            f"{subject.interface.signature}"
        ) from error


def _moved(folder: Path, final: Path) -> None:
    """Give the finished files their names: the main one last, so that it is never there alone."""
    files = sorted(folder.iterdir(), key=lambda file: file.name == final.name)
    places = [final.with_name(file.name) for file in files]
    _check_free(final, places)
    done: list[Path] = []
    try:
        for file, place in zip(files, places, strict=True):
            file.rename(place)
            done.append(place)
    except OSError as problem:
        for place in done:
            place.unlink(missing_ok=True)
        raise FileError(
            f"cannot write {final}: {problem.strerror or problem}; choose another folder"
        ) from problem
