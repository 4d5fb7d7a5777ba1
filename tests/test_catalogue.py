"""Functions found by the name of their file, in a folder made for the test."""

import sys

import pytest

from nestling import ModelError, methods, rankers, search
from nestling.catalogue import Catalogue, options

FILES = {
    "__init__": "",
    "slow_cook": "def slow_cook(pot, *, hours=1, heat=2):\n    return hours\n",
    "fry": "def fry(pot):\n    yield pot\n",
    "spoons": "def stir(pot): ...\n",  # what the others share
    "fork": "fork = 4\n",
}


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    folder = tmp_path / "kitchen"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "kitchen"]:
        del sys.modules[name]


def test_what_is_found_are_files_with_a_function_of_their_name(kitchen):
    found = Catalogue("kitchen", "recipe")
    assert found.names() == ["fry", "slow-cook"]
    assert found.find("slow-cook")(None, hours=3) == 3
    assert Catalogue("kitchen", "recipe", function="stir").names() == ["spoons"]
    assert Catalogue("kitchen", "recipe", generator=True).names() == ["fry"]


def test_one_is_found_without_loading_the_others(kitchen):
    (kitchen / "broken.py").write_text("import no_such_module_anywhere\n")
    found = Catalogue("kitchen", "recipe")
    assert found.find("fry").__name__ == "fry"
    assert "kitchen.slow_cook" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        found.names()  # a file that cannot be loaded is not passed over in silence


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slow-cok", "unknown dish 'slow-cok'; did you mean 'slow-cook'.*the dishes are fry, slow"),
        ("slow_cook", "did you mean 'slow-cook'"),  # there is one spelling
        ("spoons", "unknown dish 'spoons'"),
        ("fork", "unknown dish 'fork'"),
        ("fry.fry", "unknown dish"),
        ("", "unknown dish ''"),
        (3, "unknown dish 3"),
        (["fry"], "unknown dish"),
    ],
)
def test_other_names(kitchen, name, message):
    with pytest.raises(ModelError, match=message):
        Catalogue("kitchen", "dish", plural="dishes").find(name)


def test_options(kitchen):
    dishes = Catalogue("kitchen", "dish")
    slow, fry = dishes.find("slow-cook"), dishes.find("fry")
    assert options(slow) == ["hours", "heat"]
    assert options(fry) == []
    dishes.check_options("slow-cook", slow, {"heat": 1})
    dishes.check_options("fry", fry, {})
    wrong = r"the dish 'slow-cook' has no option 'haet'; did you mean 'heat'.*are hours, heat"
    with pytest.raises(ModelError, match=wrong):
        dishes.check_options("slow-cook", slow, {"haet": 1})
    with pytest.raises(ModelError, match="its options are none"):
        dishes.check_options("fry", fry, {"pot": 1})


@pytest.mark.parametrize("folder", [methods, rankers, search])
def test_all_that_are_found_can_be_had(folder):
    assert folder.names() == sorted(folder.names())
    for name in folder.names():
        assert folder.find(name).__name__ == name.replace("-", "_")
