"""Pages of docs/: their generated tables, written anew from what is kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def write(name: str) -> None:
    """Write the generated tables of a page anew, as docs/generate.py has them, and tell it.

    Args:
        name: of the page's file, as docs/ has it.
    """
    place = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert place is not None
    assert place.loader is not None
    generate = importlib.util.module_from_spec(place)
    place.loader.exec_module(generate)
    page = (DOCS / name).resolve()
    page.write_text(generate.filled(page.read_text()))
    print(f"written: {page}")
