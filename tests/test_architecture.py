"""The structure: imports run one way, names are documented, importing is light."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nestling

ROOT = Path(nestling.__file__).parent

# Top to bottom: a part may import those above it, never those below.
PAGE = (ROOT.parent / "docs" / "architecture.md").read_text()
ORDER = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", PAGE, re.MULTILINE)


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "nestling":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("nestling."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("nestling.")}
    return found & {part(p) for p in ROOT.rglob("*.py")}


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def test_every_part_has_a_place_in_the_order():
    assert {part(path) for path in FILES} - {"__main__"} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = part(path)
    if own == "__main__":
        return
    above = set(ORDER[: ORDER.index(own) + 1])
    assert imported(path) <= above, f"{own} imports {sorted(imported(path) - above)} from below"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 620


def test_functions_stay_short():
    long = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                doc = ast.get_docstring(node, clean=False)
                lines = node.end_lineno - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
                if lines > 60:
                    long.append(f"{path.name}:{node.lineno} {node.name} ({lines})")
    assert not long


@pytest.mark.parametrize("name", nestling.__all__)
def test_public_names_are_documented(name):
    assert getattr(nestling, name).__doc__
    page = (ROOT.parent / "docs" / "api.md").read_text()
    assert f"nestling.{name}" in page or name == "axes"


def test_public_api_fits_on_a_screen():
    assert len(nestling.__all__) <= 36


def test_no_pickle_anywhere():
    for path in FILES:
        words = {
            node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)
        }
        assert not words & {"pickle", "cloudpickle", "joblib", "dill"}
        assert "torch.save(" not in path.read_text(), path
        assert "torch.load(" not in path.read_text(), path


def test_no_test_imports_a_conftest():
    """Every folder has one; which of them the name means depends on what was collected before."""
    for path in (ROOT.parent / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) conftest\b", path.read_text(), re.M), path


def test_import_loads_nothing_heavy_and_changes_no_global_state():
    code = (
        "import sys, warnings, torch\n"
        "before = (torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters))\n"
        "import nestling\n"
        "after = (torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters))\n"
        "assert before == after\n"
        "heavy = {'matplotlib', 'sklearn', 'scipy', 'typer', 'torchvision', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_module_imports_alone():
    for path in FILES:
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        importlib.import_module(name.removesuffix(".__init__"))
