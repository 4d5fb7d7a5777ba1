"""Which picture files a folder holds, and what is on them: one folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nestling.data.files import PictureFiles, usable_workers
from nestling.data.folder import FolderDataset
from nestling.data.pictures import ENDINGS, Framing, check_pillow
from nestling.errors import DataError, did_you_mean

ANNOTATIONS = "val_annotations.txt"


class Listing(NamedTuple):
    """Files, by where they are in the folder of the data set, and the class of each."""

    names: list[bytes]
    labels: list[int]


def find_folder(folder: Path, own: str, *, name: str, source: str) -> Path:
    """Return the folder that has `train` and `val`: one of its own in `folder`, or else `folder`.

    Args:
        folder: where data sets are, or this one alone is.
        own: how the folder is called where it is one of many.
        name: of the data set.
        source: where a person gets it.

    Raises:
        DataError: there is none.
    """
    for where in (folder / own, folder):
        if (where / "train").is_dir() and (where / "val").is_dir():
            return where
    raise DataError(
        f"data set {name} is not in {folder}: it needs train/CLASS/*.JPEG and val/CLASS/*.JPEG "
        f"there or in its folder {own}, and is not fetched for you; get it from {source}, or name "
        "the folder that has it with --data-dir or the environment variable NESTLING_DATA"
    )


def read_folder(name: str, where: Path, framing: Framing) -> FolderDataset:
    """Return the data set of a folder with `train/CLASS/` and `val/CLASS/`.

    The classes are the folders of `train`, in alphabetical order. Pictures are right in a class's
    folder, or in `images` in there. The test pictures, in `val`, may also be all in `val/images`,
    with their classes in `val/val_annotations.txt`, as Tiny-ImageNet has them.

    Raises:
        DataError: a class has no picture, or a test picture has no class; Pillow is not installed.
    """
    check_pillow(name)
    classes = _folders(where / "train")
    if not classes:
        raise DataError(
            f"{where / 'train'} must hold a folder for each class, but it has none; unpack the "
            "training pictures there"
        )
    numbers = {each: number for number, each in enumerate(classes)}
    train = list_classes(where, "train", numbers)
    annotated = (where / "val" / ANNOTATIONS).is_file() and (where / "val" / "images").is_dir()
    test = list_annotated(where, numbers) if annotated else list_classes(where, "val", numbers)
    return FolderDataset(
        name=name,
        files=PictureFiles(
            where, np.array(train.names + test.names), framing, workers=usable_workers()
        ),
        labels=torch.tensor(train.labels + test.labels),
        trained=len(train.names),
        classes=tuple(classes),
    )


def list_classes(where: Path, part: str, numbers: Mapping[str, int]) -> Listing:
    """List the pictures of a folder that has one folder for each class.

    Args:
        where: folder of the data set.
        part: "train" or "val".
        numbers: of the classes.

    Raises:
        DataError: a folder is of no class, or has no picture.
    """
    listing = Listing([], [])
    for name in _folders(where / part):
        if name not in numbers:
            raise DataError(
                f"{where / part / name} is of no class{did_you_mean(name, numbers)}: the classes "
                f"are the {len(numbers)} folders of {where / 'train'}; move it away"
            )
        found = [
            file
            for inner in (f"{part}/{name}", f"{part}/{name}/images")
            for file in _pictures(where, inner)
        ]
        if not found:
            raise DataError(
                f"{where / part / name} must hold pictures ({', '.join(ENDINGS)}), but it has "
                "none; unpack them there, or remove the folder"
            )
        listing.names.extend(found)
        listing.labels.extend([numbers[name]] * len(found))
    if not listing.names:
        raise DataError(
            f"{where / part} must hold a folder for each class, but it has none; sort its pictures "
            "into folders named as those of train"
        )
    return listing


def list_annotated(where: Path, numbers: Mapping[str, int]) -> Listing:
    """List the pictures of `val/images`, whose classes are in `val/val_annotations.txt`.

    Its lines are the file, its class and the corners of a box, with tabs between.

    Raises:
        DataError: a line is damaged, or the lines are not of the same pictures as there are.
    """
    path = where / "val" / ANNOTATIONS
    found = {os.path.basename(file): file for file in _pictures(where, "val/images")}
    labels: dict[bytes, int] = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        if name not in numbers or os.fsencode(file) not in found:
            raise DataError(
                f"line {number} of {path} must name a picture of {where / 'val' / 'images'} and "
                f"its class, a folder of {where / 'train'}, with a tab between, not {line!r:.80}; "
                "unpack the data set again"
            )
        labels[os.fsencode(file)] = numbers[name]
    if absent := found.keys() - labels.keys():
        raise DataError(
            f"{path} must have a line for every picture, but {len(absent)} have none, such as "
            f"{os.fsdecode(min(absent))!r}; unpack the data set again"
        )
    if not found:
        raise DataError(f"{where / 'val' / 'images'} holds no pictures; unpack the data set again")
    files = sorted(found)
    return Listing([found[file] for file in files], [labels[file] for file in files])


def _folders(folder: Path) -> Sequence[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _pictures(where: Path, inner: str) -> Iterable[bytes]:
    """Return the picture files right in a folder, as seen from `where`; it may be absent."""
    try:
        with os.scandir(where / inner) as entries:
            names = [entry.name for entry in entries if entry.name.lower().endswith(ENDINGS)]
    except FileNotFoundError:
        return []
    return [os.fsencode(f"{inner}/{name}") for name in sorted(names)]
