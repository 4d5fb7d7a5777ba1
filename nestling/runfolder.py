"""The run folder: everything that a run leaves behind, in one place that no other run touches."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nestling import container, report, strictjson
from nestling.checkpoint import NAME as CHECKPOINT
from nestling.errors import FileError
from nestling.files import write_atomically
from nestling.menu import Menu
from nestling.profile import Key, machine
from nestling.progress import Reporter
from nestling.report.own import Own
from nestling.report.rows import Page

HOME = Path("runs")


class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder: `config.json`, `environment.json`, `metrics.csv`, `log.txt`,
            `checkpoint.safetensors`, `model.nest` with `model.profile.json`, `pareto.png`,
            `skyline.png` and `report.html`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, name: str, out: Path | None, config: Mapping[str, Any]) -> RunFolder:
        """Make a new folder: `out`, or the first free one of `runs/NAME-1`, `runs/NAME-2` ...

        Raises:
            FileError: `out` holds something already, or cannot be made.
        """
        folder = cls(new_folder(name, out))
        strictjson.write(folder.path / "config.json", dict(config))
        strictjson.write(folder.path / "environment.json", machine())
        return folder

    @classmethod
    def open(cls, out: Path) -> tuple[RunFolder, dict[str, Any]]:
        """Return the folder of a run that was broken off, and its configuration.

        Raises:
            FileError: there is no such run, or it is finished.
        """
        folder = cls(out)
        if not (out / "config.json").is_file():
            raise FileError(
                f"there is no run in {str(out)!r} to resume (no config.json); leave out --resume "
                "to start one there"
            )
        if folder.model.exists():
            raise FileError(
                f"the run in {str(out)!r} is finished, so there is nothing to resume; look at it "
                f"with `nestling info {folder.model}`"
            )
        config = strictjson.read(out / "config.json", cure="start the run in a new folder")
        if not isinstance(config, dict):
            raise FileError(f"{out / 'config.json'} is no configuration; start in a new folder")
        return folder, config

    @property
    def checkpoint(self) -> Path:
        """Where the training saves its state."""
        return self.path / CHECKPOINT

    @property
    def model(self) -> Path:
        """The model file."""
        return self.path / "model.nest"

    def write_metrics(self) -> None:
        """Write `metrics.csv`: one row an epoch, as the checkpoint has them."""
        if not self.checkpoint.exists():
            return
        rows = container.read_header(self.checkpoint)["run"]["log"]
        text = io.StringIO()
        writer = csv.DictWriter(text, ["stage", "epoch", "loss"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / "metrics.csv", text.getvalue().encode())

    def write_report(
        self,
        menu: Menu,
        title: str,
        *,
        key: Key,
        facts: Mapping[str, str],
        own: Own | None = None,
    ) -> Page:
        """Draw the pictures, write the HTML report, and return what they show.

        Args:
            menu: with its figures.
            title: the head line.
            key: which profile to show.
            facts: how the menu was made, beyond what it says itself.
            own: the function that makes the model, where it is of the user's own class.
        """
        told = {**facts, "file": str(self.model)}
        page = report.page_of(menu, title, key=key, facts=told, own=own)
        pictures = {
            "Accuracy against measured latency": report.pareto(page, self.path / "pareto.png"),
            "Widths of every subnet": report.skyline(page, self.path / "skyline.png"),
        }
        report.report_html(page, pictures, self.path / "report.html")
        return page

    def reporter(self, earlier: Diary | None = None) -> Reporter:
        """Return a reporter that also keeps what it says, and said earlier, in `log.txt`."""
        logger = _Logger(self.path / "log.txt")
        for line in earlier.lines if earlier is not None else ():
            logger.keep(line)
        return logger


def new_folder(name: str, out: Path | None) -> Path:
    """Make a new folder: `out`, or the first free one of `runs/NAME-1`, `runs/NAME-2` ...

    Raises:
        FileError: `out` holds something already, or cannot be made.
    """
    try:
        if out is None:
            return _next_free(name)
        check_free(out)
        out.mkdir(parents=True, exist_ok=True)
        return out
    except OSError as error:
        raise FileError(
            f"a run needs a folder of its own, but {str(out or HOME)!r} cannot be made "
            f"({error.strerror or error}); choose another one with --out"
        ) from error


def check_free(out: Path) -> None:
    """Check that a folder does not exist yet, or is empty.

    Raises:
        FileError: it holds something, or is a file.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        resume = (
            "go on with that run with --resume, or "
            if (out / "config.json").is_file() and not (out / "model.nest").exists()
            else ""
        )
        raise FileError(
            f"a run never overwrites anything, and {str(out)!r} exists; {resume}choose another "
            "folder with --out"
        )


class Diary(Reporter):
    """A reporter that remembers what it said, for a folder that is made later."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Show a line of text and remember it with its time."""
        super().say(text)
        self.keep(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def keep(self, line: str) -> None:
        """Remember a line."""
        self.lines.append(line)


class _Logger(Diary):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def keep(self, line: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError:  # a full disk must not end a training because of its diary
            pass


def _next_free(name: str) -> Path:
    """Make and return the first folder of its name that is free; safe beside other runs."""
    number = 1
    while True:
        path = HOME / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
