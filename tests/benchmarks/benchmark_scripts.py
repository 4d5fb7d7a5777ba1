"""The scripts of benchmarks/, opened as modules.

Not in `conftest.py`: every folder of tests has one, and which of them an import of that name finds
depends on the folders that were collected before.
"""

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent.parent / "benchmarks"


def opened(name):
    """Return a script under another name than the package's own modules have."""
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
